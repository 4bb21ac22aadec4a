"""Held tool calls: whole or not at all, in order, with their ids."""

import itertools
import json
import random
from typing import Any

import pytest

from turnout.stream.calls import MOST_BYTES, MOST_NS, Calls, Sent

WEATHER = ("get_weather", '{"city": "Zürich {}", "days": [3, {"a": "}"}]}')
TIME = ("get_time", '{"zone": "UTC"}')
NONE = ("ping", "{}")


def deltas(calls: list[tuple[str, str]], size: int) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for i, (name, arguments) in enumerate(calls):
        out.append({"index": i, "id": f"id{i}", "type": "function", "function": {"name": name, "arguments": ""}})
        out += [{"index": i, "function": {"arguments": arguments[at : at + size]}} for at in range(0, len(arguments), size)]
    return out


def gathered(parts: list[dict[str, Any]]) -> list[tuple[int, str, str, str]]:
    return [(d["index"], d["id"], d["function"]["name"], d["function"]["arguments"]) for d in parts]


WHOLE = [(0, "id0", *WEATHER), (1, "id1", *TIME)]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_call_goes_on_as_soon_as_its_arguments_are_whole_and_never_before(size: int) -> None:
    calls = Calls([])
    parts = deltas([WEATHER, TIME], size)
    out = [calls.feed([d], 1) for d in parts]
    assert gathered([d for some in out for d in some]) == WHOLE
    # the first with the fragment that closes it, although the second has not begun
    first = next(i for i, some in enumerate(out) if some)
    assert parts[first]["function"]["arguments"].endswith("}") and parts[first + 1]["index"] == 1
    assert calls.since_ns == 0
    assert calls.finish() == []
    assert calls.sent == [Sent(*WEATHER), Sent(*TIME)]


def test_an_empty_object_waits_for_what_may_follow_it() -> None:
    calls = Calls([])
    parts = deltas([NONE, TIME, NONE], 9)
    out = [gathered(calls.feed([part], 1)) for part in parts]
    assert [len(some) for some in out] == [0, 0, 1, 0, 1, 0, 0]
    assert gathered(calls.finish()) == [(2, "id2", *NONE)]

    calls = Calls([])
    calls.feed([*deltas([NONE], 9), {"index": 0, "function": {"arguments": '{"a": 1}'}}], 1)
    assert gathered(calls.finish()) == [(0, "id0", "ping", '{}{"a": 1}')]  # as the provider said it: the SDK will refuse it


def test_cut_anywhere_what_went_on_is_whole() -> None:
    parts = deltas([WEATHER, TIME, WEATHER], 2)
    for n in range(len(parts)):
        calls = Calls([])
        out = gathered([d for part in parts[:n] for d in calls.feed([part], 1)])
        for i, (index, id_, name, arguments) in enumerate(out):
            assert (index, id_) == (i, f"id{i}")
            assert json.loads(arguments) == json.loads([WEATHER, TIME, WEATHER][i][1])
            assert name
        assert len(calls.sent) == len(out)


def test_calls_go_on_in_the_order_of_their_indexes() -> None:
    calls = Calls([])
    first, second = deltas([WEATHER, TIME], 1000)[:2], deltas([WEATHER, TIME], 1000)[2:]
    assert calls.feed([first[0], *second], 1) == []  # the second is whole, the first is not
    assert gathered(calls.feed([first[1]], 1)) == WHOLE


def test_what_is_no_json_object_goes_on_when_the_answer_finishes() -> None:
    for arguments in ("", '{"a": 1', "42", '{"a"}'):
        calls = Calls([])
        assert calls.feed(deltas([("f", arguments)], 3), 1) == []
        assert gathered(calls.finish()) == [(0, "id0", "f", arguments)]


def test_an_index_that_is_left_out_is_found() -> None:
    calls = Calls([])
    parts = [{k: v for k, v in d.items() if k != "index"} for d in deltas([WEATHER, TIME], 5)]
    assert gathered([d for part in parts for d in calls.feed([part], 1)]) == WHOLE


def test_an_id_or_a_name_that_comes_late_is_kept() -> None:
    calls = Calls([])
    calls.feed([{"index": 0, "function": {"arguments": '{"a"'}}], 1)
    out = calls.feed([{"index": 0, "id": "x", "type": "function", "function": {"name": "f", "arguments": ":1}"}}], 1)
    assert gathered(out) == [(0, "x", "f", '{"a":1}')]


def test_what_is_held_is_bounded_in_size_and_time() -> None:
    calls = Calls([])
    head, *_ = deltas([WEATHER], 1000)
    assert calls.feed([head], 10) == []
    assert not calls.due(10 + MOST_NS - 1)
    assert calls.due(10 + MOST_NS)
    assert gathered(calls.release()) == [(0, "id0", "get_weather", "")]
    assert calls.open
    more = [{"index": 0, "function": {"arguments": '{"x'}}]
    assert calls.feed(more, 11) == more
    assert calls.finish() == []

    calls = Calls([])
    calls.feed([head], 1)
    piece = {"index": 0, "function": {"arguments": "x" * 1000}}
    sizes = [len(calls.feed([piece], 1)) for _ in range(MOST_BYTES // 1000 + 2)]
    assert sizes.index(1) == MOST_BYTES // 1000
    assert calls.passing


def test_calls_the_client_has_are_compared_and_swallowed() -> None:
    spelt = ("get_weather", '{"days":[3,{"a":"}"}],"city":"Z\\u00fcrich {}"}')
    calls = Calls([Sent(*WEATHER)])
    assert gathered([d for part in deltas([spelt, TIME], 4) for d in calls.feed([part], 1)]) == [WHOLE[1]]
    assert calls.finish() == [] and not calls.differs
    assert calls.sent == [Sent(*WEATHER), Sent(*TIME)]


@pytest.mark.parametrize("other", [[("get_weather", '{"city": "Bern"}')], [TIME], []])
def test_a_turn_with_other_calls_is_another_turn(other: list[tuple[str, str]]) -> None:
    calls = Calls([Sent(*WEATHER)])
    out = [d for part in deltas([*other, TIME][: len(other) and 2], 4) for d in calls.feed([part], 1)]
    calls.finish()
    assert calls.differs
    assert out == []


def test_more_behind_a_whole_call_is_noticed() -> None:
    calls = Calls([])
    calls.feed(deltas([TIME], 9), 1)
    calls.feed([{"index": 0, "function": {"arguments": " \n"}}], 1)
    assert not calls.differs
    calls.feed([{"index": 0, "function": {"arguments": "{}"}}], 1)
    assert calls.differs


def test_any_fragments_and_any_interleaving_give_the_same() -> None:
    rng = random.Random(7)
    for _ in range(500):
        made = [(f"f{i}", json.dumps({"k": "x}" * rng.randrange(9), "n": [i]})) for i in range(rng.randrange(1, 4))]
        lanes = [deltas([c], rng.randrange(1, 9)) for c in made]
        for i, lane in enumerate(lanes):
            for d in lane:
                d["index"] = i
            lane[0]["id"] = f"id{i}"
        parts: list[dict[str, Any]] = []
        if rng.random() < 0.5:
            parts = list(itertools.chain(*lanes))
        else:
            while any(lanes):
                parts.append(rng.choice([lane for lane in lanes if lane]).pop(0))
        calls = Calls([])
        out = [d for part in parts for d in calls.feed([part], 1)] + calls.finish()
        assert gathered(out) == [(i, f"id{i}", *c) for i, c in enumerate(made)]
