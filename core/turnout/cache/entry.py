"""What is kept of an answer."""

from typing import Any

import msgspec

# A Struct of 22 fields, its key in a dict, its numbers, and what the allocator wastes between bodies of all sizes: 845
# bytes of resident memory an entry, over a million churned through 256 MB (tests/pure/test_memory.py holds it to that).
OVERHEAD = 850


class Entry(msgspec.Struct, gc=False):
    """One answer, in one form for plain and streamed requests alike: the JSON of a plain one.

    `gc=False`: the collector never walks over a cache. The links to neighbours are cycles, so the store breaks them when
    it lets an entry go.
    """

    digest: bytes
    body: bytes
    tenant: str
    route: str
    model: str  # as asked
    key: str  # name of the caller's key
    tags: str
    provider: str  # that served, and its name of the model
    served_model: str
    finish: str
    prompt: int  # tokens
    completion: int
    cost_nanos: int  # what it took, and what each hit saves
    stored_ns: int
    fresh_ns: int  # until when it is fresh, and until when it may be given while it is asked anew
    dead_ns: int
    epoch: int = 0

    # The store's own:
    hits: int = 0
    rank: float = 0.0
    bucket: int = 0
    before: Any = None
    after: Any = None

    @property
    def size(self) -> int:
        return len(self.body) + OVERHEAD
