"""What two texts have in common and what sets them apart, as numbers. It is the same whichever of the two came first.

Twin of `native/src/kernels/meaning/pairs.rs`.
"""

import math
from itertools import pairwise
from operator import mul

from .signs import (
    ASKED,
    DATE,
    IDENT,
    MODAL,
    NAME,
    NEGATION,
    NUMBER,
    ORDINAL,
    PRONOUN,
    QUANTITY,
    RELATION,
    STOP,
    UNIT,
    Word,
)
from .texts import Text, is_content

NAMES = (
    "cosine", "deep",
    "shared", "shared_all", "cover_lo", "cover_hi", "bigrams", "bigrams_all",
    "alone_lo", "alone_hi", "rarest_lo", "rarest_hi", "weight_lo", "weight_hi",
    "near_mean", "near_lo", "near_hi", "swap_near",
    "synonyms", "moved", "moved_all", "breaks", "breaks_all", "swapped", "roles", "first_same", "last_same",
    "numbers", "numbers_one", "numbers_same", "ordinals", "dates", "units", "negations", "negations_off",
    "opposites", "names", "names_weight", "names_both", "idents", "code",
    "ask_same", "ask_off", "pronouns", "relations", "modals", "quantities", "small",
    "content_lo", "content_off", "length_off", "questions_off", "sentences_off", "verbatim",
)  # fmt: skip
_VETOES = (
    "numbers",
    "ordinals",
    "dates",
    "units",
    "negations_off",
    "opposites",
    "idents",
    "code",
    "roles",
    "swapped",
    "ask_off",
)
REFUSED = tuple(NAMES.index(name) for name in _VETOES)
_MOST_NEAR = 16  # words of a side that are compared by meaning; with more left over it is a miss anyway


def likeness(one: list[int], other: list[int]) -> float:
    """The cosine of two meanings, 0 when one has none."""
    norms = sum(map(mul, one, one)) * sum(map(mul, other, other))
    return float(sum(map(mul, one, other))) / math.sqrt(norms) if norms else 0.0


def matches(new: Text, kept: Text) -> list[tuple[int, int]]:
    """Which word of `new` is which of `kept`, every word at most once, equal ones in their order; by place in `new`."""
    out = []
    i = j = 0
    while i < len(new.order) and j < len(kept.order):
        one, other = new.order[i], kept.order[j]
        a, b = new.words[one].key, kept.words[other].key
        if a == b:
            out.append((one, other))
        i += a <= b
        j += b <= a
    return sorted(out)


def _longest_run(places: list[int]) -> int:
    """The length of the longest rising subsequence: how many words kept their order."""
    tails: list[int] = []
    for place in places:
        at = 0
        while at < len(tails) and tails[at] < place:
            at += 1
        tails[at:] = [place, *tails[at + 1 :]]
    return len(tails)


def _is_placed(word: Word) -> bool:
    """Whether it matters where a word stands: who does what to whom."""
    return is_content(word) or bool(word.flags & (PRONOUN | QUANTITY | NEGATION) and not word.flags & ASKED)


def _breaks(places: list[int]) -> int:
    """How often neighbours among the shared words are none in the other text. A part that moves to the front breaks the
    order once, words that change places break it more often unless little else is shared."""
    ranks = {place: rank for rank, place in enumerate(sorted(places))}
    return sum(ranks[after] != ranks[before] + 1 for before, after in pairwise(places))


def _bigrams(words: list[Word]) -> list[tuple[int, int]]:
    return sorted((a.key, b.key) for a, b in pairwise(words))


