"""What we read of answers: usage, finish reasons, errors. Streams are read by `native.StreamScanner`."""

import msgspec

from ..exchange import Usage

MOST_TOKENS = 100_000_000  # more than any model can take; a larger number is a provider's mistake, not a bill

_EMPTY = frozenset((b"", b"null", b'""', b"[]", b"{}"))
_NONE = msgspec.Raw(b"")


class Choice(msgspec.Struct):
    finish_reason: str | None = None


class Answer(msgspec.Struct):
    choices: list[Choice] | None = None
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


decode_answer = msgspec.json.Decoder(Answer).decode
_decode_usage = msgspec.json.Decoder(_Usage).decode


def is_set(raw: msgspec.Raw) -> bool:
    """Whether a field is there and not null or empty."""
    return bytes(raw) not in _EMPTY


def usage_of(raw: msgspec.Raw) -> Usage | None:
    """Tokens in OpenAI's meaning; None where there is none or it makes no sense (negative, huge, not a number)."""
    if not is_set(raw):
        return None
    try:
        u = _decode_usage(raw)
    except msgspec.DecodeError:
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
    return Usage(prompt, completion, cached, min(written, prompt - cached), min(reasoning, completion))


def _count(n: Count) -> int | None:
    return int(n) if n is not None and 0 <= n <= MOST_TOKENS else None
