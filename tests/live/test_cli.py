"""The `turnout` command as a person types it, and `turnout.app:app` under another server."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.gateway import Gateway
from turnout import __file__ as package
from turnout import __version__

CORE = str(Path(package).parent.parent.resolve())
FAKE = "sk-fake-0123456789abcdefghij"
MINIMAL = """\
auth: {keys: [{name: dev, key: "env:MY_KEY"}]}
providers:
  a: {kind: openai, base_url: "http://127.0.0.1:9/v1", api_key: "env:A_KEY"}
routes:
  - name: chat
    match: {model: "fast"}
    targets: [{provider: a, model: gpt-4o-mini}]
"""
KEYS = {"MY_KEY": "sk-mine-0123456789abcdef", "A_KEY": FAKE}


def environment(**more: str) -> dict[str, str]:
    """Without anything that a developer's shell may hold."""
    kept = ("PATH", "HOME", "LANG", "TURNOUT_PURE", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"PYTHONPATH": CORE} | more


def turnout(folder: Path, *args: str, seconds: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "turnout", *args], cwd=folder, env=environment(**env), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds
    )


def test_version(tmp_path: Path) -> None:
    done = turnout(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"turnout {__version__}\n")


def test_help_names_every_command(tmp_path: Path) -> None:
    done = turnout(tmp_path, "--help")
    assert done.returncode == 0
    assert all(f"    {command} " in done.stdout for command in ("serve", "demo", "check", "init", "schema"))


@pytest.mark.parametrize("args", [(), ("nope",), ("serve", "--engine", "nope"), ("serve", "--port", "x"), ("check",)])
def test_a_wrong_call_says_how(tmp_path: Path, args: tuple[str, ...]) -> None:
    done = turnout(tmp_path, *args)
    assert done.returncode == 2
    assert "usage: turnout" in done.stderr
    assert "Traceback" not in done.stderr


def test_init_writes_a_config_that_check_takes(tmp_path: Path) -> None:
    done = turnout(tmp_path, "init")
    assert done.returncode == 0
    assert "turnout check turnout.yaml" in done.stdout
    text = (tmp_path / "turnout.yaml").read_text()
    done = turnout(tmp_path, "check", "turnout.yaml", TURNOUT_KEY=KEYS["MY_KEY"], OPENAI_API_KEY=FAKE)
    assert done.returncode == 0, done.stderr
    assert "good (1 routes, 1 providers" in done.stdout
    assert FAKE not in done.stdout + done.stderr
    again = turnout(tmp_path, "init")
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert (tmp_path / "turnout.yaml").read_text() == text
    assert turnout(tmp_path, "init", "nowhere/x.yaml").returncode == 1


def test_check_names_the_secret_that_is_missing(tmp_path: Path) -> None:
    turnout(tmp_path, "init")
    done = turnout(tmp_path, "check", "turnout.yaml", OPENAI_API_KEY=FAKE)
    assert done.returncode == 2
    assert "TURNOUT_KEY" in done.stderr
    assert re.search(r"turnout\.yaml:\d+", done.stderr)


@pytest.mark.parametrize(
    "old, new, line, says",
    [
        ("match:", "mach:", 6, "mach"),
        ("kind: openai", "kind: openia", 3, "providers.a.kind: expected one of openai"),
        ('"env:A_KEY"', '"sk-literal-0123456789"', 3, "env:"),
        ("{provider: a,", "{provider: b,", 7, "no such provider"),
        ("routes:", "routes: [", 0, ""),
    ],
)
@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_bad_config_is_refused_with_its_place(tmp_path: Path, command: str, old: str, new: str, line: int, says: str) -> None:
    (tmp_path / "c.yaml").write_text(MINIMAL.replace(old, new, 1))
    done = turnout(tmp_path, *(("check", "c.yaml") if command == "check" else ("serve", "--config", "c.yaml")), **KEYS)
    assert done.returncode == 2
    assert f"c.yaml:{line or ''}" in done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "sk-" not in done.stderr
    assert done.stdout == ""


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    for args in (("check", "no.yaml"), ("serve", "--config", "no.yaml")):
        done = turnout(tmp_path, *args)
        assert done.returncode == 2
        assert "no.yaml" in done.stderr
        assert "Traceback" not in done.stderr


def test_schema_is_a_json_schema_of_the_config(tmp_path: Path) -> None:
    done = turnout(tmp_path, "schema")
    schema = json.loads(done.stdout)
    assert done.returncode == 0
    assert "$schema" in schema
    text = json.dumps(schema)
    assert all(f'"{name}"' in text for name in ("providers", "routes", "listen", "base_url", "routing_policy", "max_body_bytes"))


def test_serve_without_a_config_says_what_to_do(tmp_path: Path) -> None:
    done = turnout(tmp_path, "serve")
    assert done.returncode == 2
    assert "--config" in done.stderr
    assert "turnout init" in done.stderr
    assert "--dev" in done.stderr


def test_dev_without_a_provider_key_says_which_it_knows(tmp_path: Path) -> None:
    done = turnout(tmp_path, "serve", "--dev")
    assert done.returncode == 2
    assert "OPENAI_API_KEY" in done.stderr


def test_dev_is_for_loopback_only(tmp_path: Path) -> None:
    done = turnout(tmp_path, "serve", "--dev", "--host", "0.0.0.0", "--port", "0", OPENAI_API_KEY=FAKE)
    assert done.returncode == 2
    assert "loopback" in done.stderr


