"""Statistics of several hosts: any order of reports, any that is lost or said twice, and a restart."""

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.routing import T0, S, failed, served
from turnout.native import Counters
from turnout.route.fleet import GAP_NS, OLDEST_S, Fleet, is_gone
from turnout.route.share import Outside, Share
from turnout.route.stats import Stats
from turnout.state.table import key_of, memory, row

NAME = "stats r a m 10.0"
WALL = 1_700_000_000.0


class Host:
    """A supervisor and its workers. Reports lie in `said` until somebody carries them."""

    def __init__(self, name: str, workers: int = 2, now: int = T0) -> None:
        self.name = name
        self.counters = Counters(memory())
        cells = row(self.counters, NAME)
        assert cells is not None
        self.fleet = Fleet()
        self.fleet.share(key_of(NAME), Outside(cells))
        self.cells = cells
        self.workers = workers
        self.said: list[bytes] = []
        self.begin(now)

    def begin(self, now: int) -> None:
        """The workers start."""
        self.stats = [Stats() for _ in range(self.workers)]
        self.shares = [Share(s, self.cells, now) for s in self.stats]

    def tick(self, now: int) -> None:
        for share in self.shares:
            share.sync(now)

    def say(self, now: int) -> bytes:
        self.tick(now)
        self.fleet.look(now)
        self.said.append(self.fleet.report(now, WALL + (now - T0) / 1e9))
        return self.said[-1]

    def hear(self, other: "Host", data: bytes, now: int) -> None:
        assert self.fleet.heard(other.name, data, now, WALL + (now - T0) / 1e9)

    def level(self, now: int) -> float:
        self.tick(now)
        self.tick(now)
        levels = [s.stream.view(now)[0] for s in self.stats]
        assert max(levels) == pytest.approx(min(levels), rel=0.02)
        return levels[0]


def talk(hosts: list[Host], now: int) -> None:
    for host in hosts:
        host.say(now)
    for host in hosts:
        for other in hosts:
            if other is not host:
                host.hear(other, other.said[-1], now)


