"""Config text -> plain data, and where each piece of it stands. YAML, TOML and JSON; pure.

The one file of the room that needs PyYAML: `load.py` imports it only when there is a text to read, so that a worker,
which gets its config over a pipe, never loads a YAML parser.

YAML is read by the rules of YAML 1.2's core schema, because those of 1.1 surprise: `requests: off` stays the word
"off", `12:30` and `2025-01-01` stay text, `007` is not octal. Only `true` and `false` are booleans. Duplicate keys,
tags, more than one document and (by counting what aliases expand to) alias bombs are refused.
"""

import json
import re
import tomllib
from typing import Any

import msgspec
import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from .problem import ConfigError, Path, Problem, shorten, show_path

MAX_BYTES = 1 << 20  # a thousand routes take about 300 kB; PyYAML needs about 10 s for a MiB, which is limit enough
MAX_DEPTH = 32  # the config itself is at most 8 deep; the rest is for what `set` writes into a body
MAX_NODES = 100_000  # after aliases are expanded

Marks = dict[Path, tuple[int, int]]
_STR, _NULL, _BOOL, _INT, _FLOAT, _MERGE = (
    f"tag:yaml.org,2002:{word}" for word in ("str", "null", "bool", "int", "float", "merge")
)


class Raw(msgspec.Struct, frozen=True):
    """What a text says before anything is known of its meaning. `marks`: path -> line and column, both from 1."""

    name: str
    data: dict[str, Any]
    marks: Marks = {}

    def locate(self, path: Path) -> tuple[int | None, int | None]:
        """Where `path` stands, or else the nearest thing around it that is known to stand somewhere."""
        for length in range(len(path), 0, -1):
            if (mark := self.marks.get(path[:length])) is not None:
                return mark
        return None, None


def parse(text: str, name: str) -> Raw:
    """Reads `text` by the ending of `name`: .toml, .json, all others YAML. Raises `ConfigError`."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _refused(name, f"larger than {MAX_BYTES >> 20} MiB")
    text = text.removeprefix("\ufeff")
    lower = name.lower()
    if lower.endswith(".toml"):
        return _toml(text, name)
    if lower.endswith(".json"):
        return _json(text, name)
    data, marks = _Tree(name).read(text)
    return Raw(name, data, marks)


def _refused(
    name: str, message: str, line: int | None = None, column: int | None = None, path: Path = ()
) -> ConfigError:
    return ConfigError([Problem(show_path(path), message, line, column)], name)


# -- YAML ---------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types of its own
    """PyYAML's safe loader with the core schema's rules instead of 1.1's, and a limit to how deep things nest.

    Only its composer is used (text -> nodes); what nodes mean is decided in `_Tree`, so no constructor ever runs.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self._depth += 1  # the composer recurses: 10,000 opening brackets would exhaust the stack
        if self._depth > MAX_DEPTH:
            peek: Any = self.peek_event
            raise yaml.MarkedYAMLError(None, None, f"nested more than {MAX_DEPTH} deep", peek().start_mark)
        try:
            node: Node | None = super().compose_node(parent, index)
            return node
        finally:
            self._depth -= 1


for _tag, _pattern, _first in (
    (_NULL, r"(?:~|null|Null|NULL|)\Z", ["~", "n", "N", ""]),
    (_BOOL, r"(?:true|True|TRUE|false|False|FALSE)\Z", list("tTfF")),
    # no leading zeros: 007 is somebody's id. At most 19 digits: Python refuses to read very long ones at all.
    (_INT, r"[-+]?(?:0|[1-9][0-9]{0,18})\Z", list("-+0123456789")),
    (
        _FLOAT,
        r"[-+]?(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+|(?:0|[1-9][0-9]*)(?=[eE]))(?:[eE][-+]?[0-9]+)?\Z",
        list("-+.0123456789"),
    ),
    (_MERGE, r"<<\Z", ["<"]),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)


