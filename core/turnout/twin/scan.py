"""Where the top-level fields of a JSON object lie. Twin of `native/src/kernels/scan.rs`.

msgspec checks the grammar and gives each value as `Raw`; a walk from value to value then finds the offsets in
O(number of fields), because a `Raw` knows its length. A field that stands twice makes the walk disagree with the dict.
"""

import re

import msgspec

MAX_DEPTH = 128

_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_BLANK = re.compile(rb"[ \t\n\r]*")
_KEY = re.compile(rb'[ \t\n\r]*"((?:[^"\\]|\\.)*)"[ \t\n\r]*:[ \t\n\r]*', re.DOTALL)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SURROGATE = re.compile(
    rb"\\(?:u([dD][89abAB][0-9a-fA-F]{2})(?:\\u[dD][c-fC-F][0-9a-fA-F]{2})?|u([dD][c-fC-F])|.)", re.DOTALL
)
_FLAGS = {b"true": True, b"false": False, b"null": False, b"": False}
_PLACE = re.compile(r"byte (\d+)")


class FieldScanner:
    """Finds the named top-level fields of JSON objects.

    `FieldScanner(names).scan(body)` returns a flat tuple of ints: start and end of the value of each name in turn
    (-1, -1 where it is missing), then the place just after the opening brace and 1 if the object is empty, else 0.
    Raises `ValueError("json", offset, what)` for a body that is not a valid JSON object in UTF-8 or is nested deeper
    than 128, and `ValueError("duplicate", offset, name)` when one of the names stands in it twice, however spelt.

    `look(body, arrays)` gives those, and what most bodies need no more than: the value of the first name where it is a
    string without escapes and not empty, else None; that of the second, true or false (false also where it is missing or
    null), else None; and whether each name whose bit is set in `arrays` is there with an array.
    """

    def __init__(self, names: list[str]) -> None:
        if len(names) > 32:
            raise ValueError("at most 32 names")
        self._index = {name: i for i, name in enumerate(names)}

    def scan(self, body: bytes) -> tuple[int, ...]:
        _check_text(body)
        try:
            fields = _decoder.decode(body)
        except RecursionError:
            raise ValueError("json", 0, "nested too deeply") from None
        except msgspec.DecodeError as exc:
            place = _PLACE.search(str(exc))
            what = "a JSON object expected" if "Expected `object`" in str(exc) else "malformed"
            raise ValueError("json", int(place[1]) if place else min(len(body), _start(body)), what) from None
        if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
            _check_depth(body)
        spans = [-1] * (2 * len(self._index))
        inside = _start(body) + 1
        at = inside
        seen: set[str] = set()
        for _ in range(len(fields) + len(self._index) + 1):
            found = _KEY.match(body, at)
            if found is None:  # the closing brace
                break
            name = found[1].decode()
            if "\\" in name:
                name = msgspec.json.decode(b'"' + found[1] + b'"', type=str)
            k = self._index.get(name)
            if k is not None and name in seen:
                raise ValueError("duplicate", found.start(1) - 1, name)
            seen.add(name)
            # Twice the same unknown field is let through: then the dict has the last one's value, so measure anew.
            value = bytes(fields[name])
            end = found.end() + len(value)
            if body[found.end() : end] != value or not _ends(body, end):
                end = _skip(body, found.end())
            if k is not None:
                spans[2 * k], spans[2 * k + 1] = found.end(), end
            after = _BLANK.match(body, end)
            at = after.end() + 1 if after else end + 1
            if body[at - 1 : at] == b"}":
                break
        else:
            # More keys than distinct names plus ours: unknown ones repeat. Rare and hostile: walk on without a bound.
            return self._walk(body)
        return (*spans, inside, 0 if fields else 1)

    def look(self, body: bytes, arrays: int) -> tuple[tuple[int, ...], str | None, bool | None, bool]:
        spans = self.scan(body)
        values = [body[spans[i] : spans[i + 1]] if spans[i] >= 0 else b"" for i in range(0, 2 * len(self._index), 2)]
        first = values[0] if values else b""
        second = values[1] if len(values) > 1 else b""
        text = first[1:-1].decode() if first[:1] == b'"' and len(first) > 2 and b"\\" not in first else None
        good = all(k < len(values) and values[k][:1] == b"[" for k in range(32) if arrays >> k & 1)
        return spans, text, _FLAGS.get(second), good

    def _walk(self, body: bytes) -> tuple[int, ...]:
        spans = [-1] * (2 * len(self._index))
        inside = at = _start(body) + 1
        while found := _KEY.match(body, at):
            name = msgspec.json.decode(b'"' + found[1] + b'"', type=str)
            end = _skip(body, found.end())
            k = self._index.get(name)
            if k is not None:
                if spans[2 * k] >= 0:
                    raise ValueError("duplicate", found.start(1) - 1, name)
                spans[2 * k], spans[2 * k + 1] = found.end(), end
            after = _BLANK.match(body, end)
            at = after.end() + 1 if after else end + 1
            if body[at - 1 : at] == b"}":
                break
        return (*spans, inside, 0)


def _start(body: bytes) -> int:
    found = _BLANK.match(body)
    return found.end() if found else 0


def _ends(body: bytes, at: int) -> bool:
    found = _BLANK.match(body, at)
    return found is not None and body[found.end() : found.end() + 1] in (b",", b"}")


def _check_text(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError as exc:
        raise ValueError("json", exc.start, "not UTF-8") from None
    if b"\\u" in body:
        for found in _SURROGATE.finditer(body):
            if found[2] or (found[1] and len(found[0]) == 6):
                raise ValueError("json", found.start(), "lone surrogate")


def _check_depth(body: bytes) -> None:
    depth = 0
    for found in re.finditer(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', body, re.DOTALL):
        c = found[0]
        if c in (b"[", b"{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError("json", found.start(), "nested too deeply")
        elif c in (b"]", b"}"):
            depth -= 1


def _skip(body: bytes, at: int) -> int:
    """The end of the value at `at`, in a body known to be valid."""
    if body[at : at + 1] == b'"':
        found = _STRING.match(body, at)
        return found.end() if found else at
    depth = 0
    for found in re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]|,', re.DOTALL).finditer(body, at):
        c = found[0]
        if c in (b"[", b"{"):
            depth += 1
        elif c in (b"]", b"}"):
            depth -= 1
            if depth == 0:
                return found.end()
            if depth < 0:
                return found.start() - (
                    len(body[at : found.start()]) - len(body[at : found.start()].rstrip(b" \t\r\n"))
                )
        elif c == b"," and depth == 0:
            return at + len(body[at : found.start()].rstrip(b" \t\r\n"))
    return len(body)
