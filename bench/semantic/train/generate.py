"""Pairs made by rule: questions from templates, and texts changed so that their meaning stays or goes.

Everything is drawn from one seeded generator. A pair knows the text it came from (`root`), so that what hangs together
can be kept on one side of a split.
"""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lexicon import sections

from turnout.twin.parts.words import stem

SLOTS = Path(__file__).with_name("slots.txt")


class Pair(NamedTuple):
    a: str
    b: str
    label: int
    kind: str
    root: str


class Templates:
    """The blocks of slots.txt."""

    def __init__(self) -> None:
        self.lists: dict[str, list[str]] = {}
        self.blocks: list[list[list[str]]] = []
        section = ""
        for line in SLOTS.read_text(encoding="utf-8").splitlines():
            if line.startswith("["):
                section = line
                if section == "[ask]":
                    self.blocks.append([])
            elif section == "[lists]" and ": " in line:
                name, _, values = line.partition(": ")
                self.lists[name] = values.split(", ")
            elif section == "[ask]" and line:
                self.blocks[-1].append(line.split(" | "))

    def values(self, rng: random.Random, template: str) -> dict[str, str]:
        out: dict[str, str] = {}
        for name in re.findall(r"\{(\w+)\}", template):
            kind = name.rstrip("2")
            for slot in (kind, kind + "2"):
                if slot not in out:
                    out[slot] = rng.choice([value for value in self.lists[kind] if value not in out.values()])
        return out

    def pairs(self, rng: random.Random, count: int) -> list[Pair]:
        out: list[Pair] = []
        while len(out) < count:
            block = rng.choice(self.blocks)
            ways = rng.choice(block)
            values = self.values(rng, " ".join(ways))
            one = rng.choice(ways)
            root = "made " + str(self.blocks.index(block))  # a block stays on one side: its wordings recur
            a = fill(one, values)
            chance = rng.random()
            if chance < 0.40 and len(ways) > 1:
                b, label, kind = fill(rng.choice([way for way in ways if way != one]), values), 1, "made same"
            elif chance < 0.52:
                other = rng.choice([way for many in block if many is not ways for way in many])
                b, label, kind = fill(other, {**self.values(rng, other), **values}), 0, "made other ask"
            elif chance < 0.70:
                changed = dict(values)
                slot = rng.choice(sorted(changed))
                changed[slot] = rng.choice([v for v in self.lists[slot.rstrip("2")] if v not in values.values()])
                b, label, kind = fill(rng.choice(ways), changed), 0, "made other slot"
                if fill(one, changed) == a:
                    continue
            elif chance < 0.86:
                b = add_tail(fill(rng.choice(ways), values), rng.choice(self.lists["qualifier"]))
                label, kind = 0, "made qualifier"
            elif chance < 0.91:
                b = add_tail(fill(rng.choice(ways), values), rng.choice(self.lists["aside"]))
                label, kind = 1, "made aside"
            else:
                twice = [slot for slot in values if slot.endswith("2") and "{" + slot + "}" in one]
                if not twice or "difference" in one or "distance" in one or "far" in one or "differ" in one:
                    continue
                slot = twice[0]
                swapped = {**values, slot: values[slot[:-1]], slot[:-1]: values[slot]}
                way = rng.choice([one, one, rng.choice([w for w in ways if "{" + slot + "}" in w])])
                b, label, kind = fill(way, swapped), 0, "made swap"
            if a != b:
                out.append(Pair(*(shuffled(rng, a, b)), label, kind, root))
        return out


def fill(template: str, values: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], template)


def add_tail(text: str, tail: str) -> str:
    return text[:-1] + " " + tail + "?" if text.endswith("?") else text + " " + tail


def shuffled(rng: random.Random, a: str, b: str) -> tuple[str, str]:
    return (a, b) if rng.random() < 0.5 else (b, a)


# ---- changes that keep the meaning


