"""What goes upstream of a good request and comes back of its answer: the client's own bytes, framed anew."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.gateway import KEY, UPSTREAM_KEY, Gateway, config

CHAT = "/v1/chat/completions"
BODY = b'{"model":"fast","messages":[{"role":"user","content":"hi"}]}'
ANSWER = (
    b'{"id":"c1","object":"chat.completion","created":1,"model":"up","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}'
)
EVENTS = (
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"up","choices":[{"index":0,"delta":'
    b'{"role":"assistant","content":"hello"},"finish_reason":null}]}\n\n',
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"up","choices":[{"index":0,"delta":{},'
    b'"finish_reason":"stop"}]}\n\n',
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"up","choices":[],"usage":'
    b'{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}\n\n',
    b"data: [DONE]\n\n",
)


class Seen:
    """One request as it stood on the upstream's wire."""

    def __init__(self, head: bytes, body: bytes) -> None:
        self.head = head
        self.line, _, rest = head.partition(b"\r\n")
        self.headers: dict[bytes, list[bytes]] = {}
        for line in rest.split(b"\r\n"):
            name, _, value = line.partition(b":")
            self.headers.setdefault(name.lower(), []).append(value.strip())
        self.body = body


class Upstream:
    """A provider on raw sockets that keeps every byte it gets. `bytes_in` counts them, also of half a request."""

    def __init__(self, headers: bytes = b"", status: int = 200, answer: bytes = ANSWER, events: tuple[bytes, ...] = EVENTS) -> None:
        self.headers, self.status, self.answer, self.events = headers, status, answer, events
        self.seen: list[Seen] = []
        self.bytes_in = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        buffer = bytearray()

        def more() -> bool:
            piece = sock.recv(1 << 20)
            self.bytes_in += len(piece)
            buffer.extend(piece)
            return bool(piece)

        try:
            while True:
                while (end := buffer.find(b"\r\n\r\n")) < 0:
                    if not more():
                        return
                seen = Seen(bytes(buffer[:end]), b"")
                length = int(seen.headers[b"content-length"][0])
                while len(buffer) < end + 4 + length:
                    if not more():
                        return
                seen.body = bytes(buffer[end + 4 : end + 4 + length])
                del buffer[: end + 4 + length]
                self.seen.append(seen)
                self._answer(sock, b"text/event-stream" in seen.head)
        except OSError:
            pass
        finally:
            sock.close()

    def _answer(self, sock: socket.socket, stream: bool) -> None:
        status = b"HTTP/1.1 %d X\r\n" % self.status + self.headers
        if stream and self.status == 200:
            chunks = b"".join(b"%x\r\n%s\r\n" % (len(e), e) for e in self.events)
            sock.sendall(status + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        else:
            head = status + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(self.answer)
            sock.sendall(head + self.answer)

    def close(self) -> None:
        # shutdown wakes the thread in accept(); close alone would not
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


class Answer:
    def __init__(self, status: int, headers: dict[bytes, list[bytes]], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def header(self, name: bytes) -> bytes:
        return self.headers.get(name, [b""])[0]


class Wire:
    """A client connection that sends exactly the bytes it is given."""

    def __init__(self, gateway: Gateway, timeout: float = 20) -> None:
        self.sock = socket.create_connection((gateway.host, gateway.port), timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def ask(self, raw: bytes) -> Answer:
        self.sock.sendall(raw)
        return self.read()

    def read(self, body: bool = True) -> Answer:
        """The next answer. Raises ConnectionError when the connection ends instead."""
        end = self._until(b"\r\n\r\n")
        seen = Seen(self._take(end + 4)[:-4], b"")
        status = int(seen.line.split()[1])
        if status == 100:
            return self.read(body)
        if b"content-length" in seen.headers:
            out = self._take(int(seen.headers[b"content-length"][0])) if body else b""
        else:
            out = b""
            while size := int(self._take(self._until(b"\r\n") + 2), 16):
                out += self._take(size + 2)[:-2]
            self._take(2)
        return Answer(status, seen.headers, out)

    def ended(self, seconds: float = 5) -> bool:
        """Whether the other side closes the connection, with nothing more sent."""
        self.sock.settimeout(seconds)
        try:
            return not self._buffer and not self.sock.recv(65536)
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def _until(self, mark: bytes) -> int:
        while (at := self._buffer.find(mark)) < 0:
            self._more()
        return at

    def _take(self, n: int) -> bytes:
        while len(self._buffer) < n:
            self._more()
        out, self._buffer = self._buffer[:n], self._buffer[n:]
        return out

    def _more(self) -> None:
        piece = self.sock.recv(1 << 20)
        if not piece:
            raise ConnectionError("the gateway closed the connection")
        self._buffer += piece


def post(body: bytes, path: str = CHAT, *headers: str, key: str | None = KEY, host: str | None = "gateway", framing: str | None = None, method: str = "POST") -> bytes:
    """One request as bytes."""
    lines = [f"{method} {path} HTTP/1.1"]
    if host is not None:
        lines.append(f"host: {host}")
    if key is not None:
        lines.append(f"authorization: Bearer {key}")
    lines += ["content-type: application/json", f"content-length: {len(body)}" if framing is None else framing, *headers]
    return "\r\n".join(line for line in lines if line).encode("latin-1") + b"\r\n\r\n" + body


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    made = Upstream(headers=b"openai-processing-ms: 7\r\nx-ratelimit-remaining-requests: 1\r\nserver: provider\r\nset-cookie: a=b\r\n")
    yield made
    made.close()


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway], upstream: Upstream) -> Gateway:
    routes: list[dict[str, Any]] = [
        {"name": "chat", "match": {"model": "fast"}, "targets": [{"provider": "up", "model": 'real-"1"'}]},
        {"name": "set", "match": {"model": "set"}, "targets": [{"provider": "up", "model": "m"}], "set": {"temperature": 0, "user": None}},
        {"name": "as-is", "match": {"model": "own-*"}, "targets": [{"provider": "up"}]},
        {"name": "mute", "match": {"model": "mute"}, "targets": [{"provider": "shy", "model": "m"}]},
    ]
    shy = {"kind": "openai", "base_url": upstream.url, "api_key": "env:TEST_UPSTREAM_KEY", "include_usage": False}
    return serve(config({"up": upstream.url, "shy": shy}, routes))


def sent(gateway: Gateway, upstream: Upstream, body: bytes, path: str = CHAT, *headers: str, **options: Any) -> Seen:
    """What the upstream got of a request that was served."""
    before = len(upstream.seen)
    with Wire(gateway) as wire:
        answer = wire.ask(post(body, path, *headers, **options))
    assert answer.status == 200, answer.body
    assert len(upstream.seen) == before + 1
    return upstream.seen[-1]


# Everything a decoder would spell anew: order, blanks, numbers, escapes, unknown fields, the same unknown field twice.
ODD = (
    b'{ "zeta" : 1.0,\n\t"model" : "fast" , "alpha":1e3,"big":12345678901234567890,"n":-0.0,"s":"\\u00e9\\/\\ud83d\\ude00",'
    b'"u":"\xc3\xa9","twice":1,"twice":2,"messages":[ {"content":"hi","role":"user","x":0.1e-7} ],"nested":{"model":"inner"} }'
)


def test_a_body_goes_on_byte_for_byte_but_for_its_model(gateway: Gateway, upstream: Upstream) -> None:
    seen = sent(gateway, upstream, ODD)
    assert seen.body == ODD.replace(b'"fast"', b'"real-\\"1\\""')


def test_a_target_without_a_model_gets_the_very_bytes(gateway: Gateway, upstream: Upstream) -> None:
    body = ODD.replace(b'"fast"', b'"own-\\u0031"')
    assert sent(gateway, upstream, body).body == body


def test_what_a_route_sets_is_written_over_or_put_in_front(gateway: Gateway, upstream: Upstream) -> None:
    body = b'{"temperature": 1.50 ,"model":"set","messages":[]}'
    assert sent(gateway, upstream, body).body == b'{"user":null,"temperature": 0 ,"model":"m","messages":[]}'


def test_usage_is_asked_of_streams_only(gateway: Gateway, upstream: Upstream) -> None:
    assert b"stream_options" not in sent(gateway, upstream, BODY).body
    stream = BODY[:-1] + b',"stream":true}'
    inside = b'"stream_options":{"include_usage":true},'
    assert sent(gateway, upstream, stream).body == b"{" + inside + stream[1:].replace(b'"fast"', b'"real-\\"1\\""')


def test_other_stream_options_stay_beside_the_one_we_put_in(gateway: Gateway, upstream: Upstream) -> None:
    seen = sent(gateway, upstream, BODY[:-1] + b',"stream":true,"stream_options":{"x":1.0,"include_usage":false}}')
    assert b'"stream_options":{"x":1.0,"include_usage":true}' in seen.body


def test_a_client_that_asks_for_usage_itself_is_left_alone(gateway: Gateway, upstream: Upstream) -> None:
    body = BODY[:-1] + b',"stream":true,"stream_options":{ "include_usage": true }}'
    assert sent(gateway, upstream, body).body == body.replace(b'"fast"', b'"real-\\"1\\""')


def test_a_provider_that_refuses_stream_options_is_not_sent_any(gateway: Gateway, upstream: Upstream) -> None:
    body = b'{"model":"mute","messages":[],"stream":true}'
    assert sent(gateway, upstream, body).body == body.replace(b"mute", b"m")


@pytest.mark.parametrize("asked", [False, True])
def test_only_the_injected_usage_chunk_is_taken_out(gateway: Gateway, asked: bool) -> None:
    more = b',"stream":true' + (b',"stream_options":{"include_usage":true}' if asked else b"")
    with Wire(gateway) as wire:
        body = wire.ask(post(BODY[:-1] + more + b"}")).body
    assert body == b"".join(EVENTS if asked else EVENTS[:2] + EVENTS[3:])


@pytest.mark.parametrize("framing", ["transfer-encoding: chunked", "transfer-encoding: chunked\r\ntrailer: x-t"])
def test_a_chunked_request_is_framed_anew(gateway: Gateway, upstream: Upstream, framing: str) -> None:
    body = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (BODY[:7], BODY[7:20], BODY[20:])) + b"0\r\nx-t: 1\r\n\r\n"
    seen = sent(gateway, upstream, body, framing=framing)
    assert seen.body == BODY.replace(b'"fast"', b'"real-\\"1\\""')
    assert seen.headers[b"content-length"] == [b"%d" % len(seen.body)]
    assert not {b"transfer-encoding", b"trailer", b"x-t", b"te"} & seen.headers.keys()


