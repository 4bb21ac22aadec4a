"""What must never happen, whatever is sent: another host, another credential, a secret or a prompt in the wrong place."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_surfaces import ANSWER, BODY, CHAT, EVENTS, Answer, Upstream, Wire, post

from support.gateway import ADMIN_KEY, KEY, UPSTREAM_KEY, Gateway, config

NARROW = "sk-narrow-0123456789abcdef"


class Sink:
    """A listener that nobody should ever talk to."""

    def __init__(self) -> None:
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            sock.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    made = Sink()
    yield made
    made.close()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


def with_keys(data: dict[str, Any]) -> dict[str, Any]:
    data["auth"]["keys"].append({"name": "narrow", "key": "env:NARROW_KEY", "models": ["fast", "gpt-*"]})
    return data


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway], upstream: Upstream) -> Gateway:
    routes: list[dict[str, Any]] = [
        {"name": "chat", "match": {"model": "fast"}, "targets": [{"provider": "up", "model": "m"}]},
        {"name": "gpt", "match": {"model": "gpt-4"}, "targets": [{"provider": "up"}]},
        {"name": "secret", "match": {"model": "secret-project"}, "targets": [{"provider": "up"}]},
    ]
    return serve(with_keys(config({"up": upstream.url}, routes)), env={"NARROW_KEY": NARROW})


def ask(gateway: Gateway, raw: bytes) -> Answer | None:
    """None where the server closed the connection on us."""
    with Wire(gateway) as wire:
        try:
            return wire.ask(raw)
        except ConnectionError:
            return None


def body_of(model: str, **more: Any) -> bytes:
    return json.dumps({"model": model, "messages": [], **more}).encode()


# ---- nobody chooses a host


def _headers(at: str) -> list[str]:
    names = ["x-forwarded-host", "x-forwarded-server", "x-forwarded-for", "x-host", "x-original-host", "x-original-url", "x-rewrite-url", "x-http-host-override", "forwarded", "x-turnout-host", "x-turnout-base-url", "x-turnout-upstream-host", "x-turnout-provider", "x-turnout-target", "x-turnout-proxy", "x-turnout-api-base", "x-portkey-custom-host", "x-portkey-provider", "x-portkey-config", "helicone-target-url", "helicone-openai-api-base", "x-litellm-api-base", "openai-base-url", "openai-api-base", "x-upstream", "x-base-url", "base-url", "api-base", "referer", "origin", "via", "location", "x-proxy", "proxy"]
    return [f"{name}: {value}" for name in names for value in (at, f"http://{at}/v1")] + [f"forwarded: host={at};proto=http"]


def _fields(at: str) -> list[dict[str, Any]]:
    url = f"http://{at}/v1"
    return [
        *({name: url} for name in ("base_url", "api_base", "api_url", "endpoint", "url", "host", "proxy", "azure_endpoint", "callback", "webhook")),
        {"api_key": "sk-theirs", "base_url": url},
        {"extra_headers": {"host": at, "authorization": "Bearer theirs"}, "headers": {"host": at}},
        {"extra_body": {"base_url": url}, "extra_query": {"base_url": url}},
        {"provider": {"name": "x", "base_url": url, "order": ["x"]}, "custom_llm_provider": "openai"},
        {"fallbacks": [{"model": "fast", "api_base": url}], "model_list": [{"litellm_params": {"api_base": url}}], "user_config": {"api_base": url}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url + "/a.png"}}]}]},
        {"tools": [{"type": "mcp", "server_url": url}], "metadata": {"url": url}},
    ]


def _models(at: str) -> list[str]:
    return [
        f"http://{at}/v1", f"http://{at}/fast", f"//{at}/fast", f"up/http://{at}/v1", f"up/../{at}", "a/../b", "../fast", "fast/../up/m", f"fast@{at}",
        f"up@{at}/m", f"up/m?base_url=http://{at}", f"up/m#{at}", f"up/m\r\nhost: {at}\r\n\r\n", f"fast\r\nhost: {at}", "up/", "/up", "up//m", "UP/m",
        "up/m\0", "up\\m", "up%2fm", "sim/m", f"{at}/m", f"http:/{at}",
    ]  # fmt: skip


def _targets(at: str) -> list[bytes]:
    rest = post(BODY).partition(b"\r\n")[2]
    absolute = [f"http://{at}{CHAT}", f"https://{at}{CHAT}", f"//{at}{CHAT}", f"{CHAT}?base_url=http://{at}/v1", f"{CHAT}#@{at}", f"{CHAT}@{at}", at, "*", f"@{at}{CHAT}"]
    out = [f"POST {target} HTTP/1.1\r\n".encode() + rest for target in absolute]
    out.append(f"CONNECT {at} HTTP/1.1\r\nhost: {at}\r\nauthorization: Bearer {KEY}\r\n\r\n".encode())
    out.append(f"GET http://{at}/v1/models HTTP/1.1\r\nhost: {at}\r\nauthorization: Bearer {KEY}\r\n\r\n".encode())
    return out


def test_nothing_in_a_request_chooses_an_upstream(gateway: Gateway, upstream: Upstream, sink: Sink) -> None:
    at = sink.address
    tries = [post(BODY, CHAT, header) for header in _headers(at)]
    tries += [post(body_of("fast", **fields)) for fields in _fields(at)]
    tries += [post(body_of(model), key=key) for model in _models(at) for key in (KEY, NARROW)]
    tries += [post(BODY, host=host) for host in (at, f"evil@{at}", f"{at}/", "localhost", f"fast.{at}", "[::1]", f"http://{at}")]
    tries += _targets(at)
    seen = len(upstream.seen)
    for raw in tries:
        answer = ask(gateway, raw)
        if answer is not None:
            assert answer.status in (200, 400, 401, 404, 405, 501, 505), (raw, answer.status)
            assert at.encode() not in b"".join(v for n, vs in answer.headers.items() if n != b"x-turnout-model" for v in vs)
    assert sink.connections == 0
    print(f"{len(tries)} tries, {len(upstream.seen) - seen} of them served")
    assert len(upstream.seen) - seen > 60
    for request in upstream.seen[seen:]:
        assert request.line == b"POST /v1/chat/completions HTTP/1.1"
        assert request.headers[b"host"] == [b"127.0.0.1:%d" % upstream.port]
        assert request.headers[b"authorization"] == [f"Bearer {UPSTREAM_KEY}".encode()]
        assert at.encode() not in request.head


@pytest.mark.parametrize("model", ["up/m", "up/fast", "up/a/b"])
def test_provider_and_model_is_for_keys_that_may(gateway: Gateway, upstream: Upstream, model: str) -> None:
    before = len(upstream.seen)
    refused = ask(gateway, post(body_of(model), key=NARROW))
    assert refused is not None
    assert refused.status == 404
    assert len(upstream.seen) == before
    served = ask(gateway, post(body_of(model)))
    assert served is not None
    assert served.status == 200
    assert json.loads(upstream.seen[-1].body)["model"] == model.partition("/")[2]


def test_a_redirect_is_not_followed(serve: Callable[..., Gateway], sink: Sink) -> None:
    up = Upstream(status=307, headers=b"location: http://%s/v1/chat/completions\r\n" % sink.address.encode())
    routes = [{"name": "chat", "match": {"model": "fast"}, "targets": [{"provider": "up"}]}]
    answer = ask(serve(config({"up": up.url}, routes)), post(BODY))
    assert answer is not None
    assert answer.status == 502
    assert sink.connections == 0
    assert sink.address.encode() not in answer.body
    up.close()


# ---- what a key may use


def test_a_key_sees_and_uses_only_its_models(gateway: Gateway) -> None:
    with gateway.client() as wide, httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {NARROW}"}, trust_env=False) as narrow:
        assert [m["id"] for m in wide.get("/v1/models").json()["data"]] == ["fast", "gpt-4", "secret-project"]
        assert [m["id"] for m in narrow.get("/v1/models").json()["data"]] == ["fast", "gpt-4"]
        ask_for = lambda client, model: client.post(CHAT, content=body_of(model))
        assert ask_for(narrow, "fast").status_code == ask_for(narrow, "gpt-4").status_code == ask_for(wide, "secret-project").status_code == 200
        hidden, made_up = ask_for(narrow, "secret-project"), ask_for(narrow, "no-such-project")
        assert hidden.status_code == made_up.status_code == 404
        # in the same words: what others may use is nobody's business
        assert hidden.text.replace("secret-project", "x") == made_up.text.replace("no-such-project", "x")
        one = narrow.get("/v1/models/secret-project")
        assert (one.status_code, one.json()["error"]["code"]) == (404, "model_not_found")
        named = narrow.post(CHAT, content=body_of("secret-project"), headers={"x-turnout-route": "secret"})
        assert named.status_code == 404


def test_a_data_key_does_not_open_the_admin_listener(gateway: Gateway) -> None:
    for key in (KEY, NARROW, "", ADMIN_KEY + "x", ADMIN_KEY[:-1]):
        for method, path in (("GET", "/metrics"), ("GET", "/admin/status"), ("POST", "/admin/reload"), ("GET", "/nope")):
            answer = httpx.request(method, gateway.admin_url + path, headers={"authorization": f"Bearer {key}"} if key else {}, trust_env=False)
            assert answer.status_code == 401
    assert ask(gateway, post(BODY, key=ADMIN_KEY)).status == 401  # type: ignore[union-attr]


# ---- what passes between the two sides

PROVIDERS_OWN = (
    b"set-cookie: __cf_bm=secret\r\nserver: provider/1\r\nx-ratelimit-limit-requests: 5000\r\nx-ratelimit-remaining-tokens: 3\r\n"
    b"openai-organization: org-ours\r\ncf-ray: 1\r\nvia: 1.1 x\r\nx-request-id: theirs\r\nstrict-transport-security: max-age=1\r\n"
    b"access-control-allow-origin: *\r\nlocation: http://a\r\nx-turnout-route: forged\r\nwww-authenticate: Basic\r\n"
)
TO_CLIENTS = {
    b"content-type", b"content-length", b"transfer-encoding", b"date", b"cache-control", b"x-accel-buffering", b"x-request-id", b"x-should-retry",
    b"retry-after", b"connection", b"server",
}  # fmt: skip


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
@pytest.mark.parametrize("stream", [False, True])
def test_a_providers_headers_stay_on_its_side(serve: Callable[..., Gateway], status: int, stream: bool) -> None:
    up = Upstream(status=status, headers=PROVIDERS_OWN, answer=ANSWER if status == 200 else b'{"error":{"message":"no"}}')
    gateway = serve(config({"up": up.url}, [{"name": "chat", "match": {"model": "fast"}, "targets": [{"provider": "up"}]}]))
    answer = ask(gateway, post(BODY[:-1] + (b',"stream":true}' if stream else b"}"), CHAT, "cookie: session=mine"))
    assert answer is not None
    assert answer.status == {401: 502, 500: 502}.get(status, status)
    assert {n for n in answer.headers if not n.startswith(b"x-turnout-")} <= TO_CLIENTS
    assert b"provider" not in answer.header(b"server")
    assert answer.header(b"x-turnout-route") == b"chat"
    assert answer.header(b"x-request-id") != b"theirs"
    for request in up.seen:
        assert KEY.encode() not in request.head
        assert b"cookie" not in request.headers
    up.close()


# ---- canaries


def _canary(word: str) -> str:
    return f"CANARY-{word}-7f3a9c2e51"


SECRETS = {name: _canary(name) for name in ("key", "admin", "upstream", "account", "hook")}
PROMPT, REPLY = _canary("prompt"), _canary("reply")
# The provider's own words about the caller's request: they go to the caller as they are.
WORDS = ("s400", "s413", "s422")


def fault_matrix(serve: Callable[..., Gateway], words: str) -> dict[str, bytes]:
    """Run every kind of failure, plain and streamed, alone and with a fallback; all that was written and answered.

    `words` is what the providers say in their errors.
    """
    error = json.dumps({"error": {"message": words, "type": "t", "param": None, "code": "c"}}).encode()
    said = ANSWER.replace(b"hello", REPLY.encode())
    events = tuple(event.replace(b"hello", REPLY.encode()) for event in EVENTS)
    ups = {
        "good": Upstream(answer=said, events=events),
        "cut": Upstream(answer=said[:-20], events=(events[0], b"data: " + error + b"\n\n")),
        "early": Upstream(answer=error, events=(b"data: " + error + b"\n\n",)),
        "noise": Upstream(answer=REPLY.encode(), events=(b"data: %s\n\n" % REPLY.encode(),)),
        "text": Upstream(status=500, answer=words.encode()),
        **{f"s{status}": Upstream(status=status, answer=error) for status in (400, 401, 403, 404, 413, 422, 429, 500, 503)},
    }
    spec = {"kind": "openai", "api_key": "env:TEST_UPSTREAM_KEY"}
    providers: dict[str, Any] = {name: spec | {"base_url": up.url} for name, up in ups.items()}
    providers["good"] = {"kind": "openai", "base_url": ups["good"].url, "accounts": [{"name": "one", "api_key": "env:ACCOUNT"}]}
    providers["dead"] = spec | {"base_url": "http://127.0.0.1:9/v1"}
    routes = [{"name": p, "match": {"model": p}, "targets": [{"provider": p}]} for p in providers]
    routes += [{"name": f"{p}-pair", "match": {"model": f"{p}-pair"}, "targets": [{"provider": p}, {"provider": "good"}]} for p in providers if p != "good"]
    hook = Upstream()
    env = {
        "TEST_KEY": SECRETS["key"], "TEST_ADMIN_KEY": SECRETS["admin"], "TEST_UPSTREAM_KEY": SECRETS["upstream"], "ACCOUNT": SECRETS["account"],
        "HOOK": f"http://127.0.0.1:{hook.port}/{SECRETS['hook']}",
    }  # fmt: skip
    gateway = serve(config(providers, routes, telemetry={"alerts": {"webhook": "env:HOOK"}}), env=env)
    places: dict[str, bytes] = {"answers": b"", "refusals": b""}
    ids: list[str] = []
    with httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {SECRETS['key']}"}, trust_env=False, timeout=30) as client:
        for route in routes:
            for stream in (False, True):
                body = {"model": route["name"], "messages": [{"role": "user", "content": PROMPT}], "stream": stream, "user": PROMPT}
                answer = client.post(CHAT, json=body)
                ids.append(answer.headers["x-request-id"])
                places["answers"] += str(answer.headers).encode()
                if answer.status_code != 200:
                    places["refusals" if route["name"].startswith(WORDS) else "answers"] += answer.content
        quoted = PROMPT.encode()
        for bad in (b'{"model":"good","messages":"%s"}', b'{"%s":', b'{"model":"good","stream":"%s","messages":[]}', b'{"model":{"%s":1}}'):
            places["answers"] += client.post(CHAT, content=bad % quoted).content
    places["answers"] += httpx.post(gateway.url + CHAT, json={}, headers={"authorization": f"Bearer {SECRETS['admin']}"}, trust_env=False).content
    for request_id in ids:
        gateway.logged(request_id)
    for path in ("/metrics", "/admin/status"):
        answer = httpx.get(gateway.admin_url + path, headers={"authorization": f"Bearer {SECRETS['admin']}"}, trust_env=False)
        assert answer.status_code == 200
        places[path] = answer.content
    gateway.wait_for(lambda: hook.seen)
    assert gateway.stop() == 0
    assert len(gateway.log) >= len(ids)
    places["stdout"] = json.dumps(gateway.log).encode()
    places["stderr"] = "\n".join(gateway.said).encode()
    places["alerts"] = b"\n".join(seen.body for seen in hook.seen)
    for file in gateway.state.rglob("*"):
        if file.is_file():
            places[f"state/{file.name}"] = file.read_bytes()
    assert places["alerts"]
    assert any(content for name, content in places.items() if name.startswith("state/"))
    for up in (*ups.values(), hook):
        up.close()
    return places


def hits(places: dict[str, bytes], *words: str) -> set[tuple[str, str]]:
    return {(place, word) for place, content in places.items() for word in words if word.encode() in content}


def test_no_secret_and_no_payload_is_left_anywhere(serve: Callable[..., Gateway]) -> None:
    places = fault_matrix(serve, "something broke")
    assert hits(places, *SECRETS.values(), PROMPT, REPLY) == set()


@pytest.fixture(scope="module")
def repeated(serve: Callable[..., Gateway]) -> dict[str, bytes]:
    """The same with providers that repeat the prompt, and the key they were given, in their errors."""
    return fault_matrix(serve, f"bad request {PROMPT} with Bearer {SECRETS['upstream']} or {SECRETS['upstream']}")


def test_a_provider_that_repeats_our_key_does_not_give_it_away(repeated: dict[str, bytes]) -> None:
    assert hits(repeated, *SECRETS.values()) == set()


def test_a_provider_that_repeats_a_prompt_does_not_bring_it_into_the_log(repeated: dict[str, bytes]) -> None:
    repeated = {place: content for place, content in repeated.items() if place not in ("answers", "refusals")}
    assert hits(repeated, PROMPT, REPLY) == set()


# ---- naughty strings


@pytest.fixture(scope="module")
def naughty(shared: Path) -> list[str]:
    return list(json.loads((shared / "data/strings/blns.json").read_text()))


def _as_header(text: str) -> str:
    """As the bytes a hostile client would send; line ends would begin another header and NUL ends the connection."""
    return text.encode("utf-8", "replace").translate(None, b"\r\n\0").decode("latin-1")


def _clean(answer: Answer | None, *statuses: int) -> None:
    assert answer is not None
    assert answer.status in statuses, (answer.status, answer.body[:200])
    if answer.status != 200 and answer.body:
        assert json.loads(answer.body)["error"].keys() == {"message", "type", "param", "code"}


def test_naughty_authorization_is_always_401_in_the_same_words(gateway: Gateway, upstream: Upstream, naughty: list[str]) -> None:
    before = upstream.bytes_in
    bodies: set[bytes] = set()
    for text in naughty:
        for scheme in ("Bearer ", ""):
            answer = ask(gateway, post(BODY, CHAT, "authorization: " + scheme + _as_header(text), key=None))
            _clean(answer, 401, 400)
            assert answer is not None
            if answer.status == 401:
                bodies.add(answer.body)
            else:
                assert not answer.body  # a control character: the server itself refuses it
    assert len(bodies) == 1
    assert upstream.bytes_in == before


def test_naughty_labels_harm_nothing(gateway: Gateway, naughty: list[str]) -> None:
    for name in ("x-turnout-session", "x-turnout-tags", "x-turnout-prompt-version", "traceparent", "idempotency-key", "x-turnout-metadata", "x-turnout-cache"):
        for text in naughty:
            _clean(ask(gateway, post(BODY, CHAT, f"{name}: {_as_header(text)}")), 200, 400)


def test_naughty_models_are_names_like_others(serve: Callable[..., Gateway], upstream: Upstream, naughty: list[str]) -> None:
    gateway = serve(config({"up": upstream.url}, [{"name": "all", "match": {"model": "*"}, "targets": [{"provider": "up"}]}]))
    last = ""
    with Wire(gateway) as wire:
        for text in naughty:
            answer = wire.ask(post(json.dumps({"model": text, "messages": []}).encode()))
            _clean(answer, *((200,) if text else (400,)))
            if text:
                assert json.loads(upstream.seen[-1].body)["model"] == text
            last = answer.header(b"x-request-id").decode()
    gateway.logged(last)
    text = gateway.admin("/metrics").text
    rows = [line.rpartition(" ") for line in text.split("\n") if line.startswith("turnout_requests_total{")]
    assert sum(float(value) for _, _, value in rows) == len(naughty)
    assert all(series.count("{") >= 1 and series.endswith('"}') for series, _, _ in rows)
    assert gateway.said[-1].startswith("config")  # nothing was complained about on stderr
