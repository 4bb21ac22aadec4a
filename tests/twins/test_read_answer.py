"""The answer reader, native and twin: the same reading of whatever is fed to them."""

import json
import random
from typing import Any

import pytest

from turnout.twin import answer as twin

try:
    from turnout import _native as native
except ImportError:
    native = None  # type: ignore[assignment]


def read(module: Any, body: bytes) -> Any:
    try:
        return module.read_answer(body)
    except ValueError:
        return "refused"


def agree(body: bytes) -> Any:
    want = read(twin, body)
    if native is None:
        pytest.skip("the extension is not built")
    assert read(native, body) == want, body
    return want


USAGE = b'{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,"prompt_tokens_details":{"cached_tokens":2}}'


@pytest.mark.parametrize(
    ("body", "want"),
    [
        (b'{"choices":[{"finish_reason":"stop"}],"usage":' + USAGE + b"}", ("stop", b"", (7, 3, 2, 0, 0))),
        (b' {"choices":[{"finish_reason":"a\\u0062"},{"finish_reason":"x"}]} ', ("ab", b"", None)),
        (b'{"choices":[{"finish_reason":null}],"error":{"a":1}}', (None, b"", None)),
        (b'{"choices":[{"finish_reason":""}]}', ("", b"", None)),
        (b'{"choices":[],"error":{"a":1}}', (None, b'{"a":1}', None)),
        (b'{"choices":null,"error":"x"}', (None, b'"x"', None)),
        (b'{"error":null}', (None, b"", None)),
        (b'{"choices":[{"finish_reason":"a"}],"choices":[]}', (None, b"", None)),
        (b'{"choices":[{"finish_reason":1}]}', "refused"),
        (b'{"choices":[1]}', "refused"),
        (b'{"choices":{}}', "refused"),
        (b'{"choices":[{"finish_reason":"stop"}],"usage":' + USAGE, "refused"),
        (b"[]", "refused"),
        (b"", "refused"),
        (b'{"a":"\xff"}', "refused"),
        (b'{"a":' + b"[" * 127 + b"]" * 127 + b"}", (None, b"", None)),
        (b'{"a":' + b"[" * 128 + b"]" * 128 + b"}", "refused"),
    ],
)
def test_what_an_answer_says(body: bytes, want: Any) -> None:
    assert agree(body) == want


NUMBERS = [0, 1, 2, 5, 7, 12.0, 3.7, 1e3, -1, -0.0, 1e9, 100_000_000, 100_000_001, None, "7", True, [], {}]
FIELDS = ["prompt_tokens", "completion_tokens", "total_tokens", "prompt_cache_hit_tokens", "cached_tokens", "num_cached_tokens", "other"]
DETAILS = ["cached_tokens", "cache_write_tokens", "audio_tokens", "reasoning_tokens", "other"]


def some_usage(rng: random.Random) -> Any:
    pick = NUMBERS[:9] if rng.random() < 0.7 else NUMBERS
    usage: dict[str, Any] = {name: rng.choice(pick) for name in FIELDS if rng.random() < 0.6}
    for name in ("prompt_tokens_details", "completion_tokens_details"):
        if rng.random() < 0.5:
            usage[name] = {n: rng.choice(pick) for n in DETAILS if rng.random() < 0.5} if rng.random() < 0.9 else rng.choice(NUMBERS)
    return usage


def test_usage_of_every_kind_is_read_alike() -> None:
    rng = random.Random(7)
    told = 0
    for _ in range(5000):
        usage = some_usage(rng)
        body = json.dumps({"choices": [{"finish_reason": "stop"}], "usage": usage}).encode()
        told += agree(body)[2] is not None
        raw = json.dumps(usage).encode()
        assert native.read_usage(raw) == twin.read_usage(raw), raw
    assert told > 1000


def test_damaged_answers_are_read_alike() -> None:
    rng = random.Random(11)
    whole = json.dumps({"id": "é", "choices": [{"index": 0, "message": {"content": "a\"b\\n"}, "finish_reason": "stop"}], "usage": json.loads(USAGE), "error": None}).encode()
    refused = 0
    for _ in range(5000):
        body = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(body))
            match rng.randrange(4):
                case 0:
                    del body[at : at + rng.randrange(1, 9)]
                case 1:
                    body[at] = rng.randrange(256)
                case 2:
                    body[at:at] = rng.choice([b"{", b"}", b"[", b"]", b",", b'"', b"\\", b"null", b"1e999", b"\xed\xa0\x80"])
                case _:
                    body[at:] = b""
            if not body:
                break
        refused += agree(bytes(body)) == "refused"
    assert refused > 2000
