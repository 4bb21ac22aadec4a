"""Host names to addresses: one look-up in flight per name, each with a deadline, and old answers rather than none.

The system's resolver blocks, so each look-up has a thread of its own for as long as it takes: in a shared pool of a few
threads some dead names would hold up all others.
"""

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable

from ..errors import Fault

Addresses = list[tuple[str, int]]

FRESH_NS = 30_000_000_000  # then a new look-up is begun, while the old answer is used on
STALE_NS = 300_000_000_000  # and no longer than this
MOST_THREADS = 64  # names looked up at the same time; more are refused rather than queued


class Resolver:
    """The names of one worker's origins."""

    def __init__(self, loop: asyncio.AbstractEventLoop, now_ns: Callable[[], int]) -> None:
        self._loop = loop
        self._now = now_ns
        self._found: dict[tuple[str, int], tuple[int, Addresses]] = {}
        self._asked: dict[tuple[str, int], asyncio.Future[Addresses]] = {}
        self._literal: dict[tuple[str, int], Addresses] = {}

    def known(self, host: str, port: int) -> Addresses | None:
        """The addresses, if that needs no waiting."""
        key = (host, port)
        literal = self._literal.get(key)
        if literal is not None:
            return literal
        found = self._found.get(key)
        if found is None:
            try:
                ipaddress.ip_address(host)
            except ValueError:
                return None
            self._literal[key] = [(host, port)]
            return self._literal[key]
        age = self._now() - found[0]
        if age > STALE_NS:
            return None
        if age > FRESH_NS:
            self._ask(key)
        return found[1]

    async def find(self, host: str, port: int, seconds: float) -> Addresses:
        """The addresses. Raises Fault connect or connect_timeout."""
        known = self.known(host, port)
        if known is not None:
            return known
        asked = self._ask((host, port))
        if asked is None:
            raise Fault("connect", "too many host names are being looked up")
        done, _ = await asyncio.wait((asked,), timeout=seconds)
        if not done:
            raise Fault("connect_timeout", "looking up the upstream's host name took too long")
        found = asked.result()
        if not found:
            raise Fault("connect", "the upstream's host name could not be resolved")
        return found

    def _ask(self, key: tuple[str, int]) -> "asyncio.Future[Addresses] | None":
        """The look-up of a name; the one under way if there is one, None if there are too many."""
        asked = self._asked.get(key)
        if asked is None and len(self._asked) < MOST_THREADS:
            asked = self._asked[key] = self._loop.create_future()
            try:
                threading.Thread(target=self._look_up, args=(key,), name=f"dns {key[0]}", daemon=True).start()
            except RuntimeError:  # the system has no thread for us; the next request asks again
                self._answered(key, [])
        return asked

    def _look_up(self, key: tuple[str, int]) -> None:
        try:
            rows = socket.getaddrinfo(key[0], key[1], type=socket.SOCK_STREAM)
            found = [(str(row[4][0]), int(row[4][1])) for row in rows]
        except (OSError, ValueError):  # ValueError: no name at all, in the eyes of IDNA
            found = []
        try:
            self._loop.call_soon_threadsafe(self._answered, key, found)
        except RuntimeError:  # the loop has ended meanwhile
            return

    def _answered(self, key: tuple[str, int], found: Addresses) -> None:
        if found:  # a failure leaves the old answer in use
            self._found[key] = (self._now(), found)
        asked = self._asked.pop(key)
        if not asked.done():
            asked.set_result(found)
