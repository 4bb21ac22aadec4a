"""What a text means, as far as a semantic cache needs it: `Lexicon` reads a text once into a `Said`, and a `Verifier`
judges whether the answer to one text is right for another. Twin of `native/src/kernels/meaning/`.
"""

import struct
from array import array

from .parts.pairs import NAMES, REFUSED, features
from .parts.signs import Reading, code_of
from .parts.tables import Tables
from .parts.texts import Text
from .parts.trees import Forest
from .parts.words import MOST_CHARACTERS, MOST_PIECES, basic, normalise, pieces

# The file of a profile (little endian): the magic; u16 how many numbers a pair has; u16 flags (1: vetoes); u16 length and
# the version in UTF-8; then two forests (`parts/trees.py`), without and with the cosine of the transformer.
_MAGIC = b"TNVER002"


class Said(Text):
    """A text read once, made by `Lexicon.parse` alone."""

    __slots__ = ("_tokens",)
    _tokens: int

    @property
    def vector(self) -> bytes:
        """256 float32, little endian, of unit norm; zeros when no token is known. Made anew each time, not kept."""
        return self.tables.vector(self._ids)

    @property
    def content(self) -> int:
        """How many of its words carry content: they are no function words and no way of asking."""
        return self._content

    @property
    def tokens(self) -> int:
        """WordPiece tokens with [CLS] and [SEP]; over 512 means that the text was cut."""
        return self._tokens

    def ids(self) -> list[int]:
        """The WordPiece ids without [CLS] and [SEP], at most 510."""
        return self._ids.tolist()


class Lexicon:
    """The vocabulary, the static table and the word lists of a lexicon file. Raises ValueError when `data` is not one."""

    def __init__(self, data: bytes) -> None:
        self._tables = Tables(data)

    def parse(self, text: str) -> Said:
        """Reads a text: of its first 8192 characters what makes up 510 tokens, the rest is not looked at. Raises
        UnicodeEncodeError for half a surrogate pair."""
        text.encode()
        tables = self._tables
        short = text[:MOST_CHARACTERS]
        tokens, whole = basic(normalise(short), MOST_PIECES + 1)
        whole = whole and len(short) == len(text)
        ids = array("H")
        spans = []
        for token in tokens:
            found = pieces(token.plain, tables.vocabulary, tables.unknown)
            if len(ids) + len(found) > MOST_PIECES:
                whole = False
                break
            spans.append((len(ids), len(found)))
            ids.extend(found)
        reading = Reading(tables.reader, ids, tables.idf)
        reading.read(tokens[: len(spans)], spans)
        said = Said(tables, ids, reading, code_of(short))
        said._tokens = len(ids) + 2 if whole else 513
        return said


class Verifier:
    """One profile of the judge over pairs. Raises ValueError when `data` is not a verifier file for these features."""

    def __init__(self, data: bytes) -> None:
        try:
            if data[:8] != _MAGIC:
                raise ValueError("not a verifier file")
            numbers, flags, length = struct.unpack_from("<HHH", data, 8)
            if numbers != len(NAMES):
                raise ValueError("a verifier file for other features")
            self._vetoes = bool(flags & 1)
            self._version = data[14 : 14 + length].decode()
            self._shallow, at = Forest.read(data, 14 + length)
            self._deep, at = Forest.read(data, at)
        except (struct.error, UnicodeDecodeError):
            raise ValueError("a verifier file that ends too early") from None
        if at != len(data):
            raise ValueError("a verifier file of another length")

    @property
    def version(self) -> str:
        return self._version

    def score(self, new: Said, kept: Said, cosine: float, deep: float | None = None) -> float:
        """The probability in 0..1 that the answer to `kept` is right for `new`. `cosine` is that of their vectors,
        `deep` that of the transformer, None without it. The strict profile gives 0 for a pair that differs in a
        number, date, unit, negation, opposite or code, however alike the rest is."""
        numbers = features(new, kept, cosine, 0.0 if deep is None else deep)
        if self._vetoes and any(numbers[place] for place in REFUSED):
            return 0.0
        return (self._shallow if deep is None else self._deep).score(numbers)

    def threshold(self, rate: float, deep: bool) -> float:
        """The score from which on answers may be served so that at most `rate` of all requests get a wrong one. Between
        two rates it was chosen for, that of the lower one; under the lowest 2, which no score reaches."""
        return (self._deep if deep else self._shallow).chosen(rate)[1]

    def low(self, rate: float) -> float:
        """The score without the transformer under which asking it is not worth it at this rate; 2 when it never is."""
        return self._shallow.chosen(rate)[2]

    def sure(self, rate: float) -> float:
        """The score without the transformer from which on it need not be asked: `threshold(rate, True)` was chosen for
        requests that are served from either of the two. Stricter than `threshold(rate, False)`, which stands alone."""
        return self._shallow.chosen(rate)[3]

    def explain(self, new: Said, kept: Said, cosine: float) -> dict[str, float]:
        """The numbers of a pair by name, without that of the transformer."""
        numbers = dict(zip(NAMES, features(new, kept, cosine, 0.0), strict=True))
        del numbers["deep"]
        return numbers
