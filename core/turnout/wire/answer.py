"""What we read of answers: usage, finish reasons, errors. Streams are read by `native.StreamScanner`."""

from .. import native
from ..exchange import Usage


def read_answer(body: bytes) -> tuple[str | None, bytes, Usage | None]:
    """Finish reason, error object and usage of a plain answer (see twin/answer.py). Raises ValueError for half a body."""
    finish, error, tokens = native.read_answer(body)
    return finish, error, None if tokens is None else Usage(*tokens)


def usage_of(raw: bytes) -> Usage | None:
    """Tokens in OpenAI's meaning; None where there is none or it makes no sense (negative, huge, not a number)."""
    tokens = native.read_usage(raw)
    return None if tokens is None else Usage(*tokens)
