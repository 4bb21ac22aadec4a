"""What we read of a request body, and how it goes on: the client's own bytes with a few values exchanged.

The body is never decoded as a whole. A scan finds where the top-level fields lie, only the few that are acted on are
decoded, and what goes upstream is the same buffer in pieces around the new values. Unknown fields, key order and the
spelling of numbers survive, and a body is not copied at all on the way out.
"""

from typing import NoReturn

import msgspec

from ..errors import Fault
from ..native import FieldScanner

# The fields that any stage acts on, in the order of the spans.
NAMES = ("model", "stream", "stream_options", "messages", "input", "prompt")
MODEL, STREAM, STREAM_OPTIONS = 0, 1, 2


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


# What the surfaces require -> its bits for the scanner, which says whether it is an array, as it mostly is.
_ARRAYS: dict[tuple[str, ...], int] = {(name,): 1 << i for i, name in enumerate(NAMES)}
SMALL = 4096  # bytes: a body up to here is copied, which is less work than three views of it

_decode_str = msgspec.json.Decoder(str).decode
_decode_options = msgspec.json.Decoder(StreamOptions | None).decode
_decode_raw_dict = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode
_TRUE = msgspec.Raw(b"true")


class RequestReader:
    """Reads request bodies. `extra` are fields that some route writes over; one reader serves one config."""

    def __init__(self, extra: tuple[str, ...] = ()) -> None:
        self.names = NAMES + tuple(dict.fromkeys(name for name in extra if name not in NAMES))
        scanner = FieldScanner(list(self.names))
        self._scan, self._look = scanner.scan, scanner.look
        self._index = {name: i for i, name in enumerate(self.names)}

    def read(self, body: bytes, required: tuple[str, ...], can_stream: bool) -> tuple[tuple[int, ...], str, bool]:
        """Spans of the fields, the model, and whether a stream is asked for; the fields `required` are looked at. Raises
        Fault."""
        try:
            found: tuple[tuple[int, ...], str | None, bool | None, bool] = self._look(body, _ARRAYS[required])
        except ValueError as exc:
            _refuse(exc)
        spans, model, stream, good = found
        if model is None or stream is None or not good:
            model = self.model(body, spans)
            for name in required:
                self.require(body, spans, name)
            stream = can_stream and self.stream(body, spans)
        return spans, model, stream and can_stream

    def scan(self, body: bytes) -> tuple[int, ...]:
        """Spans of the fields (see native/src/kernels/scan.rs). Raises Fault for what is not one JSON object."""
        try:
            spans: tuple[int, ...] = self._scan(body)
            return spans
        except ValueError as exc:
            _refuse(exc)

    def model(self, body: bytes, spans: tuple[int, ...]) -> str:
        start, end = spans[0], spans[1]
        if start < 0:
            raise Fault("missing_field", "you must provide a model parameter", param="model")
        if body[start] != 0x22:
            raise Fault("bad_field", "'model' must be a string", param="model")
        text = body[start:end]
        value = _decode_str(text) if b"\\" in text else text[1:-1].decode()
        if not value:
            raise Fault("bad_field", "'model' must not be empty", param="model")
        return value

    def stream(self, body: bytes, spans: tuple[int, ...]) -> bool:
        start = spans[2]
        if start < 0:
            return False
        word = body[start : spans[3]]
        if word == b"true":
            return True
        if word in (b"false", b"null"):
            return False
        raise Fault("bad_field", "'stream' must be true or false", param="stream")

    def asked_usage(self, body: bytes, spans: tuple[int, ...]) -> bool:
        """Whether the client itself asked a stream for its usage."""
        start = spans[4]
        if start < 0:
            return False
        try:
            options = _decode_options(body[start : spans[5]])
        except msgspec.DecodeError:
            raise Fault(
                "bad_field",
                "'stream_options' must be an object with a boolean 'include_usage'",
                param="stream_options",
            ) from None
        return bool(options and options.include_usage)

    def require(self, body: bytes, spans: tuple[int, ...], name: str) -> None:
        """The field must be there and be of the shape its surface needs."""
        i = 2 * self._index[name]
        start = spans[i]
        if start < 0:
            raise Fault("missing_field", f"missing required parameter: '{name}'", param=name)
        first = body[start : start + 1]
        if name == "messages" and first != b"[":
            raise Fault("bad_field", "'messages' must be an array", param=name)
        if name in ("input", "prompt") and first not in (b"[", b'"'):
            raise Fault("bad_field", f"'{name}' must be a string or an array", param=name)

    def onward(
        self,
        body: bytes,
        spans: tuple[int, ...],
        model: bytes | None,
        sets: tuple[tuple[bytes, bytes], ...],
        inject_usage: bool,
    ) -> tuple[list[bytes | memoryview], int]:
        """The body for upstream as pieces, and their length in bytes.

        `model` and the values of `sets` are JSON; `inject_usage` asks the stream for its usage. New fields are put in
        front of the client's, so that its own order stays.
        """
        if model is not None and not sets and not inject_usage and len(body) <= SMALL:
            whole = body[: spans[0]] + model + body[spans[1] :]  # what most requests need
            return [whole], len(whole)
        edits: list[tuple[int, int, bytes]] = []
        inside = spans[-2]
        fresh: list[bytes] = []
        if model is not None:
            edits.append((spans[0], spans[1], model))
        if inject_usage:
            start = spans[4]
            if start < 0:
                fresh.append(b'"stream_options":{"include_usage":true}')
            else:
                options = _decode_raw_dict(body[start : spans[5]]) if body[start] == 0x7B else {}
                options["include_usage"] = _TRUE
                edits.append((start, spans[5], _encode(options)))
        for name, value in sets:
            i = 2 * self._index[name.decode()]
            if spans[i] < 0:
                fresh.append(_encode(name.decode()) + b":" + value)
            else:
                edits.append((spans[i], spans[i + 1], value))
        if not edits and not fresh:
            return [body], len(body)
        if fresh:
            edits.append((inside, inside, b",".join(fresh) + (b"" if spans[-1] else b",")))
        if len(edits) == 1 and len(body) <= SMALL:
            start, end, new = edits[0]
            whole = b"%b%b%b" % (body[:start], new, body[end:])
            return [whole], len(whole)
        if len(edits) > 1:
            edits.sort()
        view = memoryview(body)
        pieces: list[bytes | memoryview] = []
        at = 0
        total = len(body)
        for start, end, new in edits:
            pieces.append(view[at:start])
            pieces.append(new)
            total += len(new) - (end - start)
            at = end
        pieces.append(view[at:])
        return pieces, total


def _refuse(exc: ValueError) -> NoReturn:
    kind, at, what = exc.args
    if kind == "duplicate":
        raise Fault("duplicate_field", f"the field '{what}' stands twice in the request body", param=what) from None
    raise Fault("bad_json", f"the request body is not valid JSON: {what} at byte {at}") from None
