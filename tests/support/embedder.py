"""A provider of embeddings that gives each text the vector a test says, and fails as it says: OpenAI's wire, every call noted."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Embedder:
    """`vector(text)` says what is given. `fault`: what is wrong with all answers from now on; empty: nothing. `asked` holds
    the texts in their order, `bodies` the whole requests."""

    def __init__(self, vector: Callable[[str], list[float]]) -> None:
        self.vector = vector
        self.fault = ""
        self.slow_s = 1.0
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        embedder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 64 * 1024  # head and body in one packet: else the second waits for an acknowledgement, 40 ms

            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with embedder._lock:
                    embedder.asked.append(asked["input"])
                    embedder.bodies.append(asked | {"key": self.headers.get("authorization", ""), "path": self.path})
                    embedder._at_once += 1
                    embedder.most_at_once = max(embedder.most_at_once, embedder._at_once)
                try:
                    self._answer(asked, embedder.fault)
                finally:
                    with embedder._lock:
                        embedder._at_once -= 1

            def _answer(self, asked: dict[str, Any], fault: str) -> None:
                vector: list[Any] = embedder.vector(asked["input"])
                status = 200
                if fault == "slow":
                    time.sleep(embedder.slow_s)
                elif fault.isdigit():
                    status = int(fault)
                elif fault == "dimensions":
                    vector = vector[:-1]
                elif fault == "zero":
                    vector = [0.0] * len(vector)
                said = {"object": "list", "model": asked["model"], "data": [{"object": "embedding", "index": 0, "embedding": vector}]}
                body = json.dumps({**said, "usage": {"prompt_tokens": 7, "total_tokens": 7}}).encode()
                if status != 200:
                    body = json.dumps({"error": {"message": "no"}}).encode()
                elif fault == "nan":
                    body = body.replace(str(vector[0]).encode(), b"NaN", 1)
                elif fault == "garbage":
                    body = b'{"data": [{"embedding": "not base64!"}]}'
                elif fault == "huge":
                    body = b'{"data": [' + b" " * 2_000_000 + body[10:]
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                if fault == "cut":
                    self.wfile.write(body[: len(body) // 2])
                    self.wfile.flush()
                    self.close_connection = True
                    return
                try:
                    self.wfile.write(body)
                except OSError:
                    pass  # nobody waits any more

        class Server(ThreadingHTTPServer):
            def handle_error(self, *args: Any) -> None:
                pass  # whoever had enough has left

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "Embedder":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
