"""A provider that answers each question by what a test says, plain and streamed, every call noted."""

import json
from collections.abc import Callable
from typing import Any

from support.provider import Provider


class Scholar(Provider):
    """`answer(question, number of the call)` says what is answered; `asked` holds the questions in their order."""

    def __init__(self, answer: Callable[[str, int], str]) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[str] = []

    def respond(self, asked: dict[str, Any], path: str, key: str) -> tuple[int, str, bytes]:
        text = asked["messages"][-1]["content"]
        text = text if isinstance(text, str) else " ".join(part.get("text", "") for part in text)
        with self.lock:
            self.asked.append(text)
            number = len(self.asked)
        said = self.answer(text, number)
        usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
        face = {"id": f"c{number}", "created": 1, "model": asked["model"]}
        if not asked.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            return 200, "application/json", json.dumps({**face, "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
        choices: list[dict[str, Any]] = [{"index": 0, "delta": {"content": word + " "}, "finish_reason": None} for word in said.split(" ")]
        choices[-1]["delta"]["content"] = said.split(" ")[-1]
        choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
        events = [json.dumps({**face, "object": "chat.completion.chunk", "choices": [choice]}) for choice in choices]
        events.append(json.dumps({**face, "object": "chat.completion.chunk", "choices": [], "usage": usage}))
        return 200, "text/event-stream", "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode()
