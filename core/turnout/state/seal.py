"""Values as they lie in Redis and in files: a version and a checksum before them. What is not exactly ours reads as nothing.

The checksum is over the name as well: a value that stands under another name (a renamed key, a mixed-up reply) is none of
ours. It finds accidents, not forgers: who may write to the store may write what he likes.
"""

from zlib import crc32

_HEAD = b"T1"  # the version of what follows; another one is another program's
_SIZE = len(_HEAD) + 4


def seal(name: bytes, value: bytes) -> bytes:
    return b"%b%b%b" % (_HEAD, crc32(value, crc32(name)).to_bytes(4, "big"), value)


def unseal(name: bytes, sealed: object) -> bytes | None:
    """The value; None if this is not one of ours for this name."""
    if not isinstance(sealed, bytes) or not sealed.startswith(_HEAD) or len(sealed) < _SIZE:
        return None
    value = sealed[_SIZE:]
    return value if crc32(value, crc32(name)) == int.from_bytes(sealed[len(_HEAD) : _SIZE], "big") else None
