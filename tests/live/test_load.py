"""The locust profile of an agent fleet, headless for a few seconds, calm and with faults: no request goes wrong."""

import re
import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).resolve().parents[2] / "bench" / "load" / "run"


def test_a_fleet_of_agents_is_served_through_faults(engine: str, full: bool) -> None:
    seconds = 60 if full else 5
    done = subprocess.run(
        [sys.executable, str(RUN), "--engine", engine, "--users", "20", "--seconds", str(seconds)],
        capture_output=True,
        text=True,
        timeout=4 * seconds + 120,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    runs = re.findall(r"^load: (\d+) requests, (\d+) failed .* (\d+) errors in users, (\d+) streams", done.stdout, re.M)
    assert len(runs) == 2  # calm, and with faults
    for requests, failed, errors, streams in (map(int, run) for run in runs):
        assert requests > 20 * seconds
        assert streams > seconds
        assert failed == errors == 0