def test_the_head_that_goes_upstream_is_ours(gateway: Gateway, upstream: Upstream) -> None:
    extra = (
        "cookie: a=b", "x-forwarded-for: 1.2.3.4", "x-custom: 1", "user-agent: me", "accept-encoding: gzip", "openai-beta: assistants=v2",
        "idempotency-key: k1", "openai-organization: theirs", "x-turnout-session: s", "connection: x-custom", "expect: 100-continue",
    )  # fmt: skip
    seen = sent(gateway, upstream, BODY, CHAT, *extra)
    assert seen.line == b"POST /v1/chat/completions HTTP/1.1"
    assert seen.headers.keys() == {
        b"host", b"user-agent", b"accept-encoding", b"content-type", b"authorization", b"accept", b"content-length", b"openai-beta",
        b"idempotency-key",
    }  # fmt: skip
    assert all(len(values) == 1 for values in seen.headers.values())
    assert seen.headers[b"host"] == [b"127.0.0.1:%d" % upstream.port]
    assert seen.headers[b"authorization"] == [f"Bearer {UPSTREAM_KEY}".encode()]
    assert seen.headers[b"accept-encoding"] == [b"identity"]


def test_the_answer_comes_back_as_it_was_said(gateway: Gateway) -> None:
    with Wire(gateway) as wire:
        answer = wire.ask(post(BODY))
    assert answer.body == ANSWER
    assert answer.header(b"openai-processing-ms") == b"7"
    assert answer.header(b"x-turnout-route") == b"chat"
    assert answer.header(b"x-turnout-provider") == b"up"
    assert answer.header(b"x-turnout-attempts") == b"1"
    assert answer.header(b"x-turnout-fallback") == b"none"
    assert answer.header(b"x-turnout-model") == b'real-?1?'  # a quote is not safe in every log that copies headers
    assert answer.header(b"x-turnout-overhead-us").isdigit()


