"""The semantic cache's meter: what it says is true, and the threshold follows it."""

import os
import sys
from itertools import pairwise, permutations
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.cache.semantic.meter.bars import FORGIVEN, MARGIN
from turnout.cache.semantic.meter.bounds import gamma_below, gamma_quantile, gamma_quick, less_noise, rate
from turnout.cache.semantic.meter.meter import DAY_NS, HALF_LIFE_NS, LOOSEN, RETUNE, Meter
from turnout.cache.semantic.meter.spending import FIRST, UNIT
from turnout.cache.semantic.meter.window import BINS, EDGES, LAP, bin_of, edge_from
from turnout.native import Counters
from turnout.state.table import Row, memory, row

sys.path.insert(0, str(Path(__file__).parents[2] / "bench/semantic"))
import estimator

T0 = 1_700_000_000 * 10**9
S = 10**9
SCOPE = b"scope"


def met(meter: Meter, rng: Random, n: int, wrong: float, begun_ns: int = T0, step_ns: int = 60 * S) -> int:
    """`n` requests, half of them with a candidate: hits over 0.9, of which a share is wrong, and misses below. The end."""
    now = begun_ns
    for i in range(n):
        now += step_ns
        meter.request(now)
        if rng.random() < 0.5:
            score = rng.uniform(0.5, 1.0)
            right = rng.random() >= (wrong if score > 0.9 else 0.5)
            one(meter, now, score, right, rng.random(), item=i)
    return now


def one(meter: Meter, now: int, score: float, right: bool, u: float, item: int = 1, scope: bytes = SCOPE) -> bool:
    """A candidate, and at once its label if there is one. Whether it was served."""
    if score < meter.threshold(scope, item, now):
        meter.missed(now, score, scope, item)
        meter.label(now, score, scope, item, right, 1.0, "miss")
        return False
    meter.served(now, score, scope, item)
    if q := meter.wants_check(score, scope, now, u):
        meter.label(now, score, scope, item, right, 1.0 / q)
    return True


# ---- bounds


@pytest.mark.parametrize(("k", "low", "high"), [(0, 0.0, 3.689), (1, 0.0253, 5.572), (3, 0.6187, 8.767), (100, 81.364, 121.627)])
def test_equal_weights_give_the_exact_poisson_interval(k: int, low: float, high: float) -> None:
    found = rate(k, k, 1.0)
    assert found.low == pytest.approx(low, abs=1e-3)
    assert found.high == pytest.approx(high, abs=1e-3)


@given(st.floats(0.3, 390.0), st.floats(0.001, 0.999))
def test_the_quantile_is_where_the_share_lies_below(a: float, p: float) -> None:
    from statistics import NormalDist

    z = NormalDist().inv_cdf(p)
    assert gamma_below(a, gamma_quantile(a, p, z)) == pytest.approx(p, abs=1e-6)
    if a >= 1.0 and p > 0.5:
        assert gamma_quick(a, z) == pytest.approx(gamma_quantile(a, p, z), rel=0.02)


@given(st.floats(0.0, 0.3), st.floats(0.0, 1.0), st.integers(0, 30), st.integers(1, 300))
def test_less_noise_never_leaves_what_can_be(seen: float, hits: float, k: int, n: int) -> None:
    from turnout.cache.semantic.meter.bounds import Bound, share

    found = less_noise(Bound(seen, seen / 2, seen * 2), hits, share(min(k, n), min(k, n), n, n))
    assert 0.0 <= found.low <= found.value <= found.high <= hits or hits == pytest.approx(found.high)


# ---- bins


@given(st.floats(0.0, 1.0))
def test_a_score_lies_in_its_bin(score: float) -> None:
    b = bin_of(score)
    assert 0 <= b < BINS
    assert EDGES[b] <= score + 1e-9
    assert b == BINS - 1 or score < EDGES[b + 1] + 1e-9
    first = edge_from(score)
    assert first == BINS or EDGES[first] >= score - 1e-8


# ---- the estimate


