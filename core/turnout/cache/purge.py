"""Letting kept answers go on request: by entry, tag, model, key, route or tenant; a look first."""

import asyncio
from typing import Protocol

import msgspec

from .entry import Entry
from .memory import Memory

LEAST_ENTRY = 8  # hex digits of an entry's key that have to be given


class Kept(Protocol):
    """What a purge looks at: an answer, or a question that has one."""

    @property
    def tenant(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def tags(self) -> str: ...
    @property
    def digest(self) -> bytes: ...


class Purge(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which ones: all that is given has to fit; nothing given: all there are. `dry`: only count them."""

    entry: str = ""  # the beginning of its key, as `x-turnout-cache-key` says it
    tag: str = ""
    model: str = ""  # as asked, or the provider's name of it
    key: str = ""  # name of the key whose request it answered first
    route: str = ""
    tenant: str = ""
    dry: bool = True

    def wrong(self) -> str:
        """What is wrong with it; empty if nothing is."""
        if self.entry and not (len(self.entry) >= LEAST_ENTRY and set(self.entry) <= set("0123456789abcdef")):
            return f"`entry` takes at least {LEAST_ENTRY} hex digits of x-turnout-cache-key"
        return ""

    def fits(self, entry: Entry) -> bool:
        return self.matches(entry, entry.route, (entry.model, entry.served_model))

    def matches(self, kept: Kept, route: str, models: tuple[str, ...]) -> bool:
        """Whether this is one of those that lie under this route and model, or these names of it."""
        return (
            (not self.route or route == self.route)
            and (not self.tenant or kept.tenant == self.tenant)
            and (not self.model or self.model in models)
            and (not self.key or kept.key == self.key)
            and (not self.tag or self.tag in kept.tags.split(","))
            and (not self.entry or kept.digest.hex().startswith(self.entry))
        )

    @property
    def whole(self) -> tuple[str, str] | None:
        """The epoch that ends all of them at once, where there is one."""
        given = {name: value for name in ("entry", "tag", "model", "key") if (value := getattr(self, name))}
        if given or (self.route and self.tenant):
            return None
        if self.route:
            return "route", self.route
        return ("tenant", self.tenant) if self.tenant else ("", "")


MOST_PURGES = 1_000


class Purges:
    """Those that were heard of, the latest MOST_PURGES, with the time of the wall clock: what was kept before such a time and
    fits is gone, however late it comes in."""

    def __init__(self) -> None:
        self._heard: list[tuple[Purge, int]] = []

    def add(self, what: Purge, wall_ns: int) -> bool:
        """False: it was known."""
        if (what, wall_ns) in self._heard:
            return False
        self._heard.append((what, wall_ns))
        del self._heard[:-MOST_PURGES]
        return True

    def took(self, kept: Kept, route: str, models: tuple[str, ...], stored_ns: int) -> bool:
        return any(stored_ns <= at and what.matches(kept, route, models) for what, at in self._heard)


async def purge(memory: Memory, what: Purge) -> dict[str, int]:
    """Counts, and unless it is dry lets go. The loop has its turns in between; a whole route or tenant is gone at once."""
    entries = size = 0
    if not what.dry and (whole := what.whole) is not None:
        memory.expire(*whole)
    for piece in memory.slices(what.fits):
        for entry in piece:
            if not memory.holds(entry):  # it went while the loop had its turn
                continue
            entries += 1
            size += entry.size
            if not what.dry:
                memory.drop(entry)
        await asyncio.sleep(0)
    return {"entries": entries, "bytes": size}
