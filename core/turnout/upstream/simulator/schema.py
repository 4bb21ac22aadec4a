"""A value that satisfies a JSON schema, for tool arguments and structured output. Pure.

It covers what people put into tool schemas: types, enum, const, properties, items, anyOf,
oneOf, allOf, local $ref, bounds. A schema beyond that gives a value of the right type.
"""

from __future__ import annotations

import random
from typing import Any

# A schema may refer to itself; this deep, optional parts are left out and the value ends.
_DEEPEST = 12

_STRINGS: dict[str, str] = {
    "date": "1925-09-27",
    "date-time": "1925-09-27T10:30:00Z",
    "time": "10:30:00Z",
    "email": "signal.box@example.com",
    "uri": "https://example.com/junction",
    "uuid": "3f2b8c1e-5d47-4a90-9b1f-6c2d7e8a9b10",
}
_WORDS = ("junction", "express", "viaduct", "signal", "harbour", "summit", "siding", "tunnel")


def sample(schema: Any, dice: random.Random) -> Any:
    """A JSON value for `schema` (anything that is not an object counts as "no limits")."""
    return _sample(schema, schema, dice, 0)


def _sample(schema: Any, root: Any, dice: random.Random, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return None
    schema = _resolve(schema, root)
    if "const" in schema:
        return schema["const"]
    if enum := schema.get("enum"):
        return enum[dice.randrange(len(enum))]
    for branches in ("anyOf", "oneOf"):
        if options := schema.get(branches):
            # Close to the limit take the last one: by custom that is `null`.
            return _sample(options[-1 if depth > _DEEPEST // 2 else 0], root, dice, depth + 1)
    if parts := schema.get("allOf"):
        merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
        for part in parts:
            merged = _merge(merged, _resolve(part, root))
        return _sample(merged, root, dice, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        return _object(schema, root, dice, depth)
    if kind == "array":
        size = max(int(schema.get("minItems", 0)), 0 if depth > _DEEPEST // 2 else 1)
        return [_sample(schema.get("items", {}), root, dice, depth + 1) for _ in range(size)]
    if kind in ("integer", "number"):
        return _number(schema, kind, dice)
    if kind == "boolean":
        return dice.random() < 0.5
    return None if kind == "null" else _string(schema, dice)


def _object(schema: dict[str, Any], root: Any, dice: random.Random, depth: int) -> dict[str, Any]:
    properties: dict[str, Any] = schema.get("properties") or {}
    required = schema.get("required") or []
    shallow = depth <= _DEEPEST // 2
    return {
        name: _sample(part, root, dice, depth + 1) for name, part in properties.items() if shallow or name in required
    }


def _number(schema: dict[str, Any], kind: str, dice: random.Random) -> int | float:
    low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
    high = schema.get("maximum", schema.get("exclusiveMaximum", low + 100))
    if kind == "integer":
        first = int(low) + ("exclusiveMinimum" in schema)
        last = int(high) - ("exclusiveMaximum" in schema)
        return dice.randint(first, max(first, last))
    return round(float(low) + float(high - low) * (0.25 + dice.random() / 2), 3)


def _string(schema: dict[str, Any], dice: random.Random) -> str:
    text = _STRINGS.get(schema.get("format", ""), _WORDS[dice.randrange(len(_WORDS))])
    while len(text) < schema.get("minLength", 0):
        text += " " + _WORDS[dice.randrange(len(_WORDS))]
    return text[: schema.get("maxLength", len(text))]


def _resolve(schema: dict[str, Any], root: Any) -> dict[str, Any]:
    """Follow `$ref` within the document; a reference that leads nowhere becomes `{}`."""
    for _ in range(_DEEPEST):
        ref = schema.get("$ref")
        if not isinstance(ref, str):
            return schema
        found: Any = root
        for step in ref.lstrip("#/").split("/") if ref != "#" else []:
            found = found.get(step) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            return {}
        schema = found
    return {}


def _merge(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    merged = {**left, **right}
    merged["properties"] = {**left.get("properties", {}), **right.get("properties", {})}
    merged["required"] = [*left.get("required", []), *right.get("required", [])]
    if not merged["properties"]:
        del merged["properties"]
    return merged
