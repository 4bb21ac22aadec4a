"""What can be wrong with a config, and where: plain records that every file of this room makes and the CLI prints."""

from collections.abc import Callable, Iterable

import msgspec

Path = tuple[str | int, ...]  # ("routes", 0, "targets", 1, "provider")
Locate = Callable[[Path], tuple[int | None, int | None]]  # path -> line and column, from 1; None: not known

_MAX_KEY = 60  # characters of a foreign key shown in a path: what stands there may be anything, also a pasted secret


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong (or, with `warning`, doubtful) and where it stands.

    `message` never holds a value of the config that could be a secret: only names, types, limits and advice.
    """

    path: str
    message: str
    line: int | None = None
    column: int | None = None
    warning: bool = False

    def show(self, name: str) -> str:
        """`turnout.yaml:12: routes[0].timeouts.ttft_ms: expected int, got str`, always one line."""
        where = f"{name}:{self.line}" if self.line else name
        return ": ".join(one_line(part) for part in (where, self.path, self.message) if part)


class ConfigError(Exception):
    """A config that is refused as a whole. `problems` holds all that was found, in the order of the file."""

    def __init__(self, problems: Iterable[Problem], name: str = "config") -> None:
        found = list(problems)
        self.problems: list[Problem] = sorted(found, key=lambda p: (p.line or 0, p.column or 0))
        self.name = name
        super().__init__("\n".join(problem.show(name) for problem in self.problems))


class Findings:
    """Gathers problems; knows where a path stands in the file."""

    def __init__(self, locate: Locate) -> None:
        self.problems: list[Problem] = []
        self._locate = locate

    def error(self, path: Path, message: str) -> None:
        self._add(path, message, False)

    def warn(self, path: Path, message: str) -> None:
        self._add(path, message, True)

    def _add(self, path: Path, message: str, warning: bool) -> None:
        line, column = self._locate(path)
        self.problems.append(Problem(show_path(path), message, line, column, warning))


def nowhere(path: Path) -> tuple[None, None]:
    """The `Locate` of data that came from no file."""
    return None, None


def show_path(path: Path) -> str:
    """`routes[0].targets[1].provider`; a key that is not a plain word stands in brackets and quotes."""
    parts: list[str] = []
    for step in path:
        if isinstance(step, int):
            parts.append(f"[{step}]")
        elif step.replace("-", "_").isidentifier() and len(step) <= _MAX_KEY:
            parts.append(f".{step}")
        else:
            parts.append(f'["{shorten(step)}"]')
    return "".join(parts).removeprefix(".")


def shorten(text: str) -> str:
    """At most `_MAX_KEY` characters of a foreign name."""
    return text if len(text) <= _MAX_KEY else text[:_MAX_KEY] + "..."


def one_line(text: str) -> str:
    """Control characters, line ends and lone surrogates made visible: a key in a file must not forge a log line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
