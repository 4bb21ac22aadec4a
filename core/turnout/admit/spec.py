"""Config of the front door: which keys there are and what each may ask for."""

import msgspec

from ..secret import Secret


class KeySpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One key that clients present as `Authorization: Bearer`, `x-api-key` or `api-key`."""

    name: str
    key: Secret
    team: str | None = None
    tags: list[str] = []
    models: list[str] = msgspec.field(default_factory=lambda: ["*"])  # patterns over what may be asked for
    direct: bool = False


class AuthSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    keys: list[KeySpec] = []
