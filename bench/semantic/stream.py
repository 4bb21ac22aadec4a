"""The FAQ stream offline: banking77 in its order through an empty cache with the `faq` profile.

    PYTHONPATH=core python bench/semantic/stream.py --data FOLDER --work FOLDER [--train FOLDER]

A hit is right when the kept question has the same intent. banking77 is training data, so the trees are trained here anew
for each half of its intents, without any pair that has an intent of that half on either side; the requests of a half are
judged by those trees against everything kept. Thresholds are those of the forest for the wanted rate, not chosen on the
stream.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "train"))
import lexicon as lexicons
from deep import Deep
from fit import FAQ, RATES, Fitted, fit_both, numbers_for
from gather import Gathered, floats, gather, intents, rows
from generate import Words

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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--n", type=int, default=8000)
    given = parser.parse_args()
    data = lexicons.build(given.work / "vocabulary.npy")
    lexicon, tokens = Lexicon(data), lexicons.vocabulary()
    table, _, whole = lexicons.table(tokens, np.load(given.work / "vocabulary.npy"))
    deep = Deep(given.work)
    gathered = gather(given.data, lexicon, Words(tokens, table, whole), deep, 1)
    intent = dict(intents(given.data))
    stream = [(str(row["q"]), f"banking77 {row['c']}") for row in rows(given.data, "banking77")][: given.n]
    said = {text: lexicon.parse(text) for text, _ in stream}
    deep.add(said)
    near = np.array([floats(said[text].vector) for text, _ in stream], np.float32)
    far = deep.of([text for text, _ in stream])
    names = sorted({name for _, name in stream})
    half = {name: i % 2 for i, name in enumerate(np.random.default_rng(1).permutation(names).tolist())}
    forests = []
    for side in (0, 1):
        rest = without(gathered, {name for name in names if half[name] == side}, intent)
        shallow, second = fit_both(FAQ, rest, rest.faq, 1)
        forests.append((shallow, second))
    # What the nearest kept question would be depends on what is kept, so each rate is a run of its own.
    for rate in SHOWN:
        at = RATES.index(rate)
        for both in (False, True):
            kept: list[int] = []
            right = wrong = 0
            for i, (text, name) in enumerate(stream):
                hit = -1
                if kept:
                    cosines = near[kept] @ near[i]
                    best = kept[int(np.argmax(cosines))]
                    shallow, second = forests[half[name]]
                    numbers = np.array(
                        [features(said[text], said[stream[best][0]], float(cosines.max()), float(far[best] @ far[i]))]
                    )
                    hit = best if served(numbers, shallow, second, at, both) else -1
                if hit < 0:
                    kept.append(i)
                else:
                    right += stream[hit][1] == name
                    wrong += stream[hit][1] != name
            n = len(stream)
            print(
                f"wanted {100 * rate:g} %, tier 1{' + 2' if both else ''}: right {100 * right / n:.1f} %, wrong/all {100 * wrong / n:.2f} % of {n}",
                flush=True,
            )


def served(numbers: np.ndarray, shallow: Fitted, second: Fitted, at: int, both: bool) -> bool:

    _, threshold, low, sure = shallow.rates[at]
    one = shallow.model.predict(numbers_for(FAQ, False, numbers))[0]
    if one >= (sure if both else threshold):
        return True
    if not both or one < low:
        return False
    return bool(second.model.predict(numbers_for(FAQ, True, numbers))[0] >= second.rates[at][1])


if __name__ == "__main__":
    main()