@pytest.mark.parametrize(
    "path, field, extra",
    [("/v1/completions", b'"prompt":"hi"', b',"stream":true'), ("/v1/completions", b'"prompt":["a"]', b""), ("/v1/embeddings", b'"input":["a","b"]', b"")],
)
def test_the_other_surfaces_go_to_their_own_paths(gateway: Gateway, upstream: Upstream, path: str, field: bytes, extra: bytes) -> None:
    seen = sent(gateway, upstream, b'{"model":"own-1",' + field + extra + b"}", path)
    assert seen.line == f"POST {path} HTTP/1.1".encode()


def test_embeddings_are_never_streamed(gateway: Gateway, upstream: Upstream) -> None:
    body = b'{"model":"own-1","input":"a","stream":true}'
    assert sent(gateway, upstream, body, "/v1/embeddings").body == body


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_needs_no_key(gateway: Gateway, path: str) -> None:
    with Wire(gateway) as wire:
        answer = wire.ask(f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
    assert (answer.status, json.loads(answer.body)) == (200, {"status": "ok"})


def test_models_lists_what_can_be_asked_for(gateway: Gateway) -> None:
    with gateway.client() as client:
        listed = client.get("/v1/models").json()
        assert [m["id"] for m in listed["data"]] == ["fast", "set", "own-*", "mute"]
        assert client.get("/v1/models/set").json() == listed["data"][1]
        assert client.get("/v1/models/gpt-9").status_code == 404
        assert client.head("/v1/models").status_code == 200
        assert client.head("/v1/models").content == b""


def test_metrics_are_not_on_the_data_listener(gateway: Gateway) -> None:
    with gateway.client() as client:
        assert client.get("/metrics").status_code == 404
        assert client.get("/admin/status").status_code == 404
