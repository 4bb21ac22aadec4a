"""The one table that turns a fault into a status and an OpenAI-shaped body."""

import json
from pathlib import Path

import pytest

import turnout
from turnout.errors import CLIENT, GATEWAY, NEVER, OTHER, SAME, TABLE, TIMEOUTS, UPSTREAM, Fault, error_body

KINDS = sorted(TABLE)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_an_openai_shaped_body(kind: str) -> None:
    fault = Fault(kind, 'what was "wrong"\n', param="model")
    body = json.loads(fault.to_body())
    assert body == {"error": {"message": 'what was "wrong"\n', "type": TABLE[kind].type, "param": "model", "code": TABLE[kind].code}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_makes_sense(kind: str) -> None:
    row = TABLE[kind]
    assert row.source in (CLIENT, GATEWAY, UPSTREAM)
    assert row.retry in (NEVER, SAME, OTHER)
    if row.source == CLIENT:
        assert 400 <= row.status < 500
        assert row.type == "invalid_request_error"
        assert row.retry == NEVER  # the request itself is at fault: every target would say the same
    if row.source == UPSTREAM:
        assert row.status in (429, 502, 503, 504)  # what a client's own retry logic understands
        assert row.retry != NEVER
    if row.source == GATEWAY:
        assert row.status >= 500


def test_a_target_that_was_silent_is_not_asked_again() -> None:
    assert all(TABLE[kind].retry != SAME for kind in TIMEOUTS)
    assert {TABLE[kind].status for kind in TIMEOUTS} == {504, 408}


@pytest.mark.parametrize("kind, retry", [("credential", OTHER), ("not_found", OTHER), ("tls", OTHER), ("rate_limited", SAME), ("connect", SAME)])
def test_our_own_mistakes_are_not_tried_twice_at_one_target(kind: str, retry: str) -> None:
    assert Fault(kind, "x").retry == retry


def test_a_refusal_keeps_the_providers_status_and_words() -> None:
    words = b'{"error":{"message":"no","type":"t","param":null,"code":"c"},"more":1.0}'
    fault = Fault("refused", "no", upstream_status=422, body=words)
    assert (fault.status, fault.to_body(), fault.source, fault.retry) == (422, words, CLIENT, NEVER)
    bare = Fault("refused", "no", upstream_status=413, code="its-own")
    assert (bare.status, json.loads(bare.to_body())["error"]["code"]) == (413, "its-own")


def test_only_a_refusal_hands_on_foreign_words() -> None:
    assert b"secret" not in Fault("server_error", "it failed", upstream_status=500, body=b"secret").to_body()


def test_the_reason_is_the_status_where_there_was_one() -> None:
    assert Fault("rate_limited", "x", upstream_status=429).reason == "429"
    assert Fault("connect", "x").reason == "connect"


def test_an_unknown_kind_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        Fault("nope", "x")


def test_all_four_keys_are_always_there() -> None:
    assert json.loads(error_body("m", "t", None, None)) == {"error": {"message": "m", "type": "t", "param": None, "code": None}}


def test_nothing_else_writes_error_bodies() -> None:
    root = Path(turnout.__file__).parent
    writers = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if "simulator" not in path.parts and any(shape in path.read_text() for shape in ('{"error":', "{'error':"))
    }
    assert writers <= {"errors.py", "upstream/attempt.py"}  # the latter wraps an event's error to read it
