"""What the semantic cache writes down: questions with the digest of their answer, the answers, and what meters know.

`Books` outlive a worker and are read by others: in a file of the host (disk.py) or in Redis (redis_books.py). Everything here
is behind a request's end or beside it. Nothing raises: what cannot be had is not there.
"""

import asyncio
import zlib
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from ..purge import Purge
from .scopes import Item, Scope

FORM = 1


class Written(msgspec.Struct, array_like=True, frozen=True):
    """An item as it is written down. Its local vector is not: it is made of the text again, in less time than it takes to
    read. That of an endpoint is, for it costs money and time: a restart and other workers need not ask again."""

    form: int
    digest: bytes
    text: str
    tenant: str
    tag: str
    key: str
    tags: str
    stored_ns: int
    dead_ns: int
    remote: bytes = b""  # empty: none, or from before there were any


class News(msgspec.Struct, array_like=True, frozen=True):
    """What another worker or host did: `add` (value: the item) or `drop` (value: its digest) in a scope; `purge` (value: a
    Purge in JSON). `lost`: there was more than can be told, and what is known of any scope may be old."""

    what: str
    scope: bytes
    value: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Written).decode


def written(item: Item) -> bytes:
    names = (item.digest, item.text, item.tenant, item.tag, item.key, item.tags)
    said = _encode(Written(FORM, *names, item.stored_ns, item.dead_ns, item.remote or b""))
    return zlib.crc32(said).to_bytes(4, "big") + said


def read(data: bytes, now_ns: int) -> Written | None:
    """None: it is none, or one whose time is over."""
    if len(data) < 5 or zlib.crc32(data[4:]) != int.from_bytes(data[:4], "big"):
        return None
    try:
        found = _decode(data[4:])
    except (msgspec.DecodeError, RecursionError):
        return None
    return found if found.form == FORM and len(found.digest) == 32 and now_ns < found.dead_ns else None


class Place(msgspec.Struct, frozen=True):
    """Where a scope is written down."""

    scope: bytes
    owner: str
    route: str
    model: str


def place_of(scope: Scope) -> Place:
    return Place(scope.key, scope.owner, scope.route, scope.model)


class Books(Protocol):
    @property
    def up(self) -> bool: ...
    async def load(self, place: Place) -> list[bytes] | None:
        """All items of a scope; None: not to be had now."""

    def add(self, place: Place, item: Item, answer: bytes) -> None:
        """Write it down, soon. `answer`: as the exact cache shares it."""

    def drop(self, place: Place, item: Item) -> None: ...
    async def answer(self, item: Item) -> bytes | None: ...
    async def news(self) -> list[News]:
        """What others did since the last time."""

    def listening(self) -> AbstractContextManager[asyncio.Event]:
        """An event that is set when there may be news; one may get lost."""

    async def purge(self, what: Purge) -> None: ...
    async def purged(self) -> list[tuple[Purge, int]] | None:
        """What was purged, and when (wall clock), as far as it may have been missed here; None: not to be had now."""

    async def load_meter(self, name: str) -> list[bytes]:
        """What each worker that ever was knows of this namespace."""

    def save_meter(self, name: str, who: bytes, data: bytes) -> None: ...
    async def flush(self) -> None: ...
    async def close(self) -> None: ...
