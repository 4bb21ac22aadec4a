"""Make the Nth byte fail, for every N: the upstream connection dies after each byte of an answer in turn.

The invariants after each: one log line, nothing left in flight, and either a whole answer or an explicit error; never half
an answer that looks whole. Where streams may cut over there are only whole answers.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from faults.conftest import MODEL, Wire, ask, body, dechunk, said
from faults.server import TEXT, FaultServer, Seen, response
from support.gateway import Gateway, config
from turnout.account.ledger import Row, rows

CLIENTS = 8


def lengths(stream: bool) -> int:
    """Bytes of the good answer to the request that the gateway will send."""
    seen = Seen("ok", b"POST /v1/chat/completions HTTP/1.1")
    asked = {**body(MODEL, stream), **({"stream_options": {"include_usage": True}} if stream else {})}
    seen.body = json.dumps(asked).encode()
    return len(response(seen))


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway], a: FaultServer, b: FaultServer) -> Gateway:
    """A provider for each of the test's clients, so that each can script its own; behind all of them `b`."""
    providers: dict[str, Any] = {"b": b.url}
    routes = []
    for n in range(CLIENTS):
        providers[f"c{n}"] = a.url.replace("/v1", f"/c{n}/v1")
        targets = [{"provider": name, "model": MODEL} for name in (f"c{n}", "b")]
        routes.append(
            {
                "name": f"cut-{n}",
                "match": {"model": f"cut-{n}"},
                "targets": targets,
                "timeouts": {"plain_ms": 3000, "ttft_ms": 3000},
            }
        )
        routes[-1]["stream"] = {"on_failure": "terminate"}
        routes.append({**routes[-1], "name": f"cutover-{n}", "match": {"model": f"cutover-{n}"}, "stream": {}})
        routes.append({"name": f"heal-{n}", "match": {"model": f"heal-{n}"}, "targets": targets[:1]})
    return serve(config(providers, routes))


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("kind", ["plain", "stream", "continue"])
def test_an_answer_cut_after_any_byte_is_whole_or_an_error(
    gateway: Gateway, a: FaultServer, b: FaultServer, kind: str, how: str
) -> None:
    stream = kind != "plain"
    route = "cutover" if kind == "continue" else "cut"
    total = lengths(stream)
    log, a_before, b_before = len(gateway.log), a.requests, b.requests
    plan: dict[str, str] = {}
    healings = 0
    a.default = lambda head: plan[head.split(b"/", 2)[1].decode()]
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    got: dict[int, tuple[str, str, str]] = {}  # k -> request id, outcome, text
    ks = iter(range(total + 1))
    lock = threading.Lock()

    def one(n: int, k: int) -> None:
        plan[f"c{n}"] = f"cut-at:byte={k},how={how}"
        w = Wire(gateway, body(f"{route}-{n}", stream))
        if stream:
            while True:  # to the end of the connection or of the message, whichever the gateway gives
                piece = w.socket.recv(65536)
                w.data += piece
                if not piece or w.data.endswith(b"0\r\n\r\n"):
                    break
            clean = w.data.endswith(b"0\r\n\r\n")
            out = dechunk(w.data.partition(b"\r\n\r\n")[2])
            text = said(out)
            errors = out.count(b'"error"')
            finished = b'"finish_reason":"stop"' in out.replace(b'": ', b'":')
            assert w.status == 200
            assert out.count(b'"role"') == 1
            assert TEXT.startswith(text)
            assert clean == (not errors), out[-300:]
            if clean:
                assert text == TEXT
                assert finished
                outcome = "whole" if w.header("x-turnout-provider") != "b" else "fallback"
                if b": turnout cut-over " in out:
                    assert kind == "continue"
                    outcome = "cut-over"
                assert out.count(b"[DONE]") == 1 or outcome == "whole"
            else:
                assert errors == 1
                assert not finished
                assert b"[DONE]" not in out
                assert b"upstream_stream_interrupted" in out
                outcome = "error"
        else:
            w.read_until(b"\r\n\r\n")
            length = int(w.header("content-length"))
            while len(w.data.partition(b"\r\n\r\n")[2]) < length:
                w.data += w.socket.recv(65536)
            answer = json.loads(w.data.partition(b"\r\n\r\n")[2])
            assert w.status == 200
            text = answer["choices"][0]["message"]["content"]
            assert text == TEXT
            outcome = "whole" if w.header("x-turnout-provider") != "b" else "fallback"
        w.close()
        got[k] = (w.header("x-request-id"), outcome, text)

    def client(n: int) -> None:
        nonlocal healings
        with gateway.client() as http:
            while True:
                with lock:
                    k = next(ks, None)
                if k is None:
                    return
                try:
                    one(n, k)
                except Exception as e:
                    wrong.append(f"k={k}: {e!r}"[:500])
                plan[f"c{n}"] = "ok"  # or the breaker opens, and the rest is served by `b` without a cut
                assert ask(http, f"heal-{n}").status_code == 200
                with lock:
                    healings += 1

    threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong, (len(wrong), wrong[:3])
    outcomes.update(outcome for _, outcome, _ in got.values())
    print(f"\n{kind}, {how} after each of {total + 1} bytes: {dict(outcomes)}")

    # one log line each, and the ledger tells the same
    assert gateway.wait_for(lambda: len(gateway.log) - log >= total + 1 + healings, 15)
    assert gateway.wait_for(lambda: gateway.metric("turnout_in_flight") == 0)
    lines = [line for line in gateway.log[log:] if line["route"].startswith("cut")]
    assert len(lines) == len({line["request_id"] for line in lines}) == total + 1
    by_id = {line["request_id"]: line for line in lines}
    tries = sum(line["attempts"] for line in lines)
    # A pooled connection that dies before the first byte is opened anew within the attempt: k = 0, if there was one.
    asked = (a.requests - a_before - healings) + (b.requests - b_before)
    assert 0 <= asked - tries <= 1
    booked: dict[str, list[Row]] = {}

    def all_booked() -> bool:
        booked.clear()
        for row in rows(gateway.state):
            if row.request_id in by_id:
                booked.setdefault(row.request_id, []).append(row)
        return sum(map(len, booked.values())) == tries

    assert gateway.wait_for(all_booked)
    for request_id, outcome, _ in got.values():
        own = booked[request_id]
        served = {"whole": [True], "fallback": [False, True], "cut-over": [False, True], "error": [False]}[outcome]
        assert [r.served for r in own] == served
        assert [r.cause for r in own[1:]] == [outcome] * (len(own) - 1)
        assert (by_id[request_id]["error"] != "") == (outcome == "error")
    # Cut before anything was said it is always a fallback; the last byte cuts nothing.
    assert got[0][1] == "fallback"
    assert got[total][1] == "whole"
    if stream:
        # once begun it is never taken over silently, and once finished it is whole: the outcomes come in this order
        order = [{"fallback": 0, "error": 1, "cut-over": 1, "whole": 2}[got[k][1]] for k in range(total + 1)]
        assert outcomes["error" if kind == "continue" else "cut-over"] == 0
        assert how == "reset" or order == sorted(order)
        assert set(order) == {0, 1, 2}
    else:
        assert outcomes["fallback"] == total
