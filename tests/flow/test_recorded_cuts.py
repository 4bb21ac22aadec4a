"""Recorded streams of real providers, cut at every byte: what is joined is what the provider said, or there is an error.

Without sockets the whole of them (thousands of cuts); through a gateway on real sockets a sample of the cuts.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faults import server as faults
from faults.conftest import MODEL, Wire, dechunk
from faults.server import FaultServer
from support.gateway import Gateway, config
from support.passage import Call, Said, passage
from support.replay import Recording, load

# ---- without sockets: the real flow of a stream over scripted calls


def chosen(shared: Path, full: bool) -> list[Recording]:
    """Text streams and tool-call streams of several providers, each finished and of one choice."""
    out: list[Recording] = []
    seen: Counter[str] = Counter()
    for r in load(shared, full):
        if r.api != "chat" or not r.stream or r.status != 200 or not 500 < len(r.body) < 12_000:
            continue
        try:
            said = Said(r.body)
        except (ValueError, KeyError, TypeError):
            continue
        kind = f"{r.provider} {'calls' if said.calls else 'text'}"
        if said.error or not said.finish or not (said.text or said.calls) or seen[kind] >= (3 if full else 1):
            continue
        seen[kind] += 1
        out.append(r)
    return out


@pytest.mark.parametrize("how", ["reset", "end"])
def test_cut_at_every_byte_the_answer_is_whole_or_an_error(shared: Path, full: bool, how: str) -> None:
    """The same model elsewhere gives the same answer from the beginning: it is swallowed up to the seam."""
    outcomes: Counter[str] = Counter()

    async def all_cuts() -> None:
        for recording in chosen(shared, full):
            data = recording.body
            wanted = Said(data)
            step = 1 if full else max(1, len(data) // 150)
            for cut in range(1, len(data), step):
                run = passage(lambda _, d=data[:cut]: Call([d], how == "reset"), lambda _, d=data: Call([d], False))  # type: ignore[misc]
                fault, out, _ = await run()
                said = Said(out)
                if fault is None:
                    assert said.whole == wanted.whole, (recording.id, cut)
                    outcomes["cut-over" if b"cut-over" in out else "whole"] += 1
                else:
                    assert not said.done and (not said.finish or len(wanted.choices) > 1), (recording.id, cut)
                    outcomes[f"error {recording.provider} {fault.kind}"] += 1

    asyncio.run(all_cuts())
    total = sum(outcomes.values())
    print(f"\n{how}: {total} cuts of {len(chosen(shared, full))} recorded streams: {dict(outcomes)}")
    assert total >= 1_000
    assert outcomes["cut-over"] > 0.5 * total


# ---- through a gateway


def test_cut_on_real_sockets(shared: Path, serve: Callable[..., Gateway], full: bool) -> None:
    recordings = [r for r in chosen(shared, False) if Said(r.body).text][:6]

    def make(name: str, cut: bool) -> Any:
        async def act(c: Any, seen: Any, n: int = 0, at: int = 0) -> None:
            data = recordings[int(n)].body
            piece = data[: int(at)] if cut else data
            await c.send(faults.STREAM_HEAD + (faults.chunked(piece) if piece else b""))
            if not cut:
                await c.send(faults.END)
                return
            await asyncio.sleep(0.005)
            c.reset()

        return act

    faults.FAULTS["recorded-cut"] = faults.K(make("cut", True))
    faults.FAULTS["recorded"] = faults.K(make("whole", False))
    outcomes: Counter[str] = Counter()
    try:
        with FaultServer() as a, FaultServer() as b:
            routes = [{"name": "r", "match": {"model": "r"}, "targets": [{"provider": n, "model": MODEL} for n in "ab"]}]
            routes.append({"name": "heal", "match": {"model": "heal"}, "targets": [{"provider": "a", "model": MODEL}]})
            gateway = serve(config({"a": a.url, "b": b.url}, routes))
            for n, recording in enumerate(recordings):
                wanted = Said(recording.body)
                for at in range(1, len(recording.body), 23 if full else max(1, len(recording.body) // 25)):
                    a.script.append(f"recorded-cut:n={n},at={at}")
                    b.default = f"recorded:n={n}"
                    w = Wire(gateway, {"model": "r", "messages": [{"role": "user", "content": "hi"}], "stream": True})
                    while not w.data.endswith(b"0\r\n\r\n") and (piece := w.socket.recv(65536)):
                        w.data += piece
                    w.close()
                    out = dechunk(w.data.partition(b"\r\n\r\n")[2])
                    said = Said(out)
                    if w.data.endswith(b"0\r\n\r\n"):
                        assert said.whole == wanted.whole, (recording.id, at)
                        outcomes["cut-over" if b"cut-over" in out else "whole"] += 1
                    else:
                        assert said.error and (not said.finish or len(wanted.choices) > 1)
                        outcomes["error"] += 1
                    with gateway.client() as client:  # or the breaker opens, and nothing is cut any more
                        assert client.post("/v1/chat/completions", json={"model": "heal", "messages": [], "stream": True}).status_code == 200
            assert gateway.wait_for(lambda: gateway.metric("turnout_in_flight") == 0)
    finally:
        del faults.FAULTS["recorded-cut"], faults.FAULTS["recorded"]
    print(f"\non sockets: {dict(outcomes)}")
    assert outcomes["cut-over"] > 20


