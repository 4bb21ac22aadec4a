"""Fits the trees of a profile and chooses their thresholds."""

from typing import Any, NamedTuple

import additive
import numpy as np
from forest import Rate, forest_bytes, nodes_of
from gather import SKIP, Gathered

from turnout.twin.parts.pairs import NAMES, REFUSED

RATES = (0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1)
SURE_PART = 0.25  # of a rate: what the first look may spend when a second one follows
FOLDS = 5
TREES, DEPTH = 160, 4
# A number that may only speak for a hit, or only against one. So what the trees saw on made pairs carries over to others.
RISING = "cosine deep shared shared_all cover_lo cover_hi bigrams bigrams_all near_mean near_lo near_hi swap_near first_same last_same ask_same verbatim"
FALLING = (
    "alone_lo alone_hi rarest_lo rarest_hi weight_lo weight_hi moved moved_all breaks breaks_all swapped roles numbers numbers_one ordinals dates units negations"
    " negations_off opposites names names_weight names_both idents code ask_off pronouns relations modals quantities small content_off length_off"
)


class Profile(NamedTuple):
    name: str
    vetoes: bool
    left_out: tuple[str, ...]  # numbers that this profile does not look at
    # How much of a wanted rate the thresholds may spend on the pairs here, for the first look alone and for both; the rest
    # is for what real traffic has and these pairs have not. Set with the totals of the exam and of the stream in view.
    kept: tuple[float, float]
    missed: float  # the share of the right hits of the second look that not asking it for low scores may cost
    sums: tuple[str, str]  # instead of trees, the numbers that are summed up by the first and by both looks
    shares: dict[str, float]  # how much the kinds of pairs weigh together, in training
    traffic: dict[str, float]  # of all requests: how many meet such a neighbour, in the choice of thresholds


# What the neighbours of requests are taken to be. Two in five requests should be hits, most others meet a question about
# the same thing, and one in nine meets a trap; traffic with less of both keeps the rate with room to spare.
STRICT = Profile(
    "strict", True, ("content_lo", "sentences_off", "questions_off"), (0.6, 0.75), 0.02, ("", ""),
    {"fow": 2.0, "gptcache": 1.0, "made": 3.0, "near": 1.5, "changed": 3.0},
    {"near other": 0.41, "made other ask": 0.05, "made other slot": 0.03, "made qualifier": 0.03, "tail": 0.02, "cut": 0.02,
     "neighbour": 0.03, "small": 0.005, "swap": 0.01, "made swap": 0.005, "fow": 0.02},
)  # fmt: skip
FAQ = Profile(
    "faq", False, (), (0.5, 0.65), 0.01,
    ("cosine shared shared_all cover_lo cover_hi near_mean near_lo bigrams_all rarest_hi small ask_off ask_same negations_off names questions_off"
     " content_lo length_off numbers pronouns modals relations quantities alone_hi weight_hi opposites", "deep"),
    {"near": 5.0}, {"near other": 0.65, "near same": 0.35},
)  # fmt: skip


def family(kind: str) -> str:
    first = kind.split()[0]
    return first.split("_")[0] if first.split("_")[0] in ("fow", "gptcache") else first if first in ("made", "near") else "changed"


def train(profile: Profile, deep: bool, numbers: np.ndarray, labels: np.ndarray, weights: np.ndarray, seed: int) -> Any:
    """A model that predicts from what `numbers_for` gives."""
    if profile.sums[deep]:
        return additive.fit(numbers, labels, weights, [NAMES.index(name) for name in profile.sums[deep].split()])
    import lightgbm

    direction = [(NAMES[i] in RISING.split()) - (NAMES[i] in FALLING.split()) for i in used_by(profile, deep)]
    options = {
        "objective": "binary", "max_depth": DEPTH, "num_leaves": 2**DEPTH, "learning_rate": 0.07, "min_data_in_leaf": 30,
        "min_sum_hessian_in_leaf": 3.0, "lambda_l2": 3.0, "feature_fraction": 0.7, "bagging_fraction": 0.8, "bagging_freq": 1,
        "monotone_constraints": direction, "monotone_constraints_method": "advanced", "num_threads": 1, "seed": seed,
        "deterministic": True, "verbose": -1,
    }  # fmt: skip
    return lightgbm.train(options, lightgbm.Dataset(numbers, labels, weight=weights), num_boost_round=TREES)


def upper_bound(wrong: float, of: float) -> float:
    """The Clopper-Pearson bound that the true share stays under with 90 %."""
    from scipy.stats import beta

    return float(beta.ppf(0.9, wrong + 1, of - wrong)) if wrong < of else 1.0


def thresholds(scores: np.ndarray, wrong: np.ndarray, shares: np.ndarray, rates: tuple[float, ...] = RATES) -> list[tuple[float, float]]:
    """(rate, threshold) by a scan from the highest score down that stops where the bound first breaks the rate.

    `shares` sum to 1 with the requests that meet nothing wrong; they count as if they were so many equal ones.
    """
    order = np.argsort(-scores, kind="stable")
    scores, mass = scores[order], (shares * wrong)[order]
    effective = shares.sum() ** 2 / (shares**2).sum()
    reached = np.cumsum(mass)
    ends = np.flatnonzero(np.diff(scores, append=-1.0) < 0)  # a threshold takes all of one score
    out = []
    at = 0
    best = 2.0
    for rate in rates:
        while at < len(ends):
            place = ends[at]
            if upper_bound(reached[place] * effective, effective) > rate:
                break
            best = float(scores[place])
            at += 1
        out.append((rate, best))
    return out


