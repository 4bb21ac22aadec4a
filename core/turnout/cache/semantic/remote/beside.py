"""What an endpoint adds to the look-up: a question that its vectors find, and the gate behind the verifier."""

from typing import TYPE_CHECKING, Any

import numpy

from ....clock import Clock
from ....exchange import Exchange
from ...entry import Entry
from ..compare import answer_text, same_answer
from ..meters import CLOSED, GATE_FLOOR, UNSEEN, Meters

if TYPE_CHECKING:
    from ...memory import Memory
    from ..knowledge import Knowledge
    from ..scopes import Item
    from ..stage import Asked


def gate_of(meters: Meters, asked: "Asked") -> Any:
    return meters.gate(asked.tenant, asked.place.route, asked.spec, asked.endpoint.name)


async def propose(x: Exchange, asked: "Asked", verifier: Any, clock: Clock) -> None:
    """Ask the endpoint, and let what it finds take the place of the nearest question where the verifier likes it better.
    Only the first: whoever asks the same is mostly that one, and each more is one more chance to be wrong."""
    scope, near = asked.scope, asked.near
    if scope.space is None or not scope.space.size:
        return  # nobody to find; the text gets its vector when its answer is kept
    began = clock.now_ns()
    asked.remote = await asked.endpoint.within(x, asked.text)
    x.upstream_ns += clock.now_ns() - began  # it waited for the endpoint: no cost of ours
    found = scope.nearest_remote(asked.remote, clock.wall_ns()) if asked.remote is not None else []
    if not found:
        return
    mine = numpy.frombuffer(asked.said.vector, numpy.float32)
    pairs = [(item, float(mine @ numpy.frombuffer(item.said.vector, numpy.float32))) for item, _ in found]
    item, cosine = pairs[0]
    raw = verifier.score(asked.said, item.said, cosine)
    asked.found_cosine = found[0][1]
    if raw > 0.0 and asked.found_cosine >= GATE_FLOOR:  # 0 is a veto: another number, date, order, in any language
        asked.found = item
    if near is None or raw > asked.raw:
        asked.near, asked.cosine, asked.raw = item, cosine, raw
        asked.proposed = item if item is not near else None
        if near is not None:
            pairs[0] = near, cosine
    if asked.spec.profile == "faq":  # there the second look chooses among a few
        known = {id(asked.near), *(id(other) for other, _ in asked.others)}
        asked.others = [*asked.others, *(pair for pair in pairs if id(pair[0]) not in known)]


def passes(meters: Meters, asked: "Asked", item: "Item", least: float, now_ns: int) -> bool:
    """Whether the gate lets what was found pass, by its cosine alone."""
    gate = gate_of(meters, asked)
    cosine = asked.found_cosine
    bar = gate.threshold(asked.place.scope, item.number, now_ns) if gate.requests * gate.budget >= UNSEEN else CLOSED
    return bool(cosine >= max(bar, least))


def tell(meters: Meters, asked: "Asked", item: "Item", entry: Entry | None, now_ns: int) -> None:
    """The gate's meter hears what became of it."""
    gate = gate_of(meters, asked)
    if entry is None:
        gate.missed(now_ns, asked.found_cosine, asked.place.scope, item.number)
        return
    gate.served(now_ns, asked.found_cosine, asked.place.scope, item.number)
    item.hits += 1
    item.last, item.gate = asked.found_cosine, asked.endpoint.name
    asked.gated = True


def label_miss(meters: Meters, memory: "Memory", clock: Clock, asked: "Asked", entry: Entry, text: str) -> bool | None:
    """What a fresh answer says of the question that was found and not served."""
    found = asked.found
    kept = memory.find(found.digest, clock.now_ns()) if found is not None and found.digest != entry.digest else None
    if found is None or kept is None or not (other := answer_text(kept.body)):
        return None
    right = same_answer(text, other)
    gate = gate_of(meters, asked)
    gate.label(clock.wall_ns(), asked.found_cosine, asked.place.scope, found.number, right, 1.0, "miss")
    return right


async def embed_kept(knowledge: "Knowledge", asked: "Asked", item: "Item", entry: Entry) -> None:
    """The vector of a question that was kept without one."""
    remote = await asked.endpoint.later(asked.by, asked.text)
    if remote is not None:
        knowledge.learn(asked.place, asked.scope, item, remote, entry)
