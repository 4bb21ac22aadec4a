"""A kept answer as a stream: put together again it is the answer."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.cache.replay import as_stream
from turnout.wire.assemble import Assembly

TEXT = st.text(st.characters(codec="utf-8"), max_size=700)
CALL = st.fixed_dictionaries({"id": st.text("abc", min_size=1), "type": st.just("function"), "function": st.fixed_dictionaries({"name": st.text("fgh", min_size=1), "arguments": TEXT})})
MESSAGE = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.none() | TEXT},
    optional={"tool_calls": st.lists(CALL, min_size=1, max_size=3), "reasoning_content": TEXT, "refusal": TEXT, "annotations": st.just([{"type": "url_citation"}])},
)
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def answer(choice: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "c-1", "object": "chat.completion", "created": 5, "model": "m", "system_fingerprint": "fp", "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, **choice}], "usage": USAGE, **more}


def together(stream: bytes, chat: bool = True) -> Any:
    assembly = Assembly()
    assembly.push(stream)
    whole = assembly.answer(chat)
    assert whole is not None
    return json.loads(whole)


def essence(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if value not in (None, "")}


@given(MESSAGE, st.booleans())
def test_it_says_the_same(message: dict[str, Any], usage: bool) -> None:
    one = answer({"message": message})
    stream = as_stream(json.dumps(one).encode(), True, usage)
    assert stream.endswith(b"data: [DONE]\n\n") and (b'"usage"' in stream) == usage
    again = together(stream)
    assert essence(again["choices"][0].pop("message")) == essence(one["choices"][0].pop("message"))
    if not usage:
        one.pop("usage")
    assert again == one
    first = json.loads(stream.partition(b"\n\n")[0][6:])
    assert first["choices"][0]["delta"]["role"] == "assistant" and first["object"] == "chat.completion.chunk"


@given(TEXT)
def test_completions_say_the_same(text: str) -> None:
    one = answer({"text": text}, object="text_completion")
    assert together(as_stream(json.dumps(one).encode(), False, True), False) == one


def test_logprobs_come_with_their_text() -> None:
    said = {"content": [{"token": "a", "logprob": -1, "bytes": [97], "top_logprobs": []}]}
    one = answer({"message": {"role": "assistant", "content": "a " * 300}, "logprobs": said})
    again = together(as_stream(json.dumps(one).encode(), True, False))
    assert again["choices"][0]["logprobs"] == said


def test_a_long_text_comes_in_pieces_that_end_with_words() -> None:
    one = answer({"message": {"role": "assistant", "content": "word " * 1000}})
    pieces = [json.loads(e[6:])["choices"][0]["delta"].get("content") for e in as_stream(json.dumps(one).encode(), True, False).split(b"\n\n")[:-2]]
    pieces = [p for p in pieces if p]
    assert len(pieces) > 20 and all(p.endswith(" ") and len(p) <= 200 for p in pieces)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"choices":1}', b'{"choices":[1]}', b'{"choices":[{}]}', b'{"choices":[{"message":null}]}', b"\xff"])
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="no answer"):
        as_stream(body, True, False)
