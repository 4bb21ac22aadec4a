"""TLS to upstreams and the way through an egress proxy: verified or not at all, never by the environment's word."""

import contextlib
import datetime
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from support.gateway import UPSTREAM_KEY, Gateway, config

CHAT = "/v1/chat/completions"
ASK = {"model": "fast", "messages": [{"role": "user", "content": "hi"}]}
ANSWER = b'{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}]}'
HTTP_400 = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Server:
    """A listener whose connections are each handled in a thread. `opened` counts them, `first` holds their first bytes."""

    def __init__(self) -> None:
        self.opened = 0
        self.first: list[bytes] = []
        self.heads: list[bytes] = []
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.opened += 1
            self._open.append(sock)
            threading.Thread(target=self._run, args=(sock,), daemon=True).start()

    def _run(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            self.first.append(sock.recv(4096, socket.MSG_PEEK))
            self.handle(sock)

    def handle(self, sock: socket.socket) -> None:
        raise NotImplementedError

    def head(self, sock: socket.socket) -> bytes:
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            piece = sock.recv(1)
            if not piece:
                raise ConnectionError
            data += piece
        self.heads.append(data)
        return data

    def answer(self, sock: socket.socket) -> None:
        """Serve requests on a connection until it ends."""
        while True:
            head = self.head(sock).lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            while length:
                length -= len(sock.recv(length))
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Plain(Server):
    def handle(self, sock: socket.socket) -> None:
        if self.first[-1][:1] == b"\x16":  # a ClientHello on a plain port
            sock.sendall(HTTP_400)
        else:
            self.answer(sock)


class Silent(Server):
    def handle(self, sock: socket.socket) -> None:
        while sock.recv(4096):
            pass


class Tls(Server):
    def __init__(self, cert: trustme.LeafCert) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        cert.configure_cert(self._context)
        self.versions: list[str | None] = []
        super().__init__()

    def handle(self, sock: socket.socket) -> None:
        with self._context.wrap_socket(sock, server_side=True) as secure:
            self.versions.append(secure.version())
            self.answer(secure)


class Proxy(Server):
    """Tunnels CONNECT, passes on absolute requests; `verdict` is what it says to a CONNECT."""

    def __init__(self, verdict: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> None:
        self.verdict = verdict
        super().__init__()

    def handle(self, sock: socket.socket) -> None:
        head = self.head(sock)
        method, target = head.split(b" ")[:2]
        at = target if method == b"CONNECT" else target.split(b"/")[2]
        host, _, port = at.rpartition(b":")
        if method == b"CONNECT":
            sock.sendall(self.verdict)
            if b" 200 " not in self.verdict:
                return
        with socket.create_connection((host.decode(), int(port))) as other:
            if method != b"CONNECT":
                path = b"/" + target.split(b"/", 3)[3]
                other.sendall(head.replace(target, path, 1))
            back = threading.Thread(target=self._pump, args=(other, sock), daemon=True)
            back.start()
            self._pump(sock, other)
            back.join()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                sink.sendall(piece)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def bundle(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def up() -> Iterator[Callable[[Server], Server]]:
    """`up(server)` closes the server at the end of the test."""
    with contextlib.ExitStack() as stack:

        def keep(server: Server) -> Server:
            stack.callback(server.close)
            return server

        yield keep


def provider(server: Server, scheme: str = "https", **more: Any) -> dict[str, Any]:
    return {"kind": "openai", "base_url": f"{scheme}://127.0.0.1:{server.port}/v1", "api_key": "env:TEST_UPSTREAM_KEY", **more}


def run(serve: Callable[..., Gateway], first: dict[str, Any], second: dict[str, Any] | None = None, **options: Any) -> Gateway:
    providers = {"a": first} | ({"b": second} if second else {})
    route = {"name": "chat", "match": {"model": "fast"}, "targets": [{"provider": name} for name in providers], "timeouts": {"connect_ms": 2000}}
    return serve(config(providers, [route]), **options)


def test_a_trusted_upstream_is_served_over_tls(serve: Callable[..., Gateway], up: Any, ca: trustme.CA, bundle: Path) -> None:
    server = up(Tls(ca.issue_cert("127.0.0.1")))
    gateway = run(serve, provider(server, ca_bundle=str(bundle)))
    with gateway.client() as client:
        for _ in range(3):
            assert client.post(CHAT, json=ASK).status_code == 200
    assert server.opened == 1  # kept alive
    assert server.versions == ["TLSv1.3"]
    assert f"authorization: Bearer {UPSTREAM_KEY}".encode() in server.heads[0]


def expired(ca: trustme.CA) -> trustme.LeafCert:
    return ca.issue_cert("127.0.0.1", not_after=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))


BAD: dict[str, tuple[Callable[[trustme.CA], Server], str, str]] = {
    "expired": (lambda ca: Tls(expired(ca)), "tls", "upstream_tls_failed"),
    "of another name": (lambda ca: Tls(ca.issue_cert("example.org")), "tls", "upstream_tls_failed"),
    "of an unknown CA": (lambda ca: Tls(trustme.CA().issue_cert("127.0.0.1")), "tls", "upstream_tls_failed"),
    "missing: plain HTTP": (lambda ca: Plain(), "tls", "upstream_tls_failed"),
    "never shown": (lambda ca: Silent(), "connect_timeout", "upstream_connect_timeout"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_a_certificate_that_is_no_good_means_the_next_target(
    serve: Callable[..., Gateway], up: Any, ca: trustme.CA, bundle: Path, case: str, stream: bool
) -> None:
    make, reason, code = BAD[case]
    bad, good = up(make(ca)), up(Tls(ca.issue_cert("127.0.0.1")))
    pair = run(serve, provider(bad, ca_bundle=str(bundle)), provider(good, ca_bundle=str(bundle)))
    with pair.client() as client:
        answer = client.post(CHAT, json=ASK)
    assert answer.status_code == 200
    assert answer.headers["x-turnout-fallback"] == f"a>b;reason={reason}"
    assert answer.headers["x-turnout-attempts"] == "2"
    alone = run(serve, provider(bad, ca_bundle=str(bundle)))
    with alone.client() as client:
        answer = client.post(CHAT, json=ASK | {"stream": stream})
    assert answer.status_code == (504 if "timeout" in reason else 502)
    assert answer.json()["error"]["code"] == code
    assert answer.headers["x-turnout-attempts"] == "1"  # not tried twice
    # never a downgrade: all that was ever sent in the clear is a ClientHello
    assert bad.opened == 2
    assert all(first[:1] == b"\x16" and b"127.0.0.1" not in first for first in bad.first)
    assert bad.heads == []


def test_without_a_bundle_the_systems_store_decides(serve: Callable[..., Gateway], up: Any, ca: trustme.CA) -> None:
    server = up(Tls(ca.issue_cert("127.0.0.1")))
    with run(serve, provider(server)).client() as client:
        answer = client.post(CHAT, json=ASK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_tls_failed")
    assert server.heads == []


# ---- the egress proxy


def test_tls_goes_through_the_proxy_in_a_tunnel(serve: Callable[..., Gateway], up: Any, ca: trustme.CA, bundle: Path) -> None:
    server, proxy = up(Tls(ca.issue_cert("127.0.0.1"))), up(Proxy())
    gateway = run(serve, provider(server, ca_bundle=str(bundle), proxy=f"http://127.0.0.1:{proxy.port}"))
    with gateway.client() as client:
        for _ in range(2):
            assert client.post(CHAT, json=ASK).status_code == 200
    assert proxy.opened == server.opened == 1
    assert proxy.heads == [b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n\r\n" % (server.port, server.port)]
    assert server.heads[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")


def test_the_certificate_is_checked_behind_the_proxy_too(serve: Callable[..., Gateway], up: Any, ca: trustme.CA, bundle: Path) -> None:
    server, proxy = up(Tls(ca.issue_cert("example.org"))), up(Proxy())
    with run(serve, provider(server, ca_bundle=str(bundle), proxy=f"http://127.0.0.1:{proxy.port}")).client() as client:
        answer = client.post(CHAT, json=ASK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_tls_failed")
    assert server.heads == []


def test_plain_http_goes_through_the_proxy_in_absolute_form(serve: Callable[..., Gateway], up: Any) -> None:
    server, proxy = up(Plain()), up(Proxy())
    with run(serve, provider(server, "http", proxy=f"http://127.0.0.1:{proxy.port}")).client() as client:
        assert client.post(CHAT, json=ASK).status_code == 200
    assert proxy.heads[0].startswith(b"POST http://127.0.0.1:%d/v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % (server.port, server.port))


REFUSALS = {
    "refuses": (lambda: Proxy(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"), "connect"),
    "asks for a password": (lambda: Proxy(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"), "connect"),
    "closes": (lambda: Proxy(b""), "connect"),
    "talks nonsense": (lambda: Proxy(b"SSH-2.0-x\r\n\r\n"), "connect"),
    "never ends its head": (lambda: Proxy(b"HTTP/1.1 500 " + b"x" * 20_000), "connect"),
    "says nothing": (Silent, "connect_timeout"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_proxy_that_does_not_open_the_way_means_the_next_target(serve: Callable[..., Gateway], up: Any, ca: trustme.CA, bundle: Path, case: str) -> None:
    make, reason = REFUSALS[case]
    server, proxy, good = up(Tls(ca.issue_cert("127.0.0.1"))), up(make()), up(Plain())
    gateway = run(serve, provider(server, ca_bundle=str(bundle), proxy=f"http://127.0.0.1:{proxy.port}"), provider(good, "http"))
    with gateway.client() as client:
        answer = client.post(CHAT, json=ASK)
    assert answer.status_code == 200
    assert answer.headers["x-turnout-fallback"] == f"a>b;reason={reason}"
    assert server.opened == 0  # never straight past the proxy


def test_a_proxy_of_the_environment_is_never_used(serve: Callable[..., Gateway], up: Any, ca: trustme.CA, bundle: Path) -> None:
    plain, secure, trap = up(Plain()), up(Tls(ca.issue_cert("127.0.0.1"))), up(Silent())
    at = f"http://127.0.0.1:{trap.port}"
    env = {name: at for upper in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY") for name in (upper, upper.lower())} | {"NO_PROXY": "", "no_proxy": ""}
    for first in (provider(plain, "http"), provider(secure, ca_bundle=str(bundle))):
        with run(serve, first, env=env).client() as client:
            answer = client.post(CHAT, json=ASK)
        assert json.loads(answer.content) == json.loads(ANSWER)
    assert trap.opened == 0