_SHORT = [
    ("what is", "what's"), ("do not", "don't"), ("does not", "doesn't"), ("is not", "isn't"), ("can not", "can't"),
    ("cannot", "can't"), ("i am", "i'm"), ("i have", "i've"), ("where is", "where's"), ("how is", "how's"),
    ("will not", "won't"), ("i would", "i'd"), ("it is", "it's"),
]  # fmt: skip
_BEFORE = ["please tell me, ", "hi, ", "can you tell me ", "hello, ", "i want to know ", "please ", "hey, ", "quick question: "]
_AFTER = [" please", " thanks", " exactly", "?", ""]
_ASKED = [
    ["how do i", "how can i", "how to", "what is the best way to", "what should i do to", "how could i", "how would i"],
    ["can i", "is it possible to", "am i able to", "could i", "may i"],
    ["i want to", "i would like to", "i'd like to", "i need to", "i wish to"],
    ["can you tell me", "please tell me", "could you tell me", "tell me", "let me know", "i'd like to know"],
    ["what is", "what's", "tell me", "give me"],
    ["how long does it take to", "how much time does it take to"],
    ["why is", "what is the reason"],
    ["can you", "could you", "would you", "please", "will you"],
    ["i need you to", "i want you to", "please", "can you"],
    ["what are", "which are"],
]


def same_ask(rng: random.Random, text: str) -> str | None:
    low = text.lower()
    for many in _ASKED:
        for start in many:
            if low.startswith(start + " "):
                return rng.choice([way for way in many if way != start]) + text[len(start) :]
    return None


def shorten(rng: random.Random, text: str) -> str | None:
    low = text.lower()
    for long, short in _SHORT:
        for old, new in ((long, short), (short, long)):
            at = low.find(old)
            if at >= 0:
                return text[:at] + (new.capitalize() if text[at].isupper() else new) + text[at + len(old) :]
    return None


def decorate(rng: random.Random, text: str) -> str | None:
    if rng.random() < 0.6:
        return rng.choice(_BEFORE) + text
    return text.rstrip("?. ") + rng.choice(_AFTER)


def recase(rng: random.Random, text: str) -> str | None:
    if text != text.lower() and rng.random() < 0.5:
        return text.lower().rstrip("?.")
    return text[0].upper() + text[1:].rstrip("?") + rng.choice(["?", "?", ""])


def drop_article(rng: random.Random, text: str) -> str | None:
    found = list(re.finditer(r"\b(the|a|an|my|some) ", text))
    if not found:
        return None
    at = rng.choice(found)
    return text[: at.start()] + rng.choice(["", "", "the "]) + text[at.end() :]


def front(rng: random.Random, text: str) -> str | None:
    """Where can I park near the town hall? -> Near the town hall, where can I park?"""
    found = re.match(r"(.{12,}?) ((?:in|on|near|at|for|from|with|to) [\w' ]{4,30})(\?|\.|)$", text)
    if not found or found[2].split()[1].endswith("ing"):
        return None
    return found[2][0].upper() + found[2][1:] + ", " + found[1][0].lower() + found[1][1:] + found[3]


def owner(rng: random.Random, text: str) -> str | None:
    found = re.search(r"\bthe (\w+) of (my|the|your) (\w+)\b(?! \w+ing)", text)
    return text[: found.start()] + f"{found[2]} {found[3]}'s {found[1]}" + text[found.end() :] if found else None


def plural(rng: random.Random, text: str) -> str | None:
    words = text.split()
    places = [i for i, word in enumerate(words) if word.isalpha() and len(word) > 4 and i > 1 and not word.endswith(("s", "ing", "ed", "ly"))]
    if not places:
        return None
    at = rng.choice(places)
    words[at] += "s"
    return " ".join(words)


def typo(rng: random.Random, text: str) -> str | None:
    words = text.split()
    places = [i for i, word in enumerate(words) if word.isalpha() and word.islower() and len(word) > 5]
    if not places:
        return None
    at = rng.choice(places)
    cut = rng.randrange(2, len(words[at]) - 2)
    word = words[at]
    words[at] = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :] if rng.random() < 0.6 else word[:cut] + word[cut + 1 :]
    return " ".join(words)


