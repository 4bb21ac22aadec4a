"""From tokens to words: numbers, units, names, negations and the ways of asking, as the lexicon's lists know them.

Twin of `native/src/kernels/meaning/signs.rs`.
"""

from collections.abc import Sequence

from .words import Token, fnv, stem

# Classes of a word: the first ten come from the lexicon's lists, the others from how it is written and where.
STOP, NEGATION, DATE, UNIT, ORDINAL, PRONOUN, RELATION, MODAL, QUANTITY, NUMBER = (1 << i for i in range(10))
NAME, IDENT, ASKED = (1 << i for i in range(10, 13))

_FILLER = 255  # an ask that says nothing: "can you tell me"
_LONGEST_ASK = 9  # words
_APOSTROPHES = "'\u2019`"
_CODE = "={}<>\\|^~_[]+*"  # a text with one of them is taken for code: its signs have to be the same
_SIGNS = _CODE + "&@#%/-();:$"  # and these count then
_CONTRACTED = {"m": "is", "re": "is", "ve": "have", "ll": "will", "d": "would"}
_IS_AFTER = frozenset(
    ["what", "how", "where", "who", "when", "why", "that", "it", "there", "he", "she", "here", "which"]
)
_PREFIXES = ("un", "in", "im", "dis", "non", "ir", "il", "mis")
_MONEY = {"$": "dollar", "€": "euro", "£": "gbp", "¥": "yen", "₹": "rupee"}


class Word:
    """One word of a text."""

    __slots__ = ("base", "count", "entry", "first", "flags", "idf", "key")

    def __init__(self, key: int, base: int, entry: int, flags: int, idf: int, first: int, count: int) -> None:
        self.key = key  # hash of the stem; equal for what counts as the same word
        self.base = base  # hash of what is left without a negating prefix, else 0
        self.entry = entry  # its line in the lexicon, 0: none
        self.flags = flags
        self.idf = idf  # 0..255
        self.first = first  # its tokens are ids[first : first + count]
        self.count = count


class Entry:
    """A line of the lexicon's classes."""

    __slots__ = ("flags", "like", "opposed", "stands_for")

    def __init__(self, flags: int, stands_for: str, like: list[int], opposed: list[int]) -> None:
        self.flags = flags
        self.stands_for = stands_for
        self.like = like  # sets of synonyms it is in
        self.opposed = opposed  # axis * 2 + side


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")] if text else []


class Reader:
    """The word lists of a lexicon. Raises ValueError for lines of another form."""

    def __init__(self, spelt: list[str], classes: list[str], asked: list[str]) -> None:
        self.spelt: dict[str, list[str]] = {}
        for line in spelt:
            word, meant = line.split("\t")
            self.spelt[word] = meant.split(" ")
        self.entries = [Entry(0, "", [], [])]
        self.places: dict[str, int] = {}
        for line in classes:
            word, flags, stands_for, like, opposed = line.split("\t")
            self.places[word] = len(self.entries)
            self.entries.append(Entry(int(flags), stands_for, _numbers(like), _numbers(opposed)))
        self.asked: dict[int, int] = {}
        for line in asked:
            ask, words = line.split("\t")
            key = 0
            for word in words.split(" "):
                key = fnv(word + " ", key)
            self.asked[key] = int(ask)

    def like(self, one: Word, other: Word) -> bool:
        """Whether two words are synonyms."""
        own = self.entries[one.entry].like
        return any(group in own for group in self.entries[other.entry].like)

    def opposed(self, one: Word, other: Word) -> bool:
        """Whether two words exclude each other."""
        if (one.base and one.base == other.key) or (other.base and other.base == one.key):
            return True
        own = self.entries[one.entry].opposed
        return any(side ^ 1 in own for side in self.entries[other.entry].opposed)


def code_of(text: str) -> int:
    """A hash over the code spans of a text as it was written: fenced, or between single backticks. 0: no code."""
    if "`" not in text:
        return 0
    found = 0
    for i, part in enumerate(text.split("```")):
        if i % 2:
            found = fnv(part + "\0", found)
        else:
            spans = part.split("`")
            for span in spans[1 : len(spans) - 1 : 2]:
                found = fnv(span + "\0", found)
    return found


