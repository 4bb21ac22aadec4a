"""A provider that answers each question by what a test says: OpenAI's wire, plain and streamed, every call noted."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Scholar:
    """`answer(question, number of the call)` says what is answered; `asked` holds the questions in their order."""

    def __init__(self, answer: Callable[[str, int], str]) -> None:
        self.answer = answer
        self.asked: list[str] = []
        self._lock = threading.Lock()
        scholar = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 64 * 1024  # head and body in one packet: else the second waits for an acknowledgement, 40 ms

            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                text = asked["messages"][-1]["content"]
                text = text if isinstance(text, str) else " ".join(part.get("text", "") for part in text)
                with scholar._lock:
                    scholar.asked.append(text)
                    number = len(scholar.asked)
                self._reply(asked, scholar.answer(text, number), number)

            def _reply(self, asked: dict[str, Any], said: str, number: int) -> None:
                usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
                face = {"id": f"c{number}", "created": 1, "model": asked["model"]}
                if asked.get("stream"):
                    choices: list[dict[str, Any]] = [{"index": 0, "delta": {"content": word + " "}, "finish_reason": None} for word in said.split(" ")]
                    choices[-1]["delta"]["content"] = said.split(" ")[-1]
                    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
                    events = [json.dumps({**face, "object": "chat.completion.chunk", "choices": [choice]}) for choice in choices]
                    events.append(json.dumps({**face, "object": "chat.completion.chunk", "choices": [], "usage": usage}))
                    body = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode()
                    media = "text/event-stream"
                else:
                    message = {"role": "assistant", "content": said}
                    body = json.dumps({**face, "object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}).encode()
                    media = "application/json"
                self.send_response(200)
                self.send_header("content-type", media)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "Scholar":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
