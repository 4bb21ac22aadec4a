"""Readable answers about railways, the same for the same (seed, prompt). Pure."""

from __future__ import annotations

import random
import re
from hashlib import blake2b

_FILL: dict[str, tuple[str, ...]] = {
    "train": (
        "the night mail",
        "a slow goods train",
        "the morning express",
        "an empty ballast train",
        "the branch line railcar",
        "a long container train",
        "the boat train",
        "the last stopping service",
        "a pair of light engines",
        "the sleeper from the north",
    ),
    "place": (
        "the junction",
        "the river bridge",
        "the summit tunnel",
        "the harbour sidings",
        "the old roundhouse",
        "platform four",
        "the freight yard",
        "the mountain loop",
        "the level crossing by the mill",
        "the viaduct",
        "the border station",
        "the coal staithes",
    ),
    "who": (
        "the signaller",
        "the driver",
        "the guard",
        "the dispatcher",
        "the track inspector",
        "the shunter",
        "the fireman",
        "the station master",
        "the timetable clerk",
        "the points fitter",
    ),
    "thing": (
        "the points",
        "the home signal",
        "the block instrument",
        "the catch siding",
        "the facing turnout",
        "the token for the single line",
        "the interlocking frame",
        "the track circuit",
        "the distant signal",
        "the brake pipe",
        "the speed board",
    ),
    "act": (
        "checks",
        "sets and locks",
        "waits for",
        "reports",
        "keeps an eye on",
        "inspects",
        "writes down the state of",
        "tests",
        "releases",
        "trusts nothing but",
    ),
    "move": (
        "rolls past",
        "slows down before",
        "is held at",
        "runs through",
        "changes tracks at",
        "meets the opposite service near",
        "leaves",
        "is turned away from",
        "takes on water at",
    ),
    "when": (
        "at first light",
        "in heavy rain",
        "after the snow plough has passed",
        "twice a day",
        "when the autumn leaves lie on the rails",
        "shortly before midnight",
        "on market days",
        "during the summer timetable",
        "while the fog lasts",
        "as soon as the line is clear",
    ),
    "why": (
        "because steel on steel needs a long way to stop",
        "since two trains must never share one block",
        "so that a single failure leaves every signal at danger",
        "for the gradient there is one in forty",
        "because a late connection costs more than an early start",
        "since nobody on board should notice the change",
        "so the passengers can keep their seats and their coffee",
        "because a locked route cannot be taken back under a moving train",
    ),
    "number": ("two", "three", "four", "six", "nine", "twelve", "eighteen", "forty", "ninety"),
    "unit": ("wagons", "kilometres", "axles", "coaches", "sleepers", "signals"),
    "kind": ("narrow", "wet", "quiet", "busy", "curved", "steep", "newly laid", "double-track"),
}

_SENTENCES: tuple[str, ...] = (
    "{When}, {train} {move} {place}.",
    "{Who} {act} {thing} {when}, {why}.",
    "{Train} {move} {place}, and {who} {act} {thing}.",
    "There are {number} {unit} between {place} and {place}, {why}.",
    "Before {train} {move} {place}, {who} {act} {thing} and then {thing}.",
    "On the {kind} stretch behind {place}, {train} needs {number} minutes to come to rest.",
    "If {thing} fails {when}, {train} {move} {place} without a jolt.",
    "{Who} once counted {number} {unit} here; today {who} {act} {thing} instead.",
    "No one moves {thing} until {train} has cleared {place}, {why}.",
    "It takes {who} about {number} minutes to explain why {train} {move} {place}.",
    "{Place} is {kind}, yet {train} {move} it {when}.",
)

_SLOT = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"\s*\w+|\s*[^\w\s]+|\s+")
# Tokenizers split long words; cuts inside a word must happen here as they do for real.
_LONGEST_PIECE = 8


def dice_for(*parts: object) -> random.Random:
    """A random generator that depends on nothing but `parts`."""
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(str(part).encode("utf-8", "surrogatepass") + b"\x00")
    return random.Random(int.from_bytes(digest.digest(), "big"))


def write_answer(seed: int, prompt: str, tokens: int, index: int = 0) -> str:
    """Whole sentences of about `tokens` tokens in all; equal arguments, equal text."""
    dice = dice_for(seed, prompt, index)
    sentences: list[str] = []
    written = 0
    while written < tokens:
        sentence = _sentence(dice)
        sentences.append(sentence)
        written += len(split_tokens(sentence))
    return " ".join(sentences)


def split_tokens(text: str) -> list[str]:
    """Word-like tokens with their leading space; joined they are `text` again. O(len)."""
    pieces: list[str] = []
    for word in _WORD.findall(text):
        if len(word) > _LONGEST_PIECE + 1:
            half = len(word) // 2
            pieces += [word[:half], word[half:]]
        else:
            pieces.append(word)
    return pieces


def count_tokens(text: str) -> int:
    """What a prompt is billed for: one token per four bytes, rounded up."""
    return (len(text.encode("utf-8", "surrogatepass")) + 3) // 4


def _sentence(dice: random.Random) -> str:
    used: set[str] = set()

    def fill(match: re.Match[str]) -> str:
        slot = match[1]
        choices = [word for word in _FILL[slot.lower()] if word not in used]
        word = choices[dice.randrange(len(choices))]
        used.add(word)
        return word[0].upper() + word[1:] if slot[0].isupper() else word

    return _SLOT.sub(fill, _SENTENCES[dice.randrange(len(_SENTENCES))])