class Reading:
    """Walks the tokens of one text once; its attributes are what `Said` keeps."""

    def __init__(self, reader: Reader, ids: Sequence[int], idf: bytes) -> None:
        self._reader = reader
        self._ids = ids
        self._idf = idf
        self.words: list[Word] = []
        self.stems: list[str] = []
        self._starts: list[int] = []  # where sentences start
        self.signs = 0
        self.looks_like_code = False
        self.sentences = 0
        self.questions = 0
        self.asks = 0

    def read(self, tokens: list[Token], spans: list[tuple[int, int]]) -> None:
        fresh = True  # the next word starts a sentence
        at = 0
        while at < len(tokens):
            token = tokens[at]
            if token.sign:
                fresh = self._sign(tokens, at) or fresh
                at += 1
                continue
            if fresh:
                self._starts.append(len(self.words))
                self.sentences += 1
            if token.plain[0] in "0123456789" or (token.plain[0] in _MONEY and len(token.plain) > 1):
                at = self._number(tokens, spans, at)
            else:
                at = self._word(tokens, spans, at, fresh)
            fresh = False
        names = sum(word.flags & NAME != 0 for word in self.words)
        if names > 2 and names * 5 > len(self.words) * 3:  # Written Like A Title: that says nothing
            for word in self.words:
                word.flags &= ~NAME
        for start in self._starts:
            self._ask(start)

    def _sign(self, tokens: list[Token], at: int) -> bool:
        """Whether the sentence ends here."""
        char = tokens[at].text
        if char in _CODE:
            self.looks_like_code = True
        if char in _SIGNS:
            self.signs = fnv(char, self.signs or 1)
        if char == "?":
            self.questions += 1
        if char == "%" and self.words and self.words[-1].flags & NUMBER:
            self._add("percent", (0, 0), False, "%")
        elif char == "$":
            self._add("dollar", (0, 0), False, "$")
        return char in "?!" or (char == "." and not (at + 1 < len(tokens) and tokens[at + 1].glued))

    def _number(self, tokens: list[Token], spans: list[tuple[int, int]], at: int) -> int:
        plain = tokens[at].plain
        first, count = spans[at]
        if plain[0] in _MONEY:
            self._add(_MONEY[plain[0]], (0, 0), False, plain[0])
            plain = plain[1:]
        end = 0
        while end < len(plain) and plain[end] in "0123456789":
            end += 1
        value, rest = plain[:end], plain[end:]
        at += 1
        while not rest and at + 1 < len(tokens) and tokens[at].glued and tokens[at + 1].glued and value:
            sign, more = tokens[at].text, tokens[at + 1].plain
            end = 0
            while end < len(more) and more[end] in "0123456789":
                end += 1
            if not end or not (sign in ".:" or (sign == "," and end == 3)):
                break
            value += ("" if sign == "," else sign) + more[:end]
            rest = more[end:]
            count += spans[at][1] + spans[at + 1][1]
            at += 2
        span = (first, count)
        if not value or (rest and not self._suffix(value, rest, span)):
            self._put(value + rest, value + rest, span, IDENT)
        elif not rest:
            self._put("=" + _plain_number(value), value, span, NUMBER)
        return at

    def _suffix(self, value: str, rest: str, span: tuple[int, int]) -> bool:
        """A number with letters on it; False when it is no number but a name such as 4g."""
        if rest in ("st", "nd", "rd", "th"):
            self._put("#" + value, value, span, ORDINAL)
            return True
        if rest in ("k", "m", "bn", "b", "s"):
            self._put("=" + value + rest, value, span, NUMBER)
            return True
        place = self._reader.places.get(stem(rest), 0)
        if self._reader.entries[place].flags & UNIT:
            self._put("=" + _plain_number(value), value, span, NUMBER)
            self._add(rest, (0, 0), False, rest)
            return True
        return False

    def _word(self, tokens: list[Token], spans: list[tuple[int, int]], at: int, fresh: bool) -> int:
        token = tokens[at]
        plain, text = token.plain, token.text
        first, count = spans[at]
        at += 1
        while at < len(tokens) and tokens[at].glued and tokens[at].text in "+#" and len(plain) <= 4:  # c++, c#
            plain += tokens[at].text
            count += spans[at][1]
            at += 1
        tail = ""
        if at + 1 < len(tokens) and tokens[at].text in _APOSTROPHES and tokens[at].glued and tokens[at + 1].glued:
            tail = tokens[at + 1].plain
        if tail and plain + tail in self._reader.spelt and tail != "s":
            plain += tail
        elif tail == "s":
            tail = "is" if plain in _IS_AFTER else "us" if plain == "let" else "s"
        elif tail in _CONTRACTED:
            tail = _CONTRACTED[tail]
        else:
            tail = ""
        named = (not fresh and text[0].isupper()) or (len(text) > 1 and any(char.isupper() for char in text[1:]))
        meant = self._reader.spelt.get(plain)
        if meant is None:
            self._add(plain, (first, count), named, text)
        else:
            for i, word in enumerate(meant):
                self._add(word, (first, count if i == 0 else 0), named, text)
        if tail:
            at += 2
            if tail in ("is", "us", "have", "will", "would"):
                for word in self._reader.spelt.get(tail, [tail]):
                    self._add(word, (0, 0), False, tail)
        return at

    def _add(self, plain: str, span: tuple[int, int], named: bool, text: str) -> None:
        root = stem(plain)
        place = self._reader.places.get(root, 0)
        entry = self._reader.entries[place]
        flags = entry.flags
        if named and not flags & STOP:
            flags |= NAME
        if any(char in "0123456789" for char in plain):
            flags |= IDENT
        base = 0
        if not flags & STOP:
            for prefix in _PREFIXES:
                if plain.startswith(prefix) and len(plain) >= len(prefix) + 4:
                    base = fnv(stem(plain[len(prefix) :]))
                    break
        self._put(entry.stands_for or root, root, span, flags, place, base)

    def _put(self, key: str, root: str, span: tuple[int, int], flags: int, place: int = 0, base: int = 0) -> None:
        first, count = span
        idf = 255 if count > 1 else self._idf[self._ids[first]] if count else 0
        self.words.append(Word(fnv(key), base, place, flags, idf, first, count))
        self.stems.append(root)

    def _ask(self, start: int) -> None:
        """Marks the words by which the sentence at `start` asks; fillers before them too."""
        while start < len(self.words):
            key, best, length = 0, 0, 0
            for i in range(start, min(start + _LONGEST_ASK, len(self.words))):
                key = fnv(self.stems[i] + " ", key)
                found = self._reader.asked.get(key, 0)
                if found:
                    best, length = found, i + 1 - start
            for word in self.words[start : start + length]:
                word.flags |= ASKED
            if best and best != _FILLER and not self.asks:
                self.asks = best
            if best != _FILLER:
                return
            start += length


def _plain_number(value: str) -> str:
    """05 and 5, 3.50 and 3.5 are the same number."""
    value = value.lstrip("0") or "0"
    if value[0] in ".:":
        value = "0" + value
    if "." in value and ":" not in value:
        value = value.rstrip("0").rstrip(".")
    return value
