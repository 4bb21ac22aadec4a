"""Vectors from a provider without a socket: what is a vector, when an endpoint is left alone, who waits for how long."""

import asyncio
import base64
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.counts import Counts
from turnout.cache.semantic.remote.endpoint import Endpoint, State
from turnout.cache.semantic.remote.pause import FAILURES, FIRST_S, MOST_S, Pause
from turnout.cache.semantic.remote.vectors import Unfit, read_vector, unit
from turnout.cache.semantic.spec import Embedding
from turnout.clock import SystemClock
from turnout.errors import Fault
from turnout.exchange import Exchange, Principal, Surface

CHAT = Surface("chat", "/v1/chat/completions", "/chat/completions", ("messages",), True, "chat")
S = 1_000_000_000


def body(vector: Any) -> bytes:
    return msgspec.json.encode({"data": [{"embedding": vector, "index": 0}], "usage": {"prompt_tokens": 1}})


# ---- vectors


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=8, max_size=64).filter(lambda v: max(map(abs, v)) > 1e-3))
def test_a_vector_keeps_its_direction(vector: list[float]) -> None:
    kept = read_vector(body(vector), len(vector))
    assert len(kept) == len(vector)
    values = numpy.array(vector)
    assert unit(kept) @ (values / numpy.linalg.norm(values)) > 0.9995
    packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    assert read_vector(body(packed), None) == kept


def test_two_vectors_have_the_cosine_that_they_had() -> None:
    lot = numpy.random.default_rng(5)
    worst = 0.0
    for _ in range(200):
        a = lot.standard_normal(512)
        b = a + lot.standard_normal(512) * lot.uniform(0.1, 1)
        true = a @ b / numpy.linalg.norm(a) / numpy.linalg.norm(b)
        worst = max(worst, abs(true - unit(read_vector(body(a.tolist()), 512)) @ unit(read_vector(body(b.tolist()), 512))))
    assert worst < 1e-3


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (body([0.0, 0.0, 0.0]), "zero"),
        (body([1e-40, 0.0, 0.0]), "zero"),
        (body([1.0, 2.0]), "dimensions"),
        (body([1.0] * 4), "dimensions"),
        (body([]), "dimensions"),
        (body(base64.b64encode(struct.pack("<3f", 1, float("nan"), 1)).decode()), "nan"),
        (body(base64.b64encode(struct.pack("<3f", 1, float("inf"), 1)).decode()), "nan"),
        (b'{"data":[{"embedding":[1,NaN,2]}]}', "garbage"),
        (b'{"data":[{"embedding":[1,1e999,2]}]}', "garbage"),
        (body("AAA"), "garbage"),
        (body("not base64!"), "garbage"),
        (body([1.0, "x", 2.0]), "garbage"),
        (body(None), "garbage"),
        (b'{"data":[]}', "garbage"),
        (msgspec.json.encode({"data": [{"embedding": [1.0, 2.0, 3.0]}] * 2}), "garbage"),
        (b"<html>", "garbage"),
        (b"", "garbage"),
        (b"\xff\xfe", "garbage"),
        (b"[" * 100_000, "garbage"),
    ],
)
def test_what_is_no_vector_is_refused(said: bytes, why: str) -> None:
    with pytest.raises(Unfit) as met:
        read_vector(said, 3)
    assert str(met.value) in (why, "nan") if b"1e999" in said else str(met.value) == why


def test_a_vector_of_no_said_length_may_have_4096_dimensions_at_most() -> None:
    assert len(read_vector(body([1.0] * 4096), None)) == 4096
    with pytest.raises(Unfit, match="dimensions"):
        read_vector(body([1.0] * 4097), None)


# ---- pauses


