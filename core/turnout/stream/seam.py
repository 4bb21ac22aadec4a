"""Where one answer is joined to the next: text in, text out; free of any wire.

A stream broke after `said` was handed to the client, and another target is to go on. Comparing the end of the one
with the beginning of the other and hoping that they overlap cannot be exact: "a" is the end of "such a" and the
beginning of "apple". So the overlap is made, not guessed:

- `part(said)` splits what was said at a word boundary a little (12 columns) before its end, into `head` and `words`.
- The target is shown `head` as its own words so far, or is told to begin with `words`. Either way its first words are
  known beforehand, and its answer is cut where they end.
- `Seam` finds that place. Whitespace is left out of the comparison, since chat models drop and add it at the beginning
  of an answer; a code fence, a quotation mark or dots in front of the first word are stepped over.
- A target may begin elsewhere: with the last word, with the whole last sentence, with the very first word of the answer.
  All places of `said` at which a word begins are followed at once, and the longest match counts: nothing is decided while
  one that began earlier may still turn out to be it. So an answer that starts over is swallowed for as long as it
  repeats, and the delay is bounded by what was said.
- A match shorter than the known words has to say more for itself (`_weak`): "|" is the end and the beginning of much.
- No match: the target may have gone straight on from the very end. Then it is asked once more with all of `said` as its
  own words (`literal`), and what it says is taken as it is, unless it repeats an earlier passage or breaks a word.

Whether the client is inside of a code block is counted in what was handed over. A fence that the target opens again is
dropped; if the client was not inside of one, the fence that closes it is dropped too.
"""

import re
import unicodedata

COLUMNS = 12  # DESIGN, section 6
MOST_COLUMNS = 60  # no blank for so long: Chinese, a URL, base64; then any character may begin a word
STRONG = 8  # columns, blanks not counted: a match this long is no accident
LITERAL_COLUMNS = 40  # how much of a literal answer is looked at before it is believed
MOST_BACK = 16 * 1024  # characters: nobody begins again with a sentence further back, but with the whole
REPEAT = 24  # characters, blanks not counted: an answer whose first so many were said before repeats itself
FENCE = "```"
MOST_FENCE = 40  # characters of the line that opens a code block
_LAST_FENCE = re.compile(r"\n\s*`{0,3}\s*\Z")
_LAST_LETTERS = re.compile(r"[^\W\d_]+\Z")
_LEADS = "\"'“”„«»‘’…."  # what models put in front of words they were told to begin with


def columns(text: str) -> int:
    """Width in a terminal, blanks not counted."""
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text if not c.isspace())


def part(said: str) -> tuple[str, str]:
    """`said` as (head, words): the words are at least 12 columns wide, or all there is; the head ends without a blank."""
    width = 0
    edge = -1
    for i in range(len(said) - 1, 0, -1):
        c = said[i]
        width += 0 if c.isspace() else 1 + (unicodedata.east_asian_width(c) in "WF")
        if width < COLUMNS:
            continue
        before = said[i - 1]
        if c.isspace() and not before.isspace():
            edge = i
            break
        # Where no blanks are written between words, every wide character may begin one.
        if unicodedata.east_asian_width(c) == "W" == unicodedata.east_asian_width(before) and not _joins(c, before):
            edge = i
            break
        if width >= MOST_COLUMNS and not _joins(c, before) and not before.isspace():
            edge = i
            break
    return ("", said) if edge < 0 else (said[:edge], said[edge:])


def _joins(c: str, before: str) -> bool:
    """Whether `c` belongs to the character before it: accents, emoji of several parts."""
    return (
        bool(unicodedata.combining(c))
        or before == "\u200d"
        or c in "\u200d\ufe0e\ufe0f\u20e3"
        or "\U0001f3fb" <= c <= "\U0001f3ff"
        or "\U0001f1e6" <= c <= "\U0001f1ff"
    )


def inside_code(text: str) -> bool:
    """Whether a code block is open at the end of `text`: the fences that begin a line, counted."""
    return sum(line.lstrip().startswith(FENCE) for line in text.split("\n")) % 2 == 1


def _begins_word(text: str, i: int) -> bool:
    if i == 0:
        return True
    c, before = text[i], text[i - 1]
    if before.isspace():
        return True
    if c.isalnum() and before.isalnum():
        return unicodedata.east_asian_width(c) == "W"
    return c != before and not _joins(c, before)  # of a run of equal signs only the first


