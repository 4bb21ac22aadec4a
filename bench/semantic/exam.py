"""Scores shipped verifier files offline over question pairs, each in a scope of its own, without a running gateway.

    PYTHONPATH=core python bench/semantic/exam.py --data FOLDER [--profile strict] [--files FOLDER] [--work FOLDER]

FOLDER holds the sets as the README of the data describes them. `qqp_s`, `paws_qqp` and `mqp` were never trained on. What was
(fow, gptcache_mock) is scored here only with `--out-of-fold`, the file of scores that `train.py` writes: each pair by
trees that saw nothing connected to it. Intervals are Clopper-Pearson at 95 %; pairs count as independent.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "train"))
from deep import Deep
from gather import cosines_of, said_of
from generate import Pair

from turnout.native import Lexicon, Verifier

EXAMS = ("qqp_s", "paws_qqp", "mqp")
TRAINED = ("fow", "gptcache_mock")
MIX = ("qqp_s", "paws_qqp", "fow")
RATES = (0.0025, 0.005, 0.01, 0.02, 0.05)


def interval(wrong: int, of: int) -> tuple[float, float]:
    from scipy.stats import beta

    low = 0.0 if wrong == 0 else float(beta.ppf(0.025, wrong, of - wrong + 1))
    high = 1.0 if wrong == of else float(beta.ppf(0.975, wrong + 1, of - wrong))
    return low, high


def share(hits: int, of: int) -> str:
    low, high = interval(hits, of)
    return f"{100 * hits / max(of, 1):6.2f} % [{100 * low:5.2f}, {100 * high:5.2f}] ({hits}/{of})"


def load(data: Path, name: str) -> list[Pair]:
    out = []
    for line in (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        out.append(Pair(row["a"], row["b"], row["label"], f"{name} {row['cat']}", row["a"]))
    return out


def scored(pairs: list[Pair], verifier: object, lexicon: object, deep: Deep) -> tuple[np.ndarray, np.ndarray]:
    """(scores without, scores with the transformer)."""
    said = said_of(lexicon, pairs)  # type: ignore[arg-type]
    deep.add(said)
    numbers = cosines_of(pairs, said, deep)
    shallow = [verifier.score(said[p.a], said[p.b], cosine) for p, (cosine, _) in zip(pairs, numbers, strict=True)]  # type: ignore[attr-defined]
    both = [verifier.score(said[p.a], said[p.b], cosine, far) for p, (cosine, far) in zip(pairs, numbers, strict=True)]  # type: ignore[attr-defined]
    return np.array(shallow), np.array(both)


def report(name: str, label: np.ndarray, hit: np.ndarray) -> None:
    right, wrong, traps = int((hit & (label == 1)).sum()), int((hit & (label == 0)).sum()), int((label == 0).sum())
    print(f"  {name:13} recall {share(right, int((label == 1).sum()))}  wrong/all {share(wrong, len(label))}  look-alikes served {share(wrong, traps)}")


def hindsight(label: np.ndarray, score: np.ndarray, rate: float) -> float:
    """The recall of the best threshold for this very set: what a perfect choice of thresholds would reach."""
    order = np.argsort(-score, kind="stable")
    wrong, right = np.cumsum(label[order] == 0), np.cumsum(label[order] == 1)
    ends = np.flatnonzero(np.diff(score[order], append=-1.0) < 0)
    fit = ends[wrong[ends] <= rate * len(label)]
    return float(right[fit[-1]] / max((label == 1).sum(), 1)) if len(fit) else 0.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--files", type=Path, default=Path(__file__).parents[2] / "core/turnout/cache/semantic/data")
    parser.add_argument("--work", type=Path, default=Path("/tmp/turnout-train"))
    parser.add_argument("--profile", default="strict")
    parser.add_argument("--out-of-fold", type=Path)
    parser.add_argument("--sets", default=",".join((*TRAINED, *EXAMS)))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    data = (given.files / "lexicon.bin").read_bytes()
    lexicon, verifier = Lexicon(data), Verifier((given.files / f"{given.profile}.bin").read_bytes())
    deep = Deep(given.work)
    folded = {}
    if given.out_of_fold:
        with np.load(given.out_of_fold) as kept:
            folded = {key: (shallow, both) for key, shallow, both in zip(kept["keys"].tolist(), kept["shallow"], kept["deep"], strict=True)}
    print(f"{verifier.version}, {Lexicon.__module__}")
    labels: dict[str, np.ndarray] = {}
    scores: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in given.sets.split(","):
        pairs = load(given.data, name)
        if name in TRAINED:
            if not folded:
                continue
            known = [folded[pair.a + "\t" + pair.b] for pair in pairs if pair.a + "\t" + pair.b in folded]
            labels[name] = np.array([pair.label for pair in pairs if pair.a + "\t" + pair.b in folded])
            scores[name] = (np.array([one for one, _ in known]), np.array([two for _, two in known]))
        else:
            labels[name] = np.array([pair.label for pair in pairs])
            scores[name] = scored(pairs, verifier, lexicon, deep)
    mixed = [name for name in MIX if name in labels]
    labels["mix"] = np.concatenate([labels[name] for name in mixed])
    scores["mix"] = tuple(np.concatenate([scores[name][i] for name in mixed]) for i in (0, 1))  # type: ignore[assignment]
    for rate in RATES:
        alone, second = verifier.threshold(rate, False), verifier.threshold(rate, True)
        sure, low = verifier.sure(rate), verifier.low(rate)
        print(f"\nwanted wrong/all {100 * rate:g} %, first look alone: score >= {alone:.4f}")
        for name, (one, _) in scores.items():
            report(name, labels[name], one >= alone)
        print(f"  hindsight on the mix: recall {100 * hindsight(labels['mix'], scores['mix'][0], rate):.1f} %")
        print(f"wanted {100 * rate:g} %, both looks: first >= {sure:.4f}, else from {low:.4f} on second >= {second:.4f}")
        for name, (one, two) in scores.items():
            report(name, labels[name], (one >= sure) | ((one >= low) & (two >= second)))
        print(f"  hindsight on the mix: recall {100 * hindsight(labels['mix'], scores['mix'][1], rate):.1f} %")
        one = scores["mix"][0]
        print(f"  looked at twice: {share(int(((one >= low) & (one < sure)).sum()), len(one))}")


if __name__ == "__main__":
    main()
