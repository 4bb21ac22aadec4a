"""What a plain answer says of itself: its finish reason, an error object, its usage. Twin of `native/src/kernels/answer.rs`."""

import re

import msgspec

MAX_DEPTH = 128  # a bound of our own: where msgspec stops depends on how deep Python's stack is
MOST_TOKENS = 100_000_000  # more than any model can take; a larger number is a provider's mistake, not a bill

Tokens = tuple[int, int, int, int, int]  # prompt, completion, cached, written to the cache, reasoning

_EMPTY = frozenset((b"", b"null", b'""', b"[]", b"{}"))
_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]|[\]}]', re.DOTALL)
_NONE = msgspec.Raw(b"")


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _NONE
    error: msgspec.Raw = _NONE


Count = int | float | None


class _PromptDetails(msgspec.Struct):
    cached_tokens: Count = None
    cache_write_tokens: Count = None
    audio_tokens: Count = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: Count = None


class _Usage(msgspec.Struct):
    prompt_tokens: Count = None
    completion_tokens: Count = None
    total_tokens: Count = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    # Cached ones, as DeepSeek, Moonshot and Together, and Mistral call them.
    prompt_cache_hit_tokens: Count = None
    cached_tokens: Count = None
    num_cached_tokens: Count = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_usage = msgspec.json.Decoder(_Usage).decode


def read_answer(body: bytes) -> tuple[str | None, bytes, Tokens | None]:
    """`(finish_reason of the first choice or None, the error object or b"" if there are choices, its tokens or None)` of a
    plain answer. Tokens are prompt, completion, cached, written to the cache and reasoning ones, in OpenAI's meaning;
    None if they are not there or make no sense. Raises `ValueError(what)` for what is not one JSON object in UTF-8 or
    has fields of other types.
    """
    try:
        body.decode()
        answer = _decode_answer(body)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except (msgspec.DecodeError, RecursionError):
        raise ValueError("malformed") from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _depth(body) > MAX_DEPTH:
        raise ValueError("nested too deeply")
    finish = answer.choices[0].finish_reason if answer.choices else None
    error = bytes(answer.error)
    return finish, b"" if error in _EMPTY or answer.choices else error, read_usage(bytes(answer.usage))


def read_usage(usage: bytes) -> Tokens | None:
    """The tokens that a `usage` object tells of, as in `read_answer`."""
    if usage in _EMPTY:
        return None
    try:
        u = _decode_usage(usage)
    except (msgspec.DecodeError, RecursionError):
        return None
    prompt, completion, total = _count(u.prompt_tokens), _count(u.completion_tokens), _count(u.total_tokens)
    p, c = u.prompt_tokens_details, u.completion_tokens_details
    if completion is None:
        # Not said is not the same as nonsense: embeddings have no completion.
        if u.completion_tokens is not None:
            return None
        completion = max(0, total - prompt) if total is not None and prompt is not None else 0
    if prompt is None:
        if u.prompt_tokens is not None or total is None:  # Voyage gives the total only
            return None
        prompt = max(0, total - completion)
    reasoning = (_count(c.reasoning_tokens) or 0) if c else 0
    if total is not None and (apart := total - prompt - completion) > 0:
        if apart == reasoning:  # xAI counts thinking apart from the answer,
            completion += apart
        elif p and apart == p.audio_tokens:  # Mistral audio apart from the prompt
            prompt += apart
    cached = _count(p.cached_tokens) if p else None
    if cached is None:
        cached = _count(u.prompt_cache_hit_tokens) or _count(u.cached_tokens) or _count(u.num_cached_tokens) or 0
    cached = min(cached, prompt)
    written = (_count(p.cache_write_tokens) or 0) if p else 0
    return prompt, completion, cached, min(written, prompt - cached), min(reasoning, completion)


def _count(n: Count) -> int | None:
    return int(n) if n is not None and 0 <= n <= MOST_TOKENS else None


def _depth(data: bytes) -> int:
    """How deep a JSON text is nested, one that is known to be valid."""
    depth = deepest = 0
    for found in _BRACKET.finditer(data):
        if found[0] in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
        elif found[0] in (b"]", b"}"):
            depth -= 1
    return deepest
