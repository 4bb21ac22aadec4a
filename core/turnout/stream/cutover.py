"""What happens to a stream when its upstream fails: a machine without I/O, and free of any wire.

How it works. A stream is *asking* until there is content: role and lifecycle frames are held, so that any target may
still serve it and nobody knows. It is *flowing* while content passes, *holding* from its first tool call on, which are
kept back until they are whole, and *joining* while another target has been asked to go on and the place where its answer continues what the
client has is not found yet. `TABLE` says for each state and event which command follows; where several rows stand, the
first whose guard holds counts. The relay and the driver (turnout/streaming.py) bring events and carry commands out.

What it promises:
- Until content was shown every failure is another target's work (`open_next`).
- After that a failure ends in exactly one of three ways: the rest of the answer from another target, the same turn from
  another target where the client cannot tell, or an error. Never in a clean end.
- What cannot be joined soundly is not joined: `SOUND` has a line for everything a stream may carry.
- At most `max_cutovers` repairs; a client that leaves (`left`) is never a reason for one.

`diagram()` draws the table; the README shows it, and a test holds the two together.
"""

from typing import NamedTuple

from ..native import CALLS, LOGPROBS, OTHER, OTHER_CHOICE, OVER, REASONING, REFUSAL, SIGNED

# States
ASKING, FLOWING, HOLDING, JOINING = "asking", "flowing", "holding", "joining"
ENDED, FAILED, GONE = "ended", "failed", "gone"
# Events
CONTENT, CALL, BROKE, NOBODY, SEAM, NO_SEAM, REFUSED, END, LEFT = (
    "content", "call", "broke", "nobody", "seam", "no_seam", "refused", "end", "left",
)  # fmt: skip
# Commands
OPEN_NEXT, FORWARD, HOLD, RESUME, REPEAT, ASK_AGAIN, ASK_NEXT, FINISH, ERROR, CANCEL = (
    "open_next", "forward", "hold", "resume", "repeat", "ask_again", "ask_next", "finish", "error", "cancel",
)  # fmt: skip

# What a client may have been given, and whether the rest may come from elsewhere. Content that is not named is text.
TERMINATE, CONTINUE, AGAIN = "terminate", "continue", "again"
SOUND: tuple[tuple[str, int, str, str], ...] = (
    ("text over the bound", OVER, TERMINATE, "what was delivered is not known any more"),
    ("a second choice (n > 1)", OTHER_CHOICE, TERMINATE, "the choices stand at different places"),
    ("logprobs", LOGPROBS, TERMINATE, "they belong to tokens, and a seam cuts through one"),
    ("a refusal", REFUSAL, TERMINATE, "another model would not refuse in the same words"),
    ("signed or encrypted reasoning", SIGNED, TERMINATE, "half a block is no signature, and the next turn needs it"),
    ("audio, function_call", OTHER, TERMINATE, "cannot be cut"),
    ("a part of a tool call", CALLS, TERMINATE, "two models never give the same call; a held call is not shown"),
    ("reasoning", REASONING, CONTINUE, "no part of the answer: the second one's reasoning is left out"),
    ("a whole tool call", 0, AGAIN, "the turn is repeated, and must make the same call again"),
    ("JSON", 0, CONTINUE, "the joined text must parse, else terminate"),
    ("text", 0, CONTINUE, "see seam.py"),
)
_NEVER = sum(bit for _, bit, choice, _ in SOUND if choice == TERMINATE)


class Row(NamedTuple):
    command: str
    state: str
    guard: str = ""  # a method of Cutover; empty: always


_REPAIR = (
    Row(RESUME, JOINING, "may_resume"),
    Row(REPEAT, JOINING, "may_repeat"),
    Row(OPEN_NEXT, ASKING, "may_restart"),
    Row(ERROR, FAILED),
)
_LEFT = (Row(CANCEL, GONE),)

TABLE: dict[tuple[str, str], tuple[Row, ...]] = {
    (ASKING, CONTENT): (Row(FORWARD, FLOWING),),
    (ASKING, BROKE): (Row(OPEN_NEXT, ASKING),),
    (ASKING, NOBODY): (Row(ERROR, FAILED),),
    (ASKING, LEFT): _LEFT,
    (FLOWING, CALL): (Row(HOLD, HOLDING),),
    (FLOWING, BROKE): _REPAIR,
    (FLOWING, END): (Row(FINISH, ENDED),),
    (FLOWING, LEFT): _LEFT,
    (HOLDING, BROKE): _REPAIR,
    (HOLDING, END): (Row(FINISH, ENDED),),
    (HOLDING, LEFT): _LEFT,
    (JOINING, SEAM): (Row(FORWARD, FLOWING),),
    (JOINING, NO_SEAM): (Row(ASK_AGAIN, JOINING, "may_ask_literally"), Row(ASK_NEXT, JOINING)),
    (JOINING, REFUSED): (Row(ASK_AGAIN, JOINING, "may_instruct"), Row(ASK_NEXT, JOINING)),
    (JOINING, BROKE): (Row(ASK_NEXT, JOINING),),
    (JOINING, NOBODY): (Row(OPEN_NEXT, ASKING, "may_restart"), Row(ERROR, FAILED)),
    (JOINING, LEFT): _LEFT,
}


LIVE = frozenset(state for state, event in TABLE if event == LEFT)


class Cutover:
    """One stream's state, and the facts its guards look at. `on(event)` gives the command."""

    def __init__(self, on_failure: str, max_cutovers: int, shown: bool) -> None:
        """`shown`: a client sees what passes; otherwise it is gathered, and may be thrown away and begun again."""
        self.state = ASKING
        self.on_failure = on_failure
        self.left = max_cutovers
        self.shown = shown
        self.kinds = 0  # what the client was given beside text
        self.said = ""  # the text the client was given
        self.calls = 0  # whole tool calls the client was given
        self.spoiled = ""  # why no part of what was given can be built on
        self.whole = ""  # why the request can only be served as a whole, "" if it is not so
        # of the attempt that is joining
        self.literal = False
        self.prefilled = False

    def on(self, event: str) -> str:
        """The command for `event`. Raises KeyError for one that cannot happen in this state."""
        row = next(row for row in TABLE[self.state, event] if not row.guard or getattr(self, row.guard)())
        self.state = row.state
        if row.command in (RESUME, REPEAT):
            self.left -= 1
        return row.command

    # ---- guards

    def _sound(self) -> bool:
        if self.on_failure != CONTINUE or not self.left or self.spoiled or self.kinds & _NEVER:
            return False
        return not self.whole

    def may_resume(self) -> bool:
        """The client has text, and the rest of it may come from elsewhere."""
        return bool(self.said) and self._sound()

    def may_repeat(self) -> bool:
        """The client has no text: a held call or reasoning was all there was, and the turn can be had again."""
        return not self.said and self._sound()

    def may_restart(self) -> bool:
        return not self.shown

    def may_ask_literally(self) -> bool:
        return bool(self.said) and not self.literal

    def may_instruct(self) -> bool:
        return self.prefilled


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {ASKING}"]
    for (state, event), rows in TABLE.items():
        for row in rows:
            guard = f" [{row.guard}]" if row.guard else ""
            lines.append(f"    {state} --> {row.state}: {event}{guard} / {row.command}")
    return "\n".join(lines)
