"""All pairs that training sees, with their labels for both profiles and the numbers that the twin reads from them."""

import json
import random
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from deep import Deep
from generate import Pair, Templates, Words, changed, shuffled

from turnout.twin.meaning import Lexicon, Said
from turnout.twin.parts.pairs import NAMES, features

SKIP = -1  # a pair that says nothing to a profile
MADE, CHANGED, RETRIEVED = 13_000, 20_000, 9_000
SURE = 0.93  # cosine of MiniLM from which two texts of one intent count as one question


class Gathered(NamedTuple):
    pairs: list[Pair]
    numbers: np.ndarray  # pairs x NAMES
    strict: np.ndarray  # 1, 0 or SKIP
    faq: np.ndarray
    groups: np.ndarray  # what hangs together has one number


def rows(data: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def intents(data: Path) -> list[tuple[str, str]]:
    """(text, intent); what clinc150 has no intent for is one of its own."""
    out = []
    for name in ("banking77", "clinc150"):
        for i, row in enumerate(rows(data, name)):
            intent = f"{name} {row['c']}" + (f" {i}" if row["c"] == "oos" else "")
            out.append((str(row["q"]), intent))
    return sorted(set(out))


def labelled(data: Path) -> list[Pair]:
    out = []
    for name in ("fow", "gptcache_mock"):
        for row in rows(data, name):
            out.append(Pair(str(row["a"]), str(row["b"]), int(str(row["label"])), f"{name} {row['cat']}", str(row["a"])))
    return out


def retrieved(rng: random.Random, texts: list[tuple[str, str]], vectors: np.ndarray, count: int) -> list[tuple[Pair, bool]]:
    """(pair, same intent) of texts and what a cache with a random part of the others would propose for them."""
    out = []
    for _ in range(count):
        at = rng.randrange(len(texts))
        pool = np.array(sorted(rng.sample(range(len(texts)), rng.choice([200, 1000, 4000, 12000]))))
        pool = pool[pool != at]
        near = vectors[pool] @ vectors[at]
        other = int(pool[np.argsort(-near)[rng.choice([0, 0, 0, 1])]])
        same = texts[at][1] == texts[other][1]
        out.append((Pair(*shuffled(rng, texts[at][0], texts[other][0]), int(same), "near same" if same else "near other", texts[at][0]), same))
    return out


def components(pairs: list[Pair]) -> np.ndarray:
    """Pairs that share a text or a root, directly or through others, get one number."""
    parent: dict[str, str] = {}

    def find(text: str) -> str:
        parent.setdefault(text, text)
        while parent[text] != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    for pair in pairs:
        for text in (pair.b, pair.root):
            parent[find(text)] = find(pair.a)
    names: dict[str, int] = {}
    return np.array([names.setdefault(find(pair.a), len(names)) for pair in pairs])


def floats(vector: bytes) -> np.ndarray:
    return np.array(struct.unpack("<256f", vector))


def cosines_of(pairs: list[Pair], said: dict[str, Said], deep: Deep) -> list[tuple[float, float]]:
    """(static, of the transformer) of each pair."""
    far = (deep.of([pair.a for pair in pairs]) * deep.of([pair.b for pair in pairs])).sum(1)
    near = [float(floats(said[pair.a].vector) @ floats(said[pair.b].vector)) for pair in pairs]
    return [(one, float(other)) for one, other in zip(near, far, strict=True)]


def numbers_of(pairs: list[Pair], said: dict[str, Said], deep: Deep) -> np.ndarray:
    cosines = cosines_of(pairs, said, deep)
    return np.array([features(said[pair.a], said[pair.b], *both) for pair, both in zip(pairs, cosines, strict=True)])


def said_of(lexicon: Lexicon, pairs: list[Pair]) -> dict[str, Said]:
    return {text: lexicon.parse(text) for text in sorted({text for pair in pairs for text in (pair.a, pair.b)})}


def gather(data: Path, lexicon: Lexicon, words: Words, deep: Deep, seed: int) -> Gathered:
    rng = random.Random(seed)
    texts = intents(data)
    bases = sorted({text for text, _ in texts if 12 < len(text) < 160} | set(turns(data)) | statements(data))
    pairs = labelled(data) + Templates().pairs(rng, MADE) + changed(rng, bases, words, CHANGED)
    vectors = np.array([floats(lexicon.parse(text).vector) for text, _ in texts], np.float32)
    near = retrieved(rng, texts, vectors, RETRIEVED)
    pairs += [pair for pair, _ in near]
    pairs = list({(pair.a, pair.b): pair for pair in pairs}.values())
    said = said_of(lexicon, pairs)
    deep.add(said)
    numbers = numbers_of(pairs, said, deep)
    strict, faq = labels(pairs, numbers)
    return Gathered(pairs, numbers, strict, faq, components(pairs))


def turns(data: Path) -> list[str]:
    """What users say in the conversations, where it is short."""
    out = []
    for row in rows(data, "conv"):
        for message in row["a_messages"]:  # type: ignore[attr-defined]
            if message["role"] == "user" and 12 < len(message["content"]) < 160:
                out.append(message["content"])
    return sorted(set(out))


def statements(data: Path) -> set[str]:
    """The shorter texts of the mock pairs: they are only paraphrased there, here they are also changed."""
    found = {str(row[side]) for row in rows(data, "gptcache_mock") for side in "ab"}
    return {text for text in found if len(text) < 160 and "`" not in text}


def labels(pairs: list[Pair], numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    strict = np.array([pair.label for pair in pairs])
    faq = np.array([pair.label for pair in pairs])
    deep = numbers[:, NAMES.index("deep")]
    alone, alone_hi = numbers[:, NAMES.index("alone_lo")], numbers[:, NAMES.index("alone_hi")]
    verbatim = numbers[:, NAMES.index("verbatim")]
    for i, pair in enumerate(pairs):
        if not pair.label and (verbatim[i] or (pair.kind == "neighbour" and not alone_hi[i])):
            strict[i] = SKIP  # the change only inflected a word or put a synonym: no other question
        if pair.kind == "near same" and not (deep[i] >= SURE and alone[i] == 0):
            strict[i] = SKIP
        if not pair.kind.startswith("near"):
            # An intent covers a number, a name or a detail more; so only what keeps the meaning says something here.
            faq[i] = 1 if pair.label and not pair.kind.startswith(("made", "gptcache")) else SKIP
    return strict, faq
