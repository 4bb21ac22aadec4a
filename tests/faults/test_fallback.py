"""Before the first content token any failure of a target is another target's work, and nobody sees it."""

import json
import random
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import trustme

from faults.conftest import MODEL, ask, error_of, slug, text_of
from faults.server import FAULTS, SECRET_WORDS, TEXT, FaultServer
from support.gateway import UPSTREAM_KEY, Gateway, config
from turnout.account.ledger import Row, rows

# Each way to fail of the issue's point 5, and more; with the reasons it may be given (plain, stream).
FAILING: dict[str, tuple[str, str]] = {
    "refused": ("connect", "connect"),
    "tls-untrusted": ("tls", "tls"),
    "tls-wrong-name": ("tls", "tls"),
    "plain-on-tls": ("tls", "tls"),
    "accept-close": ("reset", "reset"),
    "accept-reset": ("reset", "reset"),
    "close": ("reset", "reset"),
    "reset": ("reset", "reset"),
    "silence": ("plain_timeout", "ttft_timeout"),
    "slow-head:ms=2000": ("plain_timeout", "ttft_timeout"),
    "late-token:ms=2000": ("plain_timeout", "ttft_timeout"),
    "malformed-http": ("protocol", "protocol"),
    "redirect": ("307", "307"),
    "endless-header": ("protocol", "protocol"),
    "switching": ("protocol", "protocol"),
    "429": ("429", "429"),
    "429-seconds": ("429", "429"),
    "429-ms": ("429", "429"),
    "429-date": ("429", "429"),
    "429-quota": ("429", "429"),
    "500": ("500", "500"),
    "502": ("502", "502"),
    "503": ("503", "503"),
    "529": ("529", "529"),
    "big-error": ("500", "500"),
    "401": ("401", "401"),
    "403": ("403", "403"),
    "404": ("404", "404"),
    "html": ("content_type", "content_type"),
    "json-for-stream": ("content_type", "content_type"),
    "half-json": ("200", "content_type"),
    "half-body": ("reset", "content_type"),
    "error-200": ("server_error", "content_type"),
    "cut-reset": ("reset", "reset"),
    "cut-close": ("reset", "reset"),
    "cut-end": ("200", "200"),
    "stall": ("idle_timeout", "ttft_timeout"),
    "error-event": ("server_error", "500"),
    "bad-chunk": ("200", "interrupted"),
}
GOOD = ["ok", "slow-head", "interim", "close-delimited", "trailing", "no-done", "huge-header"]
PASSED_ON = ["400", "413", "422", "content-filter", "early"]
TIMEOUTS = {"connect_ms": 1000, "ttft_ms": 250, "plain_ms": 250, "idle_ms": 300}


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def failing(a: FaultServer, ca: trustme.CA) -> Iterator[dict[str, str | dict[str, Any]]]:
    """fault -> the provider that has it."""
    servers = []

    def tls(authority: trustme.CA, name: str) -> FaultServer:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        servers.append(FaultServer(tls=context).start())
        return servers[-1]

    gone = FaultServer().start()
    gone.refuse()
    accept = {name: FaultServer(default=name).start() for name in ("accept-close", "accept-reset")}
    servers += [gone, *accept.values()]
    urls = {
        "refused": gone.url,
        "tls-untrusted": tls(trustme.CA(), "127.0.0.1").url,
        "tls-wrong-name": tls(ca, "elsewhere.example").url,
        "plain-on-tls": a.url.replace("http:", "https:"),
        **{name: server.url for name, server in accept.items()},
    }
    yield {fault: urls.get(fault) or a.at(fault) for fault in (*FAILING, *GOOD, *PASSED_ON)}
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def gateway(
    serve: Callable[..., Gateway],
    failing: dict[str, Any],
    a: FaultServer,
    b: FaultServer,
    ca: trustme.CA,
    tmp_path_factory: pytest.TempPathFactory,
) -> Gateway:
    """A route per fault: the provider that has it, then `b`; and one with nobody behind it (`only-...`)."""
    bundle = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(str(bundle))
    providers: dict[str, Any] = {"b": b.url, "a": a.url}
    routes: list[dict[str, Any]] = [
        {
            "name": "mixed",
            "match": {"model": "mixed"},
            "targets": [{"provider": n, "model": MODEL} for n in "ab"],
            "timeouts": TIMEOUTS | {"ttft_ms": 1000, "plain_ms": 1000},  # the good ones are in this process, which is busy asking
        }
    ]
    for fault, url in failing.items():
        name = slug(fault)
        provider = {"kind": "openai", "base_url": url, "api_key": "env:TEST_UPSTREAM_KEY"}
        if url.startswith("https"):
            provider["ca_bundle"] = str(bundle)
        # Two of each, because a breaker and its cool-downs belong to (provider, account, model).
        for kind in ("x", "only"):
            providers[f"{kind}-{name}"] = dict(provider)
        target = {"provider": f"x-{name}", "model": MODEL}
        more = {"timeouts": TIMEOUTS}
        routes.append(
            {
                "name": f"r-{name}",
                "match": {"model": f"r-{name}"},
                "targets": [target, {"provider": "b", "model": MODEL}],
                **more,
            }
        )
        routes.append(
            {
                "name": f"only-{name}",
                "match": {"model": f"only-{name}"},
                "targets": [{"provider": f"only-{name}", "model": MODEL}],
                **more,
            }
        )
    return serve(config(providers, routes))