class _Match:
    """One reading of the answer, from `at` on, compared with all that was said. Linear in both."""

    __slots__ = ("_alive", "_blankless", "_length", "at", "ends", "settled")

    def __init__(self, blankless: str, starts: list[int], at: int) -> None:
        self.at = at
        self._blankless = blankless
        self._alive = starts  # places where a match may have begun that has not reached the end yet
        self._length = 0
        self.ends: list[int] = []  # of each character that was compared, the place behind it in the answer
        self.settled = 0  # characters of the longest match that reached the end

    @property
    def alive(self) -> bool:
        return bool(self._alive) and self._length > 0

    @property
    def dead(self) -> bool:
        return not self._alive and not self.settled

    def feed(self, text: str, at: int) -> None:
        """More of the answer; `at` is its place there."""
        fresh = []
        for i, c in enumerate(text, at + 1):
            if not c.isspace():
                fresh.append(c)
                self.ends.append(i)
        if not fresh:
            return
        more = "".join(fresh)
        said, done = self._blankless, self._length
        alive = []
        for k in self._alive:
            left = len(said) - k - done
            if len(more) < left:
                if said.startswith(more, k + done):
                    alive.append(k)
            elif said.startswith(more[:left], k + done):
                self.settled = max(self.settled, len(said) - k)
        self._alive = alive
        self._length += len(more)


