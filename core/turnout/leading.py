"""A plain request's call on a route with a cache, where nobody else has to be asked: the request makes it itself, and what
is written down for those who join is no more than its answer.

Its client's leaving ends the call only where nobody has joined (ingress/caller.py asks `stays`). Streams, and calls that
other workers may answer, have a task of their own (joining.py): there nobody's pace holds the others back.
"""

import asyncio
from typing import Any

from .cache.needs import Caller, Line
from .cache.policy import Policy
from .errors import Fault
from .exchange import Exchange
from .joining import Joining


class Leading:
    """One config's."""

    def __init__(self, line: Line, joining: Joining) -> None:
        self._line = line
        self._joining = joining

    async def lead(
        self, x: Exchange, caller: Caller, policy: Policy, digest: bytes, key: object, shared: bool, asked: Any
    ) -> None:
        """Ask, answer and keep the answer. Raises the Fault that the client is told; those who joined are told it too.
        `asked`: what the request asks, for the semantic cache."""
        joining = self._joining
        flight = joining.flights.begin(key, shared)
        flight.leader, flight.own, flight.task = x, caller, caller.task
        flight.pinned = True
        flight.asked = asked
        caller.stays = flight.stays
        joining.outcome(x)
        fault: Fault | None = None
        try:
            await self._line.answer(x, flight)
        except Fault as met:
            fault = met
            raise
        except asyncio.CancelledError:
            fault = Fault("client_gone", "the client closed the connection")
            raise
        except BaseException:
            fault = Fault("internal", "the shared call ended unexpectedly")
            raise
        finally:
            caller.stays = None
            flight.end(fault)
        if flight.left:
            x.status = 0  # what it cost is booked all the same
        await joining.keep(flight, x, policy, digest, None, None)
