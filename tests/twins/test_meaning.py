"""Lexicon, texts and verifier, native and twin: the same ids, features and scores for whatever text, and the right ones."""

import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import turnout
from turnout.twin import meaning as twin

try:
    from turnout import _native as native
except ImportError:
    native = None  # type: ignore[assignment]

DATA = Path(turnout.__file__).parent / "cache" / "semantic" / "data"
KINDS = [pytest.param(twin, id="twin")] + ([pytest.param(native, id="native")] if native is not None else [])


@cache
def lexicon(module: Any) -> Any:
    return module.Lexicon((DATA / "lexicon.bin").read_bytes())


@cache
def verifier(module: Any, profile: str) -> Any:
    return module.Verifier((DATA / f"{profile}.bin").read_bytes())


def cosine(a: Any, b: Any) -> float:
    one, other = struct.unpack("<256f", a.vector), struct.unpack("<256f", b.vector)
    return sum(x * y for x, y in zip(one, other, strict=True))


def explain(module: Any, a: str, b: str) -> dict[str, float]:
    one, other = lexicon(module).parse(a), lexicon(module).parse(b)
    return dict(verifier(module, "strict").explain(one, other, cosine(one, other)))


def score(module: Any, a: str, b: str, deep: float | None = None, profile: str = "strict") -> float:
    one, other = lexicon(module).parse(a), lexicon(module).parse(b)
    return float(verifier(module, profile).score(one, other, cosine(one, other), deep))


def agree(a: str, b: str) -> None:
    """Both halves say the same about a pair."""
    ours = [lexicon(module).parse(text) for module in (twin, native) for text in (a, b)]
    for left, right in ((ours[0], ours[2]), (ours[1], ours[3])):
        assert left.ids() == right.ids()
        assert (left.content, left.tokens) == (right.content, right.tokens)
        assert struct.unpack("<256f", left.vector) == pytest.approx(struct.unpack("<256f", right.vector), abs=1e-5)
    near = cosine(ours[0], ours[1])
    for profile in ("strict", "faq"):
        said = [verifier(module, profile).explain(one, other, near) for module, one, other in ((twin, *ours[:2]), (native, *ours[2:]))]
        assert list(said[0]) == list(said[1])
        assert said[0] == pytest.approx(said[1], abs=1e-5)
        for deep in (None, 0.9):
            assert verifier(twin, profile).score(*ours[:2], near, deep) == pytest.approx(verifier(native, profile).score(*ours[2:], near, deep), abs=1e-5)


SAME = [
    ("How do I reset my password?", "how can i reset my password"),
    ("What's the capital of France?", "What is the capital of France?"),
    ("Where can I park near the town hall?", "Near the town hall, where can I park?"),
]
# Differing in one thing each; the strict profile must give nothing for them however alike the rest is.
REFUSED = {
    "numbers": ("Track order 48213 please", "Track order 48231 please"),
    "opposites": ("Is it safe to take ibuprofen with alcohol?", "Is it unsafe to take ibuprofen with alcohol?"),
    "units": ("convert 5 km to miles", "convert 5 kg to miles"),
    "roles": ("flights from Paris to Rome", "flights from Rome to Paris"),
    "code": ("fix this: x = a + b", "fix this: x = a - b"),
    "negations_off": ("Do I have to pay tax on gifts?", "Do I not have to pay tax on gifts?"),
    "dates": ("What are the opening hours on Monday?", "What are the opening hours on Tuesday?"),
    "ordinals": ("Who won the first race?", "Who won the 2nd race?"),
    "idents": ("How do I use python3 venv?", "How do I use python2 venv?"),
    "swapped": ("Why do dogs chase old cats?", "Why do old cats chase dogs?"),
}
TEXTS = [
    "", " ", "?", "hello", "Hello, World!", "don't can't won't I'm we've he'd let's what's John's", "DON’T", "5km 5 km 3.50 1,000,000 10:30 05 2024-05-03",
    "$5 €50 £3.20 5% 4g 1st 22nd 1990s 5k", "c++ vs C# vs f#", "x = a + b; foo_bar(baz)", "```\nprint(1)\n```", "use `x` and `y`", "`open", "How To Lose Weight Fast",
    "naïve café Ångström İstanbul ΑΣ ß", "日本語のテキスト 漢字", "ﬁ ½ ① Ａ", "🤗 datasets", "a" * 120, "word " * 600, "\u200bzero\u00adwidth\ufeff", "e\u0301tude",
    "please tell me how do i get to Rome", "Hi! What is the best way to learn Java? I am a beginner.", "...", "What's up?Nothing. Ok", "1.2.3.4.5", "1.x", ",5", "5,", "''s", "it''s", "\x00\x01", "unhappy disable nonsense irregular", "+++", "%", "3 %", "€", "€x",
]  # fmt: skip


