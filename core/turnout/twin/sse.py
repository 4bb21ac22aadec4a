"""What is read of a chat or completions stream while it passes. Twin of `native/src/kernels/sse.rs`.

Source of the events: WHATWG HTML, 9.2.6 "Interpreting an event stream".
"""

import re

import msgspec

from .answer import MAX_DEPTH, _depth, read_usage

MAX_EVENT_BYTES = 1024 * 1024  # an event over this is no chat chunk: the stream is treated as broken

# An event ends at an empty line; a line ends in LF, CRLF or CR.
# The group is atomic, or CRLF would pass for two line ends.
_END = re.compile(rb"(?>\r\n|\n|\r)(?:\r\n|\n|\r)")
_LINE = re.compile(rb"\r\n|\n|\r")
_SIGNED = re.compile(rb'"signature"[ \n\t\r]*:[ \n\t\r]*"|reasoning\.encrypted')
_BOM = b"\xef\xbb\xbf"
_EMPTY = frozenset((b"", b"null", b'""', b"[]", b"{}"))
_NONE = msgspec.Raw(b"")

# The bits of `kinds`: what a stream carried beside the text of its first choice.
CALLS = 1
REASONING = 2
REFUSAL = 4
LOGPROBS = 8
OTHER_CHOICE = 16
OTHER = 32  # audio, a call of the old shape, content that is not text
OVER = 64  # the text is over the bound and was let go
SIGNED = 128  # reasoning in blocks that are signed or encrypted


