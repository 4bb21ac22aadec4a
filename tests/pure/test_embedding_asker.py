"""One call for a vector, with ports that a test plays: what goes out, what is booked, and which account is asked next."""

import asyncio
from typing import Any

import msgspec
import pytest

from turnout.cache.semantic.spec import Embedding
from turnout.catalog import Catalog, Override
from turnout.clock import SystemClock
from turnout.embedding import CAUSE, Asker, Embeddings
from turnout.errors import Fault
from turnout.exchange import Exchange, Principal, Surface
from turnout.upstream.attempt import OpenAIPort
from turnout.upstream.providers.openai import OpenAISpec
from turnout.upstream.providers.simulated import SimulatedSpec

CHAT = Surface("chat", "/v1/chat/completions", "/chat/completions", ("messages",), True, "chat")
GOOD = b'{"data":[{"embedding":[1,2]}],"usage":{"prompt_tokens":50,"total_tokens":50}}'
CATALOG = Catalog.builtin().with_overrides({"m": Override(input_usd_per_mtok="0.02", kind="embedding")})
CLOCK = SystemClock()


class Call:
    media_type, encoding, first_byte_ns = b"application/json", b"", 5

    def __init__(self, status: int, body: bytes | Fault, stale: bool = False, headers: Any = ()) -> None:
        self.status, self.body, self.stale, self.headers = status, body, stale, list(headers)
        self.closed = False

    async def wait_whole(self, most: int) -> bytes:
        assert most == 256 * 1024
        if isinstance(self.body, Fault):
            raise self.body
        return self.body

    def close(self) -> None:
        self.closed = True


class Port:
    whole: Any = OpenAIPort.whole

    def __init__(self, *calls: Call) -> None:
        self.calls = list(calls)
        self.requests: list[Any] = []

    def open_nowait(self, request: Any) -> Call | None:
        return None if len(self.requests) % 2 else self._next(request)

    async def open(self, request: Any) -> Call:
        return self._next(request)

    def _next(self, request: Any) -> Call:
        self.requests.append(request)
        return self.calls.pop(0)

    @staticmethod
    def scrub(body: bytes) -> bytes:
        return body.replace(b"sk-secret", b"***")


def ask(asker: Asker, times: int = 1) -> list[bytes | Fault]:
    async def work() -> list[bytes | Fault]:
        found: list[bytes | Fault] = []
        for _ in range(times):
            x = Exchange(id="r1", surface=CHAT, started_ns=1, wall_ns=2, config_version=7, session="s", tags="g")
            x.principal = Principal(name="k", tenant="t", fingerprint="")
            try:
                found.append(await asker(x, "grüß dich", "embed", CLOCK.now_ns() + 10**9))
            except Fault as fault:
                found.append(fault)
        return found

    return asyncio.run(work())


def made(*ports: Any, model: str = "m", **spec: Any) -> tuple[Asker, list[Exchange]]:
    booked: list[Exchange] = []
    asker = Asker(Embedding(provider="v", model=model, **spec), [(f"a{i}", port) for i, port in enumerate(ports)], CATALOG, CLOCK, booked.append)
    return asker, booked


def test_what_goes_out_and_what_is_booked() -> None:
    port = Port(Call(200, GOOD))
    asker, booked = made(port, dimensions=2)
    assert ask(asker) == [GOOD]
    (request,), (side,) = port.requests, booked
    assert msgspec.json.decode(b"".join(request.pieces)) == {"model": "m", "input": "grüß dich", "dimensions": 2}
    assert (request.path, request.length, request.stream, request.forward) == ("/embeddings", len(side.body), False, [])
    assert request.now_ns < request.first_ns == request.deadline_ns <= CLOCK.now_ns() + 10**9
    (attempt,) = side.attempts
    assert (side.id, side.surface.name, side.status, side.fault, side.cost_nanos, side.session, side.config_version) == ("r1-embed", "embeddings", 200, None, 1_000, "s", 7)
    assert side.principal is not None and side.principal.tenant == "t"
    assert (attempt.cause, attempt.provider, attempt.account, attempt.model, attempt.reason, attempt.status) == (CAUSE, "v", "a0", "m", "", 200)
    assert attempt.usage is not None and (attempt.usage.prompt, attempt.cost_nanos, attempt.priced) == (50, 1_000, True)
    assert attempt.ended_ns >= attempt.started_ns


