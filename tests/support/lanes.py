"""The whole suite runs in several processes side by side, as most of its tests wait for something most of the time.

A test marked `alone` judges time, CPU or memory: it runs while no other does, and after them. What is handed to a process
at a time is a module's tests on one engine, so that what they share is started once.
"""

import contextlib
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

COMPUTING = ("pure", "shape", "twins")  # folders whose tests wait for nothing


def open_lanes(config: pytest.Config) -> None:
    """Before xdist looks at its options: more than one process where the whole suite was asked for, and nobody wants to see it at work."""
    o = config.option
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if not hasattr(config, "workerinput") and whole and o.numprocesses is None and o.capture != "no" and not o.usepdb and not o.collectonly:
        o.numprocesses = len(os.sched_getaffinity(0)) + 2


def configure(config: pytest.Config) -> None:
    folder = getattr(config, "workerinput", {}).get("lanes")
    if folder:
        config.pluginmanager.register(Lane(Path(folder)), "lane")
    elif config.option.dist != "no":
        config.pluginmanager.register(Controller(), "lanes")


def alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def unit(nodeid: str) -> str:
    """A module's tests on one engine."""
    module, _, test = nodeid.partition("::")
    engine = re.search(r"\b(granian|native)\b", test.partition("[")[2])
    return f"{module}::{engine[0] if engine else ''}"


def in_turns(nodeids: list[str]) -> dict[str, float]:
    """Where each unit comes: those that compute are spread evenly among those that wait, and the last one computes."""
    units = list(dict.fromkeys(map(unit, nodeids)))
    computing = [name for name in units if name.split("/")[1] in COMPUTING]
    waiting = [name for name in units if name.split("/")[1] not in COMPUTING]
    return {name: i / len(waiting) for i, name in enumerate(waiting)} | {name: (i + 1) / len(computing) for i, name in enumerate(computing)}


class Scheduler(LoadScopeScheduling):
    def __init__(self, config: pytest.Config, log: Any, alone: Path) -> None:
        config.option.loadscopereorder = False  # our own order, see Lane
        super().__init__(config, log)
        self._file = alone
        self._alone: set[str] = set()

    def schedule(self) -> None:
        self._alone = set(json.loads(self._file.read_text()))
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        return "alone" if nodeid in self._alone else unit(nodeid)


class Controller:
    """The process that hands out tests."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="turnout-tests-")

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["lanes"] = self._folder.name

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Scheduler:
        return Scheduler(config, log, Path(self._folder.name, "alone"))

    def pytest_unconfigure(self) -> None:
        self._folder.cleanup()


class Lane:
    """A process that runs tests."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        place = in_turns([item.nodeid for item in items])
        items.sort(key=lambda item: (alone(item), place[unit(item.nodeid)]))
        # The scheduler sees names only. All processes write the same.
        fresh = self._folder / f"alone.{os.getpid()}"
        fresh.write_text(json.dumps([item.nodeid for item in items if alone(item)]))
        fresh.replace(self._folder / "alone")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Who wants to be alone keeps the door shut until the others have left: else the room would never be empty."""
        mode = fcntl.LOCK_EX if alone(item) else fcntl.LOCK_SH
        with contextlib.ExitStack() as room:
            with locked(self._folder / "door", mode):
                room.enter_context(locked(self._folder / "room", mode))
            return (yield)


@contextlib.contextmanager
def locked(path: Path, mode: int) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, mode)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a child that a test has forked may have the file too
