"""A provider of embeddings that gives each text the vector a test says, and fails as it says; every call noted."""

import json
import time
from collections.abc import Callable
from typing import Any

from support.provider import Provider


class Embedder(Provider):
    """`vector(text)` says what is given. `fault`: what is wrong with all answers from now on; empty: nothing. `asked` holds
    the texts in their order, `bodies` the whole requests."""

    def __init__(self, vector: Callable[[str], list[float]]) -> None:
        super().__init__()
        self.vector = vector
        self.fault = ""
        self.slow_s = 1.0
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._at_once = 0

    @property
    def cuts(self) -> bool:  # type: ignore[override]
        return self.fault == "cut"

    def respond(self, asked: dict[str, Any], path: str, key: str) -> tuple[int, str, bytes]:
        with self.lock:
            self.asked.append(asked["input"])
            self.bodies.append(asked | {"key": key, "path": path})
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return self._answer(asked, self.fault)
        finally:
            with self.lock:
                self._at_once -= 1

    def _answer(self, asked: dict[str, Any], fault: str) -> tuple[int, str, bytes]:
        vector: list[Any] = self.vector(asked["input"])
        status = 200
        if fault == "slow":
            time.sleep(self.slow_s)
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
        return status, "application/json", body
