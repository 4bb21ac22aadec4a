"""The only importer of `_native`: native where it is built and TURNOUT_PURE is unset, else the twin, name by name."""

import os
from typing import Any

from .twin import sse as _bits

missing = ""  # why the native kernels are not used; empty when they are
try:
    if os.environ.get("TURNOUT_PURE"):
        raise ImportError("TURNOUT_PURE is set")
    from . import _native as _source

    _built: Any = _source
except ModuleNotFoundError:
    _built = None
    missing = "the extension was not built (no cargo at install time?)"
except ImportError as exc:  # switched off; or it is there and does not load: of another Python, without its memory
    _built = None
    missing = str(exc)

if _built is not None:
    Counters: Any = _built.Counters
    FieldScanner: Any = _built.FieldScanner
    HeadReader: Any = _built.HeadReader
    KeyTable: Any = _built.KeyTable
    Lexicon: Any = _built.Lexicon
    Said: Any = _built.Said
    StreamScanner: Any = _built.StreamScanner
    Tally: Any = _built.Tally
    Verifier: Any = _built.Verifier
    canonical: Any = _built.canonical
    ledger_batch: Any = _built.ledger_batch
    nearest_rows: Any = _built.nearest_rows
    read_answer: Any = _built.read_answer
    read_usage: Any = _built.read_usage
    row_of: Any = _built.row_of
else:
    from .twin.answer import read_answer, read_usage  # noqa: F401
    from .twin.canonical import canonical  # noqa: F401
    from .twin.counters import Counters  # noqa: F401
    from .twin.head import HeadReader  # noqa: F401
    from .twin.keys import KeyTable  # noqa: F401
    from .twin.meaning import Lexicon, Said, Verifier  # noqa: F401
    from .twin.near import nearest_rows, row_of  # noqa: F401
    from .twin.rows import ledger_batch  # noqa: F401
    from .twin.scan import FieldScanner  # noqa: F401
    from .twin.sse import StreamScanner  # noqa: F401
    from .twin.tally import Tally  # noqa: F401

# Whether processes may count in the same memory: the twin's operations are whole within one process only.
shares = _built is not None
# The bits of `StreamScanner.kinds`, the same in both.
CALLS, LOGPROBS, OTHER, OTHER_CHOICE, OVER, REASONING, REFUSAL, SIGNED = (
    _bits.CALLS,
    _bits.LOGPROBS,
    _bits.OTHER,
    _bits.OTHER_CHOICE,
    _bits.OVER,
    _bits.REASONING,
    _bits.REFUSAL,
    _bits.SIGNED,
)

# The server engine: a type where the extension is built, else None. It has no twin; granian serves instead.
Engine: Any = getattr(_built, "Engine", None)
# Of its upstream side: the heads of requests, and the authorities that upstreams are checked against.
Head: Any = getattr(_built, "Head", None)
Trust: Any = getattr(_built, "Trust", None)
