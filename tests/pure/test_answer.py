"""What is read of answers: usage in every dialect that providers were recorded with, and what counts as content."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from turnout import native
from turnout.exchange import Usage
from turnout.twin.answer import MOST_TOKENS
from turnout.wire.answer import read_answer, usage_of


def usage(value: Any) -> Usage | None:
    return usage_of(value if isinstance(value, bytes) else json.dumps(value).encode())


def content(fields: dict[str, Any]) -> int:
    """Bytes of content that the scanner finds in a chunk with this one choice."""
    scanner = native.StreamScanner(False)
    scanner.feed(b"data: " + json.dumps({"choices": [{"index": 0, **fields}]}).encode() + b"\n\n")
    size: int = scanner.content_bytes
    return size


# The figures are from recordings; each line is another way of saying it.
DIALECTS = [
    (
        "openai",
        {
            "prompt_tokens": 4020, "completion_tokens": 14, "total_tokens": 4034,
            "prompt_tokens_details": {"audio_tokens": 0, "cache_write_tokens": 0, "cached_tokens": 4012},
            "completion_tokens_details": {"reasoning_tokens": 4, "audio_tokens": 0, "accepted_prediction_tokens": 0},
        },
        Usage(4020, 14, 4012, 0, 4),
    ),
    ("openai embeddings", {"prompt_tokens": 7, "total_tokens": 7}, Usage(7, 0)),
    ("azure", {"prompt_tokens": 64, "completion_tokens": 151, "total_tokens": 215, "latency_checkpoint": {"engine_tbt_ms": 22}}, Usage(64, 151)),
    (
        "azure's grok: more cached than there are",
        {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 163}},
        Usage(7, 1, 7),
    ),
    (
        "deepseek",
        {
            "prompt_tokens": 381, "completion_tokens": 74, "total_tokens": 455, "prompt_cache_hit_tokens": 256, "prompt_cache_miss_tokens": 125,
            "prompt_tokens_details": {"cached_tokens": 256}, "completion_tokens_details": {"reasoning_tokens": 27},
        },
        Usage(381, 74, 256, 0, 27),
    ),
    ("deepseek without details", {"prompt_tokens": 20, "completion_tokens": 5, "prompt_cache_hit_tokens": 12}, Usage(20, 5, 12)),
    (
        "xai counts thinking apart from the answer",
        {
            "prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 241,
            "prompt_tokens_details": {"text_tokens": 12, "cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 228},
        },
        Usage(12, 229, 2, 0, 228),
    ),
    ("mistral, null details", {"prompt_tokens": 42, "completion_tokens": 0, "total_tokens": 42, "prompt_tokens_details": None}, Usage(42, 0)),
    ("mistral's older name", {"prompt_tokens": 175, "completion_tokens": 39, "total_tokens": 214, "num_cached_tokens": 174}, Usage(175, 39, 174)),
    (
        "mistral counts audio apart from the prompt",
        {"prompt_tokens": 11, "completion_tokens": 15, "total_tokens": 401, "prompt_tokens_details": {"audio_tokens": 375, "cached_tokens": 9}},
        Usage(386, 15, 9),
    ),
    ("moonshot", {"prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 50, "cached_tokens": 10}, Usage(20, 30, 10)),
    ("voyage", {"total_tokens": 3}, Usage(3, 0)),
    ("groq", {"queue_time": 0.07, "prompt_tokens": 304, "completion_tokens": 5, "completion_time": 0.027, "total_tokens": 309}, Usage(304, 5)),
    (
        "openrouter",
        {"prompt_tokens": 754, "completion_tokens": 28, "total_tokens": 782, "cost": 0.000894, "is_byok": False, "cost_details": {"x": None}},
        Usage(754, 28),
    ),
    ("perplexity", {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25, "cost": {"total_cost": 0.005}}, Usage(20, 5)),
    (
        "gpustack: more thinking than answer",
        {"prompt_tokens": 209, "completion_tokens": 450, "completion_tokens_details": {"reasoning_tokens": 460}},
        Usage(209, 450, 0, 0, 450),
    ),
    ("floats that are whole", {"prompt_tokens": 5.0, "completion_tokens": 2.0}, Usage(5, 2)),
    ("the answer's share from the total", {"prompt_tokens": 5, "total_tokens": 9}, Usage(5, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("said", "want"), [d[1:] for d in DIALECTS], ids=[d[0] for d in DIALECTS])
def test_usage_is_read_in_openais_meaning(said: dict[str, Any], want: Usage) -> None:
    assert usage(said) == want


NONSENSE: list[Any] = [
    b"",
    b"null",
    b"{}",
    b"[]",
    b'""',
    b"3",
    b'"many"',
    b"true",
    {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None},
    {"prompt_tokens": -5, "completion_tokens": -1, "total_tokens": -6},
    {"prompt_tokens": 5, "completion_tokens": -1, "total_tokens": 4},
    {"prompt_tokens": -5, "completion_tokens": 7, "total_tokens": 2},
    b'{"prompt_tokens": 1e308, "completion_tokens": 99999999999999999999}',
    b'{"prompt_tokens": 5, "completion_tokens": 1e308}',
    b'{"prompt_tokens": 5, "completion_tokens": 99999999999999999999, "total_tokens": 99999999999999999999}',
    {"prompt_tokens": MOST_TOKENS + 1, "completion_tokens": 1},
    {"prompt_tokens": "5", "completion_tokens": 1},
    {"prompt_tokens": 5, "completion_tokens": "1"},
    {"prompt_tokens": 5, "completion_tokens": [1]},
    {"prompt_tokens": True, "completion_tokens": 1},
    {"completion_tokens": 1},
    {"total_tokens": -3},
    b'{"prompt_tokens": 5, "completion_tokens"',
]


@pytest.mark.parametrize("said", NONSENSE, ids=str)
def test_usage_that_makes_no_sense_is_none_and_not_a_smaller_bill(said: Any) -> None:
    assert usage(said) is None


@pytest.mark.parametrize(
    "details",
    [{"cached_tokens": -4}, {"cached_tokens": None}, {"cache_write_tokens": -1}, {"cached_tokens": MOST_TOKENS * 10}],
    ids=str,
)
def test_details_that_make_no_sense_count_as_nothing(details: dict[str, Any]) -> None:
    got = usage({"prompt_tokens": 8, "completion_tokens": 2, "prompt_tokens_details": details})
    assert got is not None
    assert (got.prompt, got.completion, got.cached, got.cache_write) == (8, 2, 0, 0)


def test_the_parts_of_a_prompt_are_never_more_than_the_prompt() -> None:
    got = usage({"prompt_tokens": 8, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 5000}})
    assert got is not None
    assert got.cached + got.cache_write <= got.prompt


CONTENT = [
    {"delta": {"content": "Hi"}},
    {"delta": {"content": " "}},
    {"delta": {"role": "assistant", "content": "Hi"}},
    {"delta": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "So"}]}]}},  # Mistral
    {"delta": {"content": [{"type": "text", "text": "So"}]}},
    {"delta": {"content": None, "reasoning_content": "So"}},  # DeepSeek, xAI, Z.ai, llama.cpp
    {"delta": {"content": "", "reasoning": "So"}},  # OpenRouter, Groq, Ollama
    {"delta": {"content": "", "reasoning_details": [{"type": "reasoning.text", "text": " * 27 = 405"}]}},  # Snowflake
    {"delta": {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]}},
    {"delta": {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}},  # Mistral, without an index
    {"delta": {"content": None, "function_call": {"arguments": "{"}}},
    {"delta": {"refusal": "I can't"}},
    {"delta": {"content": None, "audio": {"data": "AAAA"}}},
    {"text": "Once"},
]
LIFECYCLE: list[dict[str, Any]] = [
    {"delta": {}},
    {"delta": {"role": "assistant"}},
    {"delta": {"role": "assistant", "content": ""}},
    {"delta": {"role": "assistant", "content": None, "refusal": None, "tool_calls": None, "function_call": None}},
    {"delta": {"content": "", "tool_calls": [], "reasoning_content": None, "reasoning": "", "reasoning_details": [], "audio": {}}},
    {"delta": {"content": []}},
    {"delta": {"reasoning_encrypted": False, "channel": "analysis"}},
    {"delta": None, "finish_reason": "stop"},
    {"text": ""},
    {"text": None},
    {"finish_reason": "stop"},
    {},
]


@pytest.mark.parametrize("fields", CONTENT, ids=str)
def test_what_a_reader_would_see_counts_as_content(fields: dict[str, Any]) -> None:
    assert content(fields) > 0


@pytest.mark.parametrize("fields", LIFECYCLE, ids=str)
def test_role_and_lifecycle_frames_are_no_content(fields: dict[str, Any]) -> None:
    assert content(fields) == 0


@pytest.mark.parametrize(("raw", "want"), [(b"null", False), (b'""', False), (b"[]", False), (b"{}", False), (b"0", True), (b"{ }", True), (b'" "', True)])
def test_null_and_empty_is_not_set(raw: bytes, want: bool) -> None:
    finish, error, tokens = read_answer(b'{"error":' + raw + b"}")
    assert (finish, tokens) == (None, None)
    assert error == (raw if want else b"")


def test_unknown_fields_of_an_answer_are_no_obstacle() -> None:
    body = b'{"object":"list","data":[{"embedding":[0.1]}],"usage":{"prompt_tokens":1,"total_tokens":1}}'
    assert read_answer(body) == (None, b"", Usage(1, 0))


def recorded(shared: Path, name: str) -> list[dict[str, Any]]:
    """The last usage object of every exchange on OpenAI's wire that has one."""
    out = []
    with gzip.open(shared / "data" / "recordings" / name, "rt", encoding="utf-8") as file:
        for r in map(json.loads, file):
            if r["api"] not in ("chat", "completions", "embeddings") or r["status"] != 200 or "body" not in r["response"]:
                continue
            lines = r["response"]["body"].splitlines() if r["stream"] else ["data:" + json.dumps(json.loads(r["response"]["body"]))]
            datas = [json.loads(x[5:]) for x in lines if x.startswith("data:") and x[5:].strip() != "[DONE]"]
            out += [d["usage"] for d in datas if d.get("usage")][-1:]
    return out


def test_every_recorded_usage_adds_up_to_the_providers_own_total(shared: Path, full: bool) -> None:
    seen = recorded(shared, "dev.jsonl.gz" if full else "dev_core.jsonl.gz")
    assert len(seen) > 200
    for said in seen:
        got = usage(said)
        assert got is not None, said
        assert got.prompt + got.completion == said["total_tokens"], said
        assert got.cached + got.cache_write <= got.prompt, said
        assert got.reasoning <= got.completion, said
        assert not got.estimated