def test_all_hits_checked_leave_no_doubt_upwards() -> None:
    meter = Meter(0.01, 0.9, first=10_000)
    for i in range(400):
        meter.request(T0 + i)
        if i % 4 == 0:
            meter.served(T0 + i, 0.95, SCOPE, i)
            assert meter.wants_check(0.95, SCOPE, T0 + i, 0.999) == 1.0
            meter.label(T0 + i, 0.95, SCOPE, i, i % 40 != 0)
    e = meter.estimate(T0 + 400)
    assert e.wrong_rate == pytest.approx(10 / 400)
    assert e.high == pytest.approx(10 / 400, rel=1e-3)
    assert e.low > 0.0


def test_without_a_label_the_bound_is_that_all_hits_were_wrong() -> None:
    meter = Meter(0.01, 0.9)
    for i in range(100):
        meter.request(T0)
        if i < 30:
            meter.served(T0, 0.95, SCOPE, i)
    e = meter.estimate(T0)
    assert (e.wrong_rate, e.low, e.high) == (0.0, 0.0, pytest.approx(0.3))


def test_without_a_wrong_label_the_bound_is_not_zero() -> None:
    meter = Meter(0.01, 0.9)
    met(meter, Random(2), 4_000, 0.0)
    e = meter.estimate(T0)
    assert e.wrong_rate == e.low == 0.0
    assert 0.0 < e.high < 0.02


def test_weights_are_unbiased() -> None:
    """The mean of many estimates is the truth, however unevenly hits are asked again: more of those near the threshold,
    where more are wrong, and all of the first."""
    found, truth = [], []
    for seed in range(100):
        rng = Random(seed)
        meter = Meter(0.01, 0.8, floor=0.8)
        wrong = 0
        for i in range(1_500):
            meter.request(T0 + i)
            score = rng.uniform(0.8, 1.0)
            right = rng.random() > (0.3 if score < 0.83 else 0.02)
            meter.served(T0 + i, score, SCOPE, i)
            wrong += not right
            if q := meter.wants_check(score, SCOPE, T0 + i, rng.random()):
                meter.label(T0 + i, score, SCOPE, i, right, 1.0 / q)
        found.append(meter.estimate(T0 + 1_500).wrong_rate)
        truth.append(wrong / 1_500)
    mean, true = sum(found) / len(found), sum(truth) / len(truth)
    error = (sum((a - b) ** 2 for a, b in zip(found, truth, strict=True)) / len(found) ** 2) ** 0.5
    assert abs(mean - true) < 3.0 * error
    assert error < 0.1 * true


def test_the_comparers_false_alarms_are_subtracted() -> None:
    meter = Meter(0.01, 0.9, confirmed=False)
    rng = Random(3)
    for i in range(6_000):
        now = T0 + i * S
        meter.request(now)
        meter.served(now, 0.95, SCOPE, i)
        if q := meter.wants_check(0.95, SCOPE, now, rng.random()):
            meter.label(now, 0.95, SCOPE, i, rng.random() > 0.10, 1.0 / q)
            if meter.wants_pair(rng.random()):
                meter.pair(now, rng.random() > 0.10)
    e = meter.estimate(now)
    assert e.noise == pytest.approx(0.10, abs=0.07)
    assert e.low <= 0.0 < e.high < 0.12
    assert e.wrong_rate < 0.06


def test_the_past_fades() -> None:
    meter = Meter(0.01, 0.9)
    now = met(meter, Random(4), 2_000, 0.2)
    before = meter.estimate(now)
    now = met(meter, Random(5), 2_000, 0.0, now + 8 * HALF_LIFE_NS)
    after = meter.estimate(now)
    assert before.wrong_rate > 0.005
    assert after.wrong_rate < 0.01 * before.wrong_rate
    assert after.requests < 1.1 * 2_000


@pytest.mark.parametrize("days", [LAP * 7 - 1, LAP * 7 + 1, 100 * LAP * 7])
def test_a_lap_changes_nothing_but_the_age(days: int) -> None:
    begun = T0 - T0 % (LAP * HALF_LIFE_NS) + HALF_LIFE_NS
    meter = Meter(0.01, 0.9)
    now = met(meter, Random(6), 1_000, 0.1, begun)
    fresh = meter.estimate(now)
    later = meter.estimate(now + days * DAY_NS)
    assert later.requests == pytest.approx(fresh.requests * 0.5 ** (days / 7), rel=0.02, abs=1e-9)
    if later.requests > 1e-9:
        assert later.wrong_rate == pytest.approx(fresh.wrong_rate)


