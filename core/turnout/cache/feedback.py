"""What a user may say of an answer that came from the cache: POST /v1/cache/feedback. Pure."""

import re
from typing import Literal

import msgspec

from ..errors import Fault

_ENTRY = re.compile(r"[0-9a-f]{16,64}\Z")


class Feedback(msgspec.Struct, forbid_unknown_fields=True):
    entry: str  # x-turnout-cache-key of the answer
    verdict: Literal["good", "bad"]


def feedback_of(body: bytes) -> Feedback:
    """Raises Fault bad_json or bad_field."""
    try:
        said = msgspec.json.decode(body, type=Feedback)
    except msgspec.ValidationError as wrong:
        raise Fault("bad_field", f"feedback takes `entry` and `verdict` (good or bad): {wrong}") from None
    except (msgspec.DecodeError, RecursionError):
        raise Fault("bad_json", "the request body is not valid JSON") from None
    if not _ENTRY.match(said.entry):
        raise Fault("bad_field", "'entry' takes the x-turnout-cache-key of the answer", param="entry")
    return said
