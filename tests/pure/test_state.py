"""The state process and its workers without sockets: batches, news, and what is known when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.state.process import State
from turnout.state.remote import MOST_WAITING, Tally
from turnout.state.table import key_of, row
from turnout.state.wire import Batch, News


class Wire:
    """A worker's line to the process. What is sent lies here until it is carried."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.tally = Tally()
        self.unseen: set[int] = set()
        self.done = 0
        self.up: list[Batch] = []
        self.down: list[News] = []
        self.tally.connected()

    def send(self) -> None:
        batch = self.tally.batch()
        if batch is not None:
            self.up.append(batch)

    def carry_up(self) -> None:
        while self.up:
            self.state.apply(self, self.up.pop(0))  # type: ignore[arg-type]

    def tell(self) -> None:
        self.down.append(News(self.done, [(key, self.state.cells(key)) for key in self.unseen]))
        self.unseen.clear()

    def carry_down(self) -> None:
        while self.down:
            self.tally.heard(self.down.pop(0))


def settle(state: State, wires: list[Wire]) -> None:
    for _ in range(3):
        for wire in wires:
            wire.send()
            wire.carry_up()
        state.tell()
        for wire in wires:
            wire.tell()
            wire.carry_down()


def test_everybody_hears_of_what_others_count() -> None:
    state = State()
    a, b, c = (Wire(state) for _ in range(3))
    rows = [row(wire.tally, "x") for wire in (a, b, c)]
    assert rows[0].add(0, 5) == 5
    assert rows[0].bump(10, 10, 1000, 3) == 3
    assert rows[1].get(0) == 0  # not yet
    settle(state, [a, b, c])
    assert [r.get(0) for r in rows] == [5, 5, 5]
    assert [r.recent(10, 10, 1003) for r in rows] == [3, 3, 3]
    assert rows[2].bump(10, 10, 1000, 1) == 4
    assert rows[2].bump(10, 10, 990, 1) == 0  # that is over


def test_many_things_of_one_turn_are_one_batch_and_only_one_is_on_its_way() -> None:
    state = State()
    a = Wire(state)
    x = row(a.tally, "x")
    for _ in range(1000):
        x.add(0, 1)
        x.bump(10, 10, 5, 1)
    a.send()
    x.add(0, 1)
    a.send()
    assert len(a.up) == 1
    assert a.up[0].adds == [(key_of("x"), 0, 1000)]
    assert a.up[0].bumps == [(key_of("x"), 10, 10, 5, 1000)]
    assert x.get(0) == 1001
    settle(state, [a])
    assert x.get(0) == 1001
    assert state.cells(key_of("x"))[0] == 1001
    assert a.tally.batch() is None  # nothing new: nothing is said


STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["add", "bump", "send", "up", "tell", "down"]), st.integers(1, 9), st.integers(100, 115)), max_size=80
)


@given(STEPS)
def test_whatever_the_order_nobody_knows_less_than_his_own_and_all_agree_in_the_end(steps: list[tuple[int, str, int, int]]) -> None:
    state = State()
    wires = [Wire(state) for _ in range(3)]
    rows = [row(wire.tally, "x") for wire in wires]
    added = [0, 0, 0]
    counted: dict[int, int] = {}
    latest = 0
    for who, what, n, stamp in steps:
        wire = wires[who]
        if what == "add":
            added[who] += n
            assert rows[who].add(0, n) >= added[who]
        elif what == "bump":
            stamp = latest = max(latest, stamp)  # clocks of one host do not go back
            counted[stamp] = counted.get(stamp, 0) + n
            assert rows[who].bump(10, 20, stamp, n) >= n
        elif what == "send":
            wire.send()
        elif what == "up":
            wire.carry_up()
        elif what == "tell":
            state.tell()
            wire.tell()
        else:
            wire.carry_down()
        assert rows[who].get(0) >= added[who]
        assert all(r.get(0) <= sum(added) for r in rows)
        assert all(r.recent(10, 20, 115) <= sum(counted.values()) for r in rows)
    settle(state, wires)
    assert [r.get(0) for r in rows] == [sum(added)] * 3
    assert [r.recent(10, 20, 115) for r in rows] == [sum(counted.values())] * 3


def test_a_process_that_begins_anew_gets_what_comes_and_nothing_twice() -> None:
    state = State()
    a = Wire(state)
    x = row(a.tally, "x")
    x.add(0, 3)
    settle(state, [a])
    x.add(0, 4)
    a.send()
    a.carry_up()  # counted, but we never hear of it
    x.add(0, 5)  # while there is none
    assert x.get(0) == 12
    again = State()
    a.state, a.done, a.up, a.down = again, 0, [], []
    a.tally.connected()
    assert x.get(0) == 5
    settle(again, [a])
    assert x.get(0) == again.cells(key_of("x"))[0] == 5


def test_without_a_process_it_counts_alone_and_does_not_grow() -> None:
    tally = Tally()
    x = row(tally, "x")
    for second in range(20_000):
        x.bump(0, 10, second, 1)
        x.add(20, 1)
    assert x.recent(0, 10, 19_999) == 10
    assert x.get(20) == 20_000
    assert len(tally._bumps[0]) <= MOST_WAITING + 1
    with pytest.raises(ValueError, match="no such row or cell"):
        x.get(31)