@pytest.fixture
def client(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.client() as client:
        yield client


def ledger(gateway: Gateway, request_id: str) -> list[Row]:
    """The rows of one request, once they are written."""
    gateway.logged(request_id)
    find = lambda: [r for r in rows(gateway.state) if r.request_id == request_id]
    return list(gateway.wait_for(find))


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("fault", FAILING)
def test_a_failing_target_is_not_seen(
    gateway: Gateway, client: httpx.Client, a: FaultServer, b: FaultServer, fault: str, stream: bool
) -> None:
    reason = FAILING[fault][stream]
    name = slug(fault)
    if fault.startswith("429"):  # what the plain form's answer has cooled
        gateway.wait_for(lambda: time.monotonic() > cooled.get(fault, 0))
        cooled[fault] = time.monotonic() + 2.6
    before, b_before = gateway.metrics(), b.requests
    answer = ask(client, f"r-{name}", stream)

    assert answer.status_code == 200
    assert text_of(answer) == TEXT
    headers = answer.headers
    if fault == "accept-reset":  # the kernel may report the reset while the connect is still being finished
        reason = headers["x-turnout-fallback"].rpartition("=")[2]
        assert reason in ("reset", "connect")
    assert headers["x-turnout-provider"] == "b"
    assert headers["x-turnout-model"] == MODEL
    assert headers["x-turnout-attempts"] == "2"
    assert headers["x-turnout-fallback"] == f"x-{name}>b;reason={reason}"
    assert b.requests == b_before + 1

    found = ledger(gateway, headers["x-request-id"])
    assert [(r.attempt, r.provider, r.cause, r.reason, r.served) for r in found] == [
        (1, f"x-{name}", "first", reason, False),
        (2, "b", "fallback", "", True),
    ]
    assert found[1].prompt_tokens == 11
    assert found[1].completion_tokens == 9
    assert found[1].cost_nanos == 11 * 150 + 9 * 600
    line = gateway.logged(headers["x-request-id"])
    assert line["attempts"] == 2
    assert line["fallback"] == headers["x-turnout-fallback"]
    assert line["provider"] == "b"
    assert [f["reason"] for f in line["failures"]] == [reason, ""]
    assert line["error"] == ""
    cost = sum(r.cost_nanos for r in found) / 1e9
    assert float(line["cost_usd"]) == pytest.approx(cost)
    if not stream:
        assert float(headers["x-turnout-cost-usd"]) == pytest.approx(cost)

    after = gateway.metrics()
    grown = {k: v - before.get(k, 0) for k, v in after.items() if v != before.get(k, 0)}
    route = f'route="r-{name}"'
    assert sum(v for k, v in grown.items() if k.startswith("turnout_attempts_total{") and route in k) == 2
    fallbacks = {k: v for k, v in grown.items() if k.startswith("turnout_fallbacks_total{")}
    assert len(fallbacks) == 1
    ((series, value),) = fallbacks.items()
    assert value == 1
    assert all(part in series for part in (route, f'from="x-{name}"', 'to="b"', f'reason="{reason}"'))
    spent = [v for k, v in grown.items() if k.startswith("turnout_cost_usd_total{") and route in k]
    assert sum(spent) == pytest.approx(cost)
    assert gateway.metric("turnout_in_flight") == 0


cooled: dict[str, float] = {}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("fault", GOOD)
def test_an_odd_but_good_answer_is_served(client: httpx.Client, fault: str, stream: bool) -> None:
    for _ in range(3):  # on a connection that is used again too
        answer = ask(client, f"only-{slug(fault)}", stream)
        assert answer.status_code == 200
        assert text_of(answer) == TEXT
        assert answer.headers["x-turnout-attempts"] == "1"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("fault", ["400", "413", "422", "content-filter"])
def test_the_callers_own_mistake_is_handed_on_byte_for_byte(
    client: httpx.Client, a: FaultServer, b: FaultServer, fault: str, stream: bool
) -> None:
    before = a.requests + b.requests
    answer = ask(client, f"r-{fault}", stream)
    assert a.requests + b.requests == before + 1
    seen = a.seen[-1]
    assert seen.fault == fault
    sent = httpx.post(a.at(fault) + "/chat/completions", content=seen.body, trust_env=False)
    assert answer.status_code == sent.status_code
    assert answer.content == sent.content
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-turnout-attempts"] == "1"
    assert answer.headers["x-turnout-fallback"] == "none"


def test_an_answer_while_the_request_is_still_going_up_is_handed_on(
    client: httpx.Client, a: FaultServer, b: FaultServer
) -> None:
    before = a.requests + b.requests
    filler = [{"role": "user", "content": "x" * 8_000_000}]
    answer = client.post("/v1/chat/completions", json={"model": "r-early", "messages": filler})
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "too_large"
    assert a.requests + b.requests == before + 1


@pytest.mark.parametrize("fault", ["401", "403", "404"])
def test_our_own_wrong_key_or_model_is_a_502_and_an_alert_and_nothing_leaks(
    gateway: Gateway, client: httpx.Client, a: FaultServer, fault: str
) -> None:
    before = a.requests
    answer = ask(client, f"only-{fault}")
    assert a.requests == before + 1  # no second try there
    assert answer.status_code == 502
    assert error_of(answer)["type"] == "upstream_error"
    assert answer.headers["x-turnout-attempts"] == "1"
    assert answer.headers["x-should-retry"] == "false"
    shown = answer.text + str(answer.headers)
    for secret in (SECRET_WORDS, "org-SECRET42", "billing@acme.example", UPSTREAM_KEY, "sk-upstr"):
        assert secret not in shown

    def alert() -> dict[str, Any] | None:
        for text in list(gateway.said):
            if text.startswith("{"):
                line = json.loads(text)
                if line.get("level") == "alert" and line.get("provider") == f"only-{fault}":
                    return dict(line)
        return None

    found = gateway.wait_for(alert)
    assert found
    assert found["alert"] == ("model_not_found" if fault == "404" else "credential_refused")
    assert found["reason"] == fault
    everything = "\n".join(gateway.said) + json.dumps(gateway.log)
    for secret in ("org-SECRET42", "billing@acme.example", UPSTREAM_KEY, "sk-upstr"):
        assert secret not in everything


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_silent_target_is_not_tried_twice(client: httpx.Client, a: FaultServer, stream: bool) -> None:
    before = a.by_fault["silence"]
    answer = ask(client, "only-silence", stream)
    assert answer.status_code == 504
    assert error_of(answer)["type"] == "timeout_error"
    assert answer.headers["x-turnout-attempts"] == "1"
    assert answer.headers["x-should-retry"] == "false"
    assert a.by_fault["silence"] == before + 1


@pytest.mark.parametrize("fault", ["reset", "503", "half-body", "accept-close"])
def test_a_sole_target_that_fails_for_a_moment_is_tried_again(
    gateway: Gateway, client: httpx.Client, a: FaultServer, fault: str
) -> None:
    answer = ask(client, f"only-{slug(fault)}")
    assert answer.status_code in (502, 503)
    assert answer.headers["x-turnout-attempts"] == "3"
    assert answer.headers["x-turnout-fallback"] == "none"
    assert answer.headers["x-should-retry"] == "false"
    error_of(answer)
    found = ledger(gateway, answer.headers["x-request-id"])
    assert [r.cause for r in found] == ["first", "retry", "retry"]


def test_model_names_that_a_client_makes_up_close_no_target_to_others(gateway: Gateway, client: httpx.Client) -> None:
    for n in range(8):
        assert ask(client, f"only-404/made-up-{n}").status_code == 502
    assert gateway.metric("turnout_breaker_opens_total", provider="only-404", model="") == 0


# ---- rate limits ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(serve: Callable[..., Gateway], a: FaultServer, b: FaultServer) -> Callable[[str], tuple[Gateway, str]]:
    """Fresh targets (their condition is per provider) for the tests of rate limits: model `two-N` and `one-N`."""
    providers: dict[str, Any] = {}
    routes = []
    for n in range(8):
        providers[f"a{n}"], providers[f"b{n}"] = a.url, b.url
        targets = [{"provider": f"{p}{n}", "model": MODEL} for p in "ab"]
        routes.append({"name": f"two-{n}", "match": {"model": f"two-{n}"}, "targets": targets})
        routes.append({"name": f"one-{n}", "match": {"model": f"one-{n}"}, "targets": targets[:1]})
    gateway = serve(config(providers, routes))
    numbers = iter(range(8))
    return lambda kind: (gateway, f"{kind}-{next(numbers)}")


@pytest.mark.parametrize("limit", ["429:seconds=2", "429:ms=2000", "429:date=3"])
def test_a_rate_limit_sends_everybody_elsewhere_until_it_is_over(
    pair: Callable[[str], tuple[Gateway, str]], a: FaultServer, limit: str
) -> None:
    gateway, model = pair("two")
    with gateway.client() as client:
        a.script.append(limit)
        started = time.monotonic()
        assert ask(client, model).headers["x-turnout-fallback"].endswith("reason=429")
        asked = a.requests
        while time.monotonic() < started + 1.5:
            answer = ask(client, model)
            assert answer.status_code == 200
            assert answer.headers["x-turnout-attempts"] == "1"
            assert answer.headers["x-turnout-provider"].startswith("b")
            assert answer.elapsed.total_seconds() < 0.5
        assert a.requests == asked  # none reached it while it was cooling
        back = gateway.wait_for(lambda: ask(client, model).headers["x-turnout-provider"].startswith("a"))
        assert back
        assert time.monotonic() - started > 1.8


def test_with_no_other_target_left_it_waits_and_then_serves(
    pair: Callable[[str], tuple[Gateway, str]], a: FaultServer
) -> None:
    gateway, model = pair("one")
    with gateway.client() as client:
        a.script.append("429:seconds=1")
        before = a.requests
        answer = ask(client, model)
        assert answer.status_code == 200
        assert text_of(answer) == TEXT
        assert answer.headers["x-turnout-attempts"] == "2"
        assert 1.0 <= answer.elapsed.total_seconds() < 3
        assert a.requests == before + 2
        # a request that comes while it cools waits too, and asks it once
        a.script.append("429:seconds=1")
        first: list[httpx.Response] = []
        other = threading.Thread(target=lambda: first.append(ask(client, model)))
        other.start()
        gateway.wait_for(lambda: a.requests == before + 3)
        gateway.wait_for(lambda: not a.script and a.seen[-1].lost_at == 0)
        second = ask(client, model)
        other.join()
        assert second.status_code == first[0].status_code == 200


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_limit_longer_than_the_wait_is_told_at_once(
    pair: Callable[[str], tuple[Gateway, str]], a: FaultServer, stream: bool
) -> None:
    gateway, model = pair("one")
    with gateway.client() as client:
        a.script.append("429:seconds=30")
        before = a.requests
        for n, rest in enumerate((30, 29)):
            answer = ask(client, model, stream)
            assert answer.status_code == 429
            assert answer.elapsed.total_seconds() < 1
            assert rest - 1 <= int(answer.headers["retry-after"]) <= 30
            assert error_of(answer)["code"] == "rate_limit_exceeded"
            assert answer.headers["x-turnout-attempts"] == str(1 - n)
        assert a.requests == before + 1  # the second was answered without asking


# ---- many -----------------------------------------------------------------------------------------------------------

# What one of the two targets does with a request. `429-ms` only, of the limits: a target that cools for a second under
# load would hardly be asked again.
MIX = [
    "close", "reset", "429-ms", "500", "502", "503", "529", "html", "json-for-stream", "half-json", "half-body", "error-200",
    "malformed-http", "redirect", "cut-reset", "cut-close", "cut-end", "error-event", "bad-chunk", "401", "403", "404",
    "switching", "big-error",
]  # fmt: skip
SLOW = ["silence", "stall", "late-token:ms=600"]  # each costs a wait


def many(gateway: Gateway, a: FaultServer, count: int) -> None:
    """`count` requests of two clients at once, half of them streams, at two targets of which one fails every way."""
    draw = random.Random(7)
    lock = threading.Lock()

    turn = 0

    def fault(_head: bytes) -> str:
        nonlocal turn
        with lock:
            turn += 1
            if turn % 5 > 1:  # fewer than half fail, or the breaker opens and all is served by the other one
                return "ok"
            return draw.choice(SLOW) if draw.random() < 0.01 else draw.choice(MIX)

    a.default = fault
    a.by_fault.clear()
    before, rows_before, log_before = gateway.metrics(), len(list(rows(gateway.state))), len(gateway.log)
    wrong: list[str] = []
    answers: list[tuple[str, str, str]] = []  # id, attempts, fallback

    def client(n: int) -> None:
        with gateway.client() as http:
            for i in range(count // 2):
                stream = bool((i + n) % 2)
                try:
                    answer = ask(http, "mixed", stream)
                    if answer.status_code != 200 or text_of(answer) != TEXT:
                        wrong.append(f"{answer.status_code} {answer.text[:300]}")
                        continue
                except Exception as e:
                    wrong.append(repr(e))
                    continue
                h = answer.headers
                answers.append((h["x-request-id"], h["x-turnout-attempts"], h["x-turnout-fallback"]))

    started = time.monotonic()
    clients = [threading.Thread(target=client, args=(n,)) for n in range(2)]
    for c in clients:
        c.start()
    for c in clients:
        c.join()
    took = time.monotonic() - started
    a.heal()
    failed = Counter({k: v for k, v in a.by_fault.items() if not FAULTS[k].good})
    print(
        f"\n{count} requests from two clients in {took:.1f} s: {len(wrong)} client errors; one target failed {sum(failed.values())} times in {len(failed)} ways"
    )
    assert set(failed) == {f.partition(":")[0] for f in MIX + SLOW}
    assert sum(failed.values()) > count / 4
    assert not wrong, wrong[:5]
    assert len(answers) == count

    # The same story everywhere.
    log = gateway.wait_for(
        lambda: len(gateway.log) - log_before >= count and {r["request_id"]: r for r in gateway.log[log_before:]}, 15
    )
    tries = sum(int(t) for _, t, _ in answers)
    gateway.wait_for(lambda: len(list(rows(gateway.state))) - rows_before >= tries)
    booked: dict[str, list[Row]] = {}
    for row in list(rows(gateway.state))[rows_before:]:
        booked.setdefault(row.request_id, []).append(row)
    assert len(booked) == count
    told: Counter[tuple[str, str, str]] = Counter()
    for request_id, attempts, fallback in answers:
        line, own = log[request_id], booked[request_id]
        assert line["attempts"] == int(attempts) == len(own)
        assert line["fallback"] == fallback
        assert [f["reason"] for f in line.get("failures", [{"reason": ""}])] == [r.reason for r in own]
        assert [r.served for r in own] == [False] * (len(own) - 1) + [True]
        if fallback != "none":
            path, _, reason = fallback.partition(";reason=")
            told[(*path.split(">"), reason)] += 1  # type: ignore[index]
    grown = {k: v - before.get(k, 0) for k, v in gateway.metrics().items()}
    counted = {k: v for k, v in grown.items() if k.startswith('turnout_fallbacks_total{route="mixed"') and v}
    assert sum(counted.values()) == sum(told.values())
    for (src, dst, reason), n in told.items():
        series = next(k for k in counted if f'from="{src}"' in k and f'to="{dst}"' in k and f'reason="{reason}"' in k)
        assert counted[series] == n
    mixed = 'route="mixed"'
    assert sum(v for k, v in grown.items() if k.startswith("turnout_attempts_total{") and mixed in k) == tries
    assert (
        sum(
            v
            for k, v in grown.items()
            if k.startswith("turnout_requests_total{") and mixed in k and 'status="200"' in k
        )
        == count
    )
    spent = sum(r.cost_nanos for own in booked.values() for r in own)
    assert sum(v for k, v in grown.items() if k.startswith("turnout_cost_usd_total{") and mixed in k) == pytest.approx(
        spent / 1e9
    )
    assert gateway.metric("turnout_in_flight") == 0


def test_no_client_sees_an_error_in_2_000_requests(gateway: Gateway, a: FaultServer) -> None:
    many(gateway, a, 2_000)


@pytest.mark.full
def test_no_client_sees_an_error_in_10_000_requests(gateway: Gateway, a: FaultServer) -> None:
    many(gateway, a, 10_000)
