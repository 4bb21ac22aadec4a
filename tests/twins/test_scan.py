"""The field scanner, native and twin: one set of tests for both, and the same answer to whatever is fed to them."""

import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest

from turnout.twin.scan import FieldScanner as Twin

try:
    from turnout._native import FieldScanner as Native
except ImportError:
    Native = None  # type: ignore[assignment,misc]

NAMES = ["model", "stream", "messages", "user"]


@pytest.fixture(params=["twin", "native"])
def scanner(request: pytest.FixtureRequest) -> Any:
    if request.param == "twin":
        return Twin
    if Native is None:
        pytest.skip("the extension is not built")
    return Native


def values(scanner: Any, body: bytes, names: list[str] = NAMES) -> dict[str, bytes]:
    """What stands under each name that is there."""
    spans = scanner(names).scan(body)
    assert len(spans) == 2 * len(names) + 2
    assert all(type(n) is int for n in spans)
    return {name: body[spans[2 * i] : spans[2 * i + 1]] for i, name in enumerate(names) if spans[2 * i] >= 0}


def flaw(scanner: Any, body: bytes) -> tuple[str, int, str]:
    with pytest.raises(ValueError) as caught:
        scanner(NAMES).scan(body)
    kind, at, what = caught.value.args
    return kind, at, what


@pytest.mark.parametrize(
    "body, found",
    [
        (b"{}", {}),
        (b" \t\r\n{ } \n", {}),
        (b'{"model":"a"}', {"model": b'"a"'}),
        (b'{"model" :\n"a" , "stream": true }', {"model": b'"a"', "stream": b"true"}),
        (b'{"x":{"model":"inner","messages":[]},"model":1.50e-3}', {"model": b"1.50e-3"}),
        (b'{"messages":[{"model":"x"},[]," ] } ,"],"stream":null}', {"messages": b'[{"model":"x"},[]," ] } ,"]', "stream": b"null"}),
        (b'{"mod\\u0065l":"a\\"b\\\\"}', {"model": b'"a\\"b\\\\"'}),
        (b'{"":1,"Model":2,"model ":3,"mode":4,"models":5}', {}),
        (b'{"x":1,"x":2,"x":{"model":1},"model":"last","x":"longer than before"}', {"model": b'"last"'}),
        (b'{"model":"\xc3\xa9\\ud83d\\ude00"}', {"model": b'"\xc3\xa9\\ud83d\\ude00"'}),
        (b'{"model":-0,"stream":0.0,"messages":[[],{},[{}]]}', {"model": b"-0", "stream": b"0.0", "messages": b"[[],{},[{}]]"}),
    ],
)
def test_finds_the_values_of_the_named_fields(scanner: Any, body: bytes, found: dict[str, bytes]) -> None:
    assert values(scanner, body) == found


@pytest.mark.parametrize("body, inside, empty", [(b"{}", 1, 1), (b" { }", 2, 1), (b'{"a":1}', 1, 0), (b'\n\n{ "a":1}', 3, 0)])
def test_says_where_a_new_field_can_be_put(scanner: Any, body: bytes, inside: int, empty: int) -> None:
    assert scanner(NAMES).scan(body)[-2:] == (inside, empty)


@pytest.mark.parametrize(
    "body, name",
    [
        (b'{"model":1,"model":1}', "model"),
        (b'{"model":1,"x":0,"mod\\u0065l":2}', "model"),
        (b'{"\\u006dodel":1,"model":2}', "model"),
        (b'{"messages":[],"stream":1,"messages":[]}', "messages"),
        (b'{"model":"' + b"x" * 200 + b'","model":"y"}', "model"),
    ],
)
def test_a_name_that_stands_twice_is_refused_however_spelt(scanner: Any, body: bytes, name: str) -> None:
    kind, at, what = flaw(scanner, body)
    assert (kind, what) == ("duplicate", name)
    assert body[at : at + 1] == b'"'
    assert at > body.index(b":")


