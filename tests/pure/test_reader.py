"""The stream readers: any chunking of the same bytes gives the same answer, nothing behind a break is handed on, and
the native one, where it is built, says the same as the pure one of every stream in this file."""

import base64
import itertools
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from turnout import native
from turnout.errors import Fault
from turnout.stream.reader import MOST_NOISE, StreamReader
from turnout.twin import sse as twin_module
from turnout.twin.sse import MAX_EVENT_BYTES
from turnout.twin.sse import StreamScanner as Twin
from turnout.upstream import attempt

DONE = b"data: [DONE]\n\n"
ROLE = b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
FINISH = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}\n\n'
ERROR = b'data: {"error":{"message":"overloaded","type":"server_error","code":529}}\n\n'
BROKEN = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"lo\n\n'


SCANNERS = (Twin,) if native.StreamScanner is Twin else (Twin, native.StreamScanner)


def event_fault(error: msgspec.Raw) -> Fault:
    return attempt.event_fault(error, bytes)


def said(text: str) -> bytes:
    body = json.dumps({"id": "c", "choices": [{"index": 0, "delta": {"content": text}}]}, ensure_ascii=False)
    return b"data: " + body.encode() + b"\n\n"


class Outcome:
    """What the readers made of one stream: all of them the same."""

    def __init__(self, pieces: Sequence[bytes], strip: bool = False) -> None:
        made = []
        for scanner in SCANNERS:
            reader = StreamReader(strip, event_fault)
            reader._scanner = scanner(strip, MOST_NOISE)
            made.append(self._read(reader, pieces))
        self.reader, self.out, self.steps, self.marks = made[0]
        for _, out, steps, marks in made[1:]:
            assert (out, steps, marks) == (self.out, self.steps, self.marks)

    @classmethod
    def _read(cls, reader: Any, pieces: Sequence[bytes]) -> tuple[Any, bytes, list[Any], tuple[Any, ...]]:
        out: list[bytes] = []
        steps: list[Any] = []  # what can be seen after each piece
        for i, piece in enumerate(pieces):
            out.append(reader.feed(piece, 1_000 + i))
            steps.append((len(out[-1]), reader.first_content_ns, reader.finish, reader.done, reader.fault is None))
        out.append(reader.close(9_999))
        return reader, b"".join(out), steps, cls._marks(reader)

    @staticmethod
    def _marks(r: Any) -> tuple[Any, ...]:
        fault = (r.fault.kind, r.fault.message, r.fault.status, r.fault.code) if r.fault else None
        return (r.chunks, r.content_bytes, bool(r.first_content_ns), r.finish, r.usage, r.done, fault, r.error_event)

    @property
    def kind(self) -> str:
        return self.reader.fault.kind if self.reader.fault else ""


def events_in(stream: bytes) -> list[bytes]:
    """The data of every whole event, by a reading of the grammar that shares nothing with the product's."""
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    found = []
    for block in text.split(b"\n\n")[:-1] if "\n\n" in text.decode("latin-1") else []:
        lines = [line[5:].removeprefix(b":").removeprefix(b" ") for line in block.split(b"\n") if re.match(rb"data(:|\Z)", line)]
        if lines:
            found.append(b"\n".join(lines))
    return found


