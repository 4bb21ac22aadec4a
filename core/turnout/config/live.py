"""The config that is being served, and how a new one takes its place: checked as a whole, numbered, or refused.

Used by the supervisor only. It asks `Watch.has_changed` every second or so (and on SIGHUP `Live.reload` at once), and
sends `Live.current` to its workers whenever the number grew. A refused file changes nothing.
"""

import os
from collections.abc import Callable, Iterable

import msgspec

from .load import Loaded
from .problem import ConfigError, Problem

# Read once, when sockets are opened and processes started. A change is taken over, but waits for the next start.
_AT_START = (
    ("listen", "host"),
    ("listen", "port"),
    ("listen", "workers"),
    ("listen", "backlog"),
    ("admin", "host"),
    ("admin", "port"),
    ("state", "dir"),
)


class Swap(msgspec.Struct, frozen=True):
    """How a reload ended. `error` set: the old config stays, `why` says it in one line per problem.

    `changed` is False when the file and its secrets say what they said before; then the number stays too.
    """

    changed: bool
    version: int
    error: ConfigError | None = None
    warnings: list[Problem] = []

    @property
    def why(self) -> str:
        return str(self.error) if self.error else ""


class Live:
    """Holds the newest good config and its number, from 1. `load` reads and checks the file again."""

    def __init__(self, load: Callable[[], Loaded]) -> None:
        self._load = load
        self.current = load()  # a first config that is no good is the caller's to report: nothing runs yet
        self.version = 1

    def reload(self) -> Swap:
        """Reads, checks, swaps. Never raises `ConfigError`: a bad config is an answer, not a failure."""
        try:
            new = self._load()
        except ConfigError as wrong:
            return Swap(False, self.version, wrong)
        old = self.current
        if new.data == old.data and new.secrets == old.secrets:
            return Swap(False, self.version)
        self.current = new
        self.version += 1
        return Swap(True, self.version, None, [*new.warnings, *_waiting(old, new)])


def _waiting(old: Loaded, new: Loaded) -> list[Problem]:
    waiting = [
        Problem(f"{room}.{field}", "changed: holds from the next start on", warning=True)
        for room, field in _AT_START
        if getattr(getattr(old.config, room), field) != getattr(getattr(new.config, room), field)
    ]
    if (old.config.listen.tls is None) != (new.config.listen.tls is None):
        waiting.append(Problem("listen.tls", "changed: holds from the next start on", warning=True))
    return waiting


class Watch:
    """Notices that files changed: the config and the secrets' files. Costs one `stat` per file and question.

    Follows links, since Kubernetes swaps a link to publish a new ConfigMap. No debounce: a half-written file is refused
    by its check, and is seen to change again when the rest arrives.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        self._paths = [os.fspath(path) for path in paths]
        self._seen = self._look()

    @classmethod
    def over(cls, path: str | os.PathLike[str], loaded: Loaded) -> "Watch":
        """Watches a config file and every file that its secrets come from."""
        refs = sorted(ref for ref in loaded.secrets if ref.startswith("file:"))
        return cls([path, *(ref.removeprefix("file:") for ref in refs)])

    def has_changed(self) -> bool:
        """Whether anything differs from the last time this was asked."""
        before, self._seen = self._seen, self._look()
        return before != self._seen

    def _look(self) -> list[tuple[int, int, int]]:
        return [_mark(path) for path in self._paths]


def _mark(path: str) -> tuple[int, int, int]:
    try:
        at = os.stat(path)
    except (OSError, ValueError):
        return (0, 0, 0)  # gone is a state like others: the reload that follows says what is wrong
    return at.st_mtime_ns, at.st_size, at.st_ino
