"""Starting the state process (or the board) and keeping it there: the supervisor's side."""

import os
import socket
import subprocess
import sys


class StateProcess:
    """One running process of this room. Its socket belongs to us, so that workers find the next one at the same address."""

    def __init__(self, module: str = "process", *args: str) -> None:
        self._command = [f"turnout.state.{module}", *args]
        self._listener = socket.socket(socket.AF_UNIX)
        # An address of Linux' abstract namespace, chosen by the system: no file stays behind whatever ends us.
        self._listener.bind("")
        self._listener.listen(512)
        self.address: bytes = self._listener.getsockname()
        self._process = self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _start(self) -> "subprocess.Popen[bytes]":
        fd = self._listener.fileno()
        return subprocess.Popen(
            [sys.executable, "-P", "-m", self._command[0], str(fd), str(os.getpid()), *self._command[1:]],
            stdin=subprocess.DEVNULL,
            pass_fds=(fd,),
            env={name: os.environ[name] for name in ("PATH", "PYTHONPATH", "VIRTUAL_ENV") if name in os.environ},
        )

    def restarted(self) -> bool:
        """Start it again if it has ended; whether it had."""
        if self._process.poll() is None:
            return False
        self._process = self._start()
        return True

    def stop(self) -> None:
        self._process.kill()  # it keeps nothing
        self._process.wait()
        self._listener.close()
