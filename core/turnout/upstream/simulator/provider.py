"""What one simulated provider remembers, and what it answers. No sockets, no clock."""

from __future__ import annotations

import math
import random
from typing import Any, TypeVar

import msgspec

from ..providers.simulated import SimFault, SimulatedSpec
from .answers import (
    Answer,
    answer_chat,
    answer_completion,
    embeddings_body,
    model_card,
    models_body,
    plain_body,
)
from .asks import ChatAsk, CompletionAsk, EmbeddingsAsk, Refused, Request
from .faults import FaultPicker, wished_fault

T = TypeVar("T", ChatAsk, CompletionAsk, EmbeddingsAsk)

_CALLS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})


class Body(msgspec.Struct):
    """A whole JSON answer. `tokens` says how long it takes to come about: 0 after the first
    one's time alone; None: at once, no model was asked."""

    data: bytes
    tokens: int | None = 0


class Streamed(msgspec.Struct):
    answer: Answer
    include_usage: bool


class Pace:
    """One request's times, drawn from dice of its own: requests that overlap do not change
    each other's draws, so only the order of arrival has to be repeated to repeat a run."""

    def __init__(self, spec: SimulatedSpec, dice: random.Random) -> None:
        self._spec = spec
        self._dice = dice
        self.ttft_s = spec.ttft_ms / 1000.0 * math.exp(spec.ttft_sigma * dice.gauss(0.0, 1.0))

    def gap_s(self) -> float:
        """The time to the next token. Its mean is 1 / tokens_per_s, hence the - sigma^2 / 2."""
        sigma = self._spec.token_sigma
        return math.exp(sigma * self._dice.gauss(0.0, 1.0) - sigma * sigma / 2) / self._spec.tokens_per_s


class Provider:
    """One provider: its dice, its faults and its counters."""

    def __init__(self, name: str, spec: SimulatedSpec) -> None:
        self.name = name
        self.spec = spec
        self.requests = 0
        self.cancelled = 0
        self.open = 0
        self.by_fault: dict[str, int] = {}
        self._pace_dice = random.Random(spec.seed)
        # Dice of their own: switching faults on must not change anybody's pace.
        self._fault_dice = random.Random(f"faults {spec.seed}")
        self._picker = FaultPicker(spec.faults, self._fault_dice)

    def replace_faults(self, body: bytes) -> int:
        """Take a JSON list of SimFault instead of the faults so far. Raises Refused."""
        try:
            faults = msgspec.json.decode(body, type=list[SimFault])
        except msgspec.DecodeError as error:
            raise Refused(400, f"faults: {error}") from None
        self._picker = FaultPicker(faults, self._fault_dice)
        return len(faults)

    def stats(self) -> dict[str, Any]:
        return {
            "provider": self.name,
            "requests": self.requests,
            "by_fault": self.by_fault,
            "cancelled": self.cancelled,
            "open": self.open,
        }

    def next_pace(self) -> Pace:
        return Pace(self.spec, random.Random(self._pace_dice.getrandbits(64)))

    def next_fault(self, request: Request) -> SimFault | None:
        """Call once per request: it moves the dice and the counters. Raises Refused."""
        if request.method != "POST" or request.path not in _CALLS:
            return None
        self.requests += 1
        try:
            fault = wished_fault(_metadata(request.body), self.name)
        except ValueError as error:
            raise Refused(400, str(error)) from None
        fault = fault or self._picker.pick()
        if fault is not None:
            self.by_fault[fault.kind] = self.by_fault.get(fault.kind, 0) + 1
        return fault

    def reply(self, request: Request, created: int) -> Body | Streamed:
        """The answer without faults. `created`: wall clock in seconds. Raises Refused."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Refused(401, "You didn't provide an API key: send it as 'Authorization: Bearer KEY'.")
        if request.path == "/v1/models" or request.path.startswith("/v1/models/"):
            _expect(request, "GET")
            return self._models(request.path)
        if request.path not in _CALLS:
            raise Refused(404, f"Invalid URL ({request.method} {request.path})", "unknown_url")
        _expect(request, "POST")
        seed, length = self.spec.seed, self.spec.answer_tokens
        if request.path == "/v1/embeddings":
            return Body(embeddings_body(seed, _read(request.body, EmbeddingsAsk)))
        if request.path == "/v1/completions":
            text = _read(request.body, CompletionAsk)
            answer = answer_completion(seed, length, text, f"cmpl-{self.name}-{self.requests}", created)
            return _say(answer, text)
        chat = _read(request.body, ChatAsk)
        answer = answer_chat(seed, length, chat, f"chatcmpl-{self.name}-{self.requests}", created)
        return _say(answer, chat)

    def _models(self, path: str) -> Body:
        name = path[len("/v1/models/") :]
        if not name:
            return Body(models_body(self.spec.models), None)
        if name not in self.spec.models:
            raise Refused(404, f"The model '{name}' does not exist", "model_not_found")
        return Body(msgspec.json.encode(model_card(name)), None)


def _say(answer: Answer, ask: ChatAsk | CompletionAsk) -> Body | Streamed:
    if not ask.stream:
        return Body(plain_body(answer), answer.token_count)
    return Streamed(answer, bool(ask.stream_options and ask.stream_options.include_usage))


def _expect(request: Request, method: str) -> None:
    if request.method != method:
        raise Refused(405, f"Not allowed to {request.method} on {request.path}", "method_not_supported")


class _OnlyMetadata(msgspec.Struct):
    metadata: dict[str, Any] | None = None


def _metadata(body: bytes) -> dict[str, Any] | None:
    # A fault comes before the checks, as a provider in trouble fails on bad requests too; a
    # body that cannot be read has no wishes, and `reply` refuses it.
    try:
        return msgspec.json.decode(body, type=_OnlyMetadata).metadata
    except msgspec.DecodeError:
        return None


def _read(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise Refused(400, f"We could not parse the JSON body of your request: {error}") from None
