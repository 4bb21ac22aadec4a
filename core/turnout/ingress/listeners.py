"""The sockets that clients connect to."""

import socket


def open_listeners(host: str, port: int, count: int, backlog: int) -> list[socket.socket]:
    """One listening socket per worker on the same address. With one worker no other process may share the port."""
    out: list[socket.socket] = []
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
        0
    ]
    for _ in range(count):
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if count > 1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Accepted sockets inherit it. Without it a small chunk waits for the client's delayed ACK, 40 ms on Linux.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind(out[0].getsockname() if out else address)
        sock.listen(backlog)
        sock.setblocking(False)
        out.append(sock)
    return out
