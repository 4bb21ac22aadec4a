"""Whole streams through the seam, without sockets: any text, any cut, any way of going on, any chunking of the bytes."""

import asyncio
import gc
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from support.goes_on import HOWS, TEXTS, continuation, tokens
from support.passage import Call, Said, passage
from turnout.stream.seam import part


def events(pieces: list[str], n: int, end: bytes, finish: bool = True) -> list[bytes]:
    """A stream of these tokens from provider number `n`: each has another id, clock and model."""
    base = {"id": f"id-{n}", "object": "chat.completion.chunk", "created": 100 + n, "model": f"model-{n}", "system_fingerprint": f"fp-{n}"}

    def one(delta: dict[str, Any], why: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": why}
        return b"data: " + json.dumps({**base, "choices": [choice], **more}, ensure_ascii=n % 2 == 0).encode() + end * 2

    out = [one({"role": "assistant", "content": ""}), *(one({"content": t}) for t in pieces)]
    if finish:
        usage = {"prompt_tokens": 30, "completion_tokens": len(pieces), "total_tokens": 30 + len(pieces)}
        out += [one({}, "stop"), b"data: " + json.dumps({**base, "choices": [], "usage": usage}).encode() + end * 2, b"data: [DONE]" + end * 2]
    return out


def cut_up(rng: random.Random, stream: bytes) -> list[bytes]:
    """Into reads at any byte: inside characters, inside CRLF, several events at once, byte by byte."""
    kind = rng.randrange(4)
    if kind == 0:
        return [stream]
    if kind == 1:
        return [stream[i : i + 1] for i in range(len(stream))]
    most = 40 if kind == 2 else 600
    edges = sorted({0, len(stream), *(rng.randrange(len(stream) + 1) for _ in range(len(stream) // most + 1))})
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


def goes_on(how: str, text: str, said: str, n: int, end: bytes, rng: random.Random) -> Any:
    """What provider `n` answers to a request body: it reads from that what it is shown and told."""

    def answer(body: bytes) -> Call:
        messages = json.loads(body[body.index(b"{", body.index(b"\r\n\r\n") if b"\r\n\r\n" in body else 0) :])["messages"]
        told = messages[-1]["content"] if messages[-1]["role"] == "user" and len(messages) > 1 else ""
        shown = next((m["content"] for m in messages if m["role"] == "assistant"), "")
        words = part(said)[1] if "characters:" in told else ""
        assert said.startswith(shown) and (not words or told.endswith(words.strip()))
        rest = continuation(how, text, shown if how == "exact" else said, words)
        return Call(cut_up(rng, b"".join(events(tokens(rest), n, end))), False)

    return answer


def cuts(name: str, full: bool) -> Iterator[tuple[int, str]]:
    pieces = tokens(TEXTS[name])
    for at in range(1, len(pieces) + 1):
        for how in HOWS:
            if full or (at + len(how)) % 6 == 0:
                yield at, how


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("name", TEXTS)
def test_every_cut_gives_one_stream(name: str, end: bytes, full: bool) -> None:
    rng = random.Random(f"{name}{end!r}")
    text = TEXTS[name]
    tries: Counter[int] = Counter()

    async def all_cuts() -> None:
        for at, how in cuts(name, full):
            pieces = tokens(text)[:at]
            said = "".join(pieces)
            begun = b"".join(events(pieces, 1, end, False))
            then = goes_on(how, text, said, 2, end, rng)
            prefill = "assistant-prefix" if how == "exact" else "none"
            run = passage(lambda _, b=begun: Call(cut_up(rng, b), rng.random() < 0.5), then, prefill)  # type: ignore[misc]
            fault, out, x = await run()
            assert fault is None, (at, how)
            one = Said(out)
            assert one.text == text, (at, how)
            assert one.done and one.finish == "stop"
            chunks = [json.loads(line[6:]) for line in out.replace(b"\r\n", b"\n").split(b"\n") if line.startswith(b"data: {")]
            for field, value in (("id", "id-1"), ("created", 101), ("model", "model-1")):
                assert {c[field] for c in chunks} == {value}, (at, how, field)
            assert sum("role" in c["delta"] for chunk in chunks for c in chunk["choices"]) == 1
            assert {c["index"] for chunk in chunks for c in chunk["choices"]} == {0}
            assert not any(c.get("system_fingerprint") == "fp-2" for c in chunks)
            assert out.count(b": turnout cut-over a>b after=%d chars" % len(said)) == 1
            usage = chunks[-1]["usage"]
            own = [a.usage.completion for a in x.attempts if a.usage is not None]
            assert usage["completion_tokens"] == sum(own)
            assert usage["prompt_tokens"] > 0
            assert all(a.cause == "cut-over" for a in x.attempts[1:])
            tries[len(x.attempts)] += 1

    asyncio.run(all_cuts())
    assert set(tries) <= {2, 3}
    assert tries[2] > 3 * tries[3]


def test_a_stream_leaves_no_cycle() -> None:
    """What a stream held goes with it: at thousands of streams nothing may wait for the collector."""

    def answer(body: bytes) -> Call:
        return Call([b"".join(events(["one ", "two"], 1, b"\n"))], False)

    async def run() -> None:
        go = passage(answer, answer)
        await go()
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                fault, out, _ = await go()
                assert fault is None
                assert out.endswith(b"[DONE]\n\n")
            assert gc.collect() == 0
        finally:
            gc.enable()

    asyncio.run(run())
