"""The seam oracle, without sockets: every cut of every text, joined to what every kind of target says next."""

import random
import re
from collections.abc import Iterator

import pytest

from support.goes_on import HOWS, TEXTS, continuation
from turnout.stream.seam import COLUMNS, Seam, columns, inside_code, part


def pieces(text: str, size: int) -> Iterator[str]:
    return (text[i : i + size] for i in range(0, len(text), size))


def join(seam: Seam, answer: str, size: int) -> str:
    return "".join(seam.feed(piece) for piece in pieces(answer, size)) + seam.close()


def go_on(text: str, said: str, how: str, size: int) -> tuple[str | None, int]:
    """The joined text (None: it could not be joined) and how often the target was asked, as streaming.py asks it."""
    head, words = part(said)
    answer = continuation(how, text, head if how == "exact" else said, words)
    seam = Seam(said, words, False)
    out = join(seam, answer, size)
    if seam.found:
        return said + out, 1
    assert out == "" and seam.lost
    # Once more with all of it as its own words; whoever begins elsewhere does so again.
    again = continuation(how, text, said, "")
    seam = Seam(said, "", True)
    out = join(seam, again, size)
    return (said + out if seam.found else None), 2


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", TEXTS)
def test_every_cut_is_joined_byte_exact(name: str, how: str) -> None:
    text = TEXTS[name]
    for cut in range(1, len(text) + 1):
        for size in (1, 3, 1000):
            joined, asked = go_on(text, text[:cut], how, size)
            assert joined == text, (cut, size, text[max(0, cut - 20) : cut])
            # Only a target that leaves out what it was asked to begin with is asked twice.
            assert asked == 1 or how == "straight" or (how == "exact" and not part(text[:cut])[0])


@pytest.mark.parametrize("name", TEXTS)
def test_any_chunking_gives_the_same(name: str) -> None:
    rng = random.Random(name)
    text = TEXTS[name]
    for _ in range(300):
        cut = rng.randrange(1, len(text))
        how = rng.choice(HOWS[1:-1])
        head, words = part(text[:cut])
        assert head + words == text[:cut]
        answer = continuation(how, text, text[:cut], words)
        seam = Seam(text[:cut], words, False)
        out, at = "", 0
        while at < len(answer):
            to = at + rng.randrange(1, 9)
            out += seam.feed(answer[at:to])
            at = to
        assert text[:cut] + out + seam.close() == text, (cut, how)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("how", ["paraphrase", "sure"])
def test_other_words_never_repeat_a_sentence(name: str, how: str) -> None:
    text = TEXTS[name]
    for cut in range(1, len(text) + 1):
        joined, _ = go_on(text, text[:cut], how, 4)
        if joined is not None:
            assert joined.startswith(text[:cut])
            sentences = [s for s in re.split(r"(?<=[.!?。])\s*", joined) if len(s) > 20]
            assert len(sentences) == len(set(sentences))
            # no sentence begins inside a word, but for what may be the second half of "JavaScript"
            assert not re.search(r"(?<![A-Za-z])[a-z]+In other", joined) or inside_code(text[:cut])


def test_the_words_asked_for_begin_at_a_word_and_are_twelve_columns_wide() -> None:
    for text in TEXTS.values():
        for cut in range(1, len(text) + 1):
            head, words = part(text[:cut])
            assert head + words == text[:cut]
            if head:
                assert COLUMNS <= columns(words) <= 60 + 12
                assert not head[-1].isspace()
                assert head[-1] != "\u200d" and words[0] not in "\u200d\ufe0f"
            else:
                assert columns(text[:cut]) < 40


def test_a_long_run_without_blanks_is_parted_all_the_same() -> None:
    head, words = part("https://example.com/" + "a1b2" * 400)
    assert head and columns(words) == 60


def test_a_very_long_answer_costs_no_more_than_its_last_pages() -> None:
    said = " ".join(f"w{i}" for i in range(80_000))
    seam = Seam(said, part(said)[1], False)
    assert len(seam._begins) < 16_384
    assert join(seam, "w79998 w79999 and on", 3) == " and on"
    # one that starts over is followed all the same
    seam = Seam(said, part(said)[1], False)
    assert join(seam, said + " and on", 5000) == " and on"


def test_nothing_comes_out_before_the_seam_and_everything_after_it() -> None:
    said = "The switch moves the train while"
    seam = Seam(said, " train while", False)
    assert [seam.feed(t) for t in ("train", " wh", "ile", " it", " rolls")] == ["", "", "", " it", " rolls"]
    assert seam.close() == ""


def test_an_answer_that_starts_over_is_swallowed_while_it_matches() -> None:
    text = TEXTS["sixty"]
    said = text[:200]
    seam = Seam(said, part(said)[1], False)
    out = [seam.feed(c) for c in text]
    assert "".join(out[:200]) == ""
    assert not seam.lost
    assert "".join(out[200:]) == text[200:]


def test_one_that_starts_over_and_then_says_something_else_is_lost() -> None:
    text = TEXTS["sixty"]
    seam = Seam(text[:200], part(text[:200])[1], False)
    assert join(seam, text[:100] + " but quite otherwise, and on and on it goes for a while", 5) == ""
    assert seam.lost


def test_the_longest_match_counts() -> None:
    """What follows an earlier place that looks alike decides, not the first look."""
    said = "the old switch moves slowly, while the new switch moves"
    words = part(said)[1]
    assert join(Seam(said, words, False), "new switch moves fast.", 1) == " fast."
    assert join(Seam(said, words, False), "switch moves slowly and well", 1) == " slowly and well"
    assert join(Seam(said, words, False), "switch moves slowly, while the new switch moves fast.", 1) == " fast."


@pytest.mark.parametrize(
    "said, answer, new",
    [
        ("It is such a", "apple pie", None),  # a blank was cut off, and the word is another one: asked once more
        ("| a | b |", "\n| c | d |", None),  # the end of one row is no beginning of the next
        ("and then\n", "then\n\nwe rest", "\nwe rest"),
        ("Look:\n\n`", "```python\nx", "``python\nx"),
        ("Look:\n\n``", "```python\nx", "`python\nx"),
        ("Look:\n\n`", "``python\nx", None),
    ],
)
def test_a_short_match_has_to_say_more_for_itself(said: str, answer: str, new: str | None) -> None:
    seam = Seam("Once upon a time in the west. " + said, " the west. " + said, False)
    out = join(seam, answer if new is not None or answer[0] in "\n`" else " " + answer, 2)
    assert (out if seam.found else None) == new


def test_an_answer_that_says_no_more_is_a_whole_one() -> None:
    said = "That is all there is to say."
    assert join(Seam(said, " is to say.", False), "is to say.", 3) == ""
    seam = Seam(said, " is to say.", False)
    seam.feed("is to say.")
    seam.close()
    assert seam.found
    nothing = Seam(said, "", True)
    assert nothing.close() == ""
    assert nothing.found


def test_a_fence_that_wraps_the_continuation_is_dropped_at_both_ends() -> None:
    said = "The switch moves the train while"
    seam = Seam(said, " train while", False)
    assert join(seam, "```\ntrain while it rolls.\n\nIndeed.\n```\n", 1) == " it rolls.\n\nIndeed."
    seam = Seam(said, " train while", False)
    assert join(seam, "```\ntrain while it rolls.\n```\nIndeed.", 1) == " it rolls.\n```\nIndeed."