def test_names_beyond_ascii_are_told_apart_too(scanner: Any) -> None:
    names = ["caf\u00e9", "caf?", "\U0001f600"]
    assert values(scanner, b'{"caf\\u00e9":1,"\\ud83d\\ude00":2}', names) == {"caf\u00e9": b"1", "\U0001f600": b"2"}


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"[]", b"null", b'"{}"', b"{", b"}", b"{}{}", b"{}x", b"{},", b'{"a"}', b'{"a":}', b'{"a":1,}', b'{,"a":1}', b"{a:1}", b"{'a':1}",
        b'{"a":01}', b'{"a":+1}', b'{"a":.5}', b'{"a":1.}', b'{"a":1e}', b'{"a":0x1}', b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-}', b'{"a":tru}',
        b'{"a":True}', b'{"a":nullx}', b'{"a":"\x01"}', b'{"a":"\n"}', b'{"a":"\\x"}', b'{"a":"\\u12"}', b'{"a":"\\u12G4"}', b'{"a":"\\ud800"}',
        b'{"a":"\\udc00"}', b'{"a":"\\ud800\\u0041"}', b'{"a":"\\ud83d\\ud83d"}', b'{"\\ud800":1}', b'{"a":[1 2]}', b'{"a":[1,]}', b'{"a":[}', b'{"a":{]}',
        b'{"a":[1}', b'{"a":1 "b":2}', b'{"a"::1}', b'{"a":"x}', b'{"a":"\xff"}', b'{"\xc3":1}', b'\xef\xbb\xbf{}', b'{"a":1}\0', b'{"a":/**/1}', b'{"a":1}//',
    ],
)  # fmt: skip
def test_what_is_not_one_json_object_is_refused(scanner: Any, body: bytes) -> None:
    kind, at, what = flaw(scanner, body)
    assert kind == "json"
    assert 0 <= at <= len(body)
    assert what
    assert what.isascii()


def test_every_truncation_is_refused(scanner: Any) -> None:
    body = b'{"model":"a\xc3\xa9\xf0\x9f\x98\x80\\n\\ud83d\\ude00","stream":true,"m":[{"b":-1.5e+3,"c":[null,false,{}]}]}'
    values(scanner, body)
    for n in range(len(body)):
        assert flaw(scanner, body[:n])[0] == "json"


@pytest.mark.parametrize("opening, closing", [(b"[", b"]"), (b'{"a":', b"1}")])
def test_nesting_is_bounded_at_128(scanner: Any, opening: bytes, closing: bytes) -> None:
    closing = closing.replace(b"1", b"")
    deep = lambda n: b'{"model":1,"x":' + opening * n + (b"1" if b"{" in opening else b"") + closing * n + b"}"
    assert values(scanner, deep(127)) == {"model": b"1"}
    assert flaw(scanner, deep(128))[0] == "json"
    assert flaw(scanner, deep(100_000))[0] == "json"
    assert flaw(scanner, opening * 100_000)[0] == "json"


def test_wide_is_not_deep(scanner: Any) -> None:
    assert values(scanner, b'{"x":[' + b"[],{}," * 5000 + b'1],"model":"m"}') == {"model": b'"m"'}


def test_brackets_in_strings_are_not_nesting(scanner: Any) -> None:
    assert values(scanner, b'{"x":"' + b"[{" * 5000 + b'","model":"m"}') == {"model": b'"m"'}


def test_many_equal_unknown_fields_are_walked_over(scanner: Any) -> None:
    body = b"{" + b'"x":{"model":0},' * 3000 + b'"model":"m"}'
    assert values(scanner, body) == {"model": b'"m"'}
    assert flaw(scanner, body[:-1] + b',"model":1}')[0] == "duplicate"


def test_takes_32_names_and_no_more(scanner: Any) -> None:
    names = [f"n{i}" for i in range(32)]
    assert values(scanner, json.dumps(dict.fromkeys(names, 1)).encode(), names) == dict.fromkeys(names, b"1")
    with pytest.raises(ValueError, match="at most 32 names"):
        scanner([*names, "n32"])


