"""What a caller may say about the cache: only that it wants a fresher answer, or none of it kept. Pure."""

import re
from collections.abc import Iterable

import msgspec

from ..errors import Fault

NAME = b"x-turnout-cache"
NAMES = frozenset((NAME, b"cache-control"))
_WORDS = "off, read, refresh, exact, sim=0..1 or max-age=SECONDS"
MOST = 512  # bytes of a value


class Wish(msgspec.Struct, frozen=True):
    read: bool = True  # a kept answer will do
    write: bool = True  # the answer may be kept, and shared with others who ask now
    max_age_ns: int = -1  # no older than this; -1: as old as the route allows
    only: bool = False  # nobody is to be asked upstream
    exact: bool = False  # the answer to another question will not do
    least: float = 0.0  # ... or only if their vectors' cosine is at least this
    reason: str = ""  # why nothing is read, for the header


ANY = Wish()
_SHARE = re.compile(r"(?:0(?:\.[0-9]{1,6})?|1(?:\.0{1,6})?)\Z")


def wish_of(headers: Iterable[tuple[bytes, bytes]]) -> Wish:
    """RFC 9111, 5.2.1, of `cache-control`: no-cache, no-store, max-age, only-if-cached; what would lower the bar
    (max-stale) is passed over, and so is what is not known. `x-turnout-cache`: off, read, refresh, exact, sim, max-age.
    Raises Fault bad_header for other words there."""
    out = ANY
    for name, value in headers:
        if name in NAMES:
            own = name == NAME
            if len(value) > MOST:
                raise Fault("bad_header", f"'{name.decode()}' is longer than {MOST} bytes")
            for part in value.decode("latin-1").lower().split(","):
                out = _add(out, part.strip(), own)
    return out


def _add(wish: Wish, word: str, own: bool) -> Wish:
    put = msgspec.structs.replace
    name, _, number = word.partition("=")
    number = number.strip().strip('"')
    if name == "max-age" and number.isdecimal() and len(number) <= 10:
        age_ns = int(number) * 1_000_000_000
        if age_ns == 0:
            return put(wish, read=False, reason=wish.reason or "no-cache")
        return put(wish, max_age_ns=age_ns if wish.max_age_ns < 0 else min(age_ns, wish.max_age_ns))
    if own:
        if word == "off":
            return put(wish, read=False, write=False, reason="asked")
        if word == "read":
            return put(wish, write=False)
        if word == "refresh":
            return put(wish, read=False, reason=wish.reason or "refresh")
        if word == "exact":
            return put(wish, exact=True)
        if name == "sim" and _SHARE.match(number):
            return put(wish, least=max(wish.least, float(number)))
        raise Fault("bad_header", f"'{NAME.decode()}' must be {_WORDS}")
    if word == "no-cache":
        return put(wish, read=False, reason=wish.reason or "no-cache")
    if word == "no-store":
        return put(wish, write=False)
    if word == "only-if-cached":
        return put(wish, only=True)
    return wish