def test_a_clock_that_goes_back_does_no_harm() -> None:
    meter = Meter(0.01, 0.9)
    now = met(meter, Random(7), 500, 0.0)
    met(meter, Random(8), 500, 0.0, now - 300 * DAY_NS)
    assert meter.estimate(now - 300 * DAY_NS).requests == pytest.approx(1_000, rel=0.1)


# ---- the threshold


@pytest.mark.parametrize("factory", [0.3606, 0.873, 0.9, 0.9977, 0.99991, 1.0, 2.0])
def test_nothing_known_is_the_factorys_threshold(factory: float) -> None:
    assert Meter(0.01, factory).threshold(SCOPE, 1, T0) == factory


def test_wrong_hits_tighten_at_once_and_right_ones_loosen_slowly() -> None:
    meter = Meter(0.01, 0.9, floor=0.6)
    rng = Random(9)
    now, steps = T0, []
    before = meter.threshold(SCOPE, -1, now)
    for i in range(12_000):
        now += 60 * S
        meter.request(now)
        score = rng.uniform(0.5, 1.0)
        bad_times = 3_000 < i < 3_400
        right = rng.random() >= (0.3 if bad_times else 0.002)
        one(meter, now, score, right, rng.random(), item=i)
        at = min(1.0, meter.threshold(SCOPE, -1, now))
        if at != before:
            steps.append((i, at - before))
        before = at
    down = [d for _, d in steps if d < 0]
    assert down, "it loosened"
    assert min(down) >= -LOOSEN - 1e-9
    loosened = [i for i, d in steps if d < 0]
    assert all(b - a >= RETUNE * 0.5 for a, b in pairwise(loosened))
    tightened = [i for i, d in steps if d > 0 and 3_000 < i < 3_400]
    assert tightened, "it tightened while the verifier was bad"
    assert tightened[0] < 3_150


def test_it_goes_below_the_factorys_threshold_only_when_that_is_shown_and_never_below_the_floor() -> None:
    meter = Meter(0.01, 0.9, floor=0.8)
    rng = Random(10)
    now = T0
    for i in range(12_000):
        now += 60 * S
        meter.request(now)
        one(meter, now, rng.uniform(0.5, 1.0), True, rng.random(), item=i)
        if i == 60:
            assert meter.threshold(SCOPE, -1, now) == pytest.approx(0.9)
    assert meter.threshold(SCOPE, -1, now) == pytest.approx(0.8)


def trained(*name: bytes) -> tuple[Meter, int, Random]:
    """A meter after 9,000 good labels: the time, and what goes on drawing."""
    meter = Meter(0.01, 0.9, *name, floor=0.6)
    rng = Random(11)
    now = T0
    for i in range(9_000):
        now += 60 * S
        meter.request(now)
        one(meter, now, rng.uniform(0.5, 1.0), rng.random() > 0.003, rng.random(), item=i)
    return meter, now, rng


def test_a_drift_is_an_alarm_and_the_way_back_to_the_factory() -> None:
    meter, now, rng = trained()
    assert meter.threshold(SCOPE, -1, now) < 0.85
    assert meter.estimate(now).alarm == ""
    for i in range(300):
        now += 60 * S
        meter.request(now)
        one(meter, now, rng.uniform(0.5, 1.0), rng.random() > 0.4, rng.random(), item=10_000 + i)
    assert meter.threshold(SCOPE, -1, now) >= 0.9
    assert meter.estimate(now).alarm == "drift"


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_comparer_that_finds_all_answers_different_moves_nothing(confirmed: bool) -> None:
    """As where each answer to the same prompt is another one: its labels say nothing."""
    meter = Meter(0.01, 0.9, confirmed=confirmed)
    rng = Random(12)
    for i in range(3_000):
        now = T0 + i * S
        meter.request(now)
        score = rng.uniform(0.5, 1.0)
        if score < meter.threshold(SCOPE, i, now):
            meter.missed(now, score, SCOPE, i)
            meter.label(now, score, SCOPE, i, False, 1.0, "miss")
        else:
            meter.served(now, score, SCOPE, i)
            if q := meter.wants_check(score, SCOPE, now, rng.random()):
                if not confirmed and meter.wants_pair(rng.random()):
                    meter.pair(now, False)
                meter.label(now, score, SCOPE, i, None if confirmed else False, 1.0 / q)
    assert meter.threshold(SCOPE, -1, now) == pytest.approx(0.9)
    e = meter.estimate(now)
    assert e.low == 0.0
    assert e.high == pytest.approx(e.hits / e.requests)
    assert "feedback" in meter.advice(now) if confirmed else "temperature 0" in meter.advice(now)


