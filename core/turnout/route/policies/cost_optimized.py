"""The cheapest target that can do it."""

from collections.abc import Sequence
from random import Random
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from ...exchange import Exchange, Target
from .. import peek
from ..outlook import scored
from ..why import Why

ANSWER_TOKENS = 300.0  # of a route without history
UNPRICED = float("inf")


class CostOptimized(msgspec.Struct, tag_field="kind", tag="cost-optimized", frozen=True, forbid_unknown_fields=True):
    """Constraints first: a target whose model is known not to take the prompt's length, tools, a JSON schema or images
    stands behind all that may. Then by expected US dollars: price x (the prompt's tokens, and the answer's by the target's
    own history), divided by the chance of success, plus `usd_per_s` for every second to the first token. A target without a
    price comes after those that have one.
    """

    usd_per_s: Annotated[float, Meta(ge=0)] = 0.0  # what a second of waiting is worth

    counts: ClassVar[bool] = True
    turns: ClassVar[bool] = False

    def rank(
        self, targets: Sequence[Target], x: Exchange, now_ns: int, rng: Random, why: Why | None = None
    ) -> Sequence[int]:
        wish = peek.peek(x)
        tools, schema, image = peek.wants_tools(wish), peek.wants_schema(wish), peek.has_image(x)
        seconds = scored(targets, x, now_ns)[1] if self.usd_per_s else [0.0] * len(targets)
        most = peek.most_answer(wish)
        lengths = [t.stats.completion for t in targets if t.stats.completion]
        usual = sum(lengths) / len(lengths) if lengths else ANSWER_TOKENS
        keys: list[tuple[bool, float, float]] = []
        for target, wait_s in zip(targets, seconds, strict=True):
            stats = target.stats
            prompt = stats.prompt_rate * len(x.body)
            answer = stats.completion or usual
            answer = min(answer, most) if most else answer
            cannot = _cannot(target, prompt, tools, schema, image)
            usd = _usd(target, prompt, answer) / stats.success(now_ns) + self.usd_per_s * wait_s
            keys.append((bool(cannot), usd, rng.random()))
            if why is not None:
                line = {"target": target.label, "score": usd if usd != UNPRICED else None, "cannot": cannot}
                why.append(line | {"prompt_tokens": round(prompt), "answer_tokens": round(answer)})
        return sorted(range(len(targets)), key=keys.__getitem__)


def _cannot(target: Target, prompt: float, tools: bool, schema: bool, image: bool) -> str:
    """Why the target's model is known not to do; empty if it may."""
    if target.context_tokens and prompt > target.context_tokens:
        return "context"
    facts = target.facts
    if facts is None:
        return ""
    if tools and facts.tools is False:
        return "tools"
    if schema and facts.json_schema is False:
        return "schema"
    return "vision" if image and facts.vision is False else ""


def _usd(target: Target, prompt: float, answer: float) -> float:
    price = target.price
    if price is None or price.input is None:
        return UNPRICED
    return (price.input * prompt + (price.output or 0) * answer) / 1e15  # nano-dollars per million tokens
