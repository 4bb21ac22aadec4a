"""The cut-over machine: the table is what the README draws, and from no state is there a way to a clean end but the end."""

import itertools
import re
from pathlib import Path

import pytest

from turnout import native
from turnout.stream import cutover
from turnout.stream.cutover import (
    ASK_AGAIN,
    ASK_NEXT,
    ASKING,
    BROKE,
    CALL,
    CANCEL,
    CONTENT,
    CONTINUE,
    END,
    ENDED,
    ERROR,
    FAILED,
    FINISH,
    FLOWING,
    GONE,
    HOLD,
    HOLDING,
    JOINING,
    LEFT,
    NO_SEAM,
    NOBODY,
    OPEN_NEXT,
    REFUSED,
    REPEAT,
    RESUME,
    SEAM,
    SOUND,
    TABLE,
    TERMINATE,
    Cutover,
    diagram,
)  # fmt: skip

README = Path(__file__).resolve().parents[2] / "README.md"


def flowing(said: str = "The train", **facts: object) -> Cutover:
    machine = Cutover("continue", 2, True)
    assert machine.on(CONTENT) == "forward"
    machine.said = said
    for name, value in facts.items():
        setattr(machine, name, value)
    return machine


def test_the_readme_draws_the_table() -> None:
    text = README.read_text()
    assert text.count("```mermaid\n" + diagram() + "\n```") == 1


def test_before_content_every_failure_is_another_targets_work() -> None:
    machine = Cutover("terminate", 0, True)
    assert [machine.on(BROKE) for _ in range(5)] == [OPEN_NEXT] * 5
    assert machine.on(NOBODY) == ERROR


def test_after_it_another_target_goes_on() -> None:
    machine = flowing()
    assert [machine.on(e) for e in (BROKE, SEAM, BROKE, SEAM, END)] == [RESUME, "forward", RESUME, "forward", FINISH]
    assert machine.state == ENDED


def test_no_more_often_than_it_may() -> None:
    machine = flowing()
    assert [machine.on(e) for e in (BROKE, SEAM, BROKE, SEAM, BROKE)][-1] == ERROR
    assert machine.state == FAILED
    assert flowing(left=0).on(BROKE) == ERROR


@pytest.mark.parametrize("policy", ["terminate", "restart"])
def test_other_policies_end_in_an_error(policy: str) -> None:
    assert flowing(on_failure=policy).on(BROKE) == ERROR


def test_a_turn_of_which_no_text_was_shown_is_repeated() -> None:
    machine = flowing("")
    assert machine.on(CALL) == HOLD
    assert machine.on(BROKE) == REPEAT


@pytest.mark.parametrize("what, bit, choice, why", SOUND)
def test_what_cannot_be_joined_is_not(what: str, bit: int, choice: str, why: str) -> None:
    for said in ("", "The train"):
        command = flowing(said, kinds=bit).on(BROKE)
        assert (command == ERROR) == (choice == TERMINATE), what
        # What no client has seen can always begin again.
        assert flowing(said, kinds=bit, shown=False).on(BROKE) == (OPEN_NEXT if choice == TERMINATE else command)
    assert why


def test_there_is_a_line_for_every_bit_of_the_scanner() -> None:
    bits = [bit for _, bit, _, _ in SOUND if bit]
    known = (native.CALLS, native.LOGPROBS, native.OTHER, native.OTHER_CHOICE, native.OVER, native.REASONING, native.REFUSAL, native.SIGNED)
    assert sorted(bits) == sorted(known)
    assert {choice for _, _, choice, _ in SOUND} == {TERMINATE, CONTINUE, "again"}


def test_what_can_only_be_asked_for_as_a_whole_is_not_continued() -> None:
    assert flowing(whole="several choices").on(BROKE) == ERROR
    assert flowing(spoiled="not valid JSON").on(BROKE) == ERROR


def test_a_target_that_refuses_a_prefill_is_asked_in_words_and_then_left() -> None:
    machine = flowing()
    machine.on(BROKE)
    machine.prefilled = True
    assert machine.on(REFUSED) == ASK_AGAIN
    machine.prefilled = False
    assert machine.on(REFUSED) == ASK_NEXT


def test_without_a_seam_it_is_asked_once_literally_and_then_left() -> None:
    machine = flowing()
    machine.on(BROKE)
    assert machine.on(NO_SEAM) == ASK_AGAIN
    machine.literal = True
    assert machine.on(NO_SEAM) == ASK_NEXT
    assert machine.on(NOBODY) == ERROR


@pytest.mark.parametrize("state", [ASKING, FLOWING, HOLDING, JOINING])
def test_a_client_that_leaves_ends_it_and_is_no_failure(state: str) -> None:
    machine = flowing()
    machine.state = state
    assert machine.on(LEFT) == CANCEL
    assert machine.state == GONE


def test_every_state_answers_a_break_and_the_last_row_has_no_guard() -> None:
    for (state, _), rows in TABLE.items():
        assert state not in (ENDED, FAILED, GONE)
        assert not rows[-1].guard and all(row.guard for row in rows[:-1])
        for row in rows:
            assert not row.guard or callable(getattr(Cutover, row.guard))
    for state in (ASKING, FLOWING, HOLDING, JOINING):
        assert (state, BROKE) in TABLE
        assert (state, LEFT) in TABLE
    # A clean end comes only from a state in which an attempt that was joined had its own.
    assert {state for (state, _), rows in TABLE.items() for row in rows if row.command == FINISH} == {FLOWING, HOLDING}
    assert len(set(re.findall(r"--> (\w+)", diagram()))) == 7


def test_any_sequence_of_events_keeps_the_promises() -> None:
    """All sequences of five events from everywhere: repairs are bounded, and an end is an end."""
    events = sorted({event for _, event in TABLE})
    ran = 0
    for facts in ({}, {"kinds": native.REFUSAL}, {"shown": False}, {"said": ""}):
        for sequence in itertools.product(events, repeat=5):
            machine = flowing(**{"said": "x", **facts})  # type: ignore[arg-type]
            repairs = 0
            for event in sequence:
                if (machine.state, event) not in TABLE:
                    break
                command = machine.on(event)
                repairs += command in (RESUME, REPEAT)
                machine.literal |= command == ASK_AGAIN
                machine.prefilled = False
                if machine.state in (ENDED, FAILED, GONE):
                    assert command in (FINISH, ERROR, CANCEL)
                    assert (command == FINISH) == (event == END)
                ran += 1
            assert repairs <= 2
            if "kinds" in facts:
                assert repairs == 0
    assert {ASKING, FLOWING, HOLDING, JOINING} == cutover.LIVE
    assert ran > 10_000
