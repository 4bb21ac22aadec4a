"""The FAQ stream offline: banking77 in its order through an empty cache with the `faq` profile.

    PYTHONPATH=core python bench/semantic/stream.py --data FOLDER --work FOLDER [--train FOLDER]

A hit is right when the kept question has the same intent. banking77 is training data, so its intents are parted in four, and
the requests of each part are judged, against everything kept, by models that were made anew without any text of its intents;
the thresholds of the second look come from the scores of the other parts. Nothing is chosen on the part that is judged.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "train"))
import lexicon as lexicons
import wordings
from deep import Deep
from fit import FAQ, RATES, Fitted, fit_both, numbers_for
from gather import Gathered, gather, intents, rows
from generate import Words
from train import known

from turnout.twin.meaning import Lexicon
from turnout.twin.parts.pairs import features

SHOWN = (0.0025, 0.005, 0.01, 0.02)


def without(gathered: Gathered, taken: set[str], intent: dict[str, str]) -> Gathered:
    """Without the pairs that have a text, or come from one, with a taken intent."""
    keep = [
        i
        for i, pair in enumerate(gathered.pairs)
        if not {intent.get(text) for text in (pair.a, pair.b, pair.root)} & taken
    ]
    return Gathered(
        [gathered.pairs[i] for i in keep],
        gathered.numbers[keep],
        gathered.strict[keep],
        gathered.faq[keep],
        np.unique(gathered.groups[keep], return_inverse=True)[1],
    )


class Part(NamedTuple):
    """What judges the requests of one part of the intents."""

    shallow: Fitted
    sight: wordings.Sight
    scale: wordings.Scale
    marks: list[float]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    lexicon, tokens = Lexicon(lexicons.build(given.work / "vocabulary.npy")), lexicons.vocabulary()
    table, _, whole = lexicons.table(tokens, np.load(given.work / "vocabulary.npy"))
    deep = Deep(given.work)
    gathered = gather(given.data, lexicon, Words(tokens, table, whole), deep, 1)
    pairs = known(given.data)
    said = {text: lexicon.parse(text) for text, _ in pairs}
    deep.add(said)
    texts = wordings.texts_of(pairs, said, deep.of([text for text, _ in pairs]))
    places = {text: i for i, text in enumerate(texts.names)}
    order = [places[str(row["q"])] for row in rows(given.data, "banking77")]

    def numbers_of(i: int, j: int) -> np.ndarray:
        cosine = float(texts.static[i] @ texts.static[j])
        return np.array([features(said[texts.names[i]], said[texts.names[j]], cosine, 0.0)])

    turns, folds = wordings.folds_of(texts, 1)
    seen = wordings.judged(texts, turns, folds, 1)
    parts = []
    for k, turn in enumerate(turns):
        rest = without(gathered, set(texts.intent[folds == k].tolist()), dict(intents(given.data)))
        shallow, _ = fit_both(FAQ, rest, rest.faq, 1)
        others = folds[seen.asked] != k
        scale = wordings.scale_of(seen, others)
        mine = wordings.Seen(*(column[others] for column in seen))
        marks = wordings.marks_of(mine, scale.scores(mine.numbers))
        parts.append(Part(shallow, wordings.Sight(texts, turn), scale, marks))
    # What is kept depends on what was served, so each rate is a run of its own.
    for rate in SHOWN:
        at = RATES.index(rate)
        for both in (False, True):
            kept = np.zeros(len(order), int)
            count = right = wrong = 0
            for n, i in enumerate(order, 1):
                found = -1
                if count:
                    found = served(texts, parts[folds[i]], numbers_of, i, kept[:count], at, both)
                if found < 0:
                    kept[count] = i
                    count += 1
                else:
                    right += texts.intent[found] == texts.intent[i]
                    wrong += texts.intent[found] != texts.intent[i]
                if n in (3000, len(order)):
                    looks = "second look" if both else "first look"
                    print(f"wanted {100 * rate:g} %, {looks}: right {100 * right / n:.1f} %, wrong/all {100 * wrong / n:.2f} % of {n}", flush=True)


def served(texts: wordings.Texts, part: Part, numbers_of: Any, i: int, kept: np.ndarray, at: int, both: bool) -> int:
    """Whose answer is given; -1: nobody's."""
    if both:
        row = part.sight.look_at(i, kept)
        return row.best if part.scale.scores(np.array([row.numbers]))[0] >= part.marks[at] else -1
    nearest = int(kept[(texts.static[kept] @ texts.static[i]).argmax()])
    raw = part.shallow.model.predict(numbers_for(FAQ, False, numbers_of(i, nearest)))[0]
    return nearest if raw >= part.shallow.rates[at][1] else -1


if __name__ == "__main__":
    main()
