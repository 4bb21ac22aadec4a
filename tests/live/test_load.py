"""The locust profile of an agent fleet, headless for a few seconds, calm and with faults: no request goes wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / "bench" / "load" / "run"


def run(engine: str, seconds: int) -> list[tuple[int, int]]:
    """Requests and streams of the two runs, none of which went wrong."""
    done = subprocess.run(
        [sys.executable, str(RUN), "--engine", engine, "--users", "20", "--seconds", str(seconds)],
        capture_output=True,
        text=True,
        timeout=4 * seconds + 240,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    runs = re.findall(r"^load: (\d+) requests, (\d+) failed .* (\d+) errors in users, (\d+) streams", done.stdout, re.M)
    assert len(runs) == 2  # calm, and with faults
    assert all(failed == errors == "0" for _, failed, errors, _ in runs)
    return [(int(requests), int(streams)) for requests, _, _, streams in runs]


def test_a_fleet_of_agents_is_served_through_faults(engine: str, full: bool) -> None:
    """For as long as it takes to ask often enough: a loaded machine asks less in the same time."""
    wanted = 60 if full else 5
    for seconds in (wanted, 2 * wanted, 6 * wanted):
        if all(requests > 20 * wanted and streams > wanted for requests, streams in run(engine, seconds)):
            return
    pytest.fail("there was too little load to show anything")
