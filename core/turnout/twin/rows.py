"""The ledger's rows of a request, from its record. Twin of `native/src/kernels/rows.rs`."""

from typing import Any

import msgspec

from ..clock import stamp

# Fields of a record (telemetry/record.py), their number, and the places of those that are looked at.
FIELDS = 41
ROUTE, KEY, TENANT, FAULT, TRACE_ID = 2, 3, 5, 6, 11
ID, WALL, STARTED, ENDED, STREAM, STATUS, CACHE = range(13, 20)
SESSION, ATTEMPTS, SAVED = 33, 38, 40
OFF = "bypass;off"  # the cache outcome of a route that has none

_decode = msgspec.msgpack.Decoder(list[Any]).decode
_encode = msgspec.json.Encoder().encode


def ledger_rows(record: bytes) -> tuple[str, bytes, int, bool]:
    """The ledger's rows of one request, from its record as a worker leaves it in the ring.

    Returns the UTC day of the request (`YYYY-MM-DD`), the rows as JSON lines (account/ledger.py has their fields) in the
    order of the attempts or, where the cache answered, one; how many they are; and whether nothing about the request is
    of interest to anybody else: it went well at once and is not traced. Raises ValueError for what is no record.
    """
    try:
        f = _decode(record)
        if len(f) < FIELDS:
            raise ValueError("not a record")
        ts = stamp(f[WALL])
        rows = _rows(f, ts)
    except (msgspec.DecodeError, TypeError, IndexError) as wrong:
        raise ValueError("not a record") from wrong
    plain = not f[FAULT] and f[STATUS] < 400 and not f[TRACE_ID] and not any(a[9] for a in f[ATTEMPTS])
    return ts[:10], b"".join([_encode(row) + b"\n" for row in rows]), len(rows), plain


def _rows(f: list[Any], ts: str) -> list[dict[str, Any]]:
    attempts, fault, started, ended = f[ATTEMPTS], f[FAULT], f[STARTED], f[ENDED]
    cache = "" if f[CACHE] == OFF else f[CACHE]
    if not attempts:
        if f[SAVED] is None:
            return []
        provider, model, saved_nanos = f[SAVED]
        row = _row(f, ts, 0, "cache", (provider, "", model), 0, "", None)
        times = {"started_ms": 0.0, "took_ms": _ms(ended - started), "ttft_ms": None, "served": not fault}
        return [{**row, "cost_nanos": 0, "priced": True, "cache": cache, "saved_nanos": saved_nanos, **times}]
    winner = _served(attempts, fault)
    out = []
    for i, attempt in enumerate(attempts):
        provider, account, model, cause, began, over, _, first, status, reason, usage, cost_nanos, priced = attempt
        row = _row(f, ts, i + 1, cause, (provider, account, model), status, reason, usage)
        times = {
            "started_ms": _ms(began - started),
            "took_ms": _ms((over or ended) - began),
            "ttft_ms": _ms(first - began) if first else None,
            "served": i == winner,
        }
        out.append({**row, "cost_nanos": cost_nanos, "priced": priced, "cache": cache, "saved_nanos": 0, **times})
    return out


def _row(
    f: list[Any], ts: str, n: int, cause: str, who: tuple[str, str, str], status: int, reason: str, usage: Any
) -> dict[str, Any]:
    """A row up to its tokens."""
    prompt, completion, cached, written, reasoning, estimated = usage or (0, 0, 0, 0, 0, False)
    provider, account, model = who
    return {
        "ts": ts,
        "request_id": f[ID],
        "attempt": n,
        "cause": cause,
        "route": f[ROUTE],
        "key": f[KEY],
        "tenant": f[TENANT],
        "session": f[SESSION],
        "provider": provider,
        "account": account,
        "model": model,
        "stream": f[STREAM],
        "status": status,
        "reason": reason,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "cached_tokens": cached,
        "cache_write_tokens": written,
        "reasoning_tokens": reasoning,
        "estimated": estimated,
    }


def _served(attempts: list[Any], fault: str) -> int:
    """Index of the attempt whose answer the client got, -1 if it got none (or only the beginning of one).

    A provider's refusal that is handed on word for word is an answer too.
    """
    last = len(attempts) - 1
    if fault == "refused":
        return last
    if fault and fault != "client_gone":
        return -1
    while last >= 0 and attempts[last][9]:
        last -= 1
    return last


def _ms(ns: int) -> float:
    """Nanoseconds as milliseconds, to the microsecond."""
    return (ns + 500) // 1000 / 1000
