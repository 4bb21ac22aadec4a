"""A request as a server hands it over: over ASGI, or directly by engine native.

`App.direct` takes the engine's own object of this form (native/src/engine/asgi.rs), which builds nothing that is not asked
for: no scope, no list of headers. Over ASGI, `Incoming` gives the same from scope, receive and send.
"""

from typing import Any, Protocol

from ..exchange import Headers, Receive, Send
from ..native import HeadReader


class Arrival(Protocol):
    """What a request is asked for. `path`, `method` and `headers` are to be read before `head`."""

    @property
    def path(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def relay_to(self) -> Any:
        """What a native call's `relay` writes to; None on a server without that."""

    def headers(self) -> Headers: ...
    def head(self, reader: HeadReader) -> tuple[bytes | None, int, list[tuple[int, bytes, bytes]]]:
        """What `reader` reads of the headers. Raises ValueError (see HeadReader)."""

    def body(self) -> bytes | None:
        """The whole body, if all of it is there and this server can say so; else None, and `receive` gives it."""

    def reply(self, status: int, headers: Headers, body: bytes) -> bool:
        """A whole answer in one call; its length is the server's to say. False: not on this server."""

    receive: Receive
    send: Send


class Incoming:
    """A request over ASGI."""

    __slots__ = ("_headers", "method", "path", "receive", "relay_to", "send")

    def __init__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.path: str = scope["path"]
        self.method: str = scope["method"]
        self._headers: Headers = scope["headers"]
        extensions = scope.get("extensions")
        self.relay_to: Any = send if extensions and "turnout.relay" in extensions else None
        self.receive = receive
        self.send = send

    def headers(self) -> Headers:
        return self._headers

    def head(self, reader: HeadReader) -> tuple[bytes | None, int, list[tuple[int, bytes, bytes]]]:
        headers = self._headers
        found: tuple[bytes | None, int, list[tuple[int, bytes, bytes]]] = reader.read(
            headers if _is_plain(headers) else [(bytes(name), bytes(value)) for name, value in headers]
        )
        return found

    def body(self) -> None:
        return None

    def reply(self, status: int, headers: Headers, body: bytes) -> bool:
        return False


def _is_plain(headers: object) -> bool:
    """A list of tuples, as servers give it; ASGI allows other pairs."""
    return type(headers) is list and (not headers or type(headers[0]) is tuple)
