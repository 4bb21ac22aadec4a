"""Whether two answers say the same: sure, or silent."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.cache.semantic.compare import MOST, answer_text, same_answer

LONG = (
    "To reset your password, open the settings page and choose Security. Click on Reset password and enter the code that we"
    " send to your e-mail address. The code is valid for 10 minutes. If you do not receive it, look into the spam folder,"
    " or contact our support team, which is there from Monday to Friday. Afterwards you can sign in with the new password."
)
REWORDED = (
    "Open the settings page, choose Security and click on Reset password. We send a code to your e-mail address; enter the"
    " code, it is valid for 10 minutes. If you do not receive the code, look into your spam folder or contact our support"
    " team, which is there Monday to Friday. Then sign in with your new password."
)
OTHER = (
    "Photosynthesis is the way in which green plants turn light into chemical energy. It takes place in the chloroplasts,"
    " where chlorophyll absorbs light and water is split into oxygen and hydrogen. The sugar that results feeds the plant."
)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Paris", "Paris."),
        ("The capital of France is **Paris**.", "the capital of France is Paris"),
        ("It costs 1,000 euros.", "It costs 1000 euros"),
        ("Berlin has 3.50 million people.", "Berlin has 3.5 million people."),
        ("There are eight planets.", "There are 8 planets."),
        ('{"city": "Paris", "n": 1}', '{ "n": 1, "city": "Paris" }'),
        ('```json\n[1, 2]\n```', "[1,2]"),
        ('{"text": "Hello there."}', '{"text": "hello there"}'),
        (LONG, REWORDED),
        (LONG, LONG.upper()),
    ],
)  # fmt: skip
def test_the_same(a: str, b: str) -> None:
    assert same_answer(a, b) is True
    assert same_answer(b, a) is True


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Yes, you can.", "No, you cannot."),
        ("Yes. It is open on Sunday.", "No. It is open on Sunday."),
        ("42", "43"),
        ("The boiling point is 100 degrees.", "The boiling point is 373 degrees."),
        ("It was built in 1889.", "It was built in 1898."),
        ("The capital is Paris.", "The capital is Rome."),
        ("You may take it with alcohol.", "You may not take it with alcohol."),
        ('{"city": "Paris", "n": 1}', '{"city": "Paris", "n": 2}'),
        ('{"city": "Paris"}', '{"town": "Paris"}'),
        ("[1, 2]", "[1, 2, 3]"),
        ('{"ok": true}', '{"ok": false}'),
        ('{"answer": "It was in 1889"}', '{"answer": "It was in 1890"}'),
        (LONG, OTHER),
    ],
)
def test_another(a: str, b: str) -> None:
    assert same_answer(a, b) is False
    assert same_answer(b, a) is False


def test_what_cannot_be_told_is_not_told() -> None:
    nail = "Use a hammer for the nail, and hold it well.", "You can drive the nail with a big hammer that you hold well."
    assert same_answer(*nail) is None
    assert same_answer(LONG, LONG[: len(LONG) // 3]) is None


def test_like_answers_to_another_question_are_not_the_same() -> None:
    other = LONG.replace("password", "address").replace("Security", "Profile").replace("10 minutes", "3 days")
    assert same_answer(LONG, other) is not True


def test_a_word_in_the_place_of_another_is_not_the_same_whatever_the_vectors_say() -> None:
    a = "Press the red button at the back of the machine, wait for a moment, and it starts to pump the water out."
    assert same_answer(a, a.replace("red", "blue"), lambda a, b: 0.99) is None
    account = (
        "To open an account, go to the nearest branch with your passport and fill in the form. The clerk checks it and you"
        " get a letter within a week. It costs nothing and takes twenty minutes; bring a proof of address too."
    )
    assert same_answer(account, account.replace("open", "close"), lambda a, b: 0.99) is False
    assert same_answer(account, account.replace("letter", "note"), lambda a, b: 0.99) is None
    assert same_answer(account, account + " I hope that this helps.") is True


def test_vectors_are_asked_only_where_words_leave_it_open() -> None:
    asked = []

    def near(a: str, b: str) -> float:
        asked.append((a, b))
        return 0.95

    assert same_answer("Paris", "paris!", near) is True
    assert same_answer("Yes.", "No.", near) is False
    assert asked == []
    a = "Use a hammer for the nail, and hold it well."
    b = "You can drive the nail with a big hammer that you hold well."
    assert same_answer(a, b, near) is True
    assert len(asked) == 1
    assert same_answer(a, b, lambda a, b: 0.2) is False


@given(st.text(max_size=200))
@settings(deadline=None)
def test_all_say_the_same_as_themselves(text: str) -> None:
    assert same_answer(text, text) is True
    assert same_answer(text, f"  {text}\n") in (True, None)


@given(st.text(max_size=120), st.text(max_size=120))
@settings(deadline=None)
def test_either_way_round_is_the_same(a: str, b: str) -> None:
    assert same_answer(a, b) is same_answer(b, a)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3), max_leaves=9))  # fmt: skip
@settings(deadline=None)
def test_json_is_compared_as_what_it_is(value: object) -> None:
    whole = {"value": value}
    assert same_answer(json.dumps(whole), json.dumps(whole, indent=3)) is True


def test_long_answers_take_no_longer_than_short_ones() -> None:
    """A bound on work, told by time with a lot of room."""
    for a, b in (("word " * 200_000, "word " * 200_000 + "x"), ("(" * 10**6, ")" * 10**6), ('["' * 500_000, '["' * 499_999)):
        begun = time.perf_counter()
        same_answer(a, b)
        assert time.perf_counter() - begun < 1.0
    assert same_answer(LONG * 100, OTHER * 130) is not True


def test_what_was_not_looked_at_is_not_judged_the_same() -> None:
    a = "word " * MOST
    assert same_answer(a, a + "and yet another thing is said at the end " * 1_000) is None


def test_the_text_of_an_answer() -> None:
    assert answer_text(b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}}]}') == "Hi"
    assert answer_text(b'{"choices": [{"message": {"content": null}}]}') == ""
    for other in (b"", b"{}", b'{"choices": []}', b"[1]", b"\xff", b'{"choices": [{"message": {"content": 3}}]}'):
        assert answer_text(other) == ""
