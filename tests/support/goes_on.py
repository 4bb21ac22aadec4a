"""How a target may go on with an answer that it is shown the beginning of, and texts to do it with.

`continuation(how, text, said, words)`: what a target answers that would have said `text`, was told that `said` is there
already, and, where it was asked in words, to begin with `words`.
"""

import re

SIXTY = (  # sixty words, no two neighbours alike
    "A turnout lets one track become two without stopping any train. Its blades slide sideways, touch the stock rail and guide "
    "each wheel onto a new path. Signals ahead turn red until both blades are locked; only then may drivers pass at full speed. "
    "When winter brings ice, gas heaters keep every moving part free, so night freight still arrives before dawn breaks over town."
)
TEXTS = {
    "ascii": "The switch moves the train while it rolls. A turnout has two blades, one stock rail on each side and a frog. When a "
    "signal fails, trains halt before it; nobody guesses. In 2026 about 14,500 switches were kept by 320 people.",
    "emoji": "Trains 🚂 roll at night 🌙 and 👩‍🔧 keeps watch 👍🏽 while 🇩🇪 crosses into 🇫🇷. Coffee ☕️ helps, snow ❄️ does not. End ✅",
    "cjk": "道岔让列车在行驶中换到另一条轨道。夜里信号员检查每一个灯，然后打电话给下一站。雨天要慢行，雪天要清扫。東京から大阪まで新幹線で二時間ほどで着きます。",
    "code": "Here is how:\n\n```python\nimport os\n\ndef move(train, to):\n    if not train.rolls:\n        raise ValueError(\"stands still\")\n"
    "    for car in train.cars:\n        car.track = to\n    return len(train.cars)\n```\n\nCall it once per train, never inside a loop.",
    "table": "| Part | Count | Note |\n|:-|-:|:-:|\n| blade | 2 | moves |\n| frog | 1 | fixed |\n| tie | 54 | oak |\n\nSum of it: 57 parts.",
    "json": '{"name": "switch 7", "open": true, "parts": [{"id": 1, "kind": "blade"}, {"id": 25, "kind": "frog"}], "note": "oiled in May"}',
    "sixty": SIXTY,
}  # fmt: skip
HOWS = ("exact", "words", "last-word", "sentence", "whole", "newlines", "blank", "fence", "quoted", "dots", "straight")


def tokens(text: str) -> list[str]:
    """Cut as a stream cuts: a word with the blanks before it; two characters where there are none."""
    return [t for t in re.findall(r"\s*[!-~]{1,12}|\s*\S{1,2}|\s+", text) if t]


def continuation(how: str, text: str, said: str, words: str) -> str:
    """`said` is all the client has; for `exact` it is what the target was shown."""
    rest = text[len(said) :]
    first = words.lstrip()
    blanks = said[len(said.rstrip()) :]
    inside = sum(line.lstrip().startswith("```") for line in said.split("\n")) % 2 == 1
    match how:
        case "exact" | "straight":
            return rest
        case "words":
            return first + rest
        case "last-word":
            return (said.split() or [""])[-1] + blanks + rest
        case "sentence":
            ends = [m.end() for m in re.finditer(r"[.!?;。，\n]\s*", said.rstrip()[:-1])]
            return said[ends[-1] :] + rest if ends else text
        case "whole":
            return text
        case "newlines":
            return "\n\n" + first + rest
        case "blank":
            return " " + first + rest
        case "fence":  # the code block opened again; where there is none, all of it wrapped in one
            if inside:
                return "```python\n" + first + rest
            return first + rest if "```" in text else "```\n" + first + rest + "\n```"
        case "quoted":
            return '"' + first + rest
        case "dots":
            return "... " + first + rest
        case "paraphrase":
            return "In other words, a points machine shifts rails so that wagons can take a second line. Nobody has to brake for that."
        case "sure":
            return "Sure! Here is the rest of the answer you asked me for, as you wished: " + rest
    raise ValueError(how)
