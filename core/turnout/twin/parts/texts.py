"""A text as its words, ready to be compared. Twin of `native/src/kernels/meaning/texts.rs`."""

from array import array

from .signs import ASKED, STOP, Reading, Word
from .tables import Tables


class Text:
    """What `pairs.features` looks at."""

    __slots__ = ("_content", "_ids", "asks", "code", "order", "questions", "sentences", "tables", "words")

    def __init__(self, tables: Tables, ids: "array[int]", reading: Reading, code: int) -> None:
        self.tables = tables
        self._ids = ids
        self.words = reading.words
        self.asks = reading.asks  # the way of asking, 0: none known
        # A hash over the code in it, 0: none. Code outside of spans is known by its signs, which then have to be equal.
        self.code = code if not reading.looks_like_code else (code ^ reading.signs) or 1
        self.sentences = reading.sentences
        self.questions = reading.questions
        self._content = sum(is_content(word) for word in self.words)
        # By key, then by place: matching two texts is one walk over both.
        self.order = sorted(range(len(self.words)), key=lambda i: (self.words[i].key, i))

    def meaning(self, word: Word) -> list[int]:
        return self.tables.meaning(self._ids, word)


def is_content(word: Word) -> bool:
    return not word.flags & (STOP | ASKED)
