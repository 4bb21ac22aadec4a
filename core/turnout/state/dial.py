"""Connections to Redis, made by redis-py: TCP, TLS, AUTH, sentinels, a cluster's map. The only place that imports it, so that
a process without `state.redis` in its config never loads it (30 MB).

redis-py's own clients are not used for commands: a pool hands a connection to one caller at a time, which is a write and a
read of the socket for each command. `lane.py` lets all callers of a turn share one.
"""

import asyncio
import math
import ssl
from collections.abc import Callable
from typing import Any

from redis.asyncio.connection import Connection, SSLConnection
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import TimeoutError as TooSlow
from redis.maint_notifications import MaintNotificationsConfig

from .lane import Reply, Wire, Wrong, pack
from .spec import SENTINEL, RedisSpec, Where

slot_of: Callable[[bytes], int] = key_slot
Node = tuple[str, int]
Slots = list[tuple[int, int, Node]]  # first, last, whose they are

_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (OutOfMemoryError, "full"),
    (ReadOnlyError, "readonly"),
    (AuthenticationError, "auth"),
    (NoPermissionError, "auth"),
    (BusyLoadingError, "loading"),
    (ClusterDownError, "loading"),
    (TryAgainError, "loading"),
    (NoScriptError, "noscript"),
)


def wrong_of(exc: BaseException) -> Wrong:
    """What an error of the server, of the connection or of the way is called."""
    if isinstance(exc, AskError):  # MovedError is one of them
        return Wrong("moved" if isinstance(exc, MovedError) else "ask", (exc.host, exc.port))
    for type_, kind in _KINDS:
        if isinstance(exc, type_):
            return Wrong(kind)
    if isinstance(exc, ResponseError):
        word = str(exc).partition(" ")[0]
        return Wrong({"WRONGTYPE": "type", "MISCONF": "full", "NOREPLICAS": "full"}.get(word, "refused"))
    if isinstance(exc, (TooSlow, TimeoutError)):
        return Wrong("timeout")
    return Wrong("lost" if isinstance(exc, (NotConnected, OSError)) else "garbage")


class Line:
    """A `Wire` over redis-py's connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def send(self, data: bytes) -> Wrong | None:
        try:
            await self._connection.send_packed_command([data], check_health=False)
        except (RedisError, OSError) as exc:
            return wrong_of(exc)
        return None

    async def receive(self) -> Reply | Wrong:
        """The next reply; `Wrong.broken` if there will be none any more."""
        try:
            reply: Reply = await self._connection.read_response(
                disable_decoding=True, disconnect_on_error=False, timeout=math.inf
            )
            return reply
        except ResponseError as exc:
            return wrong_of(exc)
        except (
            Exception
        ) as exc:  # the library's, whatever a server may say to it: a length that is no number, no end of lists
            return Wrong(wrong_of(exc).kind, broken=True)

    async def ask(self, *args: bytes) -> Any:
        """One command on a connection that nobody else uses."""
        if (wrong := await self.send(pack(args))) is not None:
            return Wrong(wrong.kind, broken=True)
        return await self.receive()

    async def close(self) -> None:
        try:
            await self._connection.disconnect(nowait=True)
        except (RedisError, OSError):
            pass


class Dialer:
    """Makes connections as one spec says."""

    def __init__(self, spec: RedisSpec, place: Where) -> None:
        self._place = place
        self._connect_s = spec.connect_ms / 1e3
        self._operation_s = spec.operation_ms / 1e3
        self._tls: ssl.SSLContext | None = None
        self._options = self._common(spec.username, spec.password.reveal() if spec.password else None, place.db)
        if place.tls:
            self._tls = ssl.create_default_context(cafile=spec.ca_bundle)
        if place.kind == SENTINEL:
            secret = spec.sentinel_password.reveal() if spec.sentinel_password else None
            self._watcher = self._common(spec.sentinel_username, secret, 0)

    def _common(self, username: str | None, password: str | None, db: int) -> dict[str, Any]:
        return {
            "username": username,
            "password": password,
            "db": db,
            "protocol": 2,
            "driver_info": None,  # or each connection asks twice more before it is there
            "socket_timeout": None,
            "socket_connect_timeout": self._connect_s,
            "socket_keepalive": True,
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }

    async def _open(self, node: Node, options: dict[str, Any]) -> Line:
        connection: Connection
        if self._tls is not None:
            secure = SSLConnection(host=node[0], port=node[1], **options)
            secure.ssl_context.context = self._tls  # it would read the certificates of the system for each connection
            connection = secure
        else:
            connection = Connection(host=node[0], port=node[1], **options)
        line = Line(connection)
        try:
            async with asyncio.timeout(self._connect_s):
                await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await line.close()
            raise
        return line

    async def dial(self, node: Node | None = None) -> Wire | Wrong:
        """A connection that has just answered in time: to this node, or to the one that the spec means."""
        line: Line | None = None
        try:
            if node is None:
                node = await self._master() if self._place.kind == SENTINEL else self._place.nodes[0]
            line = await self._open(node, self._options)
            async with asyncio.timeout(self._operation_s):
                # A sentinel may not have heard yet that its master is none any more.
                said = await line.ask(b"ROLE" if self._place.kind == SENTINEL else b"PING")
        except Exception as exc:  # whatever it is, the task that dials must go on
            wrong = wrong_of(exc)
            said = Wrong("connect") if wrong.kind in ("lost", "timeout") and line is None else wrong
        if line is not None and isinstance(said, list) and said[:1] != [b"master"]:
            said = Wrong("readonly")
        if isinstance(said, Wrong):
            if line is not None:
                await line.close()
            return said
        assert line is not None
        return line

    async def _master(self) -> Node:
        """Whom the first sentinel that knows calls master. Raises RedisError."""
        last: BaseException = NotConnected()
        for node in self._place.nodes:
            line: Line | None = None
            try:
                line = await self._open(node, self._watcher)
                async with asyncio.timeout(self._operation_s):
                    said = await line.ask(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", self._place.service.encode())
                if isinstance(said, list) and len(said) == 2:
                    return said[0].decode(), int(said[1])
            except Exception as exc:
                last = exc
            finally:
                if line is not None:
                    await line.close()
        raise NotConnected() from last

    async def slots(self, nodes: list[Node]) -> Slots | Wrong:
        """A cluster's map, from the first of these nodes that has one."""
        wrong = Wrong("connect")
        for node in nodes:
            line = None
            try:
                line = await self._open(node, self._options)
                async with asyncio.timeout(self._connect_s):
                    said = await line.ask(b"CLUSTER", b"SLOTS")
                if isinstance(said, Wrong):
                    wrong = said
                elif said:
                    return [
                        (int(first), int(last), (master[0].decode() or node[0], int(master[1])))
                        for first, last, master, *_ in said
                    ]
            except Exception as exc:
                wrong = wrong_of(exc)
            finally:
                if line is not None:
                    await line.close()
        return wrong
