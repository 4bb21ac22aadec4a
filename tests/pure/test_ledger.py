"""The ledger: one row per attempt, whole lines, nothing lost while the disk is full, everything counted that is."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

import turnout
from support.records import framed
from turnout.account import ledger as module
from turnout.account.ledger import Ledger, Row, rows
from turnout.exchange import Attempt, Exchange, Surface, Usage
from turnout.native import ledger_batch
from turnout.telemetry import record as compact

CORE = str(Path(turnout.__file__).parent.parent)
CHAT = Surface("chat", "/v1/chat/completions", "/chat/completions", ("model", "messages"), True, "chat")
NOON = 1_750_000_000_123_000_000  # 2025-06-15T15:06:40.123Z
MS = 1_000_000
START = 5_000_000_000_000


def attempt(provider: str = "a", reason: str = "", **more: object) -> Attempt:
    given: dict[str, object] = {
        "provider": provider,
        "account": "main",
        "model": "gpt-4o-mini",
        "cause": "first",
        "started_ns": START + 2 * MS,
        "ended_ns": START + 302 * MS,
        "status": 200,
        "reason": reason,
    }
    return Attempt(**{**given, **more})  # type: ignore[arg-type]


def ended(
    *attempts: Attempt, wall_ns: int = NOON, id: str = "req-1", fault: str = "", status: int = 200
) -> bytes:
    x = Exchange(
        id=id, surface=CHAT, started_ns=START, wall_ns=wall_ns, config_version=1, attempts=list(attempts), status=status
    )
    x.ended_ns = START + 400 * MS
    record = compact.of(x, 0)
    record.fault = fault
    return compact.encode(record)


def add(ledger: Ledger, *records: bytes) -> None:
    ledger.add(framed(*records), len(records), False)


def lines_of(record: bytes) -> bytes:
    ((_, lines),) = ledger_batch(framed(record), 1, False)[0]
    return bytes(lines)


def test_a_request_that_fell_back_has_a_row_per_attempt_with_times_tokens_and_money(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    add(
        ledger,
        ended(
            attempt("a", "429", status=429),
            attempt(
                "b",
                cause="fallback",
                started_ns=START + 310 * MS,
                ended_ns=START + 390 * MS,
                first_content_ns=START + 330 * MS,
                usage=Usage(1200, 300, 100, 20, 50),
                cost_nanos=123_456,
            ),
        )
    )
    ledger.flush(1)
    ledger.close()
    first, second = rows(tmp_path)
    assert (first.attempt, first.provider, first.reason, first.status, first.served) == (1, "a", "429", 429, False)
    assert (first.started_ms, first.took_ms, first.ttft_ms, first.cost_nanos) == (2.0, 300.0, None, 0)
    assert (second.attempt, second.cause, second.provider, second.served) == (2, "fallback", "b", True)
    assert (second.prompt_tokens, second.completion_tokens, second.cached_tokens) == (1200, 300, 100)
    assert (second.cache_write_tokens, second.reasoning_tokens, second.cost_nanos) == (20, 50, 123_456)
    assert (second.started_ms, second.took_ms, second.ttft_ms) == (310.0, 80.0, 20.0)
    assert second.ts == "2025-06-15T15:06:40.123Z"


def test_a_request_that_reached_no_provider_has_no_row_and_makes_no_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    add(ledger, ended(fault="no_key", status=401))
    ledger.flush(1)
    ledger.close()
    assert list(rows(tmp_path)) == []
    assert not (tmp_path / "ledger").exists()


@pytest.mark.parametrize(
    ("fault", "reasons", "winner"),
    [
        ("", [""], 0),
        ("", ["429", ""], 1),
        ("", ["", "cancelled"], 0),  # a hedge that lost
        ("refused", ["400"], 0),  # the provider's own words are the answer
        ("interrupted", ["reset"], -1),
        ("client_gone", ["client_gone"], -1),
        ("client_gone", [""], 0),
        ("total_timeout", ["429", "total_timeout"], -1),
    ],
)
def test_served_is_the_attempt_whose_answer_the_client_got(fault: str, reasons: list[str], winner: int) -> None:
    lines = lines_of(ended(*(attempt(reason=r) for r in reasons), fault=fault))
    found = [msgspec.json.decode(line)["served"] for line in lines.splitlines()]
    assert found == [i == winner for i in range(len(reasons))]


def test_a_row_lies_in_the_file_of_the_utc_day_its_request_began(tmp_path: Path) -> None:
    midnight = 1_750_032_000_000_000_000  # 2025-06-16T00:00:00Z
    ledger = Ledger(tmp_path)
    add(ledger, ended(attempt(), wall_ns=midnight - 1, id="before"))
    add(ledger, ended(attempt(), wall_ns=midnight, id="after"))
    add(ledger, ended(attempt(), wall_ns=midnight - 5, id="late"))
    ledger.flush(1)
    ledger.close()
    assert sorted(p.name for p in (tmp_path / "ledger").iterdir()) == ["2025-06-15.jsonl", "2025-06-16.jsonl"]
    assert [row.request_id for row in rows(tmp_path)] == ["before", "late", "after"]


def test_files_of_past_days_are_closed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for day in range(10):
        add(ledger, ended(attempt(), wall_ns=NOON + day * 86_400_000_000_000))
        ledger.flush((day + 1) * 2_000_000_000)
    assert len(os.listdir("/proc/self/fd")) - before <= module.OPEN_DAYS
    ledger.close()
    assert len(list(rows(tmp_path))) == 10


@settings(deadline=None, max_examples=50)
@given(
    ids=st.lists(st.text(max_size=29), min_size=1, max_size=8, unique=True),
    cut=st.integers(1, 200),
)
def test_a_torn_line_costs_itself_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("torn")
    ledger = Ledger(folder)
    for id in ids:
        add(ledger, ended(attempt(), id=id))
    ledger.close()
    (path,) = (folder / "ledger").iterdir()
    os.truncate(path, path.stat().st_size - cut)  # within the last line: every line is longer than 200 bytes
    whole = ids[:-1] if cut > 1 else ids  # without its line end alone a line is still whole
    assert [row.request_id for row in rows(folder)] == whole
    again = Ledger(folder)
    add(again, ended(attempt(), id="next"))
    again.close()
    assert [row.request_id for row in rows(folder)] == [*whole, "next"]


def failing(monkeypatch: pytest.MonkeyPatch, what: Callable[[bytes], int]) -> None:
    """Let writes of the ledger go through `what`: how many bytes are taken; raises for none."""
    real = os.write

    def write(fd: int, data: bytes) -> int:
        n = what(bytes(data))
        return real(fd, bytes(data)[:n])

    monkeypatch.setattr(module.os, "write", write)


@pytest.mark.parametrize("room", [0, 1, 100, 500, 1000])
def test_a_full_disk_loses_nothing_and_tears_nothing_once_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    left = [room]

    def take(data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        n = min(left[0], len(data))
        left[0] -= n
        return n

    ledger = Ledger(tmp_path)
    failing(monkeypatch, take)
    for n in range(10):
        add(ledger, ended(attempt(), id=f"r{n}"))
        ledger.flush(n + 1)  # nanoseconds later: not tried again before a second is over
    assert ledger.error == "No space left on device"
    assert ledger.lost == 0
    left[0] = 10**9
    ledger.flush(10**10)
    assert (ledger.error, ledger.waiting_bytes) == ("", 0)
    ledger.close()
    assert [row.request_id for row in rows(tmp_path)] == [f"r{n}" for n in range(10)]


def test_every_failure_of_the_nth_write_leaves_whole_rows_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for nth in range(6):
        folder = tmp_path / str(nth)
        calls = [0]

        def take(data: bytes, nth: int = nth, calls: list[int] = calls) -> int:
            calls[0] += 1
            if calls[0] == nth:
                raise OSError(errno.EIO, "Input/output error")
            return max(1, len(data) // 2)  # and every write is short

        failing(monkeypatch, take)
        ledger = Ledger(folder)
        for n in range(3):
            add(ledger, ended(attempt(), id=f"r{n}"))
            ledger.flush(n * 2 * 10**9)
        ledger.flush(10 * 10**9)
        ledger.close()
        assert ledger.lost == 0
        assert [row.request_id for row in rows(folder)] == ["r0", "r1", "r2"]
        monkeypatch.undo()


def test_beyond_the_bound_new_rows_are_dropped_and_counted_and_the_old_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    one = len(lines_of(ended(attempt(), id="r0")))
    ledger = Ledger(tmp_path, most_bytes=3 * one)
    failing(monkeypatch, none)
    for n in range(8):
        add(ledger, ended(attempt(), id=f"r{n}"))
        ledger.flush(n)
    assert ledger.lost == 5
    monkeypatch.undo()
    ledger.close()
    assert [row.request_id for row in rows(tmp_path)] == ["r0", "r1", "r2"]


def test_of_many_at_once_those_are_kept_that_find_room(tmp_path: Path) -> None:
    one = len(lines_of(ended(attempt(), id="r0")))
    ledger = Ledger(tmp_path, most_bytes=4 * one - 1)
    add(ledger, *(ended(attempt(), id=f"r{n}") for n in range(5)))
    add(ledger, ended(attempt(), attempt("b"), id="r5"))
    assert (ledger.lost, ledger.waiting_bytes) == (4, 3 * one)
    ledger.close()
    assert [row.request_id for row in rows(tmp_path)] == ["r0", "r1", "r2"]


def test_rows_that_no_file_takes_until_the_end_are_counted(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("a file where the folder should be")
    ledger = Ledger(tmp_path)
    add(ledger, ended(attempt(), attempt("b")))
    ledger.flush(1)
    assert ledger.error
    ledger.close()
    assert ledger.lost == 2


LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from test_ledger import *
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))  # the kernel itself refuses beyond it
ledger = Ledger(sys.argv[1])
for n in range(10):
    add(ledger, ended(attempt(), id=f"r{n}"))
ledger.flush(1)
assert ledger.error == "File too large", ledger.error
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
ledger.flush(10**10)
assert not ledger.error
ledger.close()
"""