class Words:
    """Replacing words: synonyms and opposites of the lists, and neighbours in the static table."""

    def __init__(self, tokens: list[str], rows: np.ndarray, whole: np.ndarray) -> None:
        lists = sections()
        self.synonyms: dict[str, list[str]] = {}
        for line in lists["synonyms"]:
            for word in line.split():
                self.synonyms.setdefault(word, []).extend(other for other in line.split() if other != word)
        self.opposites: dict[str, list[str]] = {}
        for line in lists["antonyms"]:
            one, other = (side.split() for side in line.split("|"))
            for word in one:
                self.opposites.setdefault(word, []).extend(other)
            for word in other:
                self.opposites.setdefault(word, []).extend(one)
        self.stops = {stem(word) for name in ("stop", "negation") for line in lists[name] for word in line.split()}
        self._places = {token: i for i, token in enumerate(tokens) if 2100 <= i < 18000 and token.isascii() and token.isalpha() and len(token) > 2}
        self._names = list(self._places)
        self._rows = whole[rows[list(self._places.values())]].astype(np.float32)
        self._rows /= np.linalg.norm(self._rows, axis=1, keepdims=True)
        self._index = {name: i for i, name in enumerate(self._names)}

    def content(self, words: list[str]) -> list[int]:
        return [i for i, word in enumerate(words) if word.isalpha() and len(word) > 2 and stem(word.lower()) not in self.stops]

    def neighbour(self, rng: random.Random, word: str) -> str | None:
        at = self._index.get(word.lower())
        if at is None:
            return None
        near = self._rows @ self._rows[at]
        best = np.argsort(-near)[1:40]
        own = {stem(other) for other in [word.lower(), *self.synonyms.get(word.lower(), [])]}
        fit = [self._names[i] for i in best if 0.2 < near[i] < 0.75 and stem(self._names[i]) not in own]
        fit = [other for other in fit if other[:4] != word.lower()[:4]]
        return rng.choice(fit[:12]) if fit else None

    def swap_synonym(self, rng: random.Random, text: str) -> str | None:
        return self._replace(rng, text, lambda word: rng.choice(self.synonyms[word]) if word in self.synonyms else None)

    def swap_opposite(self, rng: random.Random, text: str) -> str | None:
        return self._replace(rng, text, lambda word: rng.choice(self.opposites[word]) if word in self.opposites else None)

    def swap_neighbour(self, rng: random.Random, text: str) -> str | None:
        return self._replace(rng, text, lambda word: self.neighbour(rng, word))

    def _replace(self, rng: random.Random, text: str, other: Callable[[str], str | None]) -> str | None:
        words = text.split()
        places = [i for i, word in enumerate(words) if word.strip("?.,!").isalpha()]
        content = {i for i in places if stem(words[i].strip("?.,!").lower()) not in self.stops}
        rng.shuffle(places)
        for at in places:
            bare = words[at].strip("?.,!")
            found = other(bare.lower()) if at in content else None
            if found:
                words[at] = words[at].replace(bare, found.capitalize() if bare[0].isupper() else found)
                return " ".join(words)
        return None

    def swap_places(self, rng: random.Random, text: str) -> str | None:
        """Two content words change places; what stands beside "and" or "or" may."""
        words = text.split()
        tail = ""
        if words and words[-1][-1] in "?.!":
            tail, words[-1] = words[-1][-1], words[-1][:-1]
        places = self.content(words)
        rng.shuffle(places)
        best: tuple[float, int, int] | None = None
        for x in range(min(len(places), 5)):
            for y in range(x):
                i, j = sorted((places[x], places[y]))
                if "and" in words[i:j] or "or" in words[i:j] or words[i].lower() == words[j].lower():
                    continue
                near = self._near(words[i], words[j]) + rng.random() * 0.3
                if best is None or near > best[0]:
                    best = (near, i, j)
        if best is None:
            return None
        _, i, j = best
        words[i], words[j] = words[j], words[i]
        return " ".join(words) + tail

    def _near(self, one: str, other: str) -> float:
        i, j = self._index.get(one.lower()), self._index.get(other.lower())
        return float(self._rows[i] @ self._rows[j]) if i is not None and j is not None else 0.0


# ---- changes that lose the meaning


def negate(rng: random.Random, text: str) -> str | None:
    for old, new in ((" not ", " "), ("n't ", " "), ("without ", "with ")):
        if old in text:
            return text.replace(old, new, 1)
    found = re.search(r"\b(is|are|do|does|can|could|should|would|will|was|did|have|has) (?=\w)", text[1:], re.I)
    if found is None:
        return None
    after = text[1 + found.end() :].split(" ", 1)
    if len(after) < 2 or after[0].lower() not in ("i", "you", "we", "they", "it", "he", "she", "my", "the"):
        return text[: 1 + found.end()] + "not " + text[1 + found.end() :]
    return text[: 1 + found.end()] + after[0] + " not " + after[1]


def renumber(rng: random.Random, text: str) -> str | None:
    found = list(re.finditer(r"\d+", text))
    if not found:
        return None
    at = rng.choice(found)
    value = int(at[0][:9])
    return text[: at.start()] + str(rng.choice([value + 1, value + 10, value * 2, max(value - 1, 0) or 7])) + text[at.end() :]


