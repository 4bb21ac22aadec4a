"""README and CI say the same two commands, each on one line."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUP = (
    "python3 -m venv .venv && .venv/bin/pip install -q --require-hashes -r core/requirements.lock"
    " && .venv/bin/pip install -q --no-deps . && .venv/bin/turnout demo --once"
)
TEST = ".venv/bin/pip install -q --require-hashes -r tests/requirements.lock && .venv/bin/python -m pytest"


@pytest.mark.parametrize("command", [SETUP, TEST], ids=["setup", "test"])
def test_readme_and_ci_have_the_same_command(command: str) -> None:
    readme = (ROOT / "README.md").read_text().splitlines()
    called = [line.strip() for line in (ROOT / ".ci/run").read_text().splitlines()]
    assert readme.count(command) == 1
    assert called.count(command) == 1


def test_the_readme_asks_for_two_commands() -> None:
    """Each in a block of its own, so that one click copies one command."""
    blocks = (ROOT / "README.md").read_text().split("```sh\n")[1:3]
    assert [block.partition("\n```")[0] for block in blocks] == [SETUP, TEST]