def test_agrees_with_the_json_test_suite(scanner: Any, shared: Path) -> None:
    for line in (shared / "data/json/jsontestsuite.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["expect"] == "either":
            continue
        text = base64.b64decode(row["b64"])
        body = b'{"model":"m","x":' + text + b',"y":1}'
        if row["expect"] == "accept":
            assert values(scanner, body) == {"model": b'"m"'}, row["name"]
        else:
            assert flaw(scanner, body)[0] == "json", row["name"]


# ---- native against twin

SEEDS = [
    b'{"model":"gpt-4o","stream":true,"messages":[{"role":"user","content":"a \\"b\\" \\u00e9 \xc3\xa9 \\ud83d\\ude00"}],"temperature":1.50e-3}',
    b' { "x" : [ 1 , -2.5E+3 , null , { "model" : { } } ] ,\r\n\t"mod\\u0065l" : "m" , "x" : 12345678901234567890 , "" : "" } ',
    b'{"caf\xc3\xa9":1,"caf\\u00e9x":2,"tools":[{"type":"function","function":{"parameters":{"a":[[],[[]],{}]}}}],"stream":false}',
    b'{"a":{"b":{"c":[1,2,{"d":"e\\\\"}]}},"model":"x","messages":[],"n":0}',
]
PIECES = [
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"0", b"-", b".", b"e", b"\\u", b"\\ud800", b"\\udc00", b"\xc3", b"\xa9", b"\xff", b"\0",
    b"true", b"null", b'"model":1,', b'"mod\\u0065l":2,', b'"stream":{},', b'"x":[],', b'"x":[]', b"1", b'""', b"{}", b"[]", b"\\\"", b"\t", b"[" * 130,
]  # fmt: skip

FIELDS = [b'"model":1,', b'"mod\\u0065l":2,', b'"stream":{},', b'"x":[],', b'"messages" : [] ,', b'"user":0,']


def outcome(scanner: Any, body: bytes) -> tuple[Any, ...]:
    """What is found, or the kind of flaw and what it names. Offsets and words for malformed text are each one's own."""
    try:
        return tuple(scanner(NAMES).look(body, 0b101))
    except ValueError as exc:
        kind, at, what = exc.args
        assert 0 <= at <= len(body)
        return (kind, at, what) if kind == "duplicate" else (kind,)


def mutated(rng: random.Random) -> bytes:
    body = bytearray(rng.choice(SEEDS))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        at = rng.randrange(len(body) + 1)
        match rng.randrange(8):
            case 0:
                body[at : at + rng.choice((1, 1, 2, 8))] = b""
            case 1:
                body[at:at] = rng.choice(PIECES)
            case 2:
                body[at : at + 1] = rng.choice(PIECES)
            case 3:
                body[at:at] = body[rng.randrange(len(body) + 1) :][: rng.randrange(30)]
            case 4:
                body[at : at + 1] = bytes((rng.randrange(256),))
            case 5:
                del body[at:]
            case _:  # another field in front of all or of another one
                after = rng.choice([i for i, c in enumerate(body) if c in b"{,"] or [0]) + 1
                body[after:after] = rng.choice(FIELDS)
    return bytes(body)


@pytest.mark.skipif(Native is None, reason="the extension is not built")
def test_native_and_twin_say_the_same_of_20_000_mutations() -> None:
    rng = random.Random(20_260_701)
    seen: dict[str, int] = {}
    for _ in range(20_000):
        body = mutated(rng)
        native = outcome(Native, body)
        assert native == outcome(Twin, body), body
        kind = native[0] if isinstance(native[0], str) else "good"
        seen[kind] = seen.get(kind, 0) + 1
    print(seen)
    assert min(seen[kind] for kind in ("good", "json", "duplicate")) > 300


# What may lie across the end of a block of 64 bytes, in which the native scanner looks at strings: right, and changed to wrong.
ACROSS = [
    b'"', b'""', b'"a"', b'"\\""', b'"\\\\"', b'"\\\\\\"\\\\"', b'"a\\\\\\"', b'"\\n\\/"', b'"\\x"', b'"\\u00e9x"', b'"\\ud83d\\ude00"', b'"\\ude00"', b'"\\ud83d"',
    b'"\\ud83d\\\\ude00"', b'"\xc3\xa9"', b'"\xf0\x9f\x98\x80a"', b'"\xf0\x9f\x98"', b'"\x80"', b'"\n"', b'"\x00"', b"[]", b"{}", b'{"a":{"b":"c"}}', b'["",["\\\\",{"":[{}]}]]',
    b'{"a":"b",}', b'["a" "b"]', b"-1.5e+3", b"01", b"tru", b"true", b' \n\t  "a" \n',
]  # fmt: skip


@pytest.mark.skipif(Native is None, reason="the extension is not built")
@pytest.mark.parametrize("part", ACROSS, ids=repr)
def test_native_and_twin_say_the_same_wherever_a_block_ends(part: bytes) -> None:
    kinds = set()
    for pad in range(130):
        for front in (b'{"p":"' + b"p" * pad + b'","model":', b" " * pad + b'{"model":', b'{"' + b"\xc3\xa9\\\\" * (pad // 4) + b"k" * (pad % 4) + b'":[],"model":'):
            for back in (b"}", b',"stream":["",1]}', b',"mod\\u0065l":1}'):
                body = front + part + back
                native = outcome(Native, body)
                assert native == outcome(Twin, body), body
                kinds.add(native[0] if isinstance(native[0], str) else "good")
    assert kinds in ({"good", "duplicate"}, {"json"})


def test_accepts_exactly_what_a_full_parser_accepts(scanner: Any) -> None:
    rng = random.Random(7)
    checked = 0
    for _ in range(4000):
        body = mutated(rng)
        if b"[" * 100 in body or b"\\ud" in body:
            continue  # the library knows no bound of 128 and lets lone surrogates through
        try:
            whole = json.loads(body.decode(), parse_constant=_no_number)
        except (ValueError, RecursionError):
            whole = None
        kind = outcome(scanner, body)
        assert (kind[0] == "json") == (not isinstance(whole, dict)), body
        if isinstance(whole, dict) and kind[0] != "duplicate":
            found = {name: json.loads(text) for name, text in values(scanner, body).items()}
            assert found == {name: whole[name] for name in NAMES if name in whole}, body
            checked += 1
    assert checked > 300


def _no_number(word: str) -> None:
    raise ValueError(word)


@pytest.mark.parametrize(
    "body, found",
    [
        (b'{"model":"a","stream":true,"messages":[]}', ("a", True, True)),
        (b'{"model":"a\xc3\xa9","stream":false,"messages":{}}', ("a\u00e9", False, False)),
        (b'{"model":"\\u0061","stream":null}', (None, False, False)),
        (b'{"model":"","stream":1,"messages":[1]}', (None, None, True)),
        (b'{"model":["a"],"messages":"["}', (None, False, False)),
        (b"{}", (None, False, False)),
    ],
)
def test_looks_at_what_most_bodies_say(scanner: Any, body: bytes, found: tuple[Any, ...]) -> None:
    one = scanner(["model", "stream", "messages"])
    assert one.look(body, 0b100) == (one.scan(body), *found)
    assert one.look(body, 0)[3] is True
    assert one.look(body, 0b1100)[3] is False  # there is no fourth name


def test_the_same_strings_come_back_whatever_was_asked_in_between(scanner: Any) -> None:
    one = scanner(["model"])
    for n in (*range(600), 3, 599):
        assert one.look(b'{"model":"%d"}' % n, 0)[1] == str(n)
    assert one.look(b'{"model":"%b"}' % (b"x" * 5000), 0)[1] == "x" * 5000
