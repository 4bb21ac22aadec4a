"""The one spelling of a body, native and twin: the same bytes for whatever is fed to them, and the right ones."""

import itertools
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.twin import canonical as twin

try:
    from turnout import _native as native
except ImportError:
    native = None  # type: ignore[assignment]

SKIP = ["stream", 'od"d']


def read(module: Any, body: bytes) -> Any:
    try:
        return module.canonical(body, SKIP)
    except ValueError:
        return "refused"


def agree(body: bytes) -> Any:
    want = read(twin, body)
    if native is not None:
        assert read(native, body) == want, body
    return want


@pytest.mark.parametrize(
    ("body", "want"),
    [
        (b' { "b" : [ 1.0 , {"y":null, "x":"\\u00e9\\n"} ] , "a":true }', '{"a":true,"b":[1.0,{"x":"é\n","y":null}]}'),
        (b'{"a":2,"a":1,"stream":{"x":[1]}}', '{"a":2,"a":1}'),
        (b'{"str\\u0065am":1,"od\\"d":2}', "{}"),
        (b'{"x":{"stream":1}}', '{"x":{"stream":1}}'),
        (b'{"a":"\\u0022\\\\\\/"}', '{"a":"\\"\\\\/"}'),
        (b'{"ab":1,"a":2,"":3,"\\u00e9":4}', '{"":3,"a":2,"ab":1,"é":4}'),
        (b'{"a":-0.0e+1,"b":1E2,"c":12345678901234567890123}', '{"a":-0.0e+1,"b":1E2,"c":12345678901234567890123}'),
        (b'{"a":[{},[],{"b":{}}]}', '{"a":[{},[],{"b":{}}]}'),
        (b"{}", "{}"),
        *((bad, None) for bad in (
            b"", b"[]", b"{", b"{}x", b'{"a":01}', b'{"a":1,}', b'{"a":"\\ud800"}', b'{"a":[1 2]}', b'{"stream":}', b'{"a":"\xff"}', b'{"stream":"\\udc00"}',
            b'{"a":NaN}', b'{"a":Infinity}', b'{"a":"\x01"}', b"\xef\xbb\xbf{}", b'{"a":tru}', b"{'a':1}", b'{"a":+1}', b'{"a":1.}', b'{"stream":NaN}',
        )),
    ],
)  # fmt: skip
def test_one_spelling(body: bytes, want: str | None) -> None:
    assert agree(body) == ("refused" if want is None else want.encode())


@pytest.mark.parametrize(("deep", "good"), [(127, True), (128, False), (100_000, False)])
@pytest.mark.parametrize("field", [b"a", b"stream"])
def test_the_depth_is_bounded(field: bytes, deep: int, good: bool) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"x":', b"}")):
        inner = b"1" if opening != b"[" else b""
        assert (agree(b'{"%b":%b}' % (field, opening * deep + inner + closing * deep)) != "refused") == good


@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
def test_what_is_left_out_may_stand_anywhere(blank: str) -> None:
    members = ['"b":[1]', '"stream":{"x":[",",{}]}', '"od\\"d":2', '"\\u0061":"\\n"', '"str\\u0065am" : 3']
    for n in range(len(members) + 1):
        for chosen in itertools.permutations(members, n):
            body = "{" + blank + (blank + "," + blank).join(chosen) + blank + "}"
            kept = [want for member, want in ((members[3], '"a":"\n"'), (members[0], '"b":[1]')) if member in chosen]
            assert agree(body.encode()) == ("{" + ",".join(kept) + "}").encode()


# What may lie across the end of a block of 64 bytes, in which the native one looks at strings.
ACROSS = [
    '""', '"\\""', '"\\\\"', '"\\\\\\"\\\\"', '"\\n\\/"', '"\\u00e9\\u0022"', '"\\ud83d\\ude00x"', '"é😀"', "[]", "{}", '{"b":"\\u0041","a":{"\\u0063":1,"b":2}}',
    '[ "" ,"\\\\", {"": [{ }]} ]', '{"z" :1,\n"y": 2 , "x":"\\\\"}', "-1.5e+3", "true", '"\\x"', '"\n"', '"\\ud83d"', "01", "[1,]", '{"a":1,}',
]  # fmt: skip


@pytest.mark.parametrize("part", ACROSS, ids=ascii)
def test_a_block_may_end_anywhere(part: str) -> None:
    for pad in range(130):
        for front in ("p" * pad, "\\\\é" * (pad // 4) + "p" * (pad % 4), "\\t" * (pad // 2) + "p" * (pad % 2)):
            inner, filled = agree(f'{{"a":{part}}}'.encode()), agree(f'{{"0":"{front}"}}'.encode())
            want = inner if inner == "refused" else filled[:-1] + b"," + inner[1:]
            assert agree(f'{{"a" : {part},"0":"{front}"}}'.encode()) == want
            assert agree(f'{{"0":"{front}","a":{part}}}'.encode()) == want


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), inner, max_size=4),
    max_leaves=20,
)
OBJECTS = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=6), VALUES, max_size=6)


def respelt(value: Any, chance: random.Random) -> str:
    """The same value in another spelling: keys in another order, white space, escapes."""

    def blank() -> str:
        return "".join(chance.choice(" \t\n\r") for _ in range(chance.randrange(3)))

    def text(s: str) -> str:
        return '"' + "".join(json.dumps(c, ensure_ascii=chance.random() < 0.5)[1:-1] if chance.random() < 0.8 else "".join(f"\\u{u:04x}" for u in units(c)) for c in s) + '"'

    def units(c: str) -> list[int]:
        raw = c.encode("utf-16-be")
        return [int.from_bytes(raw[i : i + 2], "big") for i in range(0, len(raw), 2)]

    if isinstance(value, str):
        return text(value)
    if isinstance(value, list):
        return "[" + ",".join(blank() + respelt(v, chance) + blank() for v in value) + "]"
    if isinstance(value, dict):
        members = list(value.items())
        chance.shuffle(members)
        return "{" + ",".join(blank() + text(k) + blank() + ":" + blank() + respelt(v, chance) + blank() for k, v in members) + "}"
    return json.dumps(value)


@given(OBJECTS, st.integers(0, 1 << 30))
def test_two_spellings_of_one_value_come_out_alike_and_mean_the_same(value: dict[str, Any], seed: int) -> None:
    chance = random.Random(seed)
    first, second = (agree(respelt(value, chance).encode()) for _ in range(2))
    assert first == second
    # What comes out is JSON but for control characters, and says the same.
    assert json.loads(first, strict=False) == {k: v for k, v in value.items() if k not in SKIP}


@given(OBJECTS, OBJECTS)
def test_two_values_come_out_differently(one: dict[str, Any], other: dict[str, Any]) -> None:
    for skipped in SKIP:
        one.pop(skipped, None)
        other.pop(skipped, None)
    same = agree(json.dumps(one).encode()) == agree(json.dumps(other).encode())
    assert same == (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))


@given(OBJECTS, st.data())
def test_noise_is_read_alike(value: dict[str, Any], data: st.DataObject) -> None:
    raw = bytearray(json.dumps(value).encode())
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    agree(bytes(raw))