class Running:
    """`turnout serve` in a process of its own; `said` grows with its stderr."""

    def __init__(self, folder: Path, *args: str, **env: str) -> None:
        self.said: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "turnout", "serve", *args], cwd=folder, env=environment(**env), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert Gateway.wait_for(lambda: any(line.startswith("config ") for line in self.said) or self.process.poll() is not None, 30)
        assert self.process.poll() is None, self.said
        self.url = re.search(r"listening on (http://\S+),", "\n".join(self.said))[1]  # type: ignore[index]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip("\n"))
        self.process.stderr.close()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(20)
        self._reader.join(5)
        return code


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def test_dev_serves_without_any_file(tmp_path: Path) -> None:
    # The admin listener has a fixed port without a config: an environment where it is taken is not a defect.
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8081)) == 0:
            pytest.skip("port 8081 is taken here")
    running = Running(tmp_path, "--dev", "--port", "0", OPENAI_API_KEY=FAKE)
    said = "\n".join(running.said)
    assert "route openai-gpt: gpt-* -> ordered: openai" in said
    assert "route any: * -> ordered: openai" in said
    assert "no keys" in said
    assert FAKE not in said
    with httpx.Client(base_url=running.url, trust_env=False) as client:
        assert "gpt-*" in [m["id"] for m in client.get("/v1/models").json()["data"]]  # no key asked for
        assert client.post("/v1/chat/completions", content=b"{").status_code == 400
    assert running.stop() == 0


def test_serve_takes_its_address_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(MINIMAL + f"admin: {{port: {free_port()}}}\n")
    running = Running(tmp_path, "--config", "c.yaml", "--port", "0", "--host", "127.0.0.1", "--workers", "2", **KEYS)
    said = "\n".join(running.said)
    assert "2 workers" in said
    assert "route chat: fast -> ordered: a/gpt-4o-mini" in said
    assert not any(value in said for value in KEYS.values())
    assert httpx.get(running.url + "/readyz", trust_env=False).json() == {"status": "ok"}
    assert running.stop(signal.SIGINT) == 0  # Ctrl-C is a graceful end too
    assert set(os.listdir(tmp_path)) <= {"c.yaml", "turnout-state"}


def test_the_demo_runs_to_its_end(tmp_path: Path) -> None:
    done = turnout(tmp_path, "demo", "--once", seconds=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(word in done.stdout.lower() for word in ("stream", "fallback"))
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())  # it leaves nothing behind where it was called


# ---- the app under another server


class Provider:
    """Answers each request with the same JSON."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        body = b'{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                data = sock.recv(65536)
                while not data.endswith(b"}"):
                    data += sock.recv(65536)
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    yield made
    made.close()


class Server:
    """As little of an ASGI server as the app may expect: lifespan, then requests, the body in pieces."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._in: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._out: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def life(self, event: str) -> dict[str, Any]:
        if event == "startup":
            self._task = asyncio.create_task(self._app({"type": "lifespan", "asgi": {"version": "3.0"}}, self._in.get, self._out.put))
        self._in.put_nowait({"type": f"lifespan.{event}"})
        return await asyncio.wait_for(self._out.get(), 10)

    async def ask(self, method: str, path: str, body: bytes = b"", key: str = KEYS["MY_KEY"]) -> tuple[int, bytes]:
        headers = [(b"host", b"a"), (b"authorization", f"Bearer {key}".encode())]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": headers, "scheme": "http", "server": ("a", 80), "client": ("b", 1), "extensions": {},
        }  # fmt: skip
        pieces = [body[:10], body[10:], b""]
        events = [{"type": "http.request", "body": piece, "more_body": i < 2} for i, piece in enumerate(pieces)]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if events:
                return events.pop(0)
            return await asyncio.Event().wait()  # type: ignore[return-value]

        async def send(event: dict[str, Any]) -> None:
            sent.append(event)

        await asyncio.wait_for(self._app(scope, receive, send), 10)
        assert [e["type"] for e in sent[:1]] == ["http.response.start"]
        assert not sent[-1].get("more_body")
        return sent[0]["status"], b"".join(e.get("body", b"") for e in sent[1:])


def test_the_app_serves_under_any_asgi_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: Provider) -> None:
    (tmp_path / "c.yaml").write_text(MINIMAL.replace(":9/v1", f":{provider.port}/v1"))
    monkeypatch.setenv("TURNOUT_CONFIG", str(tmp_path / "c.yaml"))
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    from turnout.app import _FromFile

    async def run() -> None:
        server = Server(_FromFile())
        assert (await server.life("startup"))["type"] == "lifespan.startup.complete"
        chat = "/v1/chat/completions"
        status, body = await server.ask("POST", chat, b'{"model":"fast","messages":[]}')
        assert (status, json.loads(body)["choices"]) == (200, [{"finish_reason": "stop"}])
        assert (await server.ask("POST", chat, b'{"model":"fast","messages":[]}', "nope"))[0] == 401
        assert (await server.ask("POST", chat, b'{"model":"fast","messages":['))[0] == 400
        assert (await server.ask("GET", "/readyz"))[0] == 200
        assert (await server.life("shutdown"))["type"] == "lifespan.shutdown.complete"
        await server._task

    asyncio.run(run())


def test_the_app_says_what_it_needs_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from turnout.app import _FromFile

    async def start() -> dict[str, Any]:
        return await Server(_FromFile()).life("startup")

    monkeypatch.delenv("TURNOUT_CONFIG", raising=False)
    failed = asyncio.run(start())
    assert failed["type"] == "lifespan.startup.failed"
    assert "TURNOUT_CONFIG" in failed["message"]
    (tmp_path / "c.yaml").write_text("routs: []\n")
    monkeypatch.setenv("TURNOUT_CONFIG", str(tmp_path / "c.yaml"))
    failed = asyncio.run(start())
    assert failed["type"] == "lifespan.startup.failed"
    assert "c.yaml:1" in failed["message"]