def test_misses_move_nothing_while_nobody_knows_how_the_comparer_errs() -> None:
    meter = Meter(0.01, 0.9)
    for i in range(3_000):
        meter.request(T0 + i * S)
        meter.missed(T0 + i * S, 0.85, SCOPE, i)
        meter.label(T0 + i * S, 0.85, SCOPE, i, False, 1.0, "miss")
    assert meter.threshold(SCOPE, 5, T0) <= 0.9


# ---- scopes and items


def test_one_bad_label_bars_the_item_nearby_and_no_other() -> None:
    meter = Meter(0.01, 0.9)
    meter.request(T0)
    meter.label(T0, 0.95, SCOPE, 7, False, 1.0, "feedback")
    assert meter.threshold(SCOPE, 7, T0) == pytest.approx(0.95 + MARGIN)
    assert meter.threshold(SCOPE, 8, T0) == pytest.approx(0.9)
    meter.label(T0, 0.99, SCOPE, 7, False, 1.0, "feedback")
    assert meter.threshold(SCOPE, 7, T0) > 1.0
    for i in range(FORGIVEN):
        assert meter.threshold(SCOPE, 7, T0) > 0.99
        meter.label(T0 + i, 0.96, SCOPE, 7, True, 1.0, "feedback")
    assert meter.threshold(SCOPE, 7, T0) == pytest.approx(0.9)


def test_a_scope_that_is_oftener_wrong_is_stricter() -> None:
    meter = Meter(0.02, 0.8)
    rng = Random(13)
    now = T0
    for i in range(4_000):
        now += S
        meter.request(now)
        bad = i % 8 == 0
        one(meter, now, rng.uniform(0.8, 1.0), rng.random() > (0.12 if bad else 0.002), rng.random(), i, b"bad" if bad else b"good")
    assert meter.threshold(b"bad", -1, now) > meter.threshold(b"good", -1, now)


# ---- checks


@given(st.integers(0, 2**32), st.floats(0.0, 1.0), st.integers(0, 100), st.floats(0.01, 0.5))
@settings(max_examples=40, deadline=None)
def test_no_more_hits_are_asked_again_than_the_cap(seed: int, share: float, first: int, most: float) -> None:
    rng = Random(seed)
    meter = Meter(0.01, 0.9, check_share=share, most_share=most, first=first)
    checks = 0
    for i in range(1, 800):
        meter.served(T0 + i, rng.uniform(0.9, 1.0), SCOPE, i)
        q = meter.wants_check(0.9, SCOPE, T0 + i, rng.random() ** rng.choice((1, 9)))  # with all luck against it
        assert q == 0.0 or q == 1.0 or q <= most
        checks += q > 0.0
        assert checks <= min(i, first) + most * i + 1e-6


def test_the_first_hits_are_all_asked_again() -> None:
    meter = Meter(0.01, 0.9)
    for i in range(FIRST):
        meter.served(T0, 0.99, SCOPE, i)
        assert meter.wants_check(0.99, SCOPE, T0, 0.999) == 1.0
    meter.served(T0, 0.99, SCOPE, 1)
    assert meter.wants_check(0.99, SCOPE, T0, 0.999) == 0.0