_UNITS = [["days", "weeks", "months", "years", "hours", "minutes"], ["day", "week", "month", "year"], ["dollars", "euros", "pounds"], ["miles", "km"], ["kg", "lbs"]]
_DATES = [
    ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"], ["today", "tomorrow", "yesterday"],
    ["january", "march", "april", "june", "july", "august", "october"], ["morning", "evening", "afternoon"], ["breakfast", "lunch", "dinner"],
]  # fmt: skip


def resort(rng: random.Random, text: str) -> str | None:
    """Another date, day or unit."""
    words = text.split()
    for at in rng.sample(range(len(words)), len(words)):
        bare = words[at].strip("?.,!").lower()
        for many in _UNITS + _DATES:
            if bare in many:
                words[at] = words[at].lower().replace(bare, rng.choice([word for word in many if word != bare]))
                return " ".join(words)
    return None


_SMALL = [
    "how why when where", "what who which why", "can should must will", "is was will", "do did will", "are were",
    "my your his her their", "i you he she they we", "me him her them", "in from to for with on near without",
    "before after during", "with without", "all some most", "best worst cheapest", "more less", "first last next",
    "much many", "into from", "up down", "on off", "to from", "about without", "long much often far many",
]  # fmt: skip


def resmall(rng: random.Random, text: str) -> str | None:
    """Another function word: who asks whom, when, where to."""
    words = text.split()
    for at in rng.sample(range(len(words)), len(words)):
        bare = words[at].strip("?.,!").lower()
        groups = [group.split() for group in _SMALL if bare in group.split()]
        if groups:
            other = rng.choice([word for word in rng.choice(groups) if word != bare])
            words[at] = words[at].lower().replace(bare, other.capitalize() if words[at][0].isupper() else other)
            return " ".join(words)
    return None


def tails(texts: list[str]) -> list[str]:
    """What texts say after a relation word at their end."""
    out = []
    for text in texts:
        found = re.search(r" ((?:in|on|for|with|from|at|without|after|before|during|near|through|by) (?:\w+ ?){1,3})\??$", text)
        if found:
            out.append(found[1].strip())
    return sorted(set(out))


def changed(rng: random.Random, texts: list[str], words: Words, count: int) -> list[Pair]:
    """Pairs of a text and what a change made of it; a third of them with a second, harmless change."""
    harmless: list[tuple[str, float, Callable[[random.Random, str], str | None]]] = [
        ("ask", 3, same_ask), ("short", 1, shorten), ("decorated", 1.5, decorate), ("case", 0.7, recase), ("article", 1, drop_article),
        ("front", 1.5, front), ("owner", 1, owner), ("plural", 0.7, plural), ("typo", 1, typo), ("synonym", 1.5, words.swap_synonym),
    ]  # fmt: skip
    ends = tails(texts)
    harmful: list[tuple[str, float, Callable[[random.Random, str], str | None]]] = [
        ("swap", 2.5, words.swap_places), ("opposite", 1, words.swap_opposite), ("neighbour", 4, words.swap_neighbour),
        ("small", 4, resmall), ("negation", 0.7, negate), ("number", 0.5, renumber), ("date", 0.5, resort),
        ("tail", 2, lambda rng, text: add_tail(text, rng.choice(ends))), ("cut", 1.5, cut),
    ]  # fmt: skip

    def draw(many: list[tuple[str, float, Callable[[random.Random, str], str | None]]], text: str) -> tuple[str, str] | None:
        name, _, change = rng.choices(many, [weight for _, weight, _ in many])[0]
        found = change(rng, text)
        return (name, found) if found and found != text else None

    out: list[Pair] = []
    while len(out) < count:
        text = rng.choice(texts)
        label = int(rng.random() < 0.45)
        first = draw(harmless if label else harmful, text)
        if first is None:
            continue
        name, b = first
        if rng.random() < (0.5 if label else 0.35):
            more = draw(harmless, b)
            b = more[1] if more else b
        out.append(Pair(*shuffled(rng, text, b), label, name, text))
    return out


def cut(rng: random.Random, text: str) -> str | None:
    """Without its last relation: what is asked becomes wider."""
    found = re.match(r"(.{12,}) ((?:in|on|for|with|from|at|without|after|before|during|near|through|by) (?:\w+ ?){1,3})(\??)$", text)
    return found[1] + found[3] if found else None
