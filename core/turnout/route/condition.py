"""Conditions on a request: a field, an operator, a value. Pure.

Fields: `model`, `route_model` (what the client asked for, the same), `surface`, `stream`, `key`, `team`, `tenant`, `tags`
(of the key and of `x-turnout-tags`), `session`, `prompt_bytes`, `prompt_tokens` (a quarter of the bytes), `tools`,
`schema`, `images`, `hour` (UTC, 0 to 23), `header.NAME`, `metadata.NAME` (of the request body).
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from ..exchange import Exchange
from . import peek

Value = str | int | float | bool
Op = Literal["eq", "ne", "in", "not_in", "gt", "gte", "lt", "lte", "regex", "exists", "contains"]
_ORDER = ("gt", "gte", "lt", "lte")

_NUMBERS: dict[str, Callable[[Exchange], float]] = {
    "prompt_bytes": lambda x: len(x.body),
    "prompt_tokens": lambda x: len(x.body) / 4,
    "hour": lambda x: x.wall_ns // 3_600_000_000_000 % 24,
}
_FLAGS: dict[str, Callable[[Exchange], bool]] = {
    "stream": lambda x: x.stream,
    "tools": lambda x: peek.wants_tools(peek.peek(x)),
    "schema": lambda x: peek.wants_schema(peek.peek(x)),
    "images": peek.has_image,
}
_TEXTS: dict[str, Callable[[Exchange], str | None]] = {
    "model": lambda x: x.model,
    "surface": lambda x: x.surface.name,
    "key": lambda x: x.principal.name if x.principal else None,
    "team": lambda x: x.principal.team if x.principal else None,
    "tenant": lambda x: x.principal.tenant if x.principal else None,
    "session": lambda x: x.session or None,
}


def tags(x: Exchange) -> list[str]:
    own = [tag.strip() for tag in x.tags.split(",") if tag.strip()]
    return [*(x.principal.tags if x.principal else ()), *own]


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Without `op`: `eq`. `value` is a list for `in` and `not_in`, a number for `gt` and its kin, true or false for
    `exists`. `tags` hold a set: `eq` and `contains` ask whether one of them is the value, `in` whether any is in the list.
    A field that a request does not have meets no condition but `ne`, `not_in` and `exists: false`."""

    field: str
    op: Op = "eq"
    value: Value | list[Value]

    def met(self, x: Exchange) -> bool:
        found = look_up(self.field, x)
        op, value = self.op, self.value
        if op == "exists":
            return (found is not None and found != []) == value
        if op == "ne":
            return not _equal(found, value)
        if op == "not_in":
            return not _among(found, value)
        if found is None:
            return False
        if op == "eq":
            return _equal(found, value)
        if op == "in":
            return _among(found, value)
        if op in _ORDER:
            return _ordered(op, found, value)
        texts = found if isinstance(found, list) else [str(found)]
        if op == "contains":
            if isinstance(found, list):
                return value in found
            return str(value) in texts[0]
        return any(_compiled(str(value)).search(text[:MOST_TEXT]) is not None for text in texts)

    def wrong(self) -> str:
        """What is wrong with it; empty if nothing is."""
        op, value = self.op, self.value
        name, _, rest = self.field.partition(".")
        if name in ("header", "metadata"):
            if not rest:
                return f"expected {name}.NAME"
        elif (
            self.field not in _NUMBERS
            and self.field not in _FLAGS
            and self.field not in _TEXTS
            and self.field != "tags"
        ):
            known = sorted([*_NUMBERS, *_FLAGS, *_TEXTS, "tags", "header.NAME", "metadata.NAME"])
            return f"no such field; known: {', '.join(known)}"
        if isinstance(value, list) != (op in ("in", "not_in")):
            return f"{op} takes {'a list' if op in ('in', 'not_in') else 'one value'}"
        if op == "exists":
            return "" if isinstance(value, bool) else "exists takes true or false"
        values = value if isinstance(value, list) else [value]
        if op in _ORDER:
            if self.field in _FLAGS or self.field in _TEXTS or self.field == "tags":
                return f"{op} compares numbers: {self.field} is none"
            return "" if _is_number(value) else f"{op} takes a number"
        if op in ("regex", "contains"):
            if self.field in _NUMBERS or self.field in _FLAGS:
                return f"{op} looks into text: {self.field} is none"
            if not isinstance(value, str):
                return f"{op} takes text"
            if op == "regex":
                try:
                    re.compile(value)
                except re.error as bad:
                    return f"not a regular expression: {bad.msg}"
            return ""
        if self.field in _NUMBERS and not all(map(_is_number, values)):
            return f"{self.field} is a number"
        if self.field in _FLAGS and not all(isinstance(v, bool) for v in values):
            return f"{self.field} is true or false"
        text = self.field in _TEXTS or self.field == "tags" or name == "header"
        if text and not all(isinstance(v, str) for v in values):
            return f"{self.field} is text"
        return ""


MOST_TEXT = 4096  # characters that a regular expression is given: it is the operator's, but the text is the caller's


def look_up(field: str, x: Exchange) -> Any:
    """The value of this field, None: it has none. Texts, numbers and flags; `tags` is a list."""
    if (text := _TEXTS.get(field)) is not None:
        return text(x)
    if (number := _NUMBERS.get(field)) is not None:
        return number(x)
    if (flag := _FLAGS.get(field)) is not None:
        return flag(x)
    if field == "tags":
        return tags(x)
    name, _, rest = field.partition(".")
    if name == "metadata":
        return peek.metadata(peek.peek(x)).get(rest)
    wanted = rest.lower().encode()
    return next((v.decode("latin-1") for n, v in x.headers if n == wanted), None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(found: Any, value: Any) -> bool:
    if isinstance(found, list):
        return value in found
    return bool(found == value) and isinstance(found, bool) == isinstance(value, bool)


def _among(found: Any, values: Any) -> bool:
    return any(_equal(found, value) for value in values)


def _ordered(op: str, found: Any, value: Any) -> bool:
    if isinstance(found, str):  # headers and metadata are text
        try:
            found = float(found)
        except ValueError:
            return False
    if not _is_number(found):
        return False
    if op == "gt":
        return bool(found > value)
    if op == "gte":
        return bool(found >= value)
    return bool(found < value) if op == "lt" else bool(found <= value)


_compiled = functools.lru_cache(maxsize=256)(re.compile)


def all_met(conditions: Sequence[Condition], x: Exchange) -> bool:
    return all(condition.met(x) for condition in conditions)
