"""Engine granian: the ASGI app on granian's HTTP/1 server, inside a worker of ours.

granian's own process manager is not used: killed with -9 it leaves its workers orphaned and listening, and each of its
workers would open a socket of its own. Ours inherit theirs from the supervisor.
"""

import os
from typing import Any

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.server.embed import Server

from ..config.model import Listen

MOST_HEAD_BYTES = 64 * 1024  # a longer request head is answered with 431


class GranianServer(Server):
    """Serves `app` on an inherited listening socket until `stop()`."""

    def __init__(self, app: Any, fd: int, listen: Listen) -> None:
        self._fd = fd
        self._pem: list[int] = []
        super().__init__(
            app,
            interface=Interfaces.ASGI,
            http=HTTPModes.http1,
            websockets=False,
            backlog=listen.backlog,
            # granian counts connections here, idle ones too: its default of backlog / workers lets 1,100 idle sockets
            # block every new client for 30 s.
            backpressure=listen.max_connections,
            http1_settings=HTTP1Settings(
                header_read_timeout=max(listen.header_timeout_ms, listen.idle_timeout_ms),
                max_buffer_size=MOST_HEAD_BYTES,
            ),
            log_enabled=False,
        )
        if listen.tls is not None:
            # granian reads files, when it starts and never again; these are of memory only, and nobody else's.
            self._pem = [in_memory(pem.reveal()) for pem in (listen.tls.cert, listen.tls.key)]
            cert, key = (f"/proc/self/fd/{fd}" for fd in self._pem)
            self.ssl_ctx: Any = (True, cert, key, None, str(SSLProtocols.tls12), None, [], False)

    def apply(self, listen: Listen) -> None:
        """A new config changes nothing here: a renewed certificate waits for the next start."""

    def _init_shared_socket(self) -> None:
        self._ssp = None
        self._shd: Any = SocketHolder(self._fd, False, self.backlog)  # type: ignore[call-arg]


def in_memory(text: str) -> int:
    """A file descriptor of a file that is nowhere, with this in it."""
    fd = os.memfd_create("pem")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(text.encode())
    return fd