class StreamScanner:
    """Reads a stream of chat or completions chunks while it passes.

    `StreamScanner(strip_usage, most_noise)`: with `strip_usage` a chunk that carries usage and no choices is left out,
    as are up to `most_noise` data lines that do not even begin like a chunk. `feed(data)` returns what may be handed on:
    whole events only, and nothing from a broken chunk on. `close()` returns what is left when the stream has ended: a
    last event without its empty line still counts. Neither raises, whatever the bytes. The attributes say what was seen
    so far: choices that carried content and its bytes, the last finish_reason, the last usage that makes sense and an
    in-band error (both as JSON), `[DONE]`, and why the stream is broken ("", "chunk", "noise" or "too_long").

    With `most_text` the text of the first choice is kept up to so many bytes of UTF-8, and `kinds` has a bit for
    whatever else there was (`turnout/twin/sse.py` names them). With `hold_calls` too the scanner stops in front of the
    first tool call: `stopped` is set, and it and all behind it are kept until `resume()`, which returns what may be
    handed on of that.
    """

    def __init__(self, strip_usage: bool, most_noise: int = 3, most_text: int = 0, hold_calls: bool = False) -> None:
        self._strip = strip_usage
        self._most_text = most_text
        self._hold = hold_calls
        self._text: list[str] = []
        self._text_bytes = 0
        self._kinds = 0
        self._stopped = False
        self._most_noise = most_noise
        self._noise = 0
        self._started = False
        self._tail = bytearray()
        self._searched = 0
        self._chunks = 0
        self._content_bytes = 0
        self._finish = ""
        self._usage: bytes | None = None
        self._done = False
        self._error: bytes | None = None
        self._error_event = b""
        self._broken = ""

    def feed(self, data: bytes) -> bytes:
        if self._over():
            return b""
        if self._stopped:
            self._tail += data
            return b""
        whole = self._started and not self._tail and data.endswith(b"\n\n") and b"\r" not in data
        too_long = False
        if whole and len(data) <= MAX_EVENT_BYTES and data.find(b"\n\n") == len(data) - 2:
            events = [data]  # the common case: one whole event in one read
        else:
            events, too_long = self._split(data)
        passed: list[bytes] = []
        for i, event in enumerate(events):
            if self._read(event):
                passed.append(event)
            elif self._stopped:
                self._tail[:0] = b"".join(events[i:])
                self._searched = 0
                break
            elif self._over():
                break
        if too_long and not self._over() and not self._stopped:
            self._broken = "too_long"
        if self._over():
            self._tail.clear()
        return passed[0] if len(passed) == 1 else b"".join(passed)

    def resume(self) -> bytes:
        self._hold = False
        if not self._stopped:
            return b""
        self._stopped = False
        self._searched = 0
        return self.feed(b"")

    def close(self) -> bytes:
        if self._stopped:
            return b""
        tail = bytes(self._tail)
        self._tail.clear()
        self._searched = 0
        if self._over() or not tail.strip():
            return b""
        event = tail.rstrip(b"\r\n") + b"\n\n"
        if self._read(event):
            return event
        if self._stopped:
            self._tail += event
        return b""

    @property
    def chunks(self) -> int:
        return self._chunks

    @property
    def content_bytes(self) -> int:
        return self._content_bytes

    @property
    def saw_content(self) -> bool:
        return self._chunks > 0

    @property
    def finish(self) -> str:
        return self._finish

    @property
    def usage(self) -> bytes | None:
        return self._usage

    @property
    def done(self) -> bool:
        return self._done

    @property
    def error(self) -> bytes | None:
        return self._error

    @property
    def error_event(self) -> bytes:
        return self._error_event

    @property
    def broken(self) -> str:
        return self._broken

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def kinds(self) -> int:
        return self._kinds

    @property
    def stopped(self) -> bool:
        return self._stopped

    @property
    def turned(self) -> bool:
        """Whether more than content has passed: a finish, `[DONE]`, an error, a break, or a tool call that is held."""
        return self._done or bool(self._finish) or self._stopped or self._over()

    def _over(self) -> bool:
        return bool(self._broken) or self._error is not None

    def _split(self, data: bytes) -> tuple[list[bytes], bool]:
        """The events that are now whole, each with its closing empty line, and whether one over the limit follows."""
        tail = self._tail
        tail += data
        out: list[bytes] = []
        if not self._started:
            # A byte order mark in front is dropped: the grammar ignores it, but several SDKs fail on it.
            if len(tail) < 3 and _BOM.startswith(tail):
                return out, False
            if tail.startswith(_BOM):
                del tail[:3]
            self._started = True
        at = 0
        search = self._searched
        while found := _END.search(tail, search):
            if found.end() - at > MAX_EVENT_BYTES:
                del tail[:at]
                return out, True
            out.append(bytes(tail[at : found.end()]))
            at = search = found.end()
        del tail[:at]
        self._searched = max(0, len(tail) - 3)
        return out, len(tail) > MAX_EVENT_BYTES

    def _read(self, event: bytes) -> bool:
        """Whether it may be handed on."""
        data = _data_of(event)
        if data is None:
            return True
        if data == b"[DONE]":
            self._done = True
            return True
        try:
            if not data.isascii():
                data.decode()  # msgspec does not look into what it leaves raw, and SDKs die of bytes that are not UTF-8
            chunk = _decode_chunk(data)
            brackets = data.count(b"[") + data.count(b"{") if len(data) > 2 * MAX_DEPTH else 0
            if brackets > MAX_DEPTH and _depth(data) > MAX_DEPTH:
                raise RecursionError
        except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
            # What begins like a chunk but does not parse may have carried text: the stream is broken there.
            if data.lstrip()[:1] == b"{":
                self._broken = "chunk"
                return False
            self._noise += 1
            if self._noise > self._most_noise:
                self._broken = "noise"
            return False
        if self._most_text and not self._keep(chunk.choices or []):
            return False
        for choice in chunk.choices or ():
            if choice.finish_reason:
                self._finish = choice.finish_reason
            size = _content_bytes(choice)
            if size:
                self._content_bytes += size
                self._chunks += 1
        if chunk.usage and bytes(chunk.usage) not in _EMPTY:
            if read_usage(bytes(chunk.usage)) is not None:
                self._usage = bytes(chunk.usage)
            if self._strip and not chunk.choices:
                return False
        if chunk.error and bytes(chunk.error) not in _EMPTY:
            self._error = bytes(chunk.error)
            self._error_event = event
            return False
        return True

    def _keep(self, choices: list["_Choice"]) -> bool:
        """Keep the text and note what else there is. False: a tool call is next, and those are held."""
        kinds = 0
        text = None
        for i, choice in enumerate(choices):
            index = bytes(choice.index)
            said, more = _said(choice)
            kinds |= more
            if bytes(choice.logprobs) not in _EMPTY:
                kinds |= LOGPROBS
            if index == b"0" or (i == 0 and index in (b"", b"null")):
                text = said
            elif choice.finish_reason or _content_bytes(choice):
                kinds |= OTHER_CHOICE
        if self._hold and kinds & CALLS:
            self._stopped = True
            return False
        self._kinds |= kinds
        if text and not self._kinds & OVER:
            self._text.append(text)
            self._text_bytes += len(text.encode())
            if self._text_bytes > self._most_text:
                self._kinds |= OVER
                self._text.clear()
        return True