def request_shares(profile: Profile, gathered: Gathered, labels: np.ndarray) -> np.ndarray:
    """The share of all requests that every pair stands for; 0 for pairs outside of the traffic."""
    out = np.zeros(len(labels))
    rest = 1.0
    for kind, share in profile.traffic.items():
        chosen = np.array([pair.kind == kind or (kind == "fow" and pair.kind.startswith("fow")) for pair in gathered.pairs]) & (labels != SKIP)
        chosen &= (labels == 0) | (kind == "fow") | profile.name.startswith("faq")
        out[chosen] += share / max(chosen.sum(), 1)
        rest -= share
    right = (labels == 1) & (out == 0)
    out[right] += max(rest, 0.0) / max(right.sum(), 1)
    return out


class Fitted(NamedTuple):
    forest: bytes
    scores: np.ndarray  # out of fold
    rates: list[Rate]
    model: Any


def fit_both(profile: Profile, gathered: Gathered, labels: np.ndarray, seed: int) -> tuple[Fitted, Fitted]:
    """The forests without and with the deep cosine. A cache that asks the second one serves what either lets through, so
    the thresholds of the second are chosen for both together."""
    alone, both = profile.kept
    shares = request_shares(profile, gathered, labels)
    one, model = trees_of(profile, gathered, labels, False, seed)
    two, deep_model = trees_of(profile, gathered, labels, True, seed)
    wrong = labels == 0
    first = thresholds(one, wrong, shares, tuple(alone * rate for rate in RATES))
    sure = thresholds(one, wrong, shares, tuple(both * SURE_PART * rate for rate in RATES))
    second = [together(one >= least, two, wrong, shares, both * rate) for rate, (_, least) in zip(RATES, sure, strict=True)]
    second = np.maximum.accumulate(second[::-1])[::-1].tolist()  # never stricter at a higher rate
    lows = [low_of(one[(labels == 1) & (two >= threshold)], profile.missed) for threshold in second]
    rates = [(rate, chosen, low, least) for rate, (_, chosen), low, (_, least) in zip(RATES, first, lows, sure, strict=True)]
    deep_rates = [(rate, threshold, 2.0, 2.0) for rate, threshold in zip(RATES, second, strict=True)]
    return (
        Fitted(compiled(profile, model, False, rates), one, rates, model),
        Fitted(compiled(profile, deep_model, True, deep_rates), two, deep_rates, deep_model),
    )


def together(served: np.ndarray, scores: np.ndarray, wrong: np.ndarray, shares: np.ndarray, rate: float) -> float:
    """The threshold for the pairs that the first look did not serve, with those that it did counted in."""
    return thresholds(np.where(served, 2.0, scores), wrong, shares, (rate,))[0][1]


def used_by(profile: Profile, deep: bool) -> list[int]:
    out = set(profile.left_out) | (set() if deep else {"deep"})
    return [i for i, name in enumerate(NAMES) if name not in out]


def numbers_for(profile: Profile, deep: bool, numbers: np.ndarray) -> np.ndarray:
    """Those that its model looks at; a sum picks its own."""
    return numbers if profile.sums[deep] else numbers[:, used_by(profile, deep)]


def compiled(profile: Profile, model: Any, deep: bool, rates: list[Rate]) -> bytes:
    if isinstance(model, additive.Additive):
        return forest_bytes(model.base, rates, model.trees())
    used = used_by(profile, deep)
    trees = [nodes_of(tree["tree_structure"]) for tree in model.dump_model()["tree_info"]]
    return forest_bytes(0.0, rates, [[(used[n] if n >= 0 else n, *rest) for n, *rest in tree] for tree in trees])


def weights_of(profile: Profile, gathered: Gathered, labels: np.ndarray) -> np.ndarray:
    """A family of pairs weighs as much as the profile says, half of it for each label."""
    kinds = np.array([family(pair.kind) for pair in gathered.pairs])
    known = labels != SKIP
    weights = np.zeros(len(labels))
    for kind, share in profile.shares.items():
        both = known & (kinds == kind)
        halves = 0.5 if 0 < (labels[both] == 1).mean() < 1 else 1.0
        for label in (0, 1):
            chosen = both & (labels == label)
            weights[chosen] = share * halves / max(chosen.sum(), 1)
    return weights * known.sum() / weights.sum()


def trees_of(profile: Profile, gathered: Gathered, labels: np.ndarray, deep: bool, seed: int) -> tuple[np.ndarray, Any]:
    """The scores out of fold, and the model over everything. Pairs that the vetoes refuse teach nothing."""
    numbers = numbers_for(profile, deep, gathered.numbers)
    refused = refusals(profile, gathered.numbers)
    weights = weights_of(profile, gathered, labels)
    known = (labels != SKIP) & (weights > 0) & ~refused
    folds = np.random.default_rng(seed).integers(0, FOLDS, gathered.groups.max() + 1)[gathered.groups]
    scores = np.zeros(len(labels))
    for fold in range(FOLDS):
        inside = known & (folds != fold)
        model = train(profile, deep, numbers[inside], labels[inside], weights[inside], seed)
        scores[folds == fold] = model.predict(numbers[folds == fold])
    scores[refused] = 0.0
    return scores, train(profile, deep, numbers[known], labels[known], weights[known], seed)


def refusals(profile: Profile, numbers: np.ndarray) -> np.ndarray:
    return (numbers[:, list(REFUSED)] != 0).any(1) if profile.vetoes else np.zeros(len(numbers), bool)


def low_of(found: np.ndarray, missed: float) -> float:
    """The score of the first look over which all but `missed` of these lie."""
    return float(np.quantile(found, missed)) if len(found) else 2.0
