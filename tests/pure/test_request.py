"""Reading request bodies, and how they go on: the same bytes with a few values exchanged."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.errors import Fault
from turnout.wire.request import NAMES, RequestReader

Sets = tuple[tuple[bytes, bytes], ...]
READER = RequestReader(("temperature", "user", "caf"))
PLAIN = RequestReader()
BODY = b'{"model":"a","messages":[]}'


def onward(body: bytes, model: bytes | None = None, sets: Sets = (), inject: bool = False) -> bytes:
    pieces, length = READER.onward(body, READER.scan(body), model, sets, inject)
    whole = b"".join(pieces)
    assert len(whole) == length
    return whole


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = st.dictionaries(
    st.sampled_from(("temperature", "user", "messages", "input", "x", "", "Model", "\u00e9", "stream")) | st.text(max_size=6), values, max_size=7
)
models = st.none() | st.text(min_size=1, max_size=12)
sets = st.dictionaries(st.sampled_from(("temperature", "user", "caf")), values)
spelling = st.sampled_from(((",", ":"), (", ", ": "), (" ,\n\t", "\r\n:  ")))


@given(fields, models, sets, st.booleans(), st.sampled_from((None, {}, {"include_usage": False, "x": 1.5}, "absent")), spelling, st.booleans(), st.randoms())
@settings(max_examples=200, deadline=None)
def test_what_goes_on_differs_in_the_exchanged_fields_only(
    data: dict[str, Any], model: str | None, sets: dict[str, Any], inject: bool, options: Any, spelling: tuple[str, str], ascii_: bool, rng: Any
) -> None:
    data = {name: value for name, value in data.items() if name != "stream_options"} | {"model": "asked"}
    if options != "absent":
        data["stream_options"] = options
    rows = list(data.items())
    rng.shuffle(rows)
    body = json.dumps(dict(rows), separators=spelling, ensure_ascii=ascii_).encode()
    put = tuple((name.encode(), json.dumps(value).encode()) for name, value in sets.items())
    expected = data | ({"model": model} if model is not None else {}) | sets
    if inject:
        expected["stream_options"] = (options if isinstance(options, dict) else {}) | {"include_usage": True}
    out = onward(body, json.dumps(model).encode() if model is not None else None, put, inject)
    assert json.loads(out) == expected
    if model is None and not sets and not inject:
        assert out == body
    # and the client's fields stand in the client's order, ours in front of them
    new = [name for name in json.loads(out) if name not in data]
    assert list(json.loads(out)) == new + [name for name, _ in rows]


def test_a_body_is_not_copied() -> None:
    body = b'{"model":"a","messages":["' + b"x" * 100_000 + b'"],"temperature":1}'
    pieces, _ = READER.onward(body, READER.scan(body), b'"b"', ((b"temperature", b"0"),), True)
    ours = [piece for piece in pieces if isinstance(piece, bytes)]
    theirs = [piece for piece in pieces if isinstance(piece, memoryview)]
    assert all(view.obj is body for view in theirs)
    assert sum(map(len, ours)) < 100
    untouched, length = READER.onward(body, READER.scan(body), None, (), False)
    assert untouched[0] is body
    assert length == len(body)


def test_number_spelling_and_order_survive() -> None:
    body = b'{"b":1.0,"model":"a","a":1e3,"n":12345678901234567890,"m":-0,"temperature":  0.10 }'
    assert onward(body, b'"z"') == body.replace(b'"a","a"', b'"z","a"')


def test_an_empty_object_can_be_put_into() -> None:
    assert onward(b"{ }", None, ((b"user", b'"u"'),), True) == b'{"stream_options":{"include_usage":true},"user":"u" }'


def test_a_field_that_is_set_may_be_escaped_in_the_body() -> None:
    assert onward(b'{"us\\u0065r":1,"model":"a"}', None, ((b"user", b"2"),)) == b'{"us\\u0065r":2,"model":"a"}'


def refused(kind: str, body: bytes, ask: str, *more: Any, reader: RequestReader = PLAIN) -> Fault:
    with pytest.raises(Fault) as caught:
        getattr(reader, ask)(body, *(() if ask == "scan" else (reader.scan(body), *more)))
    assert caught.value.kind == kind
    return caught.value


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b'{"a":1}x', b'{"model":"\xff"}', b"[" * 100_000])
def test_what_is_no_object_is_bad_json(body: bytes) -> None:
    assert "not valid JSON" in refused("bad_json", body, "scan").message


@pytest.mark.parametrize("name", NAMES)
def test_no_field_we_act_on_may_stand_twice(name: str) -> None:
    fault = refused("duplicate_field", b'{"%s":1,"a":0,"\\u%04x%s":2}' % (name.encode(), ord(name[0]), name[1:].encode()), "scan")
    assert fault.param == name
    assert name in fault.message


def test_nor_one_that_a_route_sets() -> None:
    body = b'{"user":1,"user":2}'
    PLAIN.scan(body)
    assert refused("duplicate_field", body, "scan", reader=READER).param == "user"


@pytest.mark.parametrize("text, model", [(b'"a"', "a"), (b'"a\\/b"', "a/b"), (b'"\\u00e9\xc3\xa9"', "\u00e9\u00e9"), (b'"\\ud83d\\ude00"', "\U0001f600")])
def test_the_model_is_read_whatever_its_spelling(text: bytes, model: str) -> None:
    body = b'{"model":' + text + b"}"
    assert PLAIN.model(body, PLAIN.scan(body)) == model


@pytest.mark.parametrize("text", [b"1", b"null", b"[]", b"{}", b"true", b'""'])
def test_a_model_is_a_string_that_is_not_empty(text: bytes) -> None:
    assert refused("bad_field", b'{"model":' + text + b"}", "model").param == "model"
    assert refused("missing_field", b"{}", "model").param == "model"


@pytest.mark.parametrize("text, stream", [(b"true", True), (b"false", False), (b"null", False)])
def test_stream_is_read(text: bytes, stream: bool) -> None:
    body = b'{"stream":' + text + b"}"
    assert PLAIN.stream(body, PLAIN.scan(body)) is stream
    assert PLAIN.stream(b"{}", PLAIN.scan(b"{}")) is False


@pytest.mark.parametrize("text", [b"1", b"0", b'"true"', b"[]", b"{}"])
def test_a_stream_is_true_or_false(text: bytes) -> None:
    assert refused("bad_field", b'{"stream":' + text + b"}", "stream").param == "stream"


@pytest.mark.parametrize(
    "text, asked", [(b'{"include_usage":true}', True), (b'{"include_usage":false,"x":1}', False), (b"{}", False), (b"null", False), (b'{"include_usage":null}', False)]
)
def test_whether_the_client_asked_for_usage(text: bytes, asked: bool) -> None:
    body = b'{"stream_options":' + text + b"}"
    assert PLAIN.asked_usage(body, PLAIN.scan(body)) is asked
    assert PLAIN.asked_usage(b"{}", PLAIN.scan(b"{}")) is False


@pytest.mark.parametrize("text", [b"1", b'"x"', b"[]", b'{"include_usage":1}', b'{"include_usage":"true"}'])
def test_stream_options_are_an_object(text: bytes) -> None:
    assert refused("bad_field", b'{"stream_options":' + text + b"}", "asked_usage").param == "stream_options"


@pytest.mark.parametrize("name, good, bad", [("messages", b"[]", b'"x"'), ("prompt", b'"x"', b"1"), ("input", b"[]", b"null"), ("input", b'""', b"{}")])
def test_a_required_field_has_its_shape(name: str, good: bytes, bad: bytes) -> None:
    body = b'{"' + name.encode() + b'":' + good + b"}"
    PLAIN.require(body, PLAIN.scan(body), name)
    assert refused("bad_field", body.replace(good + b"}", bad + b"}"), "require", name).param == name
    assert refused("missing_field", b"{}", "require", name).param == name
