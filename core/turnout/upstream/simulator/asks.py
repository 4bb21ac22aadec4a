"""The requests' typed view: what the simulator acts on; every other field is ignored. Pure."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

Choices = Annotated[int, Meta(ge=1, le=128)]
Tokens = Annotated[int, Meta(ge=1)]
Stop = str | list[str] | None


class Request(msgspec.Struct):
    """One HTTP request. Header names are lower case; `path` has no query string."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    keep_alive: bool


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class ChatAsk(msgspec.Struct):
    model: str
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Choices | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    stop: Stop = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class CompletionAsk(msgspec.Struct):
    model: str
    # A text, several texts, one prompt of token ids, or several of those.
    prompt: str | list[str | int | list[int]] = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Choices | None = None
    max_tokens: Tokens | None = None
    stop: Stop = None
    metadata: dict[str, Any] | None = None


class EmbeddingsAsk(msgspec.Struct):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    dimensions: Annotated[int, Meta(ge=1, le=4096)] | None = None
    metadata: dict[str, Any] | None = None


class Refused(Exception):
    """The caller's mistake: a status and an OpenAI error body's fields."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


def content_text(content: Any) -> str:
    """A message's content as one text. Parts that are not text leave their JSON in it,
    so that another image is another prompt."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts: list[str] = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else None
        texts.append(text if isinstance(text, str) else msgspec.json.encode(part).decode())
    return "\n".join(texts)


def prompt_text(messages: list[dict[str, Any]]) -> str:
    """The conversation as one text: what the answer depends on and what is billed."""
    lines: list[str] = []
    for message in messages:
        lines.append(f"{message.get('role', '')}: {content_text(message.get('content'))}")
        if calls := message.get("tool_calls"):
            lines.append(msgspec.json.encode(calls).decode())
    return "\n".join(lines)


def each_input(given: str | list[str | int | list[int]]) -> list[tuple[str, int | None]]:
    """(text, token count if it came as token ids) of every input or prompt."""
    if isinstance(given, str):
        return [(given, None)]
    if given and isinstance(given[0], int):
        return [(_ids_text(given), len(given))]
    return [(item, None) if isinstance(item, str) else (_ids_text(item), len(_ids(item))) for item in given]


def _ids(item: Any) -> list[Any]:
    return item if isinstance(item, list) else [item]


def _ids_text(item: Any) -> str:
    return " ".join(str(token) for token in _ids(item))
