"""The ledger's rows, straight from a record: native and twin write the same bytes, and the right ones."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.exchanges import CHAT, EXCHANGES
from support.records import framed, split
from turnout.account.ledger import Row
from turnout.exchange import Attempt, Exchange, Principal, Saved, Trace, Usage
from turnout.telemetry import record as compact
from turnout.twin import rows as twin

try:
    from turnout import _native as native
except ImportError:
    native = None  # type: ignore[assignment]

MS = 1_000_000
FAULTS = st.sampled_from(["", "", "refused", "client_gone", "rate_limited"])


def agree(data: bytes, most: int = 1000, everything: bool = False) -> Any:
    want = twin.ledger_batch(data, most, everything)
    if native is not None:
        assert native.ledger_batch(data, most, everything) == want
    return want


def one(raw: bytes) -> Any:
    """The day and the rows of one record, and whether others look at it; "refused": it is none."""
    days, others, records, bad, used, more = agree(framed(raw))
    assert (records, used, more) == (1, 4 + len(raw), 4)
    if bad:
        assert (days, others, bad) == ([], [], 1)
        return "refused"
    assert others in ([], [raw]) and len(days) <= 1
    day, lines = days[0] if days else ("", b"")
    return day, lines, bool(others)


def record(*attempts: Attempt, fault: str = "", **fields: Any) -> bytes:
    x = Exchange(id="q", surface=CHAT, started_ns=5 * MS, wall_ns=1_751_371_200_123_456_789, config_version=1, status=200, ended_ns=405 * MS)
    x.principal, x.attempts = Principal("dev", "team:a", "abcdef"), list(attempts)
    for name, value in fields.items():
        setattr(x, name, value)
    made = compact.of(x, 0)
    made.fault = fault
    return compact.encode(made)


def rows_of(raw: bytes) -> list[Row]:
    return [msgspec.json.decode(line, type=Row) for line in one(raw)[1].splitlines()]


@settings(deadline=None, max_examples=500)
@given(x=EXCHANGES, fault=FAULTS, wall=st.integers(0, 4_000_000_000_000_000_000))
def test_native_and_twin_write_the_same_rows(x: Exchange, fault: str, wall: int) -> None:
    x.wall_ns = wall
    for attempt in x.attempts:  # as near as those of one request are
        attempt.started_ns, attempt.ended_ns = x.started_ns + attempt.started_ns % 10**12, x.started_ns + attempt.ended_ns % 10**12
        attempt.first_content_ns = attempt.first_content_ns and attempt.started_ns + attempt.first_content_ns % 10**10
    x.ended_ns = x.started_ns + x.ended_ns % 10**13
    made = compact.of(x, 0)
    made.fault = fault
    day, lines, _ = one(compact.encode(made))
    assert (len(x.attempts) or int(x.saved is not None)) == lines.count(b"\n")
    for line in lines.splitlines():
        assert json.loads(line)["ts"].startswith(day)
        msgspec.json.decode(line, type=Row)


@settings(deadline=None, max_examples=100)
@given(x=EXCHANGES, share=st.floats(0, 0.999))
def test_what_is_cut_off_is_refused(x: Exchange, share: float) -> None:
    x.wall_ns = 0
    raw = compact.encode(compact.of(x, 0))
    assert one(raw[: int(len(raw) * share)]) == "refused"
    assert one(raw + b"\x00") == "refused"


@pytest.mark.parametrize("raw", [b"", b"\xc1", b"\x90", b"\xdd\xff\xff\xff\xff", b"\x01", msgspec.msgpack.encode(["x"] * 41), b"\xdc\x00\x29" + b"\xdd\x7f\xff\xff\xff" * 9, b"\xdc\x00\x29" + b"\x91" * 100_000])
def test_what_is_no_record_is_refused(raw: bytes) -> None:
    assert one(raw) == "refused"


def test_rows_have_times_tokens_money_and_who_served() -> None:
    usage = Usage(60, 150, 1, 2, 3)
    tries = (
        Attempt("a", "main", "m", "first", 6 * MS, 106 * MS, status=429, reason="429"),
        Attempt("b", "", 'q"\\\n\x01é', "fallback", 200 * MS, 0, 0, 201 * MS + 499_500, 200, "", usage, 2**63, False),
    )
    one, two = rows_of(record(*tries, stream=True, cache="miss"))
    assert (one.ts, one.attempt, one.provider, one.account, one.reason, one.served) == ("2025-07-01T12:00:00.123Z", 1, "a", "main", "429", False)
    assert (one.started_ms, one.took_ms, one.ttft_ms, one.prompt_tokens, one.cost_nanos) == (1.0, 100.0, None, 0, 0)
    assert (two.attempt, two.cause, two.model, two.served, two.priced, two.cost_nanos) == (2, "fallback", 'q"\\\n\x01é', True, False, 2**63)
    assert (two.started_ms, two.took_ms, two.ttft_ms) == (195.0, 205.0, 1.5)
    tokens = (two.prompt_tokens, two.completion_tokens, two.cached_tokens, two.cache_write_tokens, two.reasoning_tokens)
    assert (tokens, two.estimated, two.cache, two.tenant, two.key) == ((60, 150, 1, 2, 3), False, "miss", "team:a", "dev")


def test_an_answer_from_the_cache_has_one_row_and_costs_nothing() -> None:
    (row,) = rows_of(record(cache="hit-exact", saved=Saved("a", "m", 99_000)))
    assert (row.attempt, row.cause, row.cache, row.cost_nanos, row.saved_nanos, row.served) == (0, "cache", "hit-exact", 0, 99_000, True)
    assert (row.provider, row.model, row.took_ms, row.ttft_ms, row.started_ms) == ("a", "m", 400.0, None, 0.0)
    assert rows_of(record()) == []


@pytest.mark.parametrize(
    ("fault", "reasons", "served"),
    [("", ("429", ""), 2), ("client_gone", ("429", ""), 2), ("interrupted", ("",), 0), ("refused", ("400",), 1), ("no_target", ("500", "500"), 0), ("", ("", "outrun"), 1)],
)
def test_one_attempt_served_or_none(fault: str, reasons: tuple[str, ...], served: int) -> None:
    found = rows_of(record(*(Attempt("a", "", "m", "first", 6 * MS, reason=reason) for reason in reasons), fault=fault))
    assert [row.attempt for row in found if row.served] == ([served] if served else [])


def test_others_look_only_at_what_did_not_go_well_or_is_traced() -> None:
    good = Attempt("a", "", "m", "first", 6 * MS)
    seen = [
        one(record(good))[2],
        one(record(good, saved=Saved("a", "m", 1)))[2],
        one(record(good, fault="interrupted"))[2],
        one(record(good, status=400))[2],
        one(record(Attempt("a", "", "m", "first", 6 * MS, reason="500"), good))[2],
        one(record(good, trace=Trace("0af7651916cd43dd8448eb211c80319c", "")))[2],
    ]
    assert seen == [False, False, True, True, True, True]


SOUND = [
    record(Attempt("a", "", "m", "first", 6 * MS)),
    record(Attempt("a", "", "m", "first", 6 * MS, reason="500"), Attempt("b", "", "n", "fallback", 7 * MS), wall_ns=MS),
    record(cache="hit-exact", saved=Saved("a", "m", 99_000)),
    record(),
]
PIECES = st.lists(st.sampled_from(SOUND) | st.binary(max_size=20), max_size=12)


@settings(deadline=None, max_examples=300)
@given(records=PIECES, most=st.integers(0, 15), cut=st.integers(0, 700), everything=st.booleans())
def test_a_batch_is_what_its_records_are_one_by_one(records: list[bytes], most: int, cut: int, everything: bool) -> None:
    data = framed(*records)
    data = data[: max(0, len(data) - cut)]
    days, others, taken, bad, used, more = agree(data, most, everything)
    whole, end, rest = split(data, most)
    assert (taken, used, more) == (len(whole), end, 0 if taken == most else rest)
    each = [(one(raw), raw) for raw in whole]
    assert bad == sum(found == "refused" for found, _ in each)
    sound = [(found, raw) for found, raw in each if found != "refused"]
    assert others == [raw for (*_, looked_at), raw in sound if looked_at or everything]
    want: dict[str, bytes] = {}
    for (day, lines, _), _ in sound:
        if lines:
            want[day] = want.get(day, b"") + lines
    assert days == list(want.items())


@settings(deadline=None, max_examples=300)
@given(text=st.text(max_size=20) | st.text("a\"\\\x1f \x7f\x80é", max_size=20))
def test_every_text_is_written_as_it_was(text: str) -> None:
    (row,) = rows_of(record(Attempt("a", "", text, "first", 6 * MS)))
    assert row.model == text


@settings(deadline=None, max_examples=300)
@given(at=st.integers(0, len(SOUND[1]) - 1), byte=st.integers(0, 255))
def test_a_damaged_byte_never_ends_in_an_exception(at: int, byte: int) -> None:
    raw = SOUND[1][:at] + bytes([byte]) + SOUND[1][at + 1 :]
    for module in (twin, native) if native is not None else (twin,):
        assert module.ledger_batch(framed(raw, SOUND[0]), 2, False)[2] == 2


def test_the_places_are_those_of_the_record() -> None:
    fields = compact.Record.__struct_fields__
    assert len(fields) == twin.FIELDS
    for name, at in vars(twin).items():
        if name.isupper() and isinstance(at, int) and name != "FIELDS":
            assert fields[at] in (name.lower(), f"{name.lower()}_ns"), name