def _overlap(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> float:
    """The Jaccard index of two sorted multisets; 1 when both are empty."""
    i = j = both = 0
    while i < len(one) and j < len(other):
        a, b = one[i], other[j]
        both += a == b
        i += a <= b
        j += b <= a
    whole = len(one) + len(other) - both
    return both / whole if whole else 1.0


def _governors(words: list[Word]) -> list[int]:
    """For each content word the relation word (from, to, of) that stands before it with no content word between, or 0."""
    out = []
    last = 0
    for word in words:
        out.append(last if is_content(word) else 0)
        if is_content(word):
            last = 0
        elif word.flags & RELATION:
            last = word.key
    return out


def _roles(new: Text, kept: Text, pairs: list[tuple[int, int]]) -> int:
    """How many words changed places with one another: from Paris to Rome, from Rome to Paris."""
    one, other = _governors(new.words), _governors(kept.words)
    changed = [(one[i], other[j]) for i, j in pairs if one[i] and other[j] and one[i] != other[j]]
    return sum((there, here) in changed for here, there in changed)


def _count(words: list[Word], flag: int) -> int:
    return sum(word.flags & flag != 0 for word in words)


def _alone(said: Text, matched: set[int]) -> list[Word]:
    return [word for i, word in enumerate(said.words) if i not in matched]


def _pair_off(new: Text, own: list[Word], other: list[Word]) -> int:
    """Takes synonyms out of both lists and counts them."""
    found = 0
    for word in list(own):
        if not is_content(word) or word.flags & (NUMBER | ORDINAL | UNIT | DATE):
            continue
        for candidate in other:
            if is_content(candidate) and new.tables.reader.like(word, candidate):
                own.remove(word)
                other.remove(candidate)
                found += 1
                break
    return found


def _nearest(said: Text, words: list[Word], other: Text, others: list[Word]) -> list[tuple[float, int]]:
    """For each word how near the nearest of the others is, and its idf."""
    meanings = [other.meaning(word) for word in others]
    out = []
    for word in words:
        own = said.meaning(word)
        best = 0.0
        for meaning in meanings:
            best = max(best, likeness(own, meaning))
        out.append((best, word.idf))
    return out


def features(new: Text, kept: Text, cosine: float, deep: float) -> list[float]:
    """The numbers by NAMES."""
    pairs = matches(new, kept)
    own = _alone(new, {i for i, _ in pairs})
    other = _alone(kept, {j for _, j in pairs})
    # Counted before synonyms are paired off: "increase" and "reduce" share an axis whatever else they share.
    opposites = sum(new.tables.reader.opposed(a, b) for a in own for b in other)
    out = [cosine, deep]
    content = [(i, j) for i, j in pairs if is_content(new.words[i]) and is_content(kept.words[j])]
    own_content = [word for word in new.words if is_content(word)]
    other_content = [word for word in kept.words if is_content(word)]
    own_weight = sum(word.idf for word in own_content)
    other_weight = sum(word.idf for word in other_content)
    both_weight = sum(min(new.words[i].idf, kept.words[j].idf) for i, j in content)
    whole = own_weight + other_weight - both_weight
    covers = (both_weight / own_weight if own_weight else 1.0, both_weight / other_weight if other_weight else 1.0)
    words = len(new.words) + len(kept.words) - len(pairs)
    out += [
        both_weight / whole if whole else 1.0,
        len(pairs) / words if words else 1.0,
        min(covers),
        max(covers),
        _overlap(_bigrams(own_content), _bigrams(other_content)),
        _overlap(_bigrams(new.words), _bigrams(kept.words)),
    ]
    breaks = _breaks([j for i, j in pairs if _is_placed(new.words[i]) and _is_placed(kept.words[j])])
    all_breaks, lone = _breaks([j for _, j in pairs]), len(own) + len(other)
    synonyms = _pair_off(new, own, other)
    left = [word for word in own if is_content(word)]
    right = [word for word in other if is_content(word)]
    out += _alone_numbers(left, right)
    out += _near_numbers(new, kept, left, right, own_content, other_content)
    out += [
        synonyms,
        len(content) - _longest_run([j for _, j in content]),
        len(pairs) - _longest_run([j for _, j in pairs]),
        breaks,
        all_breaks,
        breaks > 1 or (all_breaks > 1 and (breaks == 1 or lone < 2)),
        _roles(new, kept, content),
        _same_at(own_content, other_content, 0),
        _same_at(own_content, other_content, -1),
    ]
    out += _mark_numbers(new, kept, own, other, left, right)
    out += [opposites, *_name_numbers(left, right), new.code != kept.code]
    out += [
        new.asks == kept.asks != 0,
        0 != new.asks != kept.asks != 0,
        *(_count(_small(own), flag) + _count(_small(other), flag) for flag in (PRONOUN, RELATION, MODAL, QUANTITY)),
        len(_small(own)) + len(_small(other)),
    ]
    sizes = (len(new.words), len(kept.words))
    out += [
        min(len(own_content), len(other_content)),
        abs(len(own_content) - len(other_content)),
        abs(sizes[0] - sizes[1]) / max(*sizes, 1),
        abs(new.questions - kept.questions),
        abs(new.sentences - kept.sentences),
        not own and not other and new.words != [] and [w.key for w in new.words] == [w.key for w in kept.words],
    ]
    return [float(value) for value in out]


def _small(words: list[Word]) -> list[Word]:
    """The function words among them that no way of asking accounts for."""
    return [word for word in words if word.flags & STOP and not word.flags & ASKED]


def _same_at(own: list[Word], other: list[Word], at: int) -> bool:
    return bool(own) and bool(other) and own[at].key == other[at].key


def _alone_numbers(left: list[Word], right: list[Word]) -> list[float]:
    out: list[float] = []
    for one, two in (
        (len(left), len(right)),
        (max((word.idf for word in left), default=0), max((word.idf for word in right), default=0)),
        (sum(word.idf for word in left), sum(word.idf for word in right)),
    ):
        out += [min(one, two), max(one, two)]
    return out


def _near_numbers(
    new: Text, kept: Text, left: list[Word], right: list[Word], own: list[Word], other: list[Word]
) -> list[float]:
    left, right = left[:_MOST_NEAR], right[:_MOST_NEAR]
    forth = _nearest(new, left, kept, other[: 2 * _MOST_NEAR])
    back = _nearest(kept, right, new, own[: 2 * _MOST_NEAR])
    both = forth + back
    weight = sum(idf for _, idf in both)
    nearness = 0.0
    for near, idf in both:  # not sum(): from 3.12 on it rounds otherwise
        nearness += near * idf
    lows = (min((near for near, _ in forth), default=1.0), min((near for near, _ in back), default=1.0))
    swapped = 1.0
    if left and right:
        swapped = min(near for near, _ in _nearest(new, left, kept, right))
    return [
        nearness / weight if weight else 1.0,
        min(lows),
        max(lows),
        swapped,
    ]


def _mark_numbers(
    new: Text, kept: Text, own: list[Word], other: list[Word], left: list[Word], right: list[Word]
) -> list[float]:
    """Numbers, dates, units and negations that only one of the texts has."""
    numbers = (_count(own, NUMBER), _count(other, NUMBER))
    all_numbers = (_count(new.words, NUMBER), _count(kept.words, NUMBER))
    units = (_count(own, UNIT), _count(other, UNIT))
    negations = (_count(new.words, NEGATION), _count(kept.words, NEGATION))
    return [
        sum(numbers),
        (all_numbers[0] == 0) != (all_numbers[1] == 0),
        min(all_numbers) - max(numbers) if min(all_numbers) > max(numbers) else 0,
        _count(own, ORDINAL) + _count(other, ORDINAL),
        _count(left, DATE) + _count(right, DATE),
        min(units),
        sum(negations),
        (negations[0] - negations[1]) % 2,
    ]


def _name_numbers(left: list[Word], right: list[Word]) -> list[float]:
    names = (_count(left, NAME), _count(right, NAME))
    heaviest = max((word.idf for word in left + right if word.flags & NAME), default=0)
    return [sum(names), heaviest, min(names), _count(left, IDENT) + _count(right, IDENT)]
