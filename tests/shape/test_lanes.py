"""The suite's own processes: every test is run once, and one that is alone runs while no other does, and after them."""

import os
import subprocess
import sys
from pathlib import Path

from support.lanes import in_turns, unit

TESTS = Path(__file__).parents[1]
CONFTEST = """
import pytest
from support import lanes

@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    lanes.open_lanes(config)

def pytest_configure(config):
    lanes.configure(config)
"""
MODULE = """
import os, time
import pytest

def note(name):
    with open(os.environ["NOTES"], "a") as file:
        began = time.monotonic()
        time.sleep(0.02)
        file.write(f"{name} {os.getpid()} {began} {time.monotonic()}\\n")

@pytest.mark.parametrize("n", range(8))
def test_beside(n):
    note(f"beside-{n}")

@pytest.mark.alone
@pytest.mark.parametrize("n", range(4))
def test_alone(n):
    note(f"alone-{n}")
"""


def test_who_is_alone_runs_while_nobody_else_does(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\nmarkers = alone\naddopts = -p no:cacheprovider -p no:benchmark\n")
    for folder in ("live", "pure", "flow"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
        for name in "ab":
            (tmp_path / "tests" / folder / f"test_{folder}_{name}.py").write_text(MODULE)
    (tmp_path / "tests/conftest.py").write_text(CONFTEST)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {"PYTHONPATH": os.pathsep.join([str(TESTS), env.get("PYTHONPATH", "")]), "NOTES": str(tmp_path / "notes")}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "72 passed" in done.stdout
    notes = [(name.partition("-")[0], pid, float(began), float(ended)) for name, pid, began, ended in map(str.split, (tmp_path / "notes").read_text().splitlines())]
    assert len(notes) == 72
    assert len({pid for _, pid, _, _ in notes}) > 1
    alone = [note for note in notes if note[0] == "alone"]
    for one in alone:
        assert all(other is one or other[3] <= one[2] or one[3] <= other[2] for other in notes), one
    assert len({pid for _, pid, _, _ in alone}) == 1


def test_a_unit_is_a_modules_tests_on_one_engine() -> None:
    assert unit("tests/live/test_a.py::test_b[native-x]") == unit("tests/live/test_a.py::test_c[1-native]") == "tests/live/test_a.py::native"
    assert unit("tests/live/test_a.py::test_b[granian]") != unit("tests/live/test_a.py::test_native")


def test_those_that_compute_are_spread_among_those_that_wait() -> None:
    waiting, computing = [f"tests/live/test_{n}.py::t" for n in range(6)], [f"tests/pure/test_{n}.py::t" for n in range(3)]
    place = in_turns(waiting + computing)
    assert "".join(name.split("/")[1][0] for name in sorted(place, key=place.__getitem__)) == "lllpllplp"
