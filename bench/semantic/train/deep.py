"""MiniLM vectors of many texts, kept on disk between runs."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from lexicon import session, through

from turnout.twin.meaning import Said

BATCH = 32


class Deep:
    """Vectors by text; `folder` holds what was computed before."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "deep.npz"
        self._known: dict[str, np.ndarray] = {}
        if self._path.exists():
            with np.load(self._path) as kept:
                self._known = dict(zip(kept["keys"].tolist(), kept["vectors"].astype(np.float32), strict=True))

    def add(self, said: dict[str, Said]) -> None:
        """Computes what is missing, in batches of one length so that nothing is padded."""
        missing = [(key_of(text), one) for text, one in said.items() if key_of(text) not in self._known]
        if not missing:
            return
        run = session()
        by_length: dict[int, list[tuple[str, list[int]]]] = {}
        for key, one in missing:
            ids = one.ids()
            by_length.setdefault(len(ids), []).append((key, ids))
        for many in by_length.values():
            for i in range(0, len(many), BATCH):
                part = many[i : i + BATCH]
                vectors = through(run, [ids for _, ids in part])
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                self._known.update(zip((key for key, _ in part), vectors, strict=True))
        np.savez(self._path, keys=np.array(list(self._known)), vectors=np.array(list(self._known.values()), np.float16))

    def of(self, texts: Iterable[str]) -> np.ndarray:
        return np.array([self._known[key_of(text)] for text in texts])


def key_of(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()[:20]
