"""A gateway as a user runs it: `turnout serve` in a process of its own, on loopback and free ports."""

import ctypes
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx

KEY = "sk-test-0123456789abcdef"
ADMIN_KEY = "adm-test-0123456789abcdef"
UPSTREAM_KEY = "sk-upstream-0123456789abcdef"
START_S = 60.0
PATIENCE_S = 60.0  # what is awaited comes at once, but on a loaded machine
# httpx reads all authorities' certificates for each client that has no context, 20 ms of CPU, also where it speaks plain HTTP.
TRUST = ssl.create_default_context()

_LISTENING = re.compile(r"listening on (https?://\S+), admin on (http://\S+)")


def die_with_tests() -> None:
    """Run in the child: end when the test process is gone, even if that was killed and cleaned nothing up (Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def config(providers: dict[str, str | dict[str, Any]], routes: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A config with one key (`KEY`), an admin key and free ports. A provider may be given as its base URL."""
    full = {
        name: {"kind": "openai", "base_url": spec, "api_key": "env:TEST_UPSTREAM_KEY"} if isinstance(spec, str) else spec
        for name, spec in providers.items()
    }
    return {
        "listen": {"host": "127.0.0.1", "port": 0},
        "auth": {"keys": [{"name": "tester", "key": "env:TEST_KEY", "direct": True}]},
        "admin": {"host": "127.0.0.1", "port": 0, "key": "env:TEST_ADMIN_KEY"},
        "providers": full,
        "routes": routes,
        **more,
    }


class Gateway:
    """One running gateway. `log` holds the request-log lines seen so far, `said` the lines on stderr."""

    def __init__(self, data: dict[str, Any], *, engine: str, folder: Path, env: dict[str, str] | None = None, args: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.file = folder / "turnout.json"
        self.log: list[dict[str, Any]] = []
        self.said: list[str] = []
        self._engine = engine
        self._args = args
        self._env = {
            **os.environ,
            "TEST_KEY": KEY,
            "TEST_ADMIN_KEY": ADMIN_KEY,
            "TEST_UPSTREAM_KEY": UPSTREAM_KEY,
            **(env or {}),
        }
        data.setdefault("state", {}).setdefault("dir", str(self.state))
        self.write(data)
        self.process: subprocess.Popen[str] | None = None
        self.url = self.admin_url = ""

    def write(self, data: dict[str, Any]) -> None:
        """Exchange the config file as editors do: a new file in its place."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(json.dumps(data))
        fresh.replace(self.file)

    def start(self) -> "Gateway":
        self.url = self.admin_url = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "turnout", "serve", "--config", str(self.file), "--engine", self._engine, *self._args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._env,
            start_new_session=True,
            preexec_fn=die_with_tests,
        )
        self._readers = [
            threading.Thread(target=self._read_log, args=(self.process.stdout,), daemon=True),
            threading.Thread(target=self._read_said, args=(self.process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self.wait_for(lambda: self.url or self.process.poll() is not None, START_S)
        if not self.url:
            self.stop()
            raise RuntimeError("the gateway did not start:\n" + "\n".join(self.said))
        return self

    def _read_log(self, pipe: Any) -> None:
        for line in pipe:
            self.log.append(json.loads(line))
        pipe.close()

    def _read_said(self, pipe: Any) -> None:
        for line in pipe:
            self.said.append(line.rstrip("\n"))
            found = _LISTENING.search(line)
            if found:
                self.admin_url = found[2]
                self.url = found[1]
        pipe.close()

    @staticmethod
    def wait_for(condition: Any, seconds: float = PATIENCE_S) -> Any:
        """Wait until `condition()` is true and return what it gave; the last value at the deadline."""
        end = time.monotonic() + seconds
        while not (value := condition()) and time.monotonic() < end:
            time.sleep(0.01)
        return value

    @property
    def host(self) -> str:
        return self.url.partition("://")[2].partition(":")[0]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client that presents the key."""
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60, trust_env=False, **{"verify": TRUST, **options})

    def admin(self, path: str, method: str = "GET") -> httpx.Response:
        """The admin listener's answer to its key."""
        return httpx.request(method, self.admin_url + path, headers={"authorization": f"Bearer {ADMIN_KEY}"}, trust_env=False, verify=TRUST)

    def logged(self, request_id: str, seconds: float = PATIENCE_S) -> dict[str, Any]:
        """The request-log line of one request."""
        found = self.wait_for(lambda: next((r for r in list(self.log) if r["request_id"] == request_id), None), seconds)
        assert found, f"no log line for {request_id}"
        return dict(found)

    def metrics(self) -> dict[str, float]:
        """`name{labels}` -> value, from /metrics."""
        text = self.admin("/metrics").text
        rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in rows}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all series of `name` that have these labels."""
        total = 0.0
        for series, value in self.metrics().items():
            if series.partition("{")[0] == name and all(f'{k}="{v}"' in series for k, v in labels.items()):
                total += value
        return total

    def status(self) -> dict[str, Any]:
        return dict(self.admin("/admin/status").json())

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, seconds: float = 15.0) -> int:
        """SIGTERM, then SIGKILL by its own pid. Returns the exit code."""
        process = self.process
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for reader in self._readers:
            reader.join(5)
        return process.returncode