def _data_of(event: bytes) -> bytes | None:
    """The `data` of one event; None if it has no data line (a comment, a lone `event:` line)."""
    short = event.startswith(b"data: ") and event.endswith(b"\n\n") and b"\r" not in event
    if short and event.find(b"\n") == len(event) - 2:
        return event[6:-2]
    found: list[bytes] = []
    for line in _LINE.split(event):
        if line.startswith(b"data"):
            if line[4:5] == b":":
                found.append(line[6:] if line[5:6] == b" " else line[5:])
            elif len(line) == 4:
                found.append(b"")
    return b"\n".join(found) if found else None


class _Delta(msgspec.Struct):
    content: msgspec.Raw = _NONE
    tool_calls: msgspec.Raw = _NONE
    reasoning_content: msgspec.Raw = _NONE
    reasoning: msgspec.Raw = _NONE
    reasoning_details: msgspec.Raw = _NONE
    refusal: msgspec.Raw = _NONE
    function_call: msgspec.Raw = _NONE
    audio: msgspec.Raw = _NONE


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: msgspec.Raw = _NONE
    index: msgspec.Raw = _NONE
    logprobs: msgspec.Raw = _NONE
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _NONE
    error: msgspec.Raw = _NONE


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_str = msgspec.json.Decoder(str).decode
_OTHERS = ("tool_calls", "reasoning_content", "reasoning", "reasoning_details", "refusal", "function_call", "audio")
_BITS = tuple(zip(_OTHERS, (CALLS, REASONING, REASONING, SIGNED, REFUSAL, OTHER, OTHER), strict=True))


def _content_bytes(choice: _Choice) -> int:
    """How many bytes of content a choice carries, JSON spelling and all; 0 for a role or lifecycle frame."""
    d = choice.delta
    if d is None:
        return len(choice.text) if bytes(choice.text) not in _EMPTY else 0
    if bytes(d.content) not in _EMPTY:  # by far the most frequent
        return len(d.content)
    others = (d.tool_calls, d.reasoning_content, d.reasoning, d.reasoning_details, d.refusal, d.function_call, d.audio)
    return next((len(raw) for raw in others if bytes(raw) not in _EMPTY), 0)


def _said(choice: _Choice) -> tuple[str | None, int]:
    """The text of a choice, and bits for what else it carries."""
    d = choice.delta
    raw = bytes(choice.text if d is None else d.content)
    text: str | None = None
    kinds = 0
    if raw not in _EMPTY:
        if raw[:1] == b'"':
            text = _decode_str(raw)
        else:
            kinds = OTHER
    if d is not None:
        for field, bit in _BITS:
            if (raw := bytes(getattr(d, field))) not in _EMPTY:
                kinds |= bit if bit != SIGNED or _SIGNED.search(raw) else REASONING
    return text, kinds
