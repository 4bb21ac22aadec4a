"""What a request asks for, as far as a route's conditions and constraints look: decoded only where one does."""

from typing import Any

import msgspec

from ..exchange import Exchange

_NONE = msgspec.Raw()


class Peek(msgspec.Struct):
    """Of a chat body; what is not of the expected shape counts as absent, the upstream will say so."""

    tools: msgspec.Raw = _NONE
    functions: msgspec.Raw = _NONE
    response_format: msgspec.Raw = _NONE
    metadata: msgspec.Raw = _NONE
    max_tokens: msgspec.Raw = _NONE
    max_completion_tokens: msgspec.Raw = _NONE


_decode = msgspec.json.Decoder(Peek).decode
_metadata = msgspec.json.Decoder(dict[str, Any]).decode
_NOTHING = (b"", b"[]", b"null", b"{}")


def peek(x: Exchange) -> Peek:
    try:
        return _decode(x.body)
    except msgspec.DecodeError:
        return Peek()


def has(raw: msgspec.Raw) -> bool:
    return bytes(raw).strip() not in _NOTHING


def metadata(found: Peek) -> dict[str, Any]:
    try:
        return _metadata(found.metadata)
    except msgspec.DecodeError:
        return {}


def wants_tools(found: Peek) -> bool:
    return has(found.tools) or has(found.functions)


def wants_schema(found: Peek) -> bool:
    return b"json_schema" in bytes(found.response_format)


def has_image(x: Exchange) -> bool:
    """Whether a part of a message is an image. Looks for its type in the bytes: text that quotes it may be taken for one."""
    return b'"image_url"' in x.body or b'"input_image"' in x.body


def most_answer(found: Peek) -> int:
    """Tokens that the answer may have by the request's own limit, 0: no limit."""
    for raw in (found.max_completion_tokens, found.max_tokens):
        if bytes(raw).isdigit():
            return int(bytes(raw))
    return 0