def test_what_one_host_sees_all_workers_of_all_hosts_know() -> None:
    hosts = [Host(name) for name in "abc"]
    talk(hosts, T0)
    for i in range(40):
        served(hosts[0].stats[0], 0.3, T0 + S + i)
    talk(hosts, T0 + S + S // 4)
    for host in hosts:
        assert host.level(T0 + S + S // 4) == pytest.approx(0.3, rel=0.02)
    for i in range(30):
        failed(hosts[2].stats[1], T0 + 2 * S + i)
    talk(hosts, T0 + 2 * S + S // 4)
    for host in hosts:
        host.tick(T0 + 2 * S + S // 4)
        assert all(s.success(T0 + 2 * S + S // 4) < 0.7 for s in host.stats)
    served(hosts[1].stats[0], 0.3, T0 + 3 * S)
    talk(hosts, T0 + 3 * S)
    hosts[0].tick(T0 + 3 * S)
    assert all(s.begun_ns >= T0 + 3 * S for s in hosts[0].stats), "it was asked just now: nobody need probe it"


@given(st.lists(st.tuples(st.sampled_from(["serve", "say", "hear", "again", "tick"]), st.integers(0, 2), st.integers(0, 2)), max_size=80), st.integers(0, 99))
def test_any_order_of_reports_gives_the_same_sums_and_nothing_twice(steps: list[tuple[str, int, int]], seed: int) -> None:
    hosts = [Host(name, workers=1) for name in "abc"]
    rng = Random(seed)
    talk(hosts, T0)
    count = 0
    for what, i, j in steps:
        host, other = hosts[i], hosts[j]
        if what == "serve":
            served(host.stats[0], 0.5, T0)
            count += 1
        elif what == "say":
            host.say(T0)
        elif what == "hear" and other is not host:
            host.hear(other, other.said[-1], T0)
        elif what == "again" and other is not host:
            host.hear(other, rng.choice(other.said), T0)
        elif what == "tick":
            host.tick(T0)
        host.tick(T0)
        assert host.stats[0].stream.w <= count + 0.01
    talk(hosts, T0)
    for host in hosts:
        host.tick(T0)
        assert host.stats[0].stream.w == pytest.approx(count)
        assert not count or host.level(T0) == pytest.approx(0.5, rel=0.01)


def test_news_from_a_long_silence_are_old() -> None:
    a, b = Host("a"), Host("b")
    for i in range(3):
        served(a.stats[0], 0.2, T0 + i)
        served(b.stats[0], 0.2, T0 + i)
        talk([a, b], T0 + i * S // 4)
    for i in range(50):
        served(a.stats[0], 3.0, T0 + 2 * S + i)
    data = a.say(T0 + 2 * S)
    late = T0 + 2 * S + GAP_NS + S
    b.hear(a, data, late)
    assert b.level(late) == pytest.approx(0.2, rel=0.02)
    assert b.fleet.hosts(late) == 1
    assert b.fleet.hosts(late + GAP_NS) == 0


def test_a_host_that_starts_begins_with_what_the_others_know() -> None:
    a = Host("a")
    for i in range(100):
        served(a.stats[0], 0.25, T0 + i * S // 10)
    data = a.say(T0 + 10 * S)
    b = Host("b", now=T0 + 10 * S)
    b.hear(a, data, T0 + 10 * S)
    assert b.level(T0 + 10 * S) == pytest.approx(0.25, rel=0.01)
    assert 5 < b.stats[0].stream.w <= 20
    b.begin(T0 + 20 * S)  # a worker that starts later
    assert b.level(T0 + 20 * S) == pytest.approx(0.25, rel=0.01)
    # who knows the target himself does not take another's past
    c = Host("c", now=T0 + 10 * S)
    for i in range(10):
        served(c.stats[0], 0.9, T0 + 10 * S + i)
    c.say(T0 + 10 * S)
    c.hear(a, data, T0 + 10 * S)
    assert c.level(T0 + 10 * S) == pytest.approx(0.9, rel=0.01)


@pytest.mark.parametrize(("age_s", "least", "most"), [(0, 20, 20), (120, 10, 10), (600, 1, 1), (OLDEST_S + 1, 0, 0), (-5, 20, 20)])
def test_a_restart_of_the_host_remembers_by_age(age_s: float, least: float, most: float) -> None:
    a = Host("a")
    for i in range(200):
        served(a.stats[0], 0.25, T0 + i * S // 10)
    now = T0 + 20 * S
    a.say(now)
    data = a.fleet.snapshot(now, WALL)
    later = T0 + 3 * S  # the clock of another boot
    b = Host("b", now=later)
    assert b.fleet.restore(data, later, WALL + age_s) is (age_s <= OLDEST_S)
    b.begin(later)  # as the supervisor does: first the file, then the workers
    assert least <= round(b.stats[0].stream.w) <= most
    if most:
        assert b.level(later) == pytest.approx(0.25, rel=0.01)


def test_what_living_hosts_say_goes_before_what_a_file_says() -> None:
    old, a = Host("old"), Host("a")
    for i in range(100):
        served(old.stats[0], 0.2, T0 + i)
        served(a.stats[0], 1.5, T0 + i)
    old.say(T0 + S)
    b = Host("b", now=T0 + S)
    b.fleet.restore(old.fleet.snapshot(T0 + S, WALL), T0 + S, WALL + 300)
    b.begin(T0 + S)
    b.hear(a, a.say(T0 + S), T0 + S)
    assert b.level(T0 + S) > 1.2


def test_a_report_is_kept_small_and_a_snapshot_has_all() -> None:
    a = Host("a")
    served(a.stats[0], 0.2, T0)
    assert len(a.say(T0)) > 40
    assert len(a.say(T0 + 61 * S)) < 30, "of targets that had a request of late"
    assert len(a.fleet.snapshot(T0 + 61 * S, WALL)) > 40


def test_a_target_that_was_quiet_is_news_again() -> None:
    a, b = Host("a"), Host("b")
    for i in range(10):
        served(a.stats[0], 0.3, T0 + i)
    talk([a, b], T0)
    for i in range(1, 300):
        talk([a, b], T0 + i * S // 4)
    now = T0 + 76 * S
    served(a.stats[0], 0.7, now)
    before = b.stats[0].stream.view(now)[1]
    talk([a, b], now)
    b.tick(now)
    assert b.stats[0].stream.view(now)[1] == pytest.approx(before + 1, rel=0.01)


@given(st.binary(max_size=200))
def test_garbage_is_no_report(data: bytes) -> None:
    host = Host("a")
    assert not host.fleet.heard("x", data, T0, WALL) or data[:1] == b"\x94"
    assert not host.fleet.restore(data, T0, WALL) or data[:1] == b"\x94"
    is_gone(data, WALL)




@given(st.lists(st.lists(st.integers(-5, 2**70) | st.floats(), min_size=12, max_size=12), max_size=3), st.integers(), st.floats())
def test_reports_with_any_numbers_do_no_harm(lines: list[list[float]], number: int, at_s: float) -> None:
    host = Host("a")
    for i in range(5):
        served(host.stats[0], 0.2, T0 + i)
    host.say(T0)
    for line in lines:
        line[0] = key_of(NAME)
    try:
        data = msgspec.msgpack.encode([1, number, at_s, lines])
    except OverflowError:
        return
    for n in range(2):
        host.fleet.heard("x", data, T0 + n, WALL)
        host.fleet.restore(data, T0 + n, WALL)
    host.tick(T0 + 1)
    level = host.stats[0].stream.view(T0 + 1)[0]
    assert 0 < level < 3600
    is_gone(data, WALL)


def test_a_host_that_is_gone_can_be_told() -> None:
    a = Host("a")
    data = a.say(T0)
    assert not is_gone(data, WALL + 60)
    assert is_gone(data, WALL + 3601)
    assert is_gone(b"garbage", WALL)


def test_cells_that_begin_anew_do_no_harm() -> None:
    a, b = Host("a"), Host("b")
    for i in range(50):
        served(a.stats[0], 0.3, T0 + i)
    talk([a, b], T0)
    fresh = row(Counters(memory()), NAME)
    assert fresh is not None
    for host in (a, b):
        host.fleet._targets[key_of(NAME)].outside._cells = fresh  # the state process was started again
        for share in host.shares:
            share._cells = fresh
    talk([a, b], T0 + S)
    for i in range(20):
        served(a.stats[0], 0.3, T0 + S + i)
    talk([a, b], T0 + S + 1)
    assert b.level(T0 + 2 * S) == pytest.approx(0.3, rel=0.02)
