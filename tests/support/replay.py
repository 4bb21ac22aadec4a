"""The recordings, and the server that sends their bytes again (`../shared/tools/replay.py`) on a free port."""

import base64
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

from .gateway import Gateway

# The paths of OpenAI's wire, after the provider's base URL, by the recordings' name of the API.
PATHS = {"chat": "/chat/completions", "completions": "/completions", "embeddings": "/embeddings"}
STUBS: dict[str, dict[str, Any]] = {
    "chat": {"model": "", "messages": [{"role": "user", "content": "hi"}]},
    "completions": {"model": "", "prompt": "hi"},
    "embeddings": {"model": "", "input": "hi"},
}
START_S = 30.0

_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Recording:
    """One recorded exchange on OpenAI's wire."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.id: str = record["id"]
        self.provider: str = record["provider"]
        self.api: str = record["api"]
        self.stream: bool = record["stream"]
        self.status: int = record["status"]
        self.expect: dict[str, Any] | None = record["expect"]
        answer = record["response"]
        self.body = base64.b64decode(answer["body_b64"]) if "body_b64" in answer else answer.get("body", "").encode()
        request = (record["request"] or {}).get("body")
        # Where the request was not recorded (or not as JSON) a stub asks for the same kind of answer.
        known = isinstance(request, str) and request.lstrip().startswith("{")
        self.request: bytes = request.encode() if known else json.dumps(STUBS[self.api] | ({"stream": True} if self.stream else {})).encode()
        fields = json.loads(self.request)
        self.asks_stream = bool(fields.get("stream"))
        self.asks_usage = bool((fields.get("stream_options") or {}).get("include_usage"))

    def asking(self, model: str) -> bytes:
        """The request with another model and every other byte as it was."""
        new = json.dumps(model).encode()
        fields = _decode_raw(self.request)
        if "model" not in fields:  # Azure's older paths name it in the URL
            at = self.request.index(b"{") + 1
            return self.request[:at] + b'"model": ' + new + b"," * bool(fields) + self.request[at:]
        old = bytes(fields["model"])
        at = self.request.find(old)
        while at >= 0:
            body = self.request[:at] + new + self.request[at + len(old) :]
            try:
                if _decode_raw(body) == fields | {"model": msgspec.Raw(new)}:
                    return body
            except (msgspec.DecodeError, UnicodeDecodeError):
                pass
            at = self.request.find(old, at + 1)
        raise AssertionError(f"{self.id}: the model is not where it should be")


def load(shared: Path, full: bool) -> list[Recording]:
    """Every exchange on OpenAI's wire: 316 of all kinds, or with `full` all 1,425 of the development part."""
    out = []
    with gzip.open(shared / "data" / "recordings" / ("dev.jsonl.gz" if full else "dev_core.jsonl.gz"), "rt", encoding="utf-8") as file:
        for record in map(json.loads, file):
            path = (record["request"] or {}).get("path")
            known = path is None or path.endswith(PATHS.get(record["api"], "-"))
            known &= not (path or "").startswith(("/api/embeddings", "/v1/prompts/"))  # Ollama's and Portkey's own wires
            if record["api"] in PATHS and known:
                out.append(Recording(record))
    return out


class Replay:
    """One running replay server. Which exchange it sends, and how cut up, is said in the model: `r-<id>~chunk=odd`."""

    def __init__(self, shared: Path, full: bool) -> None:
        self._tool = shared / "tools" / "replay.py"
        self._file = shared / "data" / "recordings" / ("dev.jsonl.gz" if full else "dev_core.jsonl.gz")
        self._process: subprocess.Popen[str] | None = None
        self.said: list[str] = []
        self.url = ""

    def start(self) -> "Replay":
        # It takes no port 0, so a free one is looked for; another process may be faster, hence several tries.
        for _ in range(5):
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            self._process = subprocess.Popen(
                [sys.executable, "-u", str(self._tool), "--port", str(port), "--file", str(self._file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            )
            self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
            self._reader.start()
            Gateway.wait_for(lambda: self.url or self._process is None or self._process.poll() is not None, START_S)
            if self.url:
                return self
            self.stop()
        raise RuntimeError("the replay server did not start:\n" + "\n".join(self.said))

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.said.append(line.rstrip("\n"))
            if line.startswith("replay:"):
                self.url = f"http://{line.split(' on ')[1].strip()}/v1"
        process.stdout.close()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join(5)
