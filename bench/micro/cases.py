"""What a micro-benchmark is, and the test that times one.

A file of cases imports neither pytest nor anything slow: `count.py` runs the same cases under valgrind, where an
import costs fifty times as much.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(BENCH))  # drive.py: the bodies and answers are those of the whole requests
if find_spec("turnout") is None:  # not installed: the source tree
    sys.path.insert(0, str(BENCH.parent / "core"))


@dataclass(frozen=True)
class Case:
    """`make` builds what is needed and gives the work; `right` says whether a result of the work is the right one.

    The work must leave things so that it may be done again with the same result. `loops`: how often it is done when
    its instructions are counted (and twice as often, for the difference).
    """

    name: str
    make: Callable[[], Callable[[], Any]]
    right: Callable[[Any], bool]
    loops: int = 200

    def __str__(self) -> str:
        return self.name

    def ready(self) -> Callable[[], Any]:
        """The work, after it has given the right result three times."""
        work = self.make()
        for _ in range(3):
            self.check(work())
        return work

    def check(self, result: Any) -> None:
        assert self.right(result), f"{self.name}: wrong result {str(result)[:300]}"


def test_speed(case: Case, benchmark: Any) -> None:
    """Times one case; every file of cases has this test."""
    case.check(benchmark(case.ready()))


def all_cases() -> list[Case]:
    """The cases of every file in this folder, in the order of names."""
    found: list[Case] = []
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        found += __import__(path.stem).CASES
    return found
