"""How a text is cut: the tokens of BERT's basic tokenizer, WordPiece, and the stem a word is compared by.

Twin of `native/src/kernels/meaning/words.rs`.
"""

import unicodedata
from typing import NamedTuple

MOST_PIECES = 510  # with [CLS] and [SEP] 512, what MiniLM reads at most
MOST_CHARACTERS = 8192  # further ones are not looked at: 510 tokens of real text are a third of that
_MOST_LETTERS = 100  # BERT takes a longer token for an unknown one

# What a character is to the tokenizer. A mark is taken off a letter, as BERT uncased does.
LETTER, SPACE, SIGN, ALONE, MARK, NOTHING = range(6)


class Token(NamedTuple):
    """One token of the basic tokenizer."""

    text: str  # as it was written
    plain: str  # lower case, without accents; what the vocabulary knows
    glued: bool  # nothing stands between it and the token before
    sign: bool  # punctuation or a symbol of ASCII, one character


_kinds: dict[str, int] = {}


def _kind(char: str) -> int:
    found = _kinds.get(char)
    if found is None:
        found = _kinds[char] = _kind_of(char)
        if len(_kinds) > 4096:  # a text in a script of many characters must not grow it for ever
            _kinds.clear()
    return found


def _kind_of(char: str) -> int:
    code = ord(char)
    category = unicodedata.category(char)
    if char in " \t\n\r" or category == "Zs":
        return SPACE
    if code == 0xFFFD or category in ("Cc", "Cf", "Co", "Cs"):
        return NOTHING
    if 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126 or category[0] == "P":
        return SIGN
    if (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x2A6DF
        or 0x2A700 <= code <= 0x2B73F
        or 0x2B740 <= code <= 0x2B81F
        or 0x2B820 <= code <= 0x2CEAF
        or 0xF900 <= code <= 0xFAFF
        or 0x2F800 <= code <= 0x2FA1F
    ):
        return ALONE
    return MARK if category == "Mn" else LETTER


def normalise(text: str) -> str:
    """NFKC. White space needs no folding: the tokenizer does not see how much there is."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def basic(text: str, most: int) -> tuple[list[Token], bool]:
    """The tokens of a normalised text, at most about `most` of them, and whether that was all."""
    out: list[Token] = []
    written: list[str] = []
    plain: list[str] = []
    glued = False

    def close() -> None:
        nonlocal glued
        if written and plain:
            out.append(Token("".join(written), "".join(plain), glued, False))
            glued = True
        written.clear()
        plain.clear()

    for char in text:
        kind = _kind(char)
        if kind == LETTER:
            written.append(char)
            if char.isascii():
                plain.append(char.lower())
            else:
                for part in unicodedata.normalize("NFD", char):
                    if unicodedata.category(part) != "Mn":
                        plain.extend(part.lower())
        elif kind == SPACE:
            close()
            glued = False
        elif kind in (SIGN, ALONE):
            close()
            out.append(Token(char, char.lower(), glued, kind == SIGN))
            glued = True
        elif kind == MARK:
            written.append(char)
        if len(out) >= most:
            return out, False
    close()
    return out, True


def pieces(plain: str, vocabulary: dict[str, int], unknown: int) -> list[int]:
    """The WordPiece ids of one token: greedily the longest known piece from the left."""
    whole = vocabulary.get(plain)
    if whole is not None and len(plain) <= _MOST_LETTERS:
        return [whole]
    if len(plain) > _MOST_LETTERS:
        return [unknown]
    out: list[int] = []
    at = 0
    while at < len(plain):
        for end in range(len(plain), at, -1):
            piece = plain[at:end] if at == 0 else "##" + plain[at:end]
            found = vocabulary.get(piece)
            if found is not None:
                out.append(found)
                at = end
                break
        else:
            return [unknown]
    return out


def stem(word: str) -> str:
    """What is left of an English word without its inflection; words of other languages mostly stay as they are."""
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 4 and word.endswith(("xes", "ches", "shes", "sses", "zes")):
        word = word[:-2]
    elif len(word) > 3 and word[-1] == "s" and word[-2] not in "sui":
        word = word[:-1]
    if (len(word) > 5 and word.endswith("ing")) or (len(word) > 5 and word.endswith("ied")):
        word = word[:-3] if word[-1] == "g" else word[:-3] + "y"
    elif len(word) > 4 and word.endswith("ed") and word[-3] != "e":
        word = word[:-2]
    if len(word) > 3 and word[-1] == "e":
        word = word[:-1]
    if len(word) > 3 and word[-1] == word[-2] and word[-1] > "9":
        word = word[:-1]
    return word


def fnv(text: str, start: int = 0x811C9DC5) -> int:
    """FNV-1a, 32 bits, over UTF-8."""
    value = start
    for byte in text.encode("utf-8", "surrogatepass"):
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value