@pytest.mark.skipif(native is None, reason="the extension is not built")
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_both_halves_read_a_text_alike(text: str) -> None:
    agree(text, "How do I learn Java in 5 days?")
    agree(text, text + " not")


@pytest.mark.skipif(native is None, reason="the extension is not built")
@pytest.mark.parametrize("pair", [*SAME, *REFUSED.values()])
def test_both_halves_judge_a_pair_alike(pair: tuple[str, str]) -> None:
    agree(*pair)


WORDS = st.sampled_from(
    ["how", "do", "i", "can't", "what", "is", "the", "best", "way", "to", "learn", "java", "c++", "from", "paris", "to", "rome", "not", "never", "5", "km", "kg", "3.5", "1,000", "monday", "may", "May", "open", "closed", "unsafe", "safe", "first", "2nd", "%", "$", "?", ".", ",", "'", "`", "=", "+", "naïve"]
)


@pytest.mark.skipif(native is None, reason="the extension is not built")
@given(st.lists(WORDS, max_size=14), st.lists(WORDS, max_size=14), st.sampled_from(["", " "]))
def test_both_halves_agree_on_made_texts(one: list[str], other: list[str], between: str) -> None:
    agree(between.join(one), between.join(other))


# Characters that are not assigned yet may be known to one half and not to the other.
ANY = st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=40)


@pytest.mark.skipif(native is None, reason="the extension is not built")
@given(ANY, ANY)
def test_both_halves_agree_on_any_text(one: str, other: str) -> None:
    agree(one, other)


@pytest.mark.parametrize("module", KINDS)
@pytest.mark.parametrize("name", REFUSED)
def test_the_strict_profile_gives_nothing_for(module: Any, name: str) -> None:
    assert explain(module, *REFUSED[name])[name] > 0
    assert score(module, *REFUSED[name], deep=1.0) == score(module, *REFUSED[name]) == 0


@pytest.mark.parametrize("module", KINDS)
@pytest.mark.parametrize(
    "pair",
    [
        ("How do I reset my Gmail password?", "How do I reset my Outlook password?"),
        ("What is the weather in Paris?", "What is the weather in Rome?"),
        ("How do I learn programming?", "How do I learn programming in Java?"),
        ("Why should I learn chess?", "How do I learn chess?"),
    ],
)
def test_another_name_or_question_stays_under_every_threshold(module: Any, pair: tuple[str, str]) -> None:
    for deep in (None, 0.9):
        assert score(module, *pair, deep=deep) < verifier(module, "strict").threshold(0.02, deep is not None)


@pytest.mark.parametrize("module", KINDS)
@pytest.mark.parametrize("pair", [*SAME, *REFUSED.values()])
def test_it_does_not_matter_who_came_first(module: Any, pair: tuple[str, str]) -> None:
    assert explain(module, *pair) == pytest.approx(explain(module, *reversed(pair)), abs=1e-12)


@pytest.mark.parametrize("module", KINDS)
@pytest.mark.parametrize("profile", ["strict", "faq"])
def test_rewordings_score_higher_than_another_question(module: Any, profile: str) -> None:
    for a, b in SAME[:2]:
        assert score(module, a, b, profile=profile) > score(module, a, "How do I cancel my order?", profile=profile) + 0.3