def cut(stream: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted({p % (len(stream) + 1) for p in places}), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


# ---- any chunking, same answer

EVENTS = st.one_of(
    st.text(min_size=1, max_size=8).map(said),
    st.sampled_from(
        [
            ROLE, FINISH, USAGE, DONE, ERROR, BROKEN, b": keepalive\n\n", b"\n", b"event: message\n", b"id: 7\n\n", b"retry: 10\n\n",
            b"data: noise\n\n", b"data\n\n", b"data:{}\n\n", b'data: {"choices":null,"usage":null}\n\n', b'data: {"choices":\ndata: []}\n\n',
            b'data: {"choices":[],"usage":{"prompt_tokens":-5}}\n\n', b'data: {"choices":[],"prompt_filter_results":[]}\n\n',
            b'data: {"choices":[{"delta":{"content":"\xff\xfe"}}]}\n\n', b"<html>\n", b'event: error\ndata: {"error":"gone"}\n\n',
            'data: {"choices":[{"delta":{"content":"ß😀"},"finish_reason":"length"}],"usage":{"prompt_tokens":1}}\n\n'.encode(), b"data: [DO",
        ]
    ),
)  # fmt: skip
CUTS = st.lists(st.integers(0, 10_000), max_size=40)


@settings(deadline=None, max_examples=400)
@given(events=st.lists(EVENTS, max_size=12), places=CUTS, strip=st.booleans(), bom=st.booleans())
def test_any_chunking_gives_the_same_bytes_and_marks(events: list[bytes], places: list[int], strip: bool, bom: bool) -> None:
    stream = b"\xef\xbb\xbf" * bom + b"".join(events)
    whole = Outcome([stream], strip)
    assert Outcome(cut(stream, places), strip).out == whole.out
    assert Outcome(cut(stream, places), strip).marks == whole.marks
    one_by_one = Outcome([stream[i : i + 1] for i in range(len(stream))], strip)
    assert (one_by_one.out, one_by_one.marks) == (whole.out, whole.marks)


@settings(deadline=None, max_examples=200)
@given(events=st.lists(EVENTS, max_size=12), places=CUTS, strip=st.booleans(), end=st.sampled_from([b"\r\n", b"\r"]))
def test_other_line_ends_give_the_same_events_and_marks(events: list[bytes], places: list[int], strip: bool, end: bytes) -> None:
    stream = b"".join(events)
    plain = Outcome([stream], strip)
    other = stream.replace(b"\n", end)
    for pieces in ([other], cut(other, places), [other[i : i + 1] for i in range(len(other))]):
        got = Outcome(pieces, strip)
        assert events_in(got.out) == events_in(plain.out)
        assert got.marks[:-1] == plain.marks[:-1]


@settings(deadline=None, max_examples=200)
@given(texts=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=8), places=CUTS)
def test_a_sound_stream_passes_byte_for_byte(texts: list[str], places: list[int]) -> None:
    stream = ROLE + b"".join(map(said, texts)) + FINISH + USAGE + DONE
    got = Outcome(cut(stream, places))
    assert got.out == stream
    reader = got.reader
    assert (reader.chunks, reader.finish, reader.done, reader.fault) == (len(texts), "stop", True, None)
    assert reader.usage is not None
    assert (reader.usage.prompt, reader.usage.completion) == (7, 3)


def test_the_first_content_token_is_timed_when_its_event_is_whole() -> None:
    reader = StreamReader(False, event_fault)
    reader.feed(ROLE, 10)
    reader.feed(said("hello")[:-1], 20)
    assert not reader.first_content_ns
    reader.feed(b"\n", 30)
    reader.feed(said("again"), 40)
    assert reader.first_content_ns == 30


def test_a_byte_order_mark_before_the_stream_is_dropped() -> None:
    assert Outcome([b"\xef\xbb\xbf" + said("a") + DONE]).out == said("a") + DONE
    assert Outcome([b"\xef", b"\xbb", b"\xbf" + said("a") + DONE]).out == said("a") + DONE


# ---- the injected usage chunk


@pytest.mark.parametrize("value", [b'{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}', b'{"prompt_tokens":-1}', b'{"prompt_tokens":1e308}', b'"?"'])
@pytest.mark.parametrize("choices", [b'"choices":[],', b"", b'"choices":null,'])
def test_the_usage_chunk_that_we_asked_for_is_taken_out_again(value: bytes, choices: bytes) -> None:
    chunk = b'data: {"id":"c",' + choices + b'"usage":' + value + b"}\n\n"
    stream = said("a") + FINISH + chunk + DONE
    assert Outcome([stream], strip=True).out == said("a") + FINISH + DONE
    assert Outcome([stream], strip=False).out == stream