def test_a_share_of_none_asks_only_the_first_again() -> None:
    meter = Meter(0.01, 0.9, check_share=0.0, first=3)
    asked = 0
    for i in range(500):
        meter.request(T0 + i)
        meter.served(T0 + i, 0.95, SCOPE, i)
        if q := meter.wants_check(0.95, SCOPE, T0 + i, 0.0):
            asked += 1
            meter.label(T0 + i, 0.95, SCOPE, i, True, 1.0 / q)
            meter.tune(T0 + i)
    assert asked == 3


@given(st.integers(0, 2**32), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_no_window_sees_more_spent_than_allowed(seed: int, cost: int) -> None:
    rng = Random(seed)
    meter = Meter(0.01, 0.9, first=10**6, most_nanos=1_000, spend_ns=1_000 * S)
    spent: list[tuple[int, int]] = []
    now = T0
    for i in range(2_000):
        now += rng.randrange(1, 3 * S)
        meter.served(now, 0.95, SCOPE, i)
        if meter.wants_check(0.95, SCOPE, now, rng.random()):
            meter.spent(cost)
            spent.append((now, cost))
    assert len(spent) > 10
    for begin, _ in spent[:: max(1, len(spent) // 50)]:
        assert sum(c for t, c in spent if begin <= t < begin + 1_000 * S) <= 1_000 + 2 * cost


def cells() -> Row:
    """What the workers of a host count in."""
    fd = memory()
    try:
        found = row(Counters(fd), "checks")
    finally:
        os.close(fd)
    assert found is not None
    return found


@given(st.integers(0, 2**32), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_workers_of_a_host_spend_no_more_than_one_may(seed: int, cost: int) -> None:
    rng = Random(seed)
    together, most, cost = cells(), 1_000 * UNIT, cost * UNIT
    meters = [Meter(0.01, 0.9, b"%d" % i, first=10**6, most_nanos=most, spend_ns=1_000 * S, shared=together) for i in range(4)]
    spent: list[tuple[int, int]] = []
    now = T0
    for i in range(4_000):
        now += rng.randrange(1, S)
        meter = meters[rng.randrange(4)]
        if i % 1_000 == 999:  # a worker is started again; what all have spent is not forgotten
            meters[0] = Meter(0.01, 0.9, b"0", first=10**6, most_nanos=most, spend_ns=1_000 * S, shared=together)
        meter.served(now, 0.95, SCOPE, i)
        if meter.wants_check(0.95, SCOPE, now, rng.random()):
            meter.spent(cost)
            spent.append((now, cost))
    assert sum(c for _, c in spent) >= most // 2
    for begin, _ in spent[:: max(1, len(spent) // 50)]:
        assert sum(c for t, c in spent if begin <= t < begin + 1_000 * S) <= most + 4 * cost


def test_no_money_is_no_check() -> None:
    meter = Meter(0.01, 0.9, first=50, most_nanos=0, spend_ns=1_000 * S)
    meter.served(T0, 0.95, SCOPE, 1)
    assert not meter.wants_check(0.95, SCOPE, T0, 0.0)


# ---- what travels


def three() -> list[Meter]:
    meters = [Meter(0.01, 0.9, b"w%d" % i) for i in range(3)]
    for i, meter in enumerate(meters):
        met(meter, Random(20 + i), 600 + 300 * i, 0.02 * i)
    return meters


def known(meter: Meter, now: int) -> tuple[object, ...]:
    e = meter.estimate(now)
    numbers = (e.requests, e.hits, e.wrong_rate, e.low, e.high, e.labels, e.worth)
    bars = tuple(meter.threshold(SCOPE, i, now) for i in range(0, 900, 7))
    return (*(pytest.approx(x) for x in numbers), e.threshold, e.checked, bars)


def test_merges_commute_and_twice_is_once() -> None:
    now = T0 + 3_000 * 60 * S
    dumps = [meter.dump(now + i) for i, meter in enumerate(three())]
    found = []
    for order in permutations(dumps):
        reader = Meter(0.01, 0.9, b"reader")
        for data in (*order, order[0], *order):
            assert reader.merge(data, now + 10)
        found.append(known(reader, now + 10))
    assert all(one == found[0] for one in found)
    assert reader.estimate(now).requests > 2_000


def test_workers_that_tell_each_other_know_the_same() -> None:
    meters = three()
    now = T0 + 3_000 * 60 * S
    for _ in range(2):
        for a in meters:
            data = a.dump(now, everyone=False)
            for b in meters:
                b.merge(data, now)
            now += S
    for meter in meters:
        meter.tune(now)
    assert len({round(meter.estimate(now).wrong_rate, 9) for meter in meters}) == 1
    assert len({meter.estimate(now).checked for meter in meters}) == 1


def test_an_older_report_is_no_news() -> None:
    a, b = Meter(0.01, 0.9, b"a"), Meter(0.01, 0.9, b"b")
    now = met(a, Random(30), 300, 0.0)
    old = a.dump(now)
    new = a.dump(met(a, Random(31), 300, 0.0, now))
    for data in (new, old):
        assert b.merge(data, now + DAY_NS // 2)
    assert b.estimate(now).requests == pytest.approx(600, rel=0.1)


def test_a_restart_forgets_nothing() -> None:
    meter = Meter(0.01, 0.9, b"a")
    now = met(meter, Random(32), 3_000, 0.05)
    said, data = meter.estimate(now), meter.dump(now)
    again = Meter(0.01, 0.9, b"a")
    again.request(now)
    assert again.merge(data, now)
    assert again.estimate(now).threshold == said.threshold
    assert again.estimate(now).wrong_rate == pytest.approx(said.wrong_rate, rel=0.01)
    assert again.merge(again.dump(now + 1), now + 1)
    assert again.estimate(now + 1).requests == pytest.approx(said.requests + 1.0, rel=1e-3)
    other = Meter(0.01, 0.9, b"other")
    other.merge(data, now)
    other.merge(again.dump(now + 2), now + 2)
    assert other.estimate(now + 2).requests == pytest.approx(said.requests + 1.0, rel=1e-3)


@pytest.mark.parametrize("everyone", [True, False])
def test_a_restart_goes_on_with_its_walks(everyone: bool) -> None:
    """Bad labels before a restart and after it are as many as it takes for an alarm, and neither part is."""

    def worse(meter: Meter, now: int, labels: int, begin: int) -> int:
        """So many wrong candidates below the threshold, until an alarm. How many it took."""
        for i in range(labels):
            meter.request(now)
            meter.label(now, meter.threshold(SCOPE, -1, now) - 0.005, SCOPE, begin + i, False, 1.0, "miss")
            if meter.estimate(now).alarm:
                return i + 1
        return labels

    meter, now, _ = trained(b"a")
    needed = worse(meter, now, 1_000, 50_000)
    assert 4 <= needed < 1_000
    before, now, _ = trained(b"a")
    assert worse(before, now, needed // 2, 50_000) == needed // 2 and not before.estimate(now).alarm
    after = Meter(0.01, 0.9, b"a", floor=0.6)
    data = before.dump(now, everyone)
    assert after.merge(data, now) and after.merge(data, now)  # twice is once
    after.tune(now)
    assert worse(after, now, needed, 60_000) == needed - needed // 2
    other = Meter(0.01, 0.9, b"b", floor=0.6)  # of another worker they are not its own
    assert other.merge(data, now)
    other.tune(now)
    assert worse(other, now, needed - needed // 2, 60_000) == needed - needed // 2 and not other.estimate(now).alarm


def test_nothing_new_is_said_in_the_same_bytes() -> None:
    meter = Meter(0.01, 0.9)
    now = met(meter, Random(33), 50, 0.0)
    assert meter.dump(now) == meter.dump(now + 5)


def test_an_alarm_of_one_is_an_alarm_of_all() -> None:
    a, b = Meter(0.01, 0.9, b"a", floor=0.6), Meter(0.01, 0.9, b"b", floor=0.6)
    rng = Random(11)
    now = T0
    for i in range(9_000):
        now += 60 * S
        a.request(now)
        one(a, now, rng.uniform(0.5, 1.0), rng.random() > 0.003, rng.random(), item=i)
    b.merge(a.dump(now), now)
    assert b.threshold(SCOPE, -1, now) == a.threshold(SCOPE, -1, now) < 0.85
    for i in range(300):
        now += 60 * S
        a.request(now)
        one(a, now, rng.uniform(0.5, 1.0), rng.random() > 0.4, rng.random(), item=10_000 + i)
    b.merge(a.dump(now), now)
    assert b.threshold(SCOPE, -1, now) >= 0.9
    assert b.estimate(now).alarm == "drift"


def test_another_budget_keeps_the_counts_and_not_the_threshold() -> None:
    a = Meter(0.01, 0.9, b"a")
    now = met(a, Random(34), 2_000, 0.3)
    assert a.threshold(SCOPE, -1, now) > 0.9
    b = Meter(0.2, 0.8, b"b")
    assert b.merge(a.dump(now), now)
    assert b.threshold(SCOPE, -1, now) == pytest.approx(0.8)
    assert b.estimate(now).wrong_rate == pytest.approx(a.estimate(now).wrong_rate)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_what_is_no_state_is_refused(data: bytes) -> None:
    meter = Meter(0.01, 0.9)
    assert not meter.merge(data, T0)
    assert meter.estimate(T0).requests == 0.0


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_state_is_refused_or_harmless(data: st.DataObject) -> None:
    meter = Meter(0.01, 0.9, b"a")
    now = met(meter, Random(35), 60, 0.1)
    said = bytearray(meter.dump(now))
    for _ in range(data.draw(st.integers(1, 4))):
        said[data.draw(st.integers(0, len(said) - 1))] = data.draw(st.integers(0, 255))
    reader = Meter(0.01, 0.9, b"b")
    reader.merge(bytes(said), now)
    met(reader, Random(36), 30, 0.0, now)
    reader.tune(now)
    assert reader.estimate(now).high >= 0.0
    assert reader.threshold(SCOPE, 1, now) > 0.0


# ---- what it tells


def test_advice_says_what_to_change() -> None:
    rare, bad, noisy = Meter(0.01, 0.9), Meter(0.01, 0.9, floor=0.9), Meter(0.01, 0.9)
    for i in range(500):
        rare.request(T0 + i * S)
    assert "turn the semantic cache off" in rare.advice(T0 + 500 * S)
    for i in range(400):
        now = T0 + i * S
        bad.request(now)
        bad.served(now, 0.95, SCOPE, i)
        if q := bad.wants_check(0.95, SCOPE, now, 0.0):
            bad.label(now, 0.95, SCOPE, i, i % 3 > 0, 1.0 / q)
    assert bad.estimate(now).alarm == "budget"
    assert "the threshold has been raised" in bad.advice(now)
    for i in range(400):
        noisy.request(T0)
        noisy.served(T0, 0.95, SCOPE, i)
        noisy.pair(T0, i % 5 > 0)
    assert "temperature 0" in noisy.advice(T0)
    assert Meter(0.01, 0.9).advice(T0) == ""


def test_calibration_holds_what_was_labelled() -> None:
    meter = Meter(0.01, 0.9)
    now = met(meter, Random(41), 4_000, 0.02)
    rows = meter.calibration(now)
    assert sum(row["hits"] + row["misses"] for row in rows) == pytest.approx(2_000, rel=0.3)
    low = [row for row in rows if row["to"] <= 0.9 and row["labels"] > 20]
    high = [row for row in rows if row["from"] >= 0.92 and row["labels"] > 2]
    assert low and high
    assert sum(row["right"] for row in high) / len(high) > 0.9 > 0.6 > sum(row["right"] for row in low) / len(low)
    assert all(0.0 <= row["low"] <= row["right"] <= row["high"] <= 1.0 for row in rows)


# ---- and all of it together


@pytest.mark.parametrize("confirmed", [True, False])
def test_in_simulated_streams_the_truth_is_inside_and_the_budget_is_held(confirmed: bool) -> None:
    """The small form of bench/semantic/estimator.py."""
    windows = estimator.run(22, 1, 4_000, 0.01, confirmed=confirmed)
    assert len(windows) == 220
    assert sum(w.inside for w in windows) / len(windows) >= 0.93
    assert sum(w.over for w in windows) / len(windows) <= 0.05
