"""Whether two answers say the same: the fresh one to a question, and the one that was kept for a question like it. Pure.

It must be sure of what it says, for its word is a label: what it cannot tell is None, and counts for nothing. How often it
takes two fresh answers to one prompt for different ones is measured while it runs (meter.py), and subtracted.

In this order: the same text but for its marks, case and spaces; two JSON values, leaf by leaf; then what short texts are
about cannot differ in: yes and no, numbers, negations, names; then how many of their words they share, and, in between,
how near their vectors lie, where somebody can say. At most MOST characters of each are looked at: about 2 ms.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

MOST = 4_096  # characters; of a longer text the beginning, where an answer says what it says
MOST_LEAVES = 2_000  # of a JSON value
BRIEF = 30  # words up to which a text states one thing: a number, a name or a "not" more or less is another thing
# Shares of common words (of the shorter and of both), found on answers written twice to the same and to like questions.
ALIKE, APART = 0.72, 0.20
FEW_SWAPPED = 2
NEAR, FAR = 0.90, 0.45  # cosines of sentence vectors, where somebody has them
CUT_SAME = 0.9  # lengths of two texts that are the same as far as was looked, for that to say something

_WORD = re.compile(r"\d[\d.,:/]*\d|\d|[^\W\d_]+(?:['’][^\W\d_]+)?")
_NUMBER = re.compile(r"\d")
_MARKS = re.compile(r"[\s*_`#>~|\"“”„'’.,:;!?()\[\]{}-]+")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NEGATIONS = _set("not no never none neither nor cannot without nothing nobody nicht kein keine nie ohne pas jamais")
_STOP = _set(
    "a an the of to in on at for and or is are was were be been being it its this that these those as by with from you your"
    " can will would should may might i we they he she my our their his her so if then than also just very most some"
    " any all do does did have has had there here what which who how when where why about into over out up down"
)
_PAIRS = (
    "open close, enable disable, buy sell, increase decrease, start stop, start end, add remove, accept reject, allow forbid,"
    " raise lower, first last, left right, high low, hot cold, import export, send receive, upload download, lock unlock,"
    " freeze unfreeze, activate deactivate, deposit withdraw, debit credit, safe unsafe, legal illegal, min max,"
    " minimum maximum, always rarely, true false, good bad, old new, win lose, before after, more less, earlier later"
)
_SMALL = {
    "zero": "0", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "eleven": "11", "twelve": "12",
}  # fmt: skip
_YES, _NO = frozenset(("yes", "yeah", "yep", "correct", "true")), frozenset(("no", "nope", "incorrect", "false"))


def answer_text(body: bytes) -> str:
    """The text of a chat answer; empty if it is none."""
    try:
        return _answer(body).choices[0].message.content or ""
    except (msgspec.MsgspecError, IndexError, UnicodeDecodeError):
        return ""


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message


class _Answer(msgspec.Struct):
    choices: list[_Choice]


_answer = msgspec.json.Decoder(_Answer).decode


def same_answer(fresh: str, kept: str, near: Callable[[str, str], float] | None = None) -> bool | None:
    """Whether they say the same; None: cannot tell. `near`: the cosine of two texts' vectors, asked only where the words
    leave it open."""
    if fresh == kept:
        return True
    a, b = _plain(fresh), _plain(kept)
    if not a or not b:
        return a == b if max(len(fresh), len(kept)) <= MOST else None
    if max(len(fresh), len(kept)) <= MOST:
        if a == b:
            return True
        if (said := _json(fresh, kept)) is not _NO_JSON:
            return _leaves(*said)
    elif min(len(fresh), len(kept)) < CUT_SAME * max(len(fresh), len(kept)):
        return None  # one of them says more than was looked at
    return _texts(fresh[:MOST], kept[:MOST], near)


def _plain(text: str) -> str:
    return _MARKS.sub(" ", unicodedata.normalize("NFKC", text[:MOST]).casefold()).strip()


# ---- words


class _Said:
    """What is compared of a text."""

    __slots__ = ("brief", "names", "negations", "numbers", "opens", "words")

    def __init__(self, text: str) -> None:
        text = unicodedata.normalize("NFKC", text).replace("’", "'")
        self.words: Counter[str] = Counter()
        self.numbers: Counter[str] = Counter()
        self.names: set[str] = set()
        self.negations = 0
        first, n, self.opens = True, 0, ""
        for at in _WORD.finditer(text):
            token = at.group()
            n += 1
            low = token.casefold()
            if n == 1:
                self.opens = "yes" if low in _YES else "no" if low in _NO else ""
            if _NUMBER.match(token):
                self.numbers[_number(token)] += 1
            elif low in _SMALL:
                self.numbers[_SMALL[low]] += 1
            elif low in _NEGATIONS or low.endswith("n't"):
                self.negations += 1
            elif low not in _STOP:
                self.words[_stem(low)] += 1
                if token[0].isupper() and (not first or token[1:].isupper()) and len(token) > 1:
                    self.names.add(_stem(low))
            end = at.end()
            first = end < len(text) and text[end] in ".!?\n:"
        self.brief = n <= BRIEF


def _number(token: str) -> str:
    """1,000 as 1000, and 3.50 as 3.5; dates and times as they are."""
    if token.isdigit():
        return token.lstrip("0") or "0"
    if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", token):
        token = token.replace(",", "")
    if re.fullmatch(r"\d+\.\d+", token):
        token = token.rstrip("0").rstrip(".")
    return token.lstrip("0") or "0"


@lru_cache(4096)
def _stem(word: str) -> str:
    for end in ("'s", "ing", "edly", "ed", "ies", "es", "s", "ly"):
        if word.endswith(end) and len(word) - len(end) >= 3:
            word = word[: -len(end)]
            break
    return word[:-1] if word[-1] == "e" and len(word) > 3 else word


_OPPOSITE = {(_stem(x), _stem(y)) for pair in _PAIRS.split(", ") for x, y in (pair.split(), pair.split()[::-1])}


def _texts(fresh: str, kept: str, near: Callable[[str, str], float] | None) -> bool | None:
    a, b = _Said(fresh), _Said(kept)
    if a.opens and b.opens and a.opens != b.opens:
        return False
    shared = sum((a.words & b.words).values())
    fewer, all_ = min(a.words.total(), b.words.total()), (a.words | b.words).total()
    within, overlap = (shared / fewer, shared / all_) if fewer else (0.0, 0.0)
    numbers = _agree(a.numbers.keys(), b.numbers.keys())
    names = _agree(a.names, b.names)
    if a.brief and b.brief:
        if numbers is False or (a.negations % 2 != b.negations % 2 and overlap > 0.5):
            return False
        if names is False and numbers is not True:
            return False
        if not fewer:  # numbers alone
            return numbers is True
        if (bool(a.numbers) != bool(b.numbers)) or a.negations % 2 != b.negations % 2:
            return None if overlap > APART else False
    elif numbers is False and names is False:
        return False
    only, other = a.words.keys() - b.words.keys(), b.words.keys() - a.words.keys()
    if overlap > 0.5 and len(only) * len(other) < 1_000 and any((x, y) in _OPPOSITE for x in only for y in other):
        return False
    if overlap >= ALIKE or (within >= 0.9 and overlap >= 0.5):
        if numbers is False or a.negations != b.negations or (names is False and a.brief and b.brief):
            return None
        swapped = min(len(only), len(other))
        if not swapped:  # one of them only says more
            return True
        # A word or two in the place of others, and all else the same: the mark of an answer to a question that looks alike.
        return None if swapped <= FEW_SWAPPED else _by(near, fresh, kept)
    if overlap < APART and within < 0.35:
        return False if near is None or near(fresh, kept) < NEAR else None
    return _by(near, fresh, kept) if numbers is not False else None


def _by(near: Callable[[str, str], float] | None, fresh: str, kept: str) -> bool | None:
    if near is None:
        return None
    cosine = near(fresh, kept)
    return True if cosine >= NEAR else False if cosine < FAR else None


def _agree(a: Any, b: Any) -> bool | None:
    """None: one of the two has none. False: nearly nothing of the shorter one is in the other."""
    if not a or not b:
        return None
    shared = len(a & b) / min(len(a), len(b))
    return True if shared >= 0.8 else False if shared < 0.5 else None


# ---- JSON

_NO_JSON = object()


def _json(fresh: str, kept: str) -> Any:
    """Both values, if both are objects or arrays."""
    values = []
    for text in (fresh, kept):
        text = text.strip()
        if text.startswith("```") and text.endswith("```"):
            text = text[3:-3].removeprefix("json").strip()
        if text[:1] not in ("{", "["):
            return _NO_JSON
        try:
            values.append(msgspec.json.decode(text))
        except (msgspec.MsgspecError, RecursionError):
            return _NO_JSON
    return values


def _leaves(a: Any, b: Any) -> bool | None:
    """The same at every place; words may be others where they say the same."""
    todo = [(a, b)]
    sure: bool | None = True
    for _ in range(MOST_LEAVES):
        if not todo:
            return sure
        a, b = todo.pop()
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return False
            todo += [(a[key], b[key]) for key in a]
        elif isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return False
            todo += zip(a, b, strict=True)
        elif isinstance(a, str) and isinstance(b, str):
            if _plain(a) != _plain(b):
                same = _texts(a, b, None)
                if same is False:
                    return False
                sure = sure if same else None
        else:
            return False
    return None