@pytest.mark.parametrize(
    "kept",
    [
        b'data: {"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n',  # Perplexity, OpenRouter
        b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n',  # Mistral
        b'data: {"choices":[],"prompt_filter_results":[]}\n\n',  # Azure
        b'data: {"choices":[],"usage":null}\n\n',
        b": usage\n\n",
    ],
)
def test_nothing_else_is_taken_out_of_a_stream(kept: bytes) -> None:
    stream = kept + said("a") + kept + FINISH + DONE
    assert Outcome([stream], strip=True).out == stream


def test_the_last_usage_counts_and_one_without_sense_does_not_undo_it() -> None:
    chunk = b'data: {"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":4,"completion_tokens":%d}}\n\n'
    reader = Outcome([chunk % 1 + chunk % 9 + b'data: {"choices":[],"usage":{"prompt_tokens":-1}}\n\n']).reader
    assert reader.usage is not None
    assert (reader.usage.prompt, reader.usage.completion) == (4, 9)


# ---- breaks


@settings(deadline=None, max_examples=100)
@given(before=st.lists(EVENTS, max_size=5), after=st.binary(max_size=80), places=CUTS, end=st.sampled_from([BROKEN, ERROR]))
def test_nothing_after_a_break_is_handed_on(before: list[bytes], after: bytes, places: list[int], end: bytes) -> None:
    sound = [e for e in before if e.endswith(b"\n\n") and e not in (BROKEN, ERROR) and not e.startswith((b"data: noise", b"data\n", b"event: error"))]
    stream = b"".join(sound)
    want = Outcome([stream]).out
    got = Outcome(cut(stream + end + after, places))
    assert got.out == want
    assert got.reader.fault is not None
    assert got.reader.feed(said("late"), 1) == b""
    assert got.reader.close(1) == b""


def test_an_error_event_is_a_fault_and_kept_apart() -> None:
    got = Outcome([said("abc") + ERROR])
    assert got.out == said("abc")
    assert got.reader.error_event == ERROR
    assert got.reader.fault is not None
    assert (got.reader.fault.source, got.reader.fault.upstream_status) == ("upstream", 529)


def test_an_error_beside_choices_is_an_error_too() -> None:
    chunk = b'data: {"choices":[{"delta":{"content":""},"finish_reason":"error"}],"error":{"code":502,"message":"Provider disconnected"}}\n\n'
    got = Outcome([said("abc") + chunk])
    assert (got.out, got.kind) == (said("abc"), "server_error")


def test_a_null_error_is_none() -> None:
    chunk = b'data: {"choices":[{"delta":{"content":"a"}}],"error":null}\n\n'
    got = Outcome([chunk])
    assert (got.out, got.kind) == (chunk, "")


def test_noise_is_left_out_a_few_times_and_then_is_a_break() -> None:
    few = (said("a") + b"data: pardon?\n\n") * MOST_NOISE
    assert Outcome([few + DONE]).out == said("a") * MOST_NOISE + DONE
    more = Outcome([few + said("b") + b"data: pardon?\n\n" + said("c")])
    assert (more.out, more.kind) == (said("a") * MOST_NOISE + said("b"), "interrupted")


def test_a_last_event_without_its_empty_line_still_counts() -> None:
    got = Outcome([said("a") + FINISH + DONE.rstrip()])
    assert (got.out, got.reader.done) == (said("a") + FINISH + DONE, True)


def test_an_event_over_the_limit_is_a_break_however_it_comes() -> None:
    huge = said("x" * MAX_EVENT_BYTES)
    stream = said("a") + huge + said("b")
    for pieces in ([stream], [stream[i : i + 65_536] for i in range(0, len(stream), 65_536)], [said("a"), huge, said("b")], [said("a") + huge[:-1], huge[-1:]]):
        got = Outcome(pieces)
        assert (got.out, got.kind) == (said("a"), "interrupted")