def test_a_limit_of_the_kernel_in_mid_line_tears_nothing(tmp_path: Path) -> None:
    assert resource.RLIM_INFINITY
    subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(Path(__file__).parent)],
        env={**os.environ, "PYTHONPATH": f"{CORE}{os.pathsep}{Path(__file__).parents[1]}"},
        check=True,
        timeout=30,
    )
    assert [row.request_id for row in rows(tmp_path)] == [f"r{n}" for n in range(10)]


def test_a_file_deleted_under_us_is_made_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    add(ledger, ended(attempt(), id="gone"))
    ledger.flush(2 * 10**9)
    (path,) = (tmp_path / "ledger").iterdir()
    path.unlink()
    ledger.flush(4 * 10**9)  # a second has passed: it looks
    add(ledger, ended(attempt(), id="kept"))
    ledger.flush(4 * 10**9 + 1)
    ledger.close()
    assert [row.request_id for row in rows(tmp_path)] == ["kept"]


def test_it_syncs_at_most_once_a_second_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(module.os, "fdatasync", synced.append)
    ledger = Ledger(tmp_path)
    for n in range(30):
        add(ledger, ended(attempt()))
        ledger.flush(10**9 + n * 100_000_000)
    assert len(synced) == 3
    ledger.close()
    assert len(synced) == 4


def test_a_row_has_no_field_for_text_of_a_prompt_or_an_answer() -> None:
    assert not {"prompt", "messages", "content", "answer", "message"} & set(Row.__struct_fields__)