@pytest.mark.parametrize("module", KINDS)
def test_ids_are_those_of_bert_uncased(module: Any) -> None:
    assert lexicon(module).parse("Hello, World! Naïve unaffable").ids() == [7592, 1010, 2088, 999, 15743, 14477, 20961, 3468]


@pytest.mark.parametrize("module", KINDS)
def test_a_vector_has_unit_norm_and_zeros_without_tokens(module: Any) -> None:
    said = lexicon(module).parse("How do I learn Java?")
    assert cosine(said, said) == pytest.approx(1, abs=1e-6)
    assert lexicon(module).parse("").vector == bytes(1024)


@pytest.mark.parametrize("module", KINDS)
def test_a_long_text_is_cut_and_says_so(module: Any) -> None:
    said = lexicon(module).parse("word " * 510)
    assert (len(said.ids()), said.tokens) == (510, 512)
    said = lexicon(module).parse("word " * 511)
    assert (len(said.ids()), said.tokens) == (510, 513)
    assert lexicon(module).parse("a " + " " * 9000 + "b").tokens == 513


@pytest.mark.parametrize("module", KINDS)
def test_content_leaves_out_function_words_and_ways_of_asking(module: Any) -> None:
    assert [lexicon(module).parse(text).content for text in ("yes please", "What is the best way to lose weight?", "and you?")] == [1, 2, 0]


@pytest.mark.parametrize("module", KINDS)
def test_thresholds_rise_as_the_rate_falls(module: Any) -> None:
    for profile in ("strict", "faq"):
        for deep in (False, True):
            chosen = [verifier(module, profile).threshold(rate, deep) for rate in (0.05, 0.02, 0.01, 0.0075, 0.005, 0.0025)]
            assert chosen == sorted(chosen)
            assert verifier(module, profile).threshold(0.006, deep) == verifier(module, profile).threshold(0.005, deep)
            assert verifier(module, profile).threshold(1e-6, deep) == 2
        assert verifier(module, profile).low(1e-6) == verifier(module, profile).sure(1e-6) == 2
        assert verifier(module, profile).sure(0.01) >= verifier(module, profile).threshold(0.01, False)
        assert 0 < verifier(module, profile).low(0.01) <= 1


@pytest.mark.parametrize("module", KINDS)
def test_half_a_surrogate_pair_is_refused(module: Any) -> None:
    with pytest.raises(UnicodeEncodeError):
        lexicon(module).parse("a\ud800")


@pytest.mark.parametrize("module", KINDS)
@pytest.mark.parametrize(("kind", "file"), [("Lexicon", "lexicon.bin"), ("Verifier", "strict.bin")])
def test_what_is_no_such_file_is_refused(module: Any, kind: str, file: str) -> None:
    data = (DATA / file).read_bytes()
    for bad in (b"", b"x" * 100, data[:8], data[:20], data[:40], data[: len(data) // 2], data[:-1], data + b"\0", b"X" + data[1:]):
        with pytest.raises(ValueError):
            getattr(module, kind)(bad)


@pytest.mark.parametrize("module", KINDS)
def test_trees_that_do_not_end_are_refused(module: Any) -> None:
    data = (DATA / "strict.bin").read_bytes()
    (length,) = struct.unpack_from("<H", data, 12)

    def forest(nodes: list[tuple[int, float, int, int]]) -> bytes:
        return struct.pack("<dHHH", 0, 0, 1, len(nodes)) + b"".join(struct.pack("<hdHH", *node) for node in nodes)

    good = [(0, 0.5, 1, 2), (-1, -1.0, 0, 0), (-1, 1.0, 0, 0)]
    head = data[: 14 + length]
    assert module.Verifier(head + forest(good) * 2)
    for bad in ([(0, 0.5, 0, 1), (-1, 1.0, 0, 0)], [(0, 0.5, 1, 3), (-1, 1.0, 0, 0)], [(99, 0.5, 1, 1), (-1, 1.0, 0, 0)], []):
        with pytest.raises(ValueError):
            module.Verifier(head + forest(good) + forest(bad))