def test_tokens_that_are_not_told_are_estimated_and_an_unknown_price_is_none() -> None:
    asker, booked = made(Port(Call(200, b'{"data":[{"embedding":[1,2]}]}')), model="nobody-knows-this")
    ask(asker)
    (attempt,) = booked[0].attempts
    assert attempt.usage is not None and attempt.usage.estimated and attempt.usage.prompt > 0
    assert (attempt.priced, attempt.cost_nanos) == (False, 0)


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (Call(500, b'{"error":{"message":"no"}}'), "server_error"),
        (Call(429, b"{}", headers=[(b"retry-after", b"7")]), "rate_limited"),
        (Call(401, b'{"error":{"message":"bad key sk-secret"}}'), "credential"),
        (Call(404, b"{}"), "not_found"),
        (Call(200, b"<html>"), "bad_answer"),
        (Call(200, b'{"error":{"message":"out of memory","code":"x"}}'), "server_error"),
        (Call(0, Fault("reset", "gone")), "reset"),
        (Call(200, Fault("answer_too_large", "huge")), "answer_too_large"),
    ],
)
def test_a_failure_is_booked_as_one(call: Call, kind: str) -> None:
    asker, booked = made(Port(call))
    (fault,) = ask(asker)
    assert isinstance(fault, Fault) and fault.kind == kind and "sk-secret" not in fault.message
    assert (fault.retry_after_s == 7) is (kind == "rate_limited")
    (side,) = booked
    assert side.fault is fault and side.attempts[0].reason == fault.reason and side.status >= 400
    assert side.attempts[0].usage is None and side.cost_nanos == 0


def test_a_connection_that_was_closed_meanwhile_is_no_failure() -> None:
    port = Port(Call(0, Fault("reset", "gone"), stale=True), Call(200, GOOD))
    asker, booked = made(port)
    assert ask(asker) == [GOOD] and len(port.requests) == 2 and booked[0].fault is None


def test_after_a_failure_another_account_is_asked() -> None:
    first, second = Port(Call(429, b"{}"), Call(200, GOOD)), Port(Call(200, GOOD), Call(500, b"{}"))
    asker, booked = made(first, second)
    ask(asker, 4)
    assert [side.attempts[0].account for side in booked] == ["a0", "a1", "a1", "a0"]


def test_what_makes_other_vectors_is_another_space_and_nothing_else_is() -> None:
    class Quiet:
        def count(self, *args: Any) -> None: ...

        def time(self, *args: Any) -> None: ...

    embeddings = Embeddings(CLOCK, lambda x: None, Quiet())
    providers = {"v": OpenAISpec(base_url="https://v.example.com/v1"), "w": OpenAISpec(base_url="https://v.example.com/v1"), "x": OpenAISpec(base_url="https://x.example.com/v1"), "s": SimulatedSpec()}
    accounts: dict[str, Any] = {name: [(None, Port(), "")] for name in providers}

    async def work() -> None:
        def space(**spec: Any) -> tuple[bytes, Any]:
            found = embeddings.of(Embedding(**{"provider": "v", "model": "m", **spec}), providers, accounts, CATALOG)
            assert found is not None
            kept.append(found)
            return found.space, found._state

        kept: list[Any] = []
        assert embeddings.of(None, providers, accounts, CATALOG) is None and not embeddings.seen()
        first, state = space()
        assert space() == (first, state)  # after a reload: what is known of it stays
        assert space(timeout_ms=20)[0] == space(provider="w")[0] == first
        others = [space(model="n")[0], space(dimensions=64)[0], space(dimensions=65)[0], space(provider="x")[0], space(provider="s")[0]]
        assert len({first, *others}) == 6
        state.pause.failed(0, 5.0)
        assert embeddings.seen()["turnout_semantic_embeddings_paused"]["v", "m"] == 1.0
        kept.clear()
        del state
        assert not embeddings.seen()

    asyncio.run(work())
