"""The models that ship with the package, read when a route first needs them (lexicon: 8 MB)."""

import hashlib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ...native import Lexicon, Verifier

if TYPE_CHECKING:
    from .intents import Intents

_DATA = files(__package__) / "data"


@cache
def _read() -> tuple[Any, bytes]:
    data = (_DATA / "lexicon.bin").read_bytes()
    return Lexicon(data), hashlib.sha256(data).digest()[:8]


def lexicon() -> Any:
    return _read()[0]


def lexicon_version() -> bytes:
    """8 bytes; vectors of different versions have nothing in common."""
    return _read()[1]


@cache
def verifier(profile: str) -> Any:
    return Verifier((_DATA / f"{profile}.bin").read_bytes())


@cache
def intents() -> "Intents":
    from .intents import Intents  # numpy: nobody else shall load it

    return Intents((_DATA / "intents.bin").read_bytes())