class Seam:
    """Follows the answer of a target that was asked to go on, until it is known what of it is new.

    `feed(text)` and `close()` return what may be handed on. `found` turns true once the place is known, `lost` once
    there is none; until then nothing comes out. After it is found, text passes through.
    """

    __slots__ = (
        "_answer", "_begins", "_blankless", "_code", "_held", "_literal", "_matches", "_said", "_unwrap", "_words",
        "found", "lost",
    )  # fmt: skip

    def __init__(self, said: str, words: str, literal: bool) -> None:
        """`words`: what the target was asked to begin with, the end of `said`. `literal`: it was asked for none."""
        self._said = said
        self._literal = literal
        self._words = len(words) - sum(map(str.isspace, words))
        self._code = inside_code(said)
        self._blankless = "".join(said.split())
        # Places, counted without blanks, at which an answer may begin: the very first one, and the words of the last
        # pages. (All words of half a megabyte would hold the loop up for a third of a second.)
        start = max(0, len(said) - MOST_BACK)
        k = len("".join(said[:start].split()))
        self._begins = [0]
        for i in range(start, len(said)):
            if not said[i].isspace():
                if _begins_word(said, i) or i == len(said) - len(words):
                    self._begins.append(k)
                k += 1
        if words:
            self._begins.append(len(self._blankless) - self._words)
        self._answer = ""
        self._matches: list[_Match] = [_Match(self._blankless, sorted(set(self._begins)), 0)]
        self._unwrap = False
        self._held = ""  # a closing fence that may have to be dropped
        self.found = False
        self.lost = False

    @property
    def untouched(self) -> bool:
        """Whether the answer has said nothing yet."""
        return not self._answer.strip()

    @property
    def swallowing(self) -> bool:
        """Whether the answer repeats from its beginning more than it was asked to."""
        return not self.found and len(self._answer) > 2 * self._words + MOST_FENCE

    def feed(self, text: str) -> str:
        if self.found:
            return self._pass(text)
        if self.lost or not text:
            return ""
        at = len(self._answer)
        self._answer += text
        for match in self._matches:
            match.feed(text, at)
        self._read_otherwise()
        return self._decide(False)

    def close(self) -> str:
        """The answer ended."""
        if self.found:
            # The fence that closed what was never opened for the client goes no further.
            held, self._held = self._held, ""
            return "" if self._unwrap and held.strip() == FENCE else held
        return "" if self.lost else self._decide(True)

    # ---- how the beginning can be read

    def _read_otherwise(self) -> None:
        """Readings of the answer without what models put in front: a fence, quotation marks, dots."""
        answer = self._answer
        bare = answer.lstrip()
        if len(self._matches) == 1 and bare:
            at = len(answer) - len(bare)
            if bare.startswith(FENCE):
                line = bare.find("\n")
                if line >= 0:
                    self._read_from(at + line + 1)
            elif bare[0] in _LEADS:
                inner = bare.lstrip(_LEADS)
                if inner:
                    self._read_from(len(answer) - len(inner))

    def _read_from(self, at: int) -> None:
        match = _Match(self._blankless, sorted(set(self._begins)), at)
        match.feed(self._answer[at:], at)
        self._matches.append(match)

    # ---- what is new of it

    def _decide(self, ended: bool) -> str:
        if not self._answer.strip() and not ended:
            return ""
        if not ended and (any(match.alive for match in self._matches) or self._may_be_led()):
            return ""
        for match in sorted(self._matches, key=lambda m: -m.settled):
            if match.settled:
                cut = self._cut(match, ended)
                if cut is None:
                    return ""
                if cut >= 0:
                    return self._join(cut, match.at)
        if self._literal:
            return self._take_literally(ended)
        self.lost = True
        return ""

    def _may_be_led(self) -> bool:
        """Whether the answer is still nothing but what may stand in front of the first word."""
        if len(self._matches) > 1:
            return not self._matches[1].ends
        bare = self._answer.lstrip()
        if FENCE.startswith(bare[: len(FENCE)]):
            return "\n" not in bare and len(bare) <= MOST_FENCE
        return not bare.strip(_LEADS)

    def _cut(self, match: _Match, ended: bool) -> int | None:
        """Where the new part begins; -1: this match is no good; None: more is needed to say."""
        answer, said = self._answer, self._said
        size = match.settled
        end = match.ends[size - 1]
        blanks = said[len(said.rstrip()) :]
        after = answer[end:]
        if size < self._words and columns(self._blankless[-size:]) < STRONG:
            if not after and not ended:
                return None
            # Behind a whole word stands a blank, and it stands there again where the word is repeated.
            if not after.startswith(blanks) and blanks.startswith(after) and not ended:
                return None
            if not after.startswith(blanks) or not self._weak(answer[match.at : end], after):
                return -1
        elif self._literal and columns(self._blankless[-size:]) < STRONG:
            return -1  # it was not asked to repeat anything
        if blanks and not after.startswith(blanks):
            if blanks.startswith(after) and not ended:
                return None  # the blanks that were said are being said again
            return end + len(after) - len(after.lstrip())
        return end + len(blanks)

    def _weak(self, matched: str, after: str) -> bool:
        """Whether a short match is more than an accident."""
        word = matched.lstrip()
        sign = not any(map(str.isalnum, word))
        if sign and not self._after_blank(len("".join(word.split()))):
            return False  # the last of "|---": those that follow may be new
        if set(word) == {"`"}:
            # A fence is three of them: either the target repeats those that were said, or it adds the missing ones.
            return len(word) + len(after) - len(after.lstrip("`")) == len(FENCE)
        if word != matched:  # it begins with a blank, as one that goes straight on does
            return not sign and not (word[-1].isalnum() and after[:1].isalnum())
        return True

    def _after_blank(self, size: int) -> bool:
        """Whether a blank stands in front of the last `size` characters that are none."""
        said = self._said.rstrip()
        while size:
            size -= not said[-1].isspace()
            said = said[:-1]
        return not said or said[-1].isspace()

    def _join(self, cut: int, at: int) -> str:
        self.found = True
        if at and self._answer[:at].lstrip().startswith(FENCE) and not self._code:
            self._unwrap = True
        rest, self._answer = self._answer[cut:], ""
        return self._pass(rest)

    def _take_literally(self, ended: bool) -> str:
        answer, said = self._answer, self._said
        if not ended and columns(answer) < LITERAL_COLUMNS:
            return ""
        bare = answer.lstrip()
        cut = 0
        if self._code and bare.startswith(FENCE):
            opened, _, rest = bare.partition("\n")
            last = said.rstrip().rpartition("\n")[2].lstrip()
            if opened[len(FENCE) :].strip() or last.startswith(FENCE):
                cut = len(answer) - len(rest)  # it opens again what is open
        start = "".join(answer.split())[:REPEAT]
        repeats = len(start) == REPEAT and start in self._blankless
        breaks = not self._code and bare == answer and self._breaks_word()
        if repeats or breaks:
            self.lost = True
            return ""
        return self._join(cut, 0)

    def _breaks_word(self) -> bool:
        """Whether the answer begins a sentence in the middle of a word (and not the second half of a CamelCase one)."""
        last = _LAST_LETTERS.search(self._said)
        first = self._answer.partition(" ")[0]
        return last is not None and last[0].islower() and first[:1].isupper() and first.isalpha()

    def _pass(self, text: str) -> str:
        if not self._unwrap:
            return text
        # A fence alone on the last line is held until something follows it.
        text, self._held = self._held + text, ""
        if last := _LAST_FENCE.search(text):
            self._held = last[0]
            return text[: last.start()]
        return text
