"""The stream scanner, native and twin: one set of tests for both, and the same log of whatever is fed to them."""

import base64
import gzip
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from turnout.twin import answer as twin_answer
from turnout.twin.sse import (
    CALLS,
    LOGPROBS,
    MAX_DEPTH,
    MAX_EVENT_BYTES,
    OTHER,
    OTHER_CHOICE,
    OVER,
    REASONING,
    REFUSAL,
    SIGNED,
)
from turnout.twin.sse import StreamScanner as Twin
from turnout.wire import answer

try:
    from turnout._native import StreamScanner as Native
except ImportError:
    Native = None  # type: ignore[assignment,misc]

needs_both = pytest.mark.skipif(Native is None, reason="the extension is not built")

DONE = b"data: [DONE]\n\n"
ROLE = b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
FINISH = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}\n\n'
ERROR = b'data: {"error":{"message":"overloaded","code":529}}\n\n'
TEXT = 'data: {"id":"c","choices":[{"index":0,"delta":{"content":"h\\u00e9llo \\ud83d\\ude00 ü😀"}}]}\n\n'.encode()
CALL = b'data: {"choices":[{"delta":{"content":null,"tool_calls":[{"index":0,"function":{"name":"f","arguments":"{"}}]}}]}\n\n'
LINES = b'\xef\xbb\xbf: hi\n\nevent: message\nid: 7\ndata: {"choices":\ndata: [{"text":"a"},{"text":"b","finish_reason":"l\\u0065ngth"}]}\n\ndata\n\n'


@pytest.fixture(params=["twin", "native"])
def scanner(request: pytest.FixtureRequest) -> Any:
    if request.param == "twin":
        return Twin
    if Native is None:
        pytest.skip("the extension is not built")
    return Native


def marks(s: Any) -> tuple[Any, ...]:
    seen = (s.chunks, s.content_bytes, s.saw_content, s.finish, s.usage, s.done, s.error, s.error_event, s.broken, s.turned)
    assert [type(m) for m in seen if m is not None].count(bytes) == (s.usage is not None) + (s.error is not None) + 1
    return seen


def log(kind: Any, pieces: Sequence[bytes], strip: bool) -> list[tuple[Any, ...]]:
    """What is handed on and what is seen after every piece, and after the end."""
    s = kind(strip)
    out = [(s.feed(piece), *marks(s)) for piece in pieces]
    out += [(s.close(), *marks(s)), (s.feed(TEXT), *marks(s))]
    assert (s.text, s.kinds, s.stopped) == ("", 0, False)
    return out


def kept(kind: Any, pieces: Sequence[bytes], most: int, hold: bool, late: int = 0) -> list[tuple[Any, ...]]:
    """The same of a scanner that keeps the text; held calls are let go `late` pieces after they were met."""
    s = kind(False, 3, most, hold)
    out = []
    waited = 0
    for piece in (*pieces, None):
        more = s.close() if piece is None else s.feed(piece)
        if s.stopped:
            assert s.turned
            waited += 1
            if waited > late or piece is None:
                out.append((more, *marks(s), s.text, s.kinds, s.stopped))
                more = s.resume()
                assert not s.stopped
                if piece is None:
                    more += s.close()
        out.append((more, *marks(s), s.text, s.kinds, s.stopped))
    return out


def passed(events: list[tuple[Any, ...]]) -> bytes:
    return b"".join([event[0] for event in events[:-1]])


def whole(kind: Any, stream: bytes, strip: bool = False) -> tuple[bytes, Any]:
    s = kind(strip)
    return s.feed(stream) + s.close(), s


def same(pieces: Sequence[bytes], strip: bool) -> list[tuple[Any, ...]]:
    native = log(Native, pieces, strip)
    assert native == log(Twin, pieces, strip), (pieces, strip)
    for most, hold, late in ((1 << 20, True, len(pieces) % 3), (20, False, 0)):
        assert kept(Native, pieces, most, hold, late) == kept(Twin, pieces, most, hold, late), (pieces, most, hold, late)
    return native


