"""Vectors of one model at one provider: who wants one waits for it no longer than the route says, and pays for it.

    recent text? -> being asked for? -> left alone? -> too many? -> ask

A text is asked for once: who looks for an answer and then keeps one gets the same vector, and so do those who ask the same
at the same time. At most `max_calls` are under way, as many again wait for their turn; beyond that there is no vector. What
fails or is late counts against the endpoint (pause.py): one that is dead costs a request nothing. Nothing here raises.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from ....errors import Fault
from ....exchange import Exchange
from ...needs import Meter as Counts
from ..spec import Embedding
from .pause import Pause
from .vectors import Unfit, read_vector

MOST_RECENT = 512  # texts: 256 KiB of vectors of 512 dimensions
# Who waits for the answer is gone by then, but not who keeps it; a connection that hangs is given up.
PATIENCE_MS = 2_000

# `ask(x, text, why, until_ns)`: the body of the endpoint's answer, booked on the request `x`. Raises Fault.
Ask = Callable[[Exchange, str, str, int], Awaitable[bytes]]
Task = asyncio.Task[bytes | None]


class State:
    """What is known of an endpoint, and outlives a reload."""

    def __init__(self, spec: Embedding) -> None:
        self.spec = spec
        self.pause = Pause()
        self.recent: OrderedDict[bytes, bytes] = OrderedDict()
        self.tasks: dict[bytes, Task] = {}
        self.turns = asyncio.Semaphore(spec.max_calls)


class Endpoint:
    """As one config has it. `space`: names the model, see `Embeddings.of`."""

    def __init__(self, space: bytes, state: State, ask: Ask, now_ns: Callable[[], int], counts: Counts) -> None:
        spec = state.spec
        self.space = space
        # What is learned of its cosines goes by this: of the same name elsewhere it may be another model.
        self.name = f"{spec.provider}/{spec.model}#{space.hex()[:6]}"
        self._spec = spec
        self._state = state
        self._ask = ask
        self._now = now_ns
        self._counts = counts

    async def within(self, x: Exchange, text: str) -> bytes | None:
        """The vector of a text as it is kept (vectors.py), if it is there within `timeout_ms` and the request's own limit."""
        found = self._begin(x, text, "embed")
        if not isinstance(found, asyncio.Task):
            return found
        most_s = self._spec.timeout_ms / 1e3
        if x.deadline_ns:
            most_s = min(most_s, max(0.0, (x.deadline_ns - self._now()) / 1e9))
        done, _ = await asyncio.wait((found,), timeout=most_s)
        if not done:
            self._count("late")
        return _result(found) if done else None

    async def later(self, x: Exchange, text: str) -> bytes | None:
        """The same, where nobody waits."""
        found = self._begin(x, text, "embed-kept", True)
        if not isinstance(found, asyncio.Task):
            return found
        await asyncio.wait((found,))
        return _result(found)

    # ---- asking

    def _begin(self, x: Exchange, text: str, why: str, patient: bool = False) -> Task | bytes | None:
        """The vector, the task that asks for it, or None: it is not to be had. Only who is patient waits for one that
        probes."""
        state = self._state
        assert x.principal is not None
        # Of each tenant by itself: how long an answer takes tells nobody what others ask.
        key = hashlib.blake2b(f"{x.principal.tenant}\0{text}".encode(), digest_size=16).digest()
        if (known := state.recent.get(key)) is not None:
            state.recent.move_to_end(key)
            return known
        if (task := state.tasks.get(key)) is not None:
            return task
        if len(state.tasks) >= 2 * self._spec.max_calls:
            self._count("full")
            return None
        how = state.pause.ask(self._now())
        if how == "leave":
            self._count("paused")
            return None
        task = asyncio.get_running_loop().create_task(self._run(x, text, why, key))
        state.tasks[key] = task
        task.add_done_callback(lambda done: (state.tasks.pop(key, None), _result(done)))
        return task if how == "ask" or patient else None

    async def _run(self, x: Exchange, text: str, why: str, key: bytes) -> bytes | None:
        state, over_ns = self._state, self._now() + PATIENCE_MS * 1_000_000
        late: asyncio.TimerHandle | None = None
        wrong, wait_s = "full", None  # all of its time may go by in the queue
        try:
            async with state.turns:
                began = self._now()
                if began >= over_ns:
                    return None
                # It counts for what is kept; but who waits for one that is always late waits for nothing.
                late = asyncio.get_running_loop().call_later(self._spec.timeout_ms / 1e3, self._failed, None)
                vector = read_vector(await self._ask(x, text, why, over_ns), self._spec.dimensions)
            wrong = ""
        except Fault as fault:
            wrong, wait_s = fault.reason, fault.retry_after_s
            return None
        except Unfit as unfit:
            wrong = str(unfit)
            return None
        except BaseException:
            wrong = "internal"
            raise
        finally:
            self._count(wrong or "ok")
            in_time = late is not None and late.when() > asyncio.get_running_loop().time()
            if late is not None:
                late.cancel()
            if not in_time:  # counted already, or our own queue's doing
                state.pause.released()
            elif wrong:
                self._failed(wait_s)
            else:
                state.pause.succeeded()
        self._counts.time("turnout_cache_backend_seconds", ("semantic", "embed"), (self._now() - began) / 1e9)
        state.recent[key] = vector
        if len(state.recent) > MOST_RECENT:
            state.recent.popitem(last=False)
        return vector

    def _failed(self, wait_s: float | None) -> None:
        self._state.pause.failed(self._now(), wait_s)

    def _count(self, outcome: str) -> None:
        self._counts.count("turnout_semantic_embeddings_total", (self._spec.provider, self._spec.model, outcome))


def _result(task: Task) -> bytes | None:
    """Whatever went wrong, there is no vector."""
    return None if task.cancelled() or task.exception() is not None else task.result()
