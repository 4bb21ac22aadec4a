"""The ledger's rows of requests, from their records. Twin of `native/src/kernels/rows.rs`."""

from typing import Any

import msgspec

from ..clock import stamp

# Fields of a record (telemetry/record.py), their number, and the places of those that are looked at.
FIELDS = 41
ROUTE, KEY, TENANT, FAULT, TRACE_ID = 2, 3, 5, 6, 11
ID, WALL, STARTED, ENDED, STREAM, STATUS, CACHE = range(13, 20)
SESSION, ATTEMPTS, SAVED = 33, 38, 40
OFF = "bypass;off"  # the cache outcome of a route that has none

Days = list[tuple[str, bytes]]  # a UTC day and its rows

_decode = msgspec.msgpack.Decoder(list[Any]).decode
_encode = msgspec.json.Encoder().encode


def ledger_batch(data: bytes, most: int, everything: bool) -> tuple[Days, list[bytes], int, int, int, int]:
    """The ledger's rows of the requests whose records lie in `data`, a piece of a worker's ring: each is 4 bytes of length
    (little-endian) and so many bytes. At most `most` are taken, as many as lie there whole.

    Returns, per UTC day (`YYYY-MM-DD`) in which a request with rows came in, its rows as JSON lines (account/ledger.py
    has their fields), in the order of the records and in each of the attempts, or one row where the cache answered; the
    records that are of interest to others than the ledger: with `everything` all, else those of what did not go well at
    once or is traced; how many records were taken; how many of them were none (they are in none of the former); how many
    bytes they took; and the bytes of the next, length and all, which is not whole (4: not even its length is), or 0
    where `most` were taken.
    """
    days: dict[str, list[bytes]] = {}
    others: list[bytes] = []
    records = bad = used = 0
    while records < most:
        stop = used + 4
        if stop <= len(data):
            stop += int.from_bytes(data[used:stop], "little")
        if stop > len(data):
            return _joined(days), others, records, bad, used, stop - used
        record, used = data[used + 4 : stop], stop
        records += 1
        try:
            day, lines, plain = _request(record)
        except Exception:  # whatever a worker of another version, or a damaged ring, has left there
            bad += 1
            continue
        if lines:
            days.setdefault(day, []).extend(lines)
        if everything or not plain:
            others.append(record)
    return _joined(days), others, records, bad, used, 0


def _joined(days: dict[str, list[bytes]]) -> Days:
    return [(day, b"".join(lines)) for day, lines in days.items()]


def _request(record: bytes) -> tuple[str, list[bytes], bool]:
    """The day of one request, its rows, and whether it went well at once and is not traced."""
    f = _decode(record)
    if len(f) < FIELDS:
        raise ValueError("not a record")
    ts = stamp(f[WALL])
    lines = [_encode(row) + b"\n" for row in _rows(f, ts)]
    plain = not f[FAULT] and f[STATUS] < 400 and not f[TRACE_ID] and not any(a[9] for a in f[ATTEMPTS])
    return ts[:10], lines, plain


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
