"""Keys: hashed when the config is loaded, found by their digest (native.KeyTable)."""

import hashlib
from collections.abc import Iterable

from ..errors import Fault
from ..exchange import Principal
from ..native import KeyTable
from .spec import KeySpec

MOST_KEY_BYTES = 4096


class Keyring:
    """The keys of one config."""

    def __init__(self, keys: Iterable[KeySpec], open_door: bool = False) -> None:
        self._holders: dict[bytes, Principal] = {}
        for spec in keys:
            digest = hashlib.sha256(spec.key.reveal().encode()).digest()
            tenant = f"team:{spec.team}" if spec.team else f"key:{spec.name}"
            self._holders[digest] = Principal(
                spec.name, tenant, digest.hex()[:6], spec.team, tuple(spec.tags), tuple(spec.models), spec.direct
            )
        self._find = KeyTable(list(self._holders.items())).find
        # `--dev` without keys, on loopback only: everyone is the developer.
        self._anyone = Principal("dev", "key:dev", "000000", direct=True) if open_door and not self._holders else None

    def named(self, name: str) -> Principal | None:
        """Whose key has this name; without a name the first one's, for questions about requests that nobody sends."""
        if self._anyone is not None:
            return self._anyone
        return next((p for p in self._holders.values() if not name or p.name == name), None)

    def admit(self, presented: bytes | None) -> Principal:
        """Who this is. Raises Fault no_key or bad_key, with the same words for unknown, malformed and revoked keys."""
        if self._anyone is not None:
            return self._anyone
        if presented is None:
            raise Fault("no_key", "you did not provide an API key: send it as 'Authorization: Bearer <key>'")
        found: Principal | None = self._find(presented) if len(presented) <= MOST_KEY_BYTES else None
        if found is None:
            raise Fault("bad_key", "incorrect API key provided")
        return found
