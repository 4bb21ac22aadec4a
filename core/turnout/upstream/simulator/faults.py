"""Which request gets which fault. Pure: the dice are passed in."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import msgspec

from ..providers.simulated import SimFault

# These need a first part of the answer, so they happen while it is being written.
MIDWAY = frozenset({"cut", "stall", "error-event", "truncate"})

# The request's own wish, in OpenAI's `metadata` object: legal for every OpenAI client, and
# a gateway forwards it untouched.
FAULT_KEY = "turnout-fault"
PROVIDER_KEY = "turnout-fault-provider"

_PER_REQUEST = frozenset({"status", "retry_after_s", "ms", "after_tokens"})


class FaultPicker:
    """The provider's list of faults together with how often each was met."""

    def __init__(self, faults: list[SimFault], dice: random.Random) -> None:
        self._faults = faults
        self._dice = dice
        self._seen = 0
        self._fired = [0] * len(faults)

    def pick(self) -> SimFault | None:
        """The fault of the next request, or None. Call it once per request."""
        self._seen += 1
        for at, fault in enumerate(self._faults):
            if fault.count and self._fired[at] >= fault.count:
                continue
            # random() < 1.0 always holds, so a share of 1 never misses.
            if self._seen % fault.every == 0 if fault.every else self._dice.random() < fault.share:
                self._fired[at] += 1
                return fault
        return None


def parse_fault(text: str) -> SimFault:
    """`"status=503"`, `"cut;after_tokens=20"`, `"slow;ms=3000"` -> SimFault.

    The first word is the kind; `status=503` is short for `status;status=503`. How often
    makes no sense inside one request, so `share`, `every` and `count` are refused.
    Raises ValueError with a message for the caller.
    """
    head, *rest = (part.strip() for part in text.split(";"))
    fields: dict[str, Any] = {"kind": head.partition("=")[0].strip()}
    pairs = [head] if "=" in head else []
    for pair in pairs + [part for part in rest if part]:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or name not in _PER_REQUEST:
            allowed = ", ".join(sorted(_PER_REQUEST))
            raise ValueError(f"{FAULT_KEY}: cannot use {pair!r}; known are {allowed}")
        fields[name] = value
    try:
        return msgspec.convert(fields, SimFault, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"{FAULT_KEY}: {error}") from None


def wished_fault(metadata: Mapping[str, Any] | None, provider: str) -> SimFault | None:
    """The fault that the request itself asks of this provider. Raises ValueError."""
    if not metadata:
        return None
    text = metadata.get(FAULT_KEY)
    if not isinstance(text, str) or metadata.get(PROVIDER_KEY, provider) != provider:
        return None
    return parse_fault(text)