def test_an_endpoint_that_fails_is_left_alone_for_longer_and_longer() -> None:
    pause, now, lengths = Pause(), 0, []
    for _ in range(FAILURES - 1):
        pause.failed(now)
        assert pause.ask(now) == "ask"
    pause.failed(now)
    for _ in range(8):
        began = now
        while (said := pause.ask(now)) == "leave":
            now += S // 4
        assert said == "probe" and pause.ask(now) == "leave"  # one for all
        lengths.append((now - began) // S)
        pause.failed(now)
    assert lengths == [1, 2, 4, 8, 16, 32, 60, 60] and (FIRST_S, MOST_S) == (1, 60)
    now += 60 * S
    assert pause.ask(now) == "probe"
    pause.succeeded()
    assert (pause.on, pause.ask(now)) == (False, "ask")
    for _ in range(FAILURES):
        pause.failed(now)
    assert pause.ask(now + S) == "probe"  # from the beginning


def test_a_success_in_between_forgives() -> None:
    pause = Pause()
    for _ in range(3 * FAILURES):
        for _ in range(FAILURES - 1):
            pause.failed(0)
        pause.succeeded()
    assert pause.ask(0) == "ask"


def test_its_own_wish_to_be_left_alone_holds_at_once_and_not_for_ever() -> None:
    pause = Pause()
    pause.failed(0, 20.0)
    assert (pause.ask(19 * S), pause.ask(20 * S)) == ("leave", "probe")
    pause = Pause()
    pause.failed(0, 86_400.0)
    assert pause.ask(60 * S) == "probe"


def test_failures_of_calls_that_were_under_way_make_it_no_longer() -> None:
    pause = Pause()
    for _ in range(4 * FAILURES):
        pause.failed(0)
    assert pause.ask(S) == "probe"


def test_a_probe_that_comes_to_nothing_is_followed_by_another() -> None:
    pause = Pause()
    for _ in range(FAILURES):
        pause.failed(0)
    assert pause.ask(S) == "probe"
    pause.released()
    assert pause.ask(S) == "probe"


# ---- who waits


class World:
    """An endpoint whose calls end when a test says so."""

    def __init__(self, **spec: Any) -> None:
        self.counts = Counts()
        self.calls: list[tuple[str, str, str, asyncio.Future[bytes]]] = []
        self.state = State(Embedding(provider="p", model="m", **spec))
        self.endpoint = Endpoint(b"space", self.state, self._ask, SystemClock().now_ns, self.counts)

    async def _ask(self, x: Exchange, text: str, why: str, until_ns: int) -> bytes:
        assert x.principal is not None
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.calls.append((x.principal.tenant, text, why, future))
        return await future

    @staticmethod
    def by(tenant: str = "t") -> Exchange:
        x = Exchange(id="1", surface=CHAT, started_ns=0, wall_ns=0, config_version=1)
        x.principal = Principal(name="k", tenant=tenant, fingerprint="")
        return x

    async def begun(self, count: int) -> None:
        while len(self.calls) < count:
            await asyncio.sleep(0)

    def answer(self, i: int, vector: list[float]) -> None:
        self.calls[i][3].set_result(body(vector))

    def fail(self, i: int, fault: Exception) -> None:
        self.calls[i][3].set_exception(fault)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(30):
            await work()

    asyncio.run(whole())


def test_a_text_is_asked_for_once_for_all_of_a_tenant() -> None:
    async def work() -> None:
        world = World(timeout_ms=5000)
        waiting = [asyncio.ensure_future(world.endpoint.within(world.by(), "a")) for _ in range(5)]
        waiting.append(asyncio.ensure_future(world.endpoint.later(world.by(), "a")))
        other = asyncio.ensure_future(world.endpoint.within(world.by("u"), "a"))
        await world.begun(2)
        assert [call[:3] for call in world.calls] == [("t", "a", "embed"), ("u", "a", "embed")]
        world.answer(0, [1.0, 0.5])
        world.answer(1, [0.5, 1.0])
        found = await asyncio.gather(*waiting)
        assert len(set(found)) == 1 and found[0] is not None
        assert (await other) not in found
        assert await world.endpoint.within(world.by(), "a") == found[0] and len(world.calls) == 2

    run(work)


def test_who_has_waited_long_enough_goes_on_and_the_vector_comes_all_the_same() -> None:
    async def work() -> None:
        world = World(timeout_ms=1)
        assert await world.endpoint.within(world.by(), "a") is None
        later = asyncio.ensure_future(world.endpoint.later(world.by(), "a"))
        await asyncio.sleep(0)
        world.answer(0, [1.0, 0.5])
        assert await later is not None and len(world.calls) == 1
        assert world.counts.seen["late"] == 1 and world.state.pause.failures == 1

    run(work)


def test_a_request_with_little_time_left_does_not_wait_on() -> None:
    async def work() -> None:
        world = World(timeout_ms=5000)
        x = world.by()
        x.deadline_ns = SystemClock().now_ns() + 1_000_000
        began = SystemClock().now_ns()
        assert await world.endpoint.within(x, "a") is None
        assert SystemClock().now_ns() - began < 2 * S
        assert world.state.pause.failures == 0  # that was no fault of the endpoint

    run(work)


def test_no_more_are_under_way_and_waiting_than_the_config_says() -> None:
    async def work() -> None:
        world = World(timeout_ms=5000, max_calls=3)
        waiting = [asyncio.ensure_future(world.endpoint.within(world.by(), str(i))) for i in range(10)]
        await world.begun(3)
        assert world.counts.seen == {"full": 4}
        for i in range(6):
            await world.begun(i + 1)
            assert len(world.calls) <= i + 3
            world.answer(i, [1.0, float(i)])
        found = await asyncio.gather(*waiting)
        assert [one is not None for one in found] == [True] * 6 + [False] * 4

    run(work)


@pytest.mark.parametrize("wrong", [Fault("server_error", "no", upstream_status=500), Fault("reset", "no"), RuntimeError("a bug"), "zero"], ids=str)
def test_a_dead_endpoint_is_not_asked_for_long(wrong: Any) -> None:
    async def work() -> None:
        world = World(timeout_ms=5000)
        for i in range(FAILURES):
            task = asyncio.ensure_future(world.endpoint.within(world.by(), str(i)))
            await world.begun(i + 1)
            if wrong == "zero":
                world.answer(i, [0.0])
            else:
                world.fail(i, wrong)
            assert await task is None
        for i in range(50):
            assert await world.endpoint.within(world.by(), f"more {i}") is None
            assert await world.endpoint.later(world.by(), f"more {i}") is None
        assert len(world.calls) == FAILURES and world.counts.seen["paused"] == 100

    run(work)


def test_nobody_waits_for_a_probe_and_its_success_ends_the_pause() -> None:
    async def work() -> None:
        world = World(timeout_ms=60_000 // 12)
        world.state.pause._until_ns = 1  # a pause that is over
        assert await world.endpoint.within(world.by(), "a") is None  # at once, and yet it asks
        await world.begun(1)
        assert await world.endpoint.within(world.by(), "b") is None and len(world.calls) == 1
        later = asyncio.ensure_future(world.endpoint.later(world.by(), "a"))
        await asyncio.sleep(0)
        world.answer(0, [1.0])
        assert await later is not None and not world.state.pause.on

    run(work)


def test_a_client_that_leaves_takes_no_vector_from_the_others() -> None:
    async def work() -> None:
        world = World(timeout_ms=5000)
        first, second = (asyncio.ensure_future(world.endpoint.within(world.by(), "a")) for _ in range(2))
        await world.begun(1)
        first.cancel()
        await asyncio.sleep(0)
        world.answer(0, [1.0])
        assert await second is not None and first.cancelled()

    run(work)


def test_a_reload_forgets_nothing() -> None:
    """Another `Endpoint` on the same state: of the next config, with ports of its own."""

    async def work() -> None:
        world = World(timeout_ms=5000)
        task = asyncio.ensure_future(world.endpoint.within(world.by(), "a"))
        await world.begun(1)
        world.answer(0, [1.0])
        vector = await task
        after = Endpoint(b"space", world.state, world._ask, SystemClock().now_ns, world.counts)
        assert await after.within(world.by(), "a") == vector and len(world.calls) == 1

    run(work)
