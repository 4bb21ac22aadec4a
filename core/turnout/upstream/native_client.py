"""The upstream client of engine native: connections are made, kept and read in Rust (native/src/engine/upstream.rs).

Same interface as client.py, and calls of the same interface as call.py.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from .. import native
from .call import Call, Request
from .client import KEPT, MAX_ANSWER_BYTES
from .connect import Origin, authorities, tunnel_request
from .resolve import Resolver


class NativeClient:
    """All upstream connections of one worker, in `engine` (a native.Engine)."""

    def __init__(self, engine: Any, loop: asyncio.AbstractEventLoop, now_ns: Callable[[], int]) -> None:
        self._engine = engine
        self._resolver = Resolver(loop, now_ns)
        self._origins: list[Origin] = []
        self._trusts: dict[tuple[bytes, ...], Any] = {}  # by the authorities, which origins share
        engine.keep(list(KEPT))

    def add(self, origin: Origin) -> None:
        """An origin of the present config."""
        trust = name = tunnel = None
        if origin.tls is not None:
            roots = authorities(origin.tls)
            trust = self._trusts.get(roots)
            if trust is None:
                trust = self._trusts[roots] = native.Trust(list(roots))
            name = origin.host
            if origin.proxy is not None:
                tunnel = tunnel_request(origin)
        origin.pool = self._engine.pool(origin.max_idle, MAX_ANSWER_BYTES, trust, name, tunnel)
        self._origins.append(origin)

    def swap(self, origins: list[Origin]) -> list[Origin]:
        """Let `origins` be those of the present config, instead of those that are returned."""
        before, self._origins = self._origins, origins
        self._trusts = {}
        return before

    def retire(self, origins: list[Origin]) -> None:
        """Those of an old config: idle connections are closed, the others when their answer is complete."""
        for origin in origins:
            origin.pool.retire()

    def prepare(self, origin: Origin, target: str, lines: list[tuple[str, str]]) -> Any:
        """The head of requests to `target`, as in the request line."""
        return native.Head(target, [(name.encode("latin-1"), value.encode("latin-1")) for name, value in lines])

    def open_nowait(self, origin: Origin, head: Any, request: Request) -> Call | None:
        """Send on an idle connection, or on a new one where the address is known; else None."""
        call: Call | None = origin.pool.open(head, request, True, None)
        if call is None and (found := self._resolver.known(*origin.peer)) is not None:
            call = origin.pool.open(head, request, False, found)
        return call

    async def open(self, origin: Origin, head: Any, request: Request) -> Call:
        """Send on a connection of its own. Raises Fault connect or connect_timeout where the name cannot be resolved."""
        left_ms = max(1, (request.deadline_ns - request.now_ns) // 1_000_000)
        found = await self._resolver.find(*origin.peer, min(request.connect_ms, left_ms) / 1000)
        call: Call = origin.pool.open(head, request, False, found)
        return call

    @property
    def connections(self) -> int:
        return sum(origin.pool.size for origin in self._origins)

    def tick(self, now_ns: int) -> None:
        """Every 20 ms: let the calls look at their limits."""
        self._engine.watch()

    def close(self) -> None:
        self._engine.close_upstream()
