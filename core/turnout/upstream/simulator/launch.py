"""Start and stop the simulator process from synchronous code."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from ..providers.simulated import SimulatedSpec

# The process imports a handful of modules: 0.2 s here. A loaded machine may take longer.
START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 3.0


class SimulatorError(RuntimeError):
    """The simulator could not be started; the message says why."""


class Simulator:
    """One process for any number of simulated providers.

        with Simulator() as simulator:
            urls = simulator.start({"sim-a": {"seed": 7}})
            urls["sim-a"]      # http://127.0.0.1:PORT/v1

    The process ends with `stop()`, with this process (even by SIGKILL), and by itself never.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self, specs: Mapping[str, dict[str, Any] | SimulatedSpec]) -> dict[str, str]:
        """Start one provider per spec; returns name -> base URL (it ends in `/v1`).

        Raises msgspec.ValidationError for a bad spec and SimulatorError if the process does
        not come up.
        """
        if self._process is not None:
            raise SimulatorError("the simulator is already running")
        providers = {name: msgspec.to_builtins(_checked(spec)) for name, spec in specs.items()}
        self._process = subprocess.Popen(
            # -P: no module of the current directory may stand in for one of ours.
            [sys.executable, "-P", "-m", "turnout.upstream.simulator"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
        )
        try:
            ports = self._hand_over(msgspec.json.encode({"providers": providers}) + b"\n")
        except BaseException:
            self.stop()
            raise
        return {name: f"http://127.0.0.1:{port}/v1" for name, port in ports.items()}

    def stop(self) -> None:
        """End the process and wait for it. May be called twice."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        # SIGTERM too: a process forked from this one may still hold the other end of stdin.
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def __enter__(self) -> Simulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _hand_over(self, order: bytes) -> dict[str, int]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died: the answer below is empty and says so
            process.stdin.write(order)
            process.stdin.flush()
        fd = process.stdout.fileno()
        give_up_at = time.monotonic() + START_TIMEOUT_S
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([fd], [], [], max(0.0, give_up_at - time.monotonic()))
            if not ready:
                raise SimulatorError(f"the simulator did not answer within {START_TIMEOUT_S:g} s")
            part = os.read(fd, 65536)
            if not part:
                raise SimulatorError(f"the simulator ended with code {process.wait()}; see stderr")
            line += part
        return msgspec.json.decode(line, type=dict[str, int])


def _checked(spec: dict[str, Any] | SimulatedSpec) -> SimulatedSpec:
    return spec if isinstance(spec, SimulatedSpec) else msgspec.convert(spec, SimulatedSpec)


def _environment() -> dict[str, str]:
    """Ours, with this very package importable even when it was found through sys.path only."""
    environment = dict(os.environ)
    root = Path(__file__).resolve().parents[3]
    # An installed package is found anyway, and site-packages must not come before the
    # standard library.
    if root.name not in ("site-packages", "dist-packages"):
        paths = [str(root), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment
