"""What a request leaves when it has ended: native and twin count alike and record the same bytes."""

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from support.exchanges import CHAT, EXCHANGES
from support.records import take
from turnout.exchange import Attempt, Cut, Exchange, Saved, Usage
from turnout.telemetry import record as compact
from turnout.telemetry.ring import Ring
from turnout.twin import tally as places
from turnout.twin.tally import Tally as Twin

try:
    from turnout._native import Tally as Native
except ImportError:
    Native = None  # type: ignore[assignment,misc]

BOUNDS = ((0.1, 1.0), (0.001,), (0.5,), (0.01, 0.02, 0.03))
@pytest.fixture(params=["twin", "native"])
def kind(request: pytest.FixtureRequest) -> Any:
    if request.param == "native" and Native is None:
        pytest.skip("the extension is not built")
    return Twin if request.param == "twin" else Native


@pytest.fixture
def ring() -> Iterator[Ring]:
    yield from a_ring(1 << 12)


def a_ring(size: int) -> Iterator[Ring]:
    with tempfile.TemporaryFile() as file:
        fd = os.dup(file.fileno())
    ring = Ring(fd, size)
    yield ring
    os.close(fd)


def ended(**fields: Any) -> Exchange:
    x = Exchange(id="q", surface=CHAT, started_ns=10**9, wall_ns=5, config_version=1, status=200, ended_ns=2 * 10**9, head_ns=2 * 10**9)
    for name, value in fields.items():
        setattr(x, name, value)
    return x


def settle(tally: Any, x: Exchange, labels: tuple[str, ...] = ("r", "chat", "p", "m"), usual: str | None = None) -> None:
    tally.settle(labels, usual, compact.context(x, 3), x)


@settings(deadline=None, max_examples=300)
@given(exchanges=st.lists(EXCHANGES, max_size=12), size=st.integers(200, 2000), usual=st.lists(st.none() | st.sampled_from(["", "a", "b"]), min_size=12, max_size=12))
def test_native_and_twin_count_alike_and_record_the_same_bytes(exchanges: list[Exchange], size: int, usual: list[str | None]) -> None:
    if Native is None:
        pytest.skip("the extension is not built")
    ends = [a_ring(size), a_ring(size)]
    rings = [next(end) for end in ends]
    native, twin = Native(rings[0], BOUNDS, 3), Twin(rings[1], BOUNDS, 3)
    for x, account in zip(exchanges, usual, strict=False):
        labels = ("r", "chat", "p", x.model[:2])
        for one in (native, twin):
            settle(one, x, labels, account)
        assert rings[0].dropped == rings[1].dropped
        if len(x.body) % 2:
            assert take(rings[0]) == take(rings[1])
    assert take(rings[0]) == take(rings[1])
    assert native.rows() == twin.rows()
    for end in ends:
        next(end, None)


def test_a_record_comes_out_of_the_ring_as_it_was(kind: Any, ring: Ring) -> None:
    usage, other = Usage(60, 150, 1, 2, 3), Usage(1, 2, estimated=True)
    tries = [Attempt("a", "main", "m", "first", 1, 2, 0, 0, 429, "429", other, 5), Attempt("b", "", "m", "fallback", 3, 4, usage=usage, priced=False)]
    cuts = [Cut("a", "b", 412, "reset", "continued", 7)]
    saved = Saved("a", "m", 2**63)
    tally = kind(ring, BOUNDS, 10)
    x = ended(attempts=tries, usage=usage, cuts=cuts, saved=saved, model="é" * 200)
    settle(tally, x)
    (raw,) = take(ring)
    got = compact.decode(raw)
    assert got == compact.of(x, 3)
    assert (got.attempts, got.usage, got.cuts, got.saved) == (tries, usage, cuts, saved)
    assert (got.model, got.worker, got.fallback, got.overhead_ns, got.trace_id) == ("é" * 200, 3, "a>b;reason=429", 10**9, "")


def test_what_is_counted(kind: Any) -> None:
    tally = kind(None, BOUNDS, 10)
    labels = ("r", "chat", "p", "m")
    times = {"admitted_ns": 1_100_000_000, "parsed_ns": 1_200_000_000, "routed_ns": 1_300_000_000, "upstream_ns": 500_000_000}
    settle(tally, ended(usage=Usage(10, 5, 3, 0, 2), cost_nanos=160, cache="miss", **times), usual="main")
    settle(tally, ended(cache="miss", ended_ns=10**9 + 5, head_ns=0), usual="main")
    settle(tally, ended(status=502, stream=True, first_content_ns=1_800_000_000, chunks=9, head_ns=0))
    ((found, statuses, (duration, overhead, first, gap), stages, sums, usual),) = tally.rows()
    assert found == labels
    assert dict(statuses) == {200: 2, 502: 1}
    assert duration == ([1, 2, 0], 2.000000005)
    assert overhead == ([0, 1], 0.5)
    assert first == ([0, 1], 0.8)
    assert gap == ([0, 0, 1, 0], 0.025)
    assert stages == (100_000_000, 100_000_000, 100_000_000, 500_000_000, 200_000_000)
    assert sums == (10, 5, 3, 2, 0, 160)
    assert usual == [(("main", "miss", "none"), 2)]


def test_beyond_the_most_all_models_of_a_provider_share_a_series(kind: Any) -> None:
    tally = kind(None, BOUNDS, 2)
    for model in "abcda":
        settle(tally, ended(), ("r", "chat", "p", model))
    assert [(labels[3], dict(statuses)[200]) for labels, statuses, *_ in tally.rows()] == [("a", 2), ("b", 1), ("other", 2)]


def test_a_full_ring_drops_the_record_and_counts_the_request(kind: Any) -> None:
    for ring in a_ring(256):
        tally = kind(ring, BOUNDS, 2)
        for _ in range(3):
            settle(tally, ended())
        kept = take(ring)
        assert len(kept) + ring.dropped == 3
        assert ring.dropped
        assert dict(tally.rows()[0][1]) == {200: 3}


@pytest.mark.parametrize("wrong", [object(), 1.5j, "\ud800", 2**64])
def test_what_is_no_record_is_refused(kind: Any, ring: Ring, wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        settle(kind(ring, BOUNDS, 2), ended(finish=wrong))
    assert take(ring) == []


def test_the_places_are_those_of_the_record() -> None:
    recorded = Exchange.__struct_fields__[-places.RECORDED :]
    assert compact.Record.__struct_fields__ == (*compact.Record.__struct_fields__[: compact.CONTEXT], *recorded)
    assert len(compact.context(ended(), 0)) == compact.CONTEXT
    said = {name: at for name, at in vars(places).items() if name.isupper() and isinstance(at, int) and name != "RECORDED"}
    assert len(said) == 15
    for name, at in said.items():
        assert recorded[at] in (name.lower(), f"{name.lower()}_ns", f"{name.lower()}_nanos"), name