# ---- the list of damaged streams


def damaged(shared: Path) -> dict[str, Outcome]:
    lines = (shared / "data" / "sse" / "llm_stream_damage.jsonl").read_text().splitlines()
    return {r["name"]: Outcome([base64.b64decode(c) for c in r["chunks_b64"]], strip=True) for r in map(json.loads, lines)}


def test_damaged_streams_end_as_the_list_says(shared: Path) -> None:
    got = damaged(shared)
    assert len(got) == 12
    whole = got["utf8-split-across-chunks"]
    assert (whole.kind, whole.reader.chunks) == ("", 1)
    assert json.loads(events_in(whole.out)[0])["choices"][0]["delta"]["content"] == "héllo 😀"
    # Nobody downstream ever sees bytes that are not UTF-8: several SDKs die of them.
    bad = got["bad-utf8"]
    assert (bad.out, bad.kind) == (b"", "interrupted")
    assert (got["garbage-json"].out, got["garbage-json"].kind) == (b"", "interrupted")
    torn = got["truncated-mid-event"]
    assert (torn.out, torn.kind, torn.reader.finish, torn.reader.done) == (b"", "interrupted", "", False)
    # No finish, no [DONE]: the relay calls this interrupted, and the usage is our own count.
    open_end = got["no-done"]
    assert (open_end.kind, open_end.reader.finish, open_end.reader.done, open_end.reader.usage) == ("", "", False, None)
    assert open_end.reader.content_bytes > 0
    failed = got["error-in-stream"]
    assert failed.reader.fault is not None
    assert (failed.reader.fault.source, failed.reader.chunks, b"overloaded" in failed.out) == ("upstream", 1, False)
    for name in ("html-200", "json-instead-of-sse"):  # the content type refuses them before; here they must say nothing
        assert (got[name].reader.first_content_ns, got[name].reader.finish, got[name].reader.done) == (0, "", False)
    for name in ("usage-null", "usage-negative", "usage-huge"):
        assert got[name].reader.usage is None, name
        assert got[name].reader.done
    assert b"usage" not in got["usage-negative"].out + got["usage-huge"].out
    injected = got["event-injection"]
    assert (len(events_in(injected.out)), injected.reader.done, injected.reader.chunks) == (1, False, 1)


# ---- the grammar


def vectors(shared: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (shared / "data" / "sse" / "sse_vectors.jsonl").read_text().splitlines()]


def split_events(pieces: Sequence[bytes]) -> list[bytes]:
    """The `data` of the events, by the twin's own splitting (that the kernel's is the same: tests/twins/test_sse.py)."""
    scanner = Twin(False)
    found = [twin_module._data_of(event) for piece in pieces for event in scanner._split(piece)[0]]
    return [data for data in found if data is not None]  # an event without its empty line is none, says the grammar


def test_the_splitter_finds_the_grammars_events_at_every_byte_split(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(7)
    for vector in vectors(shared):
        raw = base64.b64decode(vector["raw_b64"])
        monkeypatch.setattr(twin_module, "MAX_EVENT_BYTES", 2 * len(raw) + 10)
        few = len(raw) <= 2_000
        splits = range(len(raw) + 1) if few else rng.sample(range(len(raw)), 40) + list(range(len(raw) - 12, len(raw) + 1))
        every = [[raw[:i], raw[i:]] for i in splits]
        every.append([raw[i : i + 1] for i in range(len(raw))] if few else [raw[i : i + 4_097] for i in range(0, len(raw), 4_097)])
        for pieces in every:
            got = split_events(pieces)
            assert len(got) == vector["n_events"], vector["name"]
            if vector["events"] is not None:
                assert [data.decode() for data in got] == vector["events"], vector["name"]
