"""What of one scope's questions has a vector of the endpoint, and which of these are nearest to one. Its vectors are of one
model, for the model is part of what makes a scope; one of another length is not taken."""

from typing import TYPE_CHECKING

from ..index import NEAREST, Index
from .vectors import unit

if TYPE_CHECKING:
    from ..scopes import Item


class Space:
    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.index = Index(dimensions)
        self._items: dict[int, Item] = {}  # by their labels in the index
        self._labels: dict[bytes, int] = {}  # by their digests

    @property
    def size(self) -> int:
        return len(self._items)

    def add(self, item: "Item") -> None:
        """`item.remote` is its vector."""
        assert item.remote is not None
        if len(item.remote) != self.dimensions or item.digest in self._labels:
            return
        label = self.index.add(unit(item.remote).tobytes())
        self._items[label] = item
        self._labels[item.digest] = label

    def remove(self, item: "Item") -> None:
        label = self._labels.pop(item.digest, None)
        if label is not None:
            del self._items[label]
            self.index.remove(label)

    def nearest(self, vector: bytes, most: int = NEAREST) -> list[tuple["Item", float]]:
        """At most `most` items with their cosines, the nearest first. `vector`: as it is kept."""
        if len(vector) != self.dimensions:
            return []
        found = self.index.nearest(unit(vector).tobytes(), most)
        return [(self._items[label], min(cosine, 1.0)) for label, cosine in found]