def cut(rng: random.Random, stream: bytes, most: int) -> list[bytes]:
    edges = [0, *sorted(rng.randrange(len(stream) + 1) for _ in range(rng.randrange(most))), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


# ---- what is promised, of both


def test_whole_events_are_handed_on_and_the_rest_is_held_back(scanner: Any) -> None:
    s = scanner(False)
    assert s.feed(ROLE + TEXT[:-1]) == ROLE
    assert not s.saw_content
    assert s.feed(b"\n" + FINISH[:9]) == TEXT
    assert (s.saw_content, s.chunks, s.turned) == (True, 1, False)
    assert s.feed(FINISH[9:] + DONE[:-2]) == FINISH
    assert (s.finish, s.done, s.turned) == ("stop", False, True)
    assert s.close() == DONE
    assert s.done


def test_what_is_handed_on_whole_is_not_copied() -> None:
    if Native is None:
        pytest.skip("the extension is not built")
    s = Native(True)
    for piece in (ROLE, TEXT + TEXT, b": x\n\n" + DONE):
        assert s.feed(piece) is piece


@pytest.mark.parametrize(
    "event, size",
    [
        (TEXT, len('"h\\u00e9llo \\ud83d\\ude00 ü😀"'.encode())),
        (ROLE, 0),
        (FINISH, 0),
        (CALL, len(b'[{"index":0,"function":{"name":"f","arguments":"{"}}]')),
        (b'data: {"choices":[{"text":"ab"}]}\n\n', 4),
        (b'data: {"choices":[{"delta":{},"text":"ab"}]}\n\n', 0),
        (b'data: {"choices":[{"delta":null,"text":"ab"}]}\n\n', 4),
        (b'data: {"choices":[{"delta":{"content":"a","content":"bcd"}}]}\n\n', 5),
        (b'data: {"choices":[{"delta":{"content":"a"},"delta":{}}]}\n\n', 0),
        (b'data: {"choices":[{"delta":{"content":"a"}}],"choices":[]}\n\n', 0),
        (b'data: {"choices":[{"delta":{"c\\u006fntent": "a" }}]}\n\n', 3),
        (b'data: {"choices":[{"delta":{"content":[]}}]}\n\n', 0),
        (b'data: {"choices":[{"delta":{"content":{ }}}]}\n\n', 3),
    ],
)
def test_content_is_what_the_answer_says_it_is(scanner: Any, event: bytes, size: int) -> None:
    out, s = whole(scanner, event)
    assert (out, s.content_bytes, s.chunks) == (event, size, int(size > 0))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_end_in_any_of_three_ways(scanner: Any, end: bytes) -> None:
    stream = (LINES + DONE).replace(b"\n", end)
    out, s = whole(scanner, stream)
    # the empty `data` line is noise
    assert out == stream[3:].replace(b"data" + end + end, b"")
    assert (s.chunks, s.finish, s.done, s.broken) == (2, "length", True, "")


@pytest.mark.parametrize("end", [b"\r\n\n", b"\n\r\n", b"\n\r", b"\r\r\n"])
def test_line_ends_may_be_mixed(scanner: Any, end: bytes) -> None:
    stream = TEXT[:-2] + end + DONE[:-2] + end
    for pieces in ([TEXT, stream], [TEXT, *(stream[i : i + 1] for i in range(len(stream)))]):
        s = scanner(False)
        out = b"".join(map(s.feed, pieces)) + s.close()
        assert out.rstrip() == (TEXT + stream).rstrip()  # the LF of a CRLF that was cut in two is no event of its own
        assert (s.done, s.chunks, s.broken) == (True, 2, "")


def test_a_byte_is_not_lost_behind_two_line_ends(scanner: Any) -> None:
    s = scanner(False)
    assert s.feed(TEXT) + s.feed(TEXT + b"\n") + s.feed(DONE) == TEXT + TEXT + b"\n" + DONE


def test_only_the_usage_chunk_is_taken_out(scanner: Any) -> None:
    beside = b'data: {"choices":[{"delta":{}}],"usage":{"prompt_tokens":1}}\n\n'
    null = b'data: {"choices":[],"usage":null}\n\n'
    out, s = whole(scanner, TEXT + beside + null + USAGE + DONE, strip=True)
    assert out == TEXT + beside + null + DONE
    assert s.usage == b'{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}'
    assert whole(scanner, TEXT + USAGE + DONE)[0] == TEXT + USAGE + DONE


def test_an_error_object_ends_the_stream(scanner: Any) -> None:
    out, s = whole(scanner, TEXT + ERROR + TEXT)
    assert (out, s.error, s.error_event, s.broken, s.chunks) == (TEXT, b'{"message":"overloaded","code":529}', ERROR, "", 1)
    assert s.feed(TEXT) == s.close() == b""


@pytest.mark.parametrize(
    "data",
    [
        b"{", b'{"choices":[{"delta":{"content":"lo', b" \x0b\x0c{]", b'{"choices":{}}', b'{"choices":[1]}', b'{"choices":[{"delta":[]}]}',
        b'{"choices":[{"finish_reason":1}]}', b'{"choices":1,"choices":[]}', b'{"x":"\xff"}', b'{"x":"\\ud800"}', b'{"x":01}', b"{}{}", b'{"usage":}',
        b'{"\\x":1}', b'{"choices":[{},]}', b'{"x":\t"\t"}', b'{"choices":[{"finish_reason":5,"finish_reason":null}]}',
    ],
)  # fmt: skip
def test_what_begins_like_a_chunk_and_is_none_breaks_the_stream(scanner: Any, data: bytes) -> None:
    out, s = whole(scanner, TEXT + b"data: " + data + b"\n\n" + FINISH)
    assert (out, s.broken, s.finish) == (TEXT, "chunk", "")


@pytest.mark.parametrize("most", [0, 1, 3])
def test_some_noise_is_left_out(scanner: Any, most: int) -> None:
    s = scanner(False, most)
    assert s.feed((TEXT + b"data: pardon?\n\n") * most) == TEXT * most
    assert s.broken == ""
    assert s.feed(TEXT + b"data: []\n\n" + TEXT) == TEXT
    assert s.broken == "noise"


@pytest.mark.parametrize("over", [False, True])
def test_the_size_of_an_event_is_bounded(scanner: Any, over: bool) -> None:
    comment = b":" + b"x" * (MAX_EVENT_BYTES - 3 + over) + b"\n\n"
    stream = TEXT + comment + DONE
    for pieces in ([stream], [stream[i : i + 65_536] for i in range(0, len(stream), 65_536)], [TEXT, comment, DONE], [TEXT, comment[:-1], b"\n" + DONE]):
        s = scanner(False)
        assert b"".join(map(s.feed, pieces)) == (TEXT if over else stream)
        assert (s.broken, s.done) == (("too_long", False) if over else ("", True))


@pytest.mark.parametrize("opening, inner, closing", [(b"[", b"", b"]"), (b'{"a":', b"1", b"}")])
def test_the_depth_of_a_chunk_is_bounded(scanner: Any, opening: bytes, inner: bytes, closing: bytes) -> None:
    for n, broken in ((MAX_DEPTH - 1, ""), (MAX_DEPTH, "chunk"), (100_000, "chunk")):
        for field in (b"x", b"usage"):
            event = b'data: {"' + field + b'":' + opening * n + inner + closing * n + b"}\n\n"
            assert whole(scanner, event)[1].broken == broken
    wide = b'data: {"x":[' + b'[],"[[[[{{{{",' * 5000 + b"1]}\n\n"
    assert whole(scanner, wide)[0] == wide


def test_the_grammars_vectors_read_right_at_every_split(scanner: Any, shared: Path) -> None:
    """Every event's data becomes a bare string, which is noise: so their number is seen by the noise that is borne."""
    for row in map(json.loads, (shared / "data/sse/sse_vectors.jsonl").read_text().splitlines()):
        raw = base64.b64decode(row["raw_b64"])
        if row["events"] is None or not all(data and data[0] not in "{[" for data in row["events"]):
            continue
        for i in range(len(raw) + 1) if len(raw) < 500 else (0, 1, len(raw) // 2, len(raw) - 1):
            for most, broken in ((len(row["events"]), ""), (len(row["events"]) - 1, "noise")):
                if most >= 0:
                    s = scanner(False, most)
                    s.feed(raw[:i])
                    s.feed(raw[i:])
                    assert s.broken == broken, row["name"]


# ---- what is kept of it


def test_the_text_of_the_first_choice_is_kept(scanner: Any) -> None:
    s = scanner(False, 3, 1000)
    assert s.feed(ROLE + TEXT + FINISH + USAGE + DONE) == ROLE + TEXT + FINISH + USAGE + DONE
    assert (s.text, s.kinds) == ("h\u00e9llo 😀 ü😀", 0)
    assert scanner(False).text == ""


def test_the_text_that_is_kept_is_bounded(scanner: Any) -> None:
    size = len("héllo 😀 ü😀".encode())
    for most, text, kinds in ((2 * size, 2 * "héllo 😀 ü😀", 0), (2 * size - 1, "", OVER)):
        s = scanner(False, 3, most)
        assert s.feed(TEXT + TEXT) == TEXT + TEXT
        assert (s.text, s.kinds) == (text, kinds)
    s.feed(TEXT)
    assert s.text == ""


@pytest.mark.parametrize(
    "choices, text, kinds",
    [
        (b'{"text":"ab"}', "ab", 0),
        (b'{"delta":{"content":"a","reasoning":"b"}}', "a", REASONING),
        (b'{"delta":{"reasoning_content":"b"}}', "", REASONING),
        (b'{"delta":{"reasoning_details":[{"signature" : "x"}]}}', "", SIGNED),
        (b'{"delta":{"reasoning_details":[{"type":"reasoning.encrypted"}]}}', "", SIGNED),
        (b'{"delta":{"reasoning_details":[{"signature":null,"text":"\\"signature"}]}}', "", REASONING),
        (b'{"delta":{"refusal":"no"}}', "", REFUSAL),
        (b'{"delta":{"tool_calls":[{"index":0}]}}', "", CALLS),
        (b'{"delta":{"tool_calls":[],"function_call":null,"audio":{}}}', "", 0),
        (b'{"delta":{"function_call":{"name":"f"}}}', "", OTHER),
        (b'{"delta":{"content":[{"type":"text"}]}}', "", OTHER),
        (b'{"delta":{"content":"a"},"logprobs":{"content":[]}}', "a", LOGPROBS),
        (b'{"delta":{"content":"a"},"logprobs":null}', "a", 0),
        (b'{"index":1,"delta":{"content":"a"}}', "", OTHER_CHOICE),
        (b'{"index":1,"delta":{}}', "", 0),
        (b'{"index":1,"delta":{},"finish_reason":"stop"}', "", OTHER_CHOICE),
        (b'{"index":0,"delta":{"content":"a"}},{"index":1,"delta":{"content":"b"}}', "a", OTHER_CHOICE),
        (b'{"delta":{"content":"a"}},{"delta":{"content":"b"}}', "a", OTHER_CHOICE),
        (b'{"index":"x","delta":{"content":"a"}}', "", OTHER_CHOICE),
    ],
)
def test_what_else_there_was_is_noted(scanner: Any, choices: bytes, text: str, kinds: int) -> None:
    event = b'data: {"choices":[' + choices + b"]}\n\n"
    s = scanner(False, 3, 1000)
    assert s.feed(event) == event
    assert (s.text, s.kinds) == (text, kinds)


def test_it_stops_in_front_of_a_tool_call(scanner: Any) -> None:
    s = scanner(False, 3, 1000, True)
    assert s.feed(TEXT + CALL + TEXT) == TEXT
    assert (s.stopped, s.turned, s.chunks, s.kinds) == (True, True, 1, 0)
    assert s.feed(FINISH[:9]) == s.feed(FINISH[9:]) == s.close() == b""
    assert s.finish == ""
    assert s.resume() == CALL + TEXT + FINISH
    assert (s.stopped, s.chunks, s.kinds, s.finish) == (False, 3, CALLS, "stop")
    assert s.feed(CALL + DONE) == CALL + DONE
    assert s.resume() == b""


# ---- usage


def usages() -> Iterator[bytes]:
    rng = random.Random(11)
    numbers = [b"0", b"7", b"-1", b"-0", b"1.5", b"1e3", b"100000000", b"100000000.5", b"100000001", b"1e400", b"-1e400", b"9" * 30, b"9" * 400]
    numbers += [b"9" * 4300, b"9" * 4301, b"-" + b"9" * 4299, b"-" + b"9" * 4300, b"0e999", b"null", b'"7"', b"true", b"[]", b"{}", b'{"cached_tokens":2}', b'{"reasoning_tokens":"x"}']
    details = [b'{"cached_tokens":%s}', b'{"cache_write_tokens":%s,"x":[]}', b'{"audio_tokens":%s}', b'{"reasoning_tokens":%s}', b'{"x":%s}', b"%s"]
    names = [n.encode() for n in twin_answer._Usage.__struct_fields__] + [b"x", b"prompt\\u005ftokens"]
    for name, number in itertools.product(names, numbers):
        yield b'{"prompt_tokens":5,"%s":%s}' % (name, number)
        yield b'{"%s":%s}' % (name, number)
    for _ in range(4000):
        fields = []
        for _ in range(rng.randrange(6)):
            name, number = rng.choice(names), rng.choice(numbers[:10] if rng.random() < 0.8 else numbers)
            fields.append(b'"%s" : %s' % (name, rng.choice(details) % number if b"details" in name else number))
        yield b"{" + b",".join(fields) + b"}"
    yield from (b"7", b"[1]", b'"x"', b"true", b"{ }", b"-1e999")


def test_the_usage_that_is_kept_is_the_last_that_makes_sense(scanner: Any) -> None:
    kept = 0
    for raw in usages():
        _, s = whole(scanner, b'data: {"choices":[],"usage":' + raw + b"}\n\n")
        sound = answer.usage_of(raw) is not None
        assert (s.usage, s.broken) == (raw if sound else None, ""), raw
        kept += sound
    assert kept > 500
    _, s = whole(scanner, USAGE + b'data: {"usage":{"prompt_tokens":-1}}\n\n')
    assert s.usage is not None


# ---- native against twin


@needs_both
def test_both_say_the_same_of_the_shared_streams(shared: Path) -> None:
    rng = random.Random(1)
    rows = [json.loads(line) for line in (shared / "data/sse/sse_vectors.jsonl").read_text().splitlines()]
    rows += [json.loads(line) for line in (shared / "data/sse/llm_stream_damage.jsonl").read_text().splitlines()]
    for row in rows:
        pieces = [base64.b64decode(c) for c in row.get("chunks_b64") or [row["raw_b64"]]]
        stream = b"".join(pieces)
        for strip in (False, True):
            same(pieces, strip)
            same([stream], strip)
            for _ in range(20):
                same(cut(rng, stream, 12), strip)
            if len(stream) < 1500:
                for i in range(len(stream)):
                    same([stream[:i], stream[i:]], strip)
                same([stream[i : i + 1] for i in range(len(stream))], strip)


def recorded(shared: Path) -> list[bytes]:
    found = []
    with gzip.open(shared / "data/recordings/dev_core.jsonl.gz", "rt", encoding="utf-8") as file:
        for record in map(json.loads, file):
            reply = record["response"]
            body = base64.b64decode(reply["body_b64"]) if "body_b64" in reply else reply.get("body", "").encode()
            if record["stream"] and b"data:" in body:
                found.append(body)
    return found


@needs_both
def test_both_say_the_same_of_recorded_streams(shared: Path) -> None:
    rng = random.Random(2)
    seen: Counter[Any] = Counter()
    for stream in recorded(shared):
        for strip in (False, True):
            last = same([stream], strip)[-1]
            for most in (3, 30, min(len(stream), 400)):
                assert same(cut(rng, stream, most + 1), strip)[-1][1:] == last[1:]
            for name, mark in zip(("content", "finish", "usage", "done", "error", "broken"), (last[1], last[4], last[5], last[6], last[7], last[9]), strict=True):
                seen[name] += bool(mark)
    assert min(seen[name] for name in ("content", "finish", "usage", "done")) > 100, seen


@needs_both
def test_both_say_the_same_at_every_split() -> None:
    for end in (b"\n", b"\r\n", b"\r"):
        for stream in (ROLE + TEXT + b": ping\n\n" + FINISH + USAGE + DONE, LINES + CALL + USAGE + DONE, TEXT + ERROR + DONE, TEXT + CALL[:60] + b"\n\n" + DONE):
            stream = stream.replace(b"\n", end)
            last = same([stream], True)[-1]
            for i in range(len(stream) + 1):
                # A CRLF cut in two ends one event and begins the next, so the bytes of the error event may differ by that LF.
                got = same([stream[:i], stream[i:]], True)[-1]
                assert (got[:8], got[9:]) == (last[:8], last[9:])
            same([stream[i : i + 1] for i in range(len(stream))], False)


SEEDS = [
    ROLE + TEXT + TEXT + FINISH + USAGE + DONE,
    ROLE.replace(b"\n", b"\r\n") + TEXT.replace(b"\n", b"\r\n") + CALL + ERROR,
    LINES + USAGE.replace(b"\n", b"\r") + FINISH + DONE,
    (TEXT + b"data: noise\n\n") * 4 + FINISH + DONE,
    b'data:{"choices":[{"delta":{"reasoning":"a","refusal":null},"finish_reason":"st\\u006fp"}, {"delta":null,"text":"x"} ] , "usage" : {"total_tokens":3}}\n\n',
    b'data: {"choices":null,"usage":{"prompt_tokens":1.5,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}},"error":null}\n\n' + DONE,
]
PIECES = [
    b"\n", b"\r", b"\r\n", b"\n\n", b"\n\r", b"data:", b"data: ", b"data", b": x", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b" ", b"\t", b"0", b"-",
    b".", b"e5", b"\\u", b"\\ud800", b"\\udc00", b"\xc3", b"\xff", b"\0", b"\x0b", b"true", b"null", b"[DONE]", b"\xef\xbb\xbf", b'"delta":{},',
    b'"choices":[],', b'"usage":{"prompt_tokens":2},', b'"error":{},', b'"error":1,', b'"finish_reason":"x",', b'"content":"y",', b"1", b'""', b"{}",
    b'"index":1,', b'"logprobs":{"a":1},', CALL, b'"tool_calls":[1],', b'"reasoning_details":["signature"],', b'"reasoning_details":[{"signature":""}],', b'"refusal":"r",', b"[]", DONE, USAGE, ERROR, TEXT, b"data: noise\n\n", b"data: noise\n\n" * 4, b"[" * 130,
]  # fmt: skip


def mutated(rng: random.Random) -> bytes:
    stream = bytearray(rng.choice(SEEDS))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        at = rng.randrange(len(stream) + 1)
        match rng.randrange(9):
            case 0:
                del stream[at : at + rng.choice((1, 1, 2, 8, 40))]
            case 1 | 2:
                stream[at:at] = rng.choice(PIECES)
            case 3:
                stream[at : at + 1] = rng.choice(PIECES)
            case 4:
                stream[at:at] = stream[rng.randrange(len(stream) + 1) :][: rng.randrange(80)]
            case 5:
                stream[at : at + 1] = bytes((rng.randrange(256),))
            case 6:
                del stream[at:]
            case _:  # a field, or another line end
                places = [i for i, c in enumerate(stream) if c in b"{\n"] or [0]
                at = rng.choice(places) + 1
                stream[at:at] = rng.choice(PIECES[34:42] if stream[at - 1 : at] == b"{" else PIECES[:5])
    return bytes(stream)


@needs_both
def test_both_say_the_same_of_20_000_mutations() -> None:
    rng = random.Random(20_260_702)
    seen: Counter[str] = Counter()
    for _ in range(20_000):
        events = same(cut(rng, mutated(rng), 8), rng.random() < 0.5)
        last = events[-1]
        seen[last[9] or ("error" if last[7] is not None else "good")] += 1
        seen["said something"] += bool(passed(events))
    print(seen)
    assert min(seen[name] for name in ("good", "chunk", "noise", "error", "said something")) > 300, seen
