"""Keys: hashed when the config is loaded, found by their digest, compared in constant time."""

import hashlib
import hmac
from collections.abc import Iterable

from ..errors import Fault
from ..exchange import Principal
from .spec import KeySpec

MOST_KEY_BYTES = 4096
_hash, _same = hashlib.blake2b, hmac.compare_digest


class Keyring:
    """The keys of one config.

    The look-up is by a digest of what was presented: its time says nothing about the keys, because nobody can steer a
    digest. The whole digest is then compared in constant time. The key itself is kept nowhere. It is BLAKE2 because that
    takes a third of the time SHA-256 takes by way of OpenSSL; the fingerprint that people see is of the SHA-256.
    """

    def __init__(self, keys: Iterable[KeySpec], open_door: bool = False) -> None:
        self._by_digest: dict[bytes, tuple[bytes, Principal]] = {}
        for spec in keys:
            key = spec.key.reveal().encode()
            digest = hashlib.blake2b(key).digest()
            fingerprint = hashlib.sha256(key).hexdigest()[:6]
            tenant = f"team:{spec.team}" if spec.team else f"key:{spec.name}"
            self._by_digest[digest] = (
                digest,
                Principal(spec.name, tenant, fingerprint, spec.team, tuple(spec.tags), tuple(spec.models), spec.direct),
            )
        # `--dev` without keys, on loopback only: everyone is the developer.
        self._anyone = Principal("dev", "key:dev", "000000", direct=True) if open_door and not self._by_digest else None

    def named(self, name: str) -> Principal | None:
        """Whose key has this name; without a name the first one's, for questions about requests that nobody sends."""
        if self._anyone is not None:
            return self._anyone
        known = [principal for _, principal in self._by_digest.values()]
        return next((p for p in known if not name or p.name == name), None)

    def admit(self, presented: bytes | None) -> Principal:
        """Who this is. Raises Fault no_key or bad_key, with the same words for unknown, malformed and revoked keys."""
        if self._anyone is not None:
            return self._anyone
        if presented is None:
            raise Fault("no_key", "you did not provide an API key: send it as 'Authorization: Bearer <key>'")
        digest = _hash(presented if len(presented) <= MOST_KEY_BYTES else presented[:MOST_KEY_BYTES]).digest()
        found = self._by_digest.get(digest)
        if found is None or not _same(found[0], digest) or len(presented) > MOST_KEY_BYTES:
            raise Fault("bad_key", "incorrect API key provided")
        return found[1]


def presented_key(authorization: bytes | None, other: bytes | None) -> bytes | None:
    """The key in `Authorization: Bearer` or, without that header, in `x-api-key` / `api-key`."""
    if authorization is not None:
        if authorization[:7] == b"Bearer " and authorization[7:8] > b" ":
            return authorization[7:].rstrip()  # as nearly all write it
        scheme, _, key = authorization.partition(b" ")
        return key.strip() if scheme.lower() == b"bearer" else b""
    return other
