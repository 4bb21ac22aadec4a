"""Opening sockets: plain, TLS, and through an explicit egress proxy. Never a proxy or a CA from the environment."""

import asyncio
import base64
import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from ..errors import Fault


class Origin:
    """Where a provider lives: scheme, host and port, bound to its credentials for good. Holds its idle connections."""

    __slots__ = (
        "authority",
        "base_path",
        "host",
        "idle",
        "max_idle",
        "peer",
        "pool",
        "port",
        "proxy",
        "proxy_host",
        "proxy_port",
        "tls",
    )

    def __init__(self, base_url: str, *, ca_bundle: str | None, proxy: str | None, max_idle: int) -> None:
        url = urlsplit(base_url)
        secure = url.scheme == "https"
        self.host = url.hostname or ""
        self.port = url.port or (443 if secure else 80)
        self.base_path = url.path.rstrip("/")
        self.tls: ssl.SSLContext | None = None
        if secure:
            # verify_mode REQUIRED and check_hostname are this function's defaults; a bundle replaces the system's store
            self.tls = ssl.create_default_context(cafile=ca_bundle)
            self.tls.minimum_version = ssl.TLSVersion.TLSv1_2
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.authority = host if self.port == (443 if secure else 80) else f"{host}:{self.port}"
        self.proxy: SplitResult | None = urlsplit(proxy) if proxy else None
        self.proxy_host = (self.proxy.hostname or "") if self.proxy else ""
        self.proxy_port = (self.proxy.port or 80) if self.proxy else 80
        self.max_idle = max_idle
        # Whose address is looked up and connected to.
        self.peer = (self.proxy_host, self.proxy_port) if self.proxy else (self.host, self.port)
        self.idle: list[Any] = []  # of the pure client
        self.pool: Any = None  # of the native one

    @property
    def target_prefix(self) -> str:
        """What stands before the path in the request line: plain HTTP through a proxy needs the absolute form."""
        return f"http://{self.authority}" if self.proxy is not None and self.tls is None else ""

    @property
    def proxy_lines(self) -> list[tuple[str, str]]:
        """The proxy's credential, for plain requests through it; for TLS it is sent with CONNECT only."""
        return _credential(self.proxy) if self.proxy is not None and self.tls is None else []


def _credential(proxy: SplitResult) -> list[tuple[str, str]]:
    if not proxy.username:
        return []
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
    return [("proxy-authorization", f"Basic {base64.b64encode(pair).decode()}")]


def authorities(context: ssl.SSLContext) -> tuple[bytes, ...]:
    """The certificates that `context` trusts, as DER."""
    if not context.get_ca_certs():
        # A system that keeps them in a folder only: OpenSSL would look into it as it goes.
        folder = Path(ssl.get_default_verify_paths().capath or "/etc/ssl/certs")
        for file in sorted(folder.glob("*")):
            with contextlib.suppress(ssl.SSLError, OSError):
                context.load_verify_locations(file)
    return tuple(context.get_ca_certs(binary_form=True))


async def connect(loop: asyncio.AbstractEventLoop, origin: Origin, factory: Callable[[], Any], seconds: float) -> Any:
    """A connected protocol made by `factory`. Name, socket, proxy and handshake share the one deadline of `seconds`.

    Raises Fault connect, connect_timeout or tls.
    """
    tls = origin.tls
    name = origin.host if tls is not None else None
    try:
        async with asyncio.timeout(seconds):
            if origin.proxy is None:
                _, protocol = await loop.create_connection(
                    factory, origin.host, origin.port, ssl=tls, server_hostname=name
                )
            elif tls is None:
                _, protocol = await loop.create_connection(factory, origin.proxy_host, origin.proxy_port)
            else:
                sock = await _tunnel(loop, origin)
                _, protocol = await loop.create_connection(factory, sock=sock, ssl=tls, server_hostname=name)
    except TimeoutError:
        raise Fault("connect_timeout", "connecting to the upstream took too long") from None
    except ssl.SSLError as exc:  # a subclass of OSError: must stand first
        raise Fault("tls", f"the TLS handshake with the upstream failed: {exc.reason or 'handshake failure'}") from None
    except socket.gaierror:
        raise Fault("connect", "the upstream's host name could not be resolved") from None
    except OSError as exc:
        raise Fault("connect", f"connecting to the upstream failed: {exc.strerror or 'connection failed'}") from None
    return protocol


def tunnel_request(origin: Origin) -> bytes:
    """What the proxy is asked for a way to the origin (RFC 9110, 9.3.6)."""
    assert origin.proxy is not None
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    lines = "".join(f"{name}: {value}\r\n" for name, value in _credential(origin.proxy))
    return f"CONNECT {host}:{origin.port} HTTP/1.1\r\nhost: {host}:{origin.port}\r\n{lines}\r\n".encode()


async def _tunnel(loop: asyncio.AbstractEventLoop, origin: Origin) -> socket.socket:
    """A socket that reaches the origin through the proxy."""
    found = await loop.getaddrinfo(origin.proxy_host, origin.proxy_port, type=socket.SOCK_STREAM)
    family, kind, proto, _, address = found[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, address)
        await loop.sock_sendall(sock, tunnel_request(origin))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            # Byte-exact up to the empty line: what follows belongs to the TLS handshake. One small read per connection.
            piece = await loop.sock_recv(sock, 1)
            head += piece
            if not piece or len(head) > 16_384:
                raise Fault("connect", "the egress proxy did not open the tunnel")
        if head.split(b" ", 2)[1:2] != [b"200"]:
            raise Fault("connect", "the egress proxy refused the tunnel")
    except BaseException:
        sock.close()
        raise
    return sock
