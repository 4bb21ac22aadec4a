"""The ledger: one row per attempt, and one per answer from the cache, appended to `<state_dir>/ledger/YYYY-MM-DD.jsonl` (UTC day of the request).

It promises that a row once written stays, that a row is a whole line, and that a full disk loses nothing until 16 MiB
wait in memory; then it drops, counts and keeps saying so. A crash of the machine loses at most the last second: rows
are synced once a second. A request that never reached a provider has no row: nobody bills it.

Two failures shape the writing. A write can be short (the disk fills up in mid-line): the rest of the line stays at the
head of the buffer and is written first when there is room again. A process can die there: who opens the file next finds
no line end and writes one, so that a torn line costs itself and not the row after it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ..native import ledger_batch

MOST_WAITING_BYTES = 16 * 1024 * 1024
RETRY_NS = 1_000_000_000  # after a failure, and between two syncs
MOST_IN_HAND = 100_000  # rows among which two of one attempt can stand: far more than any batch of all rings
OPEN_DAYS = 2  # a request that began before midnight ends after it


class Row(msgspec.Struct, kw_only=True, gc=False):
    """One attempt, or an answer that took none (`attempt` 0, cause `cache`: it cost nothing). Money in whole nano-dollars, times in ms, tokens in OpenAI's sense (cached are in prompt)."""

    ts: str  # when the request came in, RFC 3339 UTC
    request_id: str
    attempt: int  # 1 = the first
    cause: str  # first | fallback | retry | cut-over | cache
    route: str = ""
    key: str = ""
    tenant: str = ""
    session: str = ""
    provider: str = ""
    account: str = ""
    model: str = ""
    stream: bool = False
    status: int = 0  # the provider's; 0: it gave none
    reason: str = ""  # empty: it served
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False  # counted by us, the provider gave no number
    cost_nanos: int = 0
    priced: bool = True  # false: no price is known, cost_nanos is not the cost
    cache: str = ""  # the request's outcome, on routes that have one
    saved_nanos: int = 0  # what an upstream call would have cost
    started_ms: float = 0.0  # after `ts`
    took_ms: float = 0.0
    ttft_ms: float | None = None  # from the attempt's start
    served: bool = False  # this attempt's answer is what the client got


class _Day:
    """One day's file: what waits for it, and its descriptor once it is open."""

    __slots__ = ("dirty", "fd", "waiting")

    def __init__(self) -> None:
        self.fd = -1
        self.waiting: list[bytes] = []  # whole lines, but for the first: see above
        self.dirty = False  # written since the last sync


class Ledger:
    """Appends rows; the one writer of its files.

    `error` is empty or says why the last write failed (an `OSError`'s text); it is empty again once a write went
    through. `lost` counts rows that were dropped. Neither is ever raised: the caller looks.
    """

    name = "ledger"

    def __init__(self, state_dir: str | os.PathLike[str], most_bytes: int = MOST_WAITING_BYTES) -> None:
        self.folder = Path(state_dir) / "ledger"
        self.error = ""
        self.lost = 0
        self._most = most_bytes
        self._days: dict[str, _Day] = {}
        self._bytes = 0
        self._retry_ns = 0
        self._sync_ns = 0

    @property
    def waiting_bytes(self) -> int:
        """Bytes in memory that no file has yet."""
        return self._bytes

    def add(self, piece: bytes, most: int, everything: bool) -> tuple[list[bytes], int, int, int, int]:
        """Take the rows of the requests whose records lie in a piece of a ring; they are written with the next `flush`.

        Arguments and results are those of native.ledger_batch, less the rows: the records that are of interest to others,
        how many were taken, how many of these were none, their bytes, and those that the next one has.
        """
        days, *rest = ledger_batch(piece, most, everything)
        for name, lines in days:
            room = self._most - self._bytes
            if len(lines) > room:
                fit = lines.rfind(b"\n", 0, room) + 1
                self.lost += lines.count(b"\n", fit)
                lines = lines[:fit]
            if not lines:
                continue
            day = self._days.get(name)
            if day is None:
                day = self._days[name] = _Day()
            day.waiting.append(lines)
            self._bytes += len(lines)
        return tuple(rest)

    def flush(self, now_ns: int) -> None:
        """Write what waits, one write per day's file; sync once a second. After a failure it tries once a second."""
        if self._bytes and (not self.error or now_ns >= self._retry_ns):
            self._write_all(now_ns)
        if now_ns - self._sync_ns >= RETRY_NS:
            self._sync_ns = now_ns
            self._sync()

    def close(self) -> None:
        """A last try, sync, and close. What no file took by then is lost and counted."""
        if self._bytes:
            self._write_all(0)
        self._sync()
        self.lost += sum(lines.count(b"\n") for day in self._days.values() for lines in day.waiting)
        for day in self._days.values():
            if day.fd >= 0:
                os.close(day.fd)
        self._days.clear()
        self._bytes = 0

    def _write_all(self, now_ns: int) -> None:
        error = ""
        for name, day in self._days.items():
            if not day.waiting:
                continue
            try:
                self._write(name, day)
            except OSError as e:
                error = e.strerror or type(e).__name__
                self._retry_ns = now_ns + RETRY_NS
        self.error = error

    def _write(self, name: str, day: _Day) -> None:
        """Raises `OSError`; what was written until then is off the buffer."""
        if day.fd < 0:
            day.fd = self._open(name)
        lines = day.waiting[0] if len(day.waiting) == 1 else b"".join(day.waiting)
        done = 0
        try:
            while done < len(lines):
                done += os.write(day.fd, memoryview(lines)[done:])
                day.dirty = True
        finally:
            day.waiting = [lines[done:]] if done < len(lines) else []
            self._bytes -= done

    def _open(self, name: str) -> int:
        self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        path = self.folder / f"{name}.jsonl"
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                os.write(fd, b"\n")  # a torn line of a process that died; see above
        except OSError:
            os.close(fd)
            raise
        return fd

    def _sync(self) -> None:
        """Once a second: to the disk, and away from files that are over or that somebody deleted under us."""
        failed = False
        for name in sorted(self._days):
            day = self._days[name]
            if day.fd < 0:
                continue
            try:
                if day.dirty:
                    os.fdatasync(day.fd)
                    day.dirty = False
                gone = os.fstat(day.fd).st_nlink == 0
            except OSError as e:
                self.error = e.strerror or type(e).__name__
                failed = True
                continue
            if gone:
                os.close(day.fd)
                day.fd = -1
        if not failed and not self._bytes:
            self.error = ""
        for name in sorted(self._days)[:-OPEN_DAYS]:
            day = self._days[name]
            if not day.waiting:
                if day.fd >= 0:
                    os.close(day.fd)
                del self._days[name]


_decode = msgspec.json.Decoder(Row).decode


def rows(state_dir: str | os.PathLike[str]) -> Iterator[Row]:
    """Every row of every day, oldest day first, in the order of writing. A torn line is skipped, and so is the second
    of two rows for one attempt: a recorder that was killed leaves its batch in hand to the next one, written or not.

    Reads line by line; safe while a recorder writes.
    """
    for path in sorted((Path(state_dir) / "ledger").glob("*.jsonl")):
        recent: dict[tuple[str, int], None] = {}
        with path.open("rb") as file:
            for piece in file:
                try:
                    row = _decode(piece)
                except msgspec.DecodeError:
                    continue
                key = row.request_id, row.attempt
                if key not in recent:
                    yield row
                recent[key] = None
                if len(recent) > MOST_IN_HAND:
                    del recent[next(iter(recent))]