class _Tree:
    """Nodes -> data and marks. Counts what it builds, so that aliases cannot multiply without end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.marks: Marks = {}
        self.left = MAX_NODES

    def read(self, text: str) -> tuple[dict[str, Any], Marks]:
        root = self._compose(text)
        if root is None or (isinstance(root, ScalarNode) and root.tag == _NULL):
            raise _refused(self.name, "the file is empty: it needs at least `providers` and `routes`")
        if not isinstance(root, MappingNode):
            raise _refused(self.name, "expected a mapping with `providers` and `routes` at the top", 1, 1)
        data: dict[str, Any] = self._build(root, ())
        return data, self.marks

    def _compose(self, text: str) -> Node | None:
        try:
            loader = _Loader(text)
            try:
                return loader.get_single_node()
            finally:
                loader.dispose()
        except yaml.reader.ReaderError as wrong:  # knows an offset only
            before = text[: wrong.position]
            column = wrong.position - before.rfind("\n")
            raise _refused(self.name, "a character that YAML does not allow", before.count("\n") + 1, column) from None
        except yaml.MarkedYAMLError as wrong:
            mark = wrong.problem_mark or wrong.context_mark
            said = ", ".join(_quiet(part) for part in (wrong.context, wrong.problem) if part) or "not valid YAML"
            raise _refused(self.name, said, *((mark.line + 1, mark.column + 1) if mark else ())) from None
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError):  # "\UFFFFFFFF" is a ValueError in PyYAML
            raise _refused(self.name, "not valid YAML") from None

    def _build(self, node: Node, path: Path) -> Any:
        self.left -= 1
        if self.left < 0:
            raise self._at(node, path, f"more than {MAX_NODES:,} values once aliases are expanded")
        if len(path) > MAX_DEPTH:  # an alias to something around itself ends here
            raise self._at(node, path, f"nested more than {MAX_DEPTH} deep")
        if isinstance(node, MappingNode) and node.tag == "tag:yaml.org,2002:map":
            made: dict[str, Any] = {}
            for name, (key, value) in self._pairs(node, path, 0).items():
                here = (*path, name)
                self.marks[here] = (key.start_mark.line + 1, key.start_mark.column + 1)
                made[name] = self._build(value, here)
            return made
        if isinstance(node, SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            items: list[Any] = []
            for i, item in enumerate(node.value):
                self.marks[*path, i] = (item.start_mark.line + 1, item.start_mark.column + 1)
                items.append(self._build(item, (*path, i)))
            return items
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        raise self._at(node, path, "tags are not supported")

    def _pairs(self, node: MappingNode, path: Path, depth: int) -> dict[str, tuple[Node, Node]]:
        """The keys of a mapping; `<<` brings in those of another (or of several, the first one winning), below its own."""
        if depth > MAX_DEPTH:
            raise self._at(node, path, "a mapping is merged into itself")
        own: dict[str, tuple[Node, Node]] = {}
        merged: dict[str, tuple[Node, Node]] = {}
        for key, value in node.value:
            self.left -= 1
            if self.left < 0:
                raise self._at(node, path, f"more than {MAX_NODES:,} values once aliases are expanded")
            if not isinstance(key, ScalarNode):
                raise self._at(key, path, "a key must be a plain word")
            if key.tag == _MERGE:
                for source in value.value if isinstance(value, SequenceNode) else [value]:
                    if not isinstance(source, MappingNode):
                        raise self._at(value, path, "`<<` takes a mapping or a list of mappings")
                    for name, pair in self._pairs(source, path, depth + 1).items():
                        merged.setdefault(name, pair)
            elif key.value in own:
                before = own[key.value][0].start_mark.line + 1
                raise self._at(key, (*path, key.value), f"this key stands here twice: first on line {before}")
            else:
                own[key.value] = key, value
        return {**{name: pair for name, pair in merged.items() if name not in own}, **own}

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        text: str = node.value
        try:
            if node.tag == _STR:
                return text
            if node.tag == _NULL:
                return None
            if node.tag == _BOOL:
                return {"true": True, "false": False}[text.lower()]
            if node.tag == _INT:
                return int(text)
            if node.tag == _FLOAT:
                return float(text)
        except (ValueError, KeyError):  # an explicit tag on a text that does not fit it
            pass
        raise self._at(node, path, "tags are not supported")

    def _at(self, node: Node, path: Path, message: str) -> ConfigError:
        return _refused(self.name, message, node.start_mark.line + 1, node.start_mark.column + 1, path)


def _quiet(said: str) -> str:
    """PyYAML quotes what it stumbled over, which may be a piece of a secret: only its own <token names> stay."""
    return re.sub(r"'(?!<[a-z ]+>')[^']{2,}'|\"[^\"]{2,}\"", "...", said)


# -- JSON and TOML ------------------------------------------------------------------------------------------------


def _json(text: str, name: str) -> Raw:
    """Data from Python's JSON parser, which is strict; positions from YAML's, of which JSON is nearly a subset."""
    twice: list[str] = []

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            twice.append(next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i])))
        return entries

    try:
        data = json.loads(text, parse_constant=_no_constant, object_pairs_hook=made)
    except json.JSONDecodeError as wrong:
        raise _refused(name, f"not valid JSON: {wrong.msg}", wrong.lineno, wrong.colno) from None
    except (ValueError, RecursionError):
        raise _refused(name, "not valid JSON: a number out of range, or nested too deep") from None
    if not isinstance(data, dict):
        raise _refused(name, "expected an object with `providers` and `routes` at the top", 1, 1)
    try:
        # YAML has no tabs between tokens; inside a JSON string they are not allowed, so columns stay as they are
        _, marks = _Tree(name).read(text.replace("\t", " "))
    except ConfigError:
        if twice:  # the YAML reader found it too, and knows the line
            raise
        marks = {}
    if twice:
        raise _refused(name, f"the key `{shorten(twice[0])}` stands in one object twice")
    return Raw(name, data, marks)


def _no_constant(word: str) -> float:
    raise ValueError(word)


_TABLE = re.compile(r"\s*(\[\[?)([^\[\]]+)\]\]?\s*(?:#.*)?\Z")
_ENTRY = re.compile(r"\s*((?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'))*)\s*=")
_WORD = re.compile(r"[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'")


def _toml(text: str, name: str) -> Raw:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as wrong:
        said = str(wrong)
        at = re.search(r" \(at line (\d+), column (\d+)\)\Z", said)
        message = said[: at.start()] if at else said.removesuffix(" (at end of document)")
        line, column = (int(at[1]), int(at[2])) if at else (None, None)
        raise _refused(name, f"not valid TOML: {shorten(message)}", line, column) from None
    except (ValueError, RecursionError):  # Python's own limits: digits of a number, depth
        raise _refused(name, "not valid TOML: a number out of range, or nested too deep") from None
    return Raw(name, data, _toml_marks(text))


def _toml_marks(text: str) -> Marks:
    """Where tables and keys stand, by looking at line beginnings. A best effort: inline tables get their line only."""
    marks: Marks = {}
    counts: dict[Path, int] = {}
    table: Path = ()

    def resolved(words: list[str]) -> Path:
        """`[[routes.targets]]` speaks of the newest route: puts the index of the last entry behind each array name."""
        path: Path = ()
        for i, word in enumerate(words):
            path = (*path, word)
            if i < len(words) - 1 and path in counts:
                path = (*path, counts[path])
        return path

    for number, line in enumerate(text.splitlines(), 1):
        column = len(line) - len(line.lstrip()) + 1
        if head := _TABLE.match(line):
            path = resolved([word.strip("\"'") for word in _WORD.findall(head[2])])
            marks.setdefault(path, (number, column))
            if head[1] == "[[":
                counts[path] = counts.get(path, -1) + 1
                path = (*path, counts[path])
                marks[path] = (number, column)
            elif path in counts:
                path = (*path, counts[path])
            table = path
        elif entry := _ENTRY.match(line):
            path = table
            for word in _WORD.findall(entry[1]):
                path = (*path, word.strip("\"'"))
                marks.setdefault(path, (number, column))
    return marks
