"""Why data does not decode: every problem at its own path, where msgspec's error stops at the first.

`msgspec.convert` decides what is valid; this file only runs after it has said no. It walks the types of the config
beside the data and asks msgspec again about every piece, so that no rule is written twice and every path is exact
(msgspec's own says `providers[...]` for an entry of a mapping).
"""

import difflib
import functools
import math
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from .problem import Findings, Path

MAX_DEPTH = 32
Hook = Callable[[type, Any], Any]

_WORDS = {"object": "mapping", "array": "list"}  # msgspec speaks JSON; most configs are YAML


def is_plain(value: Any, found: Findings, path: Path = ()) -> bool:
    """Whether `value` is made of text, finite numbers, booleans, nulls, lists and mappings, so that it can travel.

    What YAML and TOML can say beyond that is refused here by path: dates, nan, integers over 64 bits, lone surrogates.
    """
    wrong = ""
    if len(path) > MAX_DEPTH:
        wrong = f"nested more than {MAX_DEPTH} deep"
    elif value is None or isinstance(value, bool):
        return True
    elif isinstance(value, str):
        wrong = "" if _encodes(value) else "a lone surrogate is not a character"
    elif isinstance(value, int):
        wrong = "" if -(2**63) <= value < 2**64 else "a whole number beyond 64 bits"
    elif isinstance(value, float):
        wrong = "" if math.isfinite(value) else "expected a finite number"
    elif isinstance(value, list):
        # lists inside `all`, here and below: it must not stop at the first problem
        return all([is_plain(item, found, (*path, i)) for i, item in enumerate(value)])
    elif isinstance(value, dict):
        if all(isinstance(key, str) and _encodes(key) for key in value):
            return all([is_plain(item, found, (*path, key)) for key, item in value.items()])
        wrong = "every key must be text"
    else:
        wrong = (
            "dates and times are not used here: put it in quotes"
            if hasattr(value, "isoformat")
            else "not a plain value"
        )
    if wrong:
        found.error(path, wrong)
    return not wrong


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def explain(value: Any, type_: Any, hook: Hook, found: Findings, path: Path = ()) -> None:
    """Finds out which pieces of `value` keep it from being a `type_`. Nothing found means it decodes."""
    try:
        msgspec.convert(value, type_, dec_hook=hook)
        return
    except msgspec.ValidationError as wrong:
        said = str(wrong)
    before = len(found.problems)
    options, literal = _options(type_)
    structs = [option for option in options if isinstance(option, type) and issubclass(option, msgspec.Struct)]
    if isinstance(value, dict) and structs:
        _explain_struct(value, structs, hook, found, path)
    elif isinstance(value, dict) and (inner := _inside(options, dict)):
        for key, item in value.items():
            explain(item, inner[1], hook, found, (*path, key))
    elif isinstance(value, list) and (inner := _inside(options, list)):
        for i, item in enumerate(value):
            explain(item, inner[0], hook, found, (*path, i))
    elif literal:
        found.error(path, f"expected one of {', '.join(map(str, literal))}")
        return
    if len(found.problems) == before:
        found.error(path, _say(said))


def _explain_struct(value: dict[str, Any], structs: list[Any], hook: Hook, found: Findings, path: Path) -> None:
    struct = structs[0]
    tag_field = struct.__struct_config__.tag_field
    if tag_field is not None:
        tags = {s.__struct_config__.tag: s for s in structs}
        tag = value.get(tag_field)
        if not isinstance(tag, str) or tag not in tags:
            if tag is None and tag_field not in value and len(structs) == 1:
                pass  # a lone kind may be left out
            else:
                missing = "required, but missing: " if tag_field not in value else ""
                found.error((*path, tag_field), f"{missing}expected one of {', '.join(map(str, tags))}")
                return
        else:
            struct = tags[tag]
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    hints = _hints(struct)
    for key, item in value.items():
        if key in fields:
            explain(item, hints[fields[key].name], hook, found, (*path, key))
        elif key != tag_field:
            found.error((*path, key), _unknown(key, list(fields)))
    for name, field in fields.items():
        if field.required and name not in value:
            found.error((*path, name), "required, but missing")


@functools.cache
def _hints(struct: type) -> dict[str, Any]:
    return get_type_hints(struct, include_extras=True)


def _unknown(key: str, fields: list[str]) -> str:
    near = difflib.get_close_matches(key.lower(), fields, n=1, cutoff=0.6)
    advice = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(fields)}"
    return f"unknown field; {advice}"


def _options(type_: Any) -> tuple[list[Any], tuple[Any, ...]]:
    """The members of a type, without `Annotated` and `Union` around them, and the words of its `Literal`."""
    origin = get_origin(type_)
    if origin is Annotated:
        return _options(get_args(type_)[0])
    if origin is Literal:
        return [], get_args(type_)
    if origin is Union or origin is types.UnionType:
        members: list[Any] = []
        words: tuple[Any, ...] = ()
        for member in get_args(type_):
            inner, literal = _options(member)
            members += inner
            words += literal
        return members, words
    return [type_], ()


def _inside(options: list[Any], kind: type) -> tuple[Any, ...]:
    """The types inside the `list` or `dict` among the members, if one is there."""
    return next((get_args(option) for option in options if get_origin(option) is kind), ())


def _say(said: str) -> str:
    """msgspec's message without its path, in a person's words and without the value that it may quote."""
    said = said.rpartition(" - at `")[0] or said
    if said.startswith(("Invalid enum value", "Invalid value")):
        return "not one of the allowed values"
    if said.startswith("Expected"):
        pieces = said.split("`")
        pieces[1::2] = [" or ".join(_WORDS.get(word, word) for word in piece.split(" | ")) for piece in pieces[1::2]]
        said = "".join(pieces)
    return said[:1].lower() + said[1:]
