"""What one worker pours and others of its host follow: bytes under the key of a lease, as they come. Pure.

The holder of the lease is told when somebody wants what it has (an answer to no question: key, kind, number of the pour; `UNWANTED`: nobody any more), and says nothing before. What it
pours is kept until it is over, so that who follows later reads from the start; beyond `MOST_LOG` of one, or `MOST_ALL`, nobody
can follow any more who did not before. All who follow one pour hear the same pieces in the same order, also of its holder's death: so each has
the same beginning, and one of them can go on for all.
"""

from collections.abc import Callable
from typing import Any

MOST_LOG = 8 * 1024 * 1024  # as of a flight (cache/flight.py)
MOST_ALL = 128 * 1024 * 1024
UNWANTED = 0
REFUSED = False  # there is nothing to follow
GONE = None  # whoever poured has died
Name = tuple[bytes, bytes]  # the lease's key, what kind of answer


class Pour:
    __slots__ = ("followers", "holder", "log", "number", "size")

    def __init__(self, holder: object, number: int) -> None:
        self.holder = holder
        self.number = number  # what is poured for an earlier one may still be on its way
        self.log: list[Any] | None = []
        self.size = 0
        self.followers: list[tuple[object, int]] = []


class Pours:
    """All that is followed on one host. Answers go out by `say(peer, number, value)`."""

    def __init__(self, say: Callable[[object, int, Any], None]) -> None:
        self._say = say
        self._pours: dict[Name, Pour] = {}
        self._made = 0
        self.bytes = 0

    def follow(self, peer: object, number: int, key: bytes, kind: bytes, holder: object | None) -> None:
        """Pieces come as answers to `number`, each a list; the last one is REFUSED or GONE, or says itself that it is the last."""
        name = key, kind
        pour = self._pours.get(name)
        if pour is not None and holder is not None and pour.holder is not holder:
            self._gone(name)  # it stood still for so long that the lease is another's
            pour = None
        if pour is None and holder is not None and holder is not peer and self.bytes < MOST_ALL:
            self._made += 1
            pour = self._pours[name] = Pour(holder, self._made)
            self._say(holder, 0, [key, kind, self._made])
        if pour is None or pour.log is None or pour.holder is peer:
            self._say(peer, number, REFUSED)
            return
        pour.followers.append((peer, number))
        if pour.log:
            self._say(peer, number, pour.log)

    def pour(self, peer: object, key: bytes, kind: bytes, number: int, pieces: list[Any], over: bool) -> None:
        """More of it from its holder."""
        name = key, kind
        pour = self._pours.get(name)
        if pour is None or pour.holder is not peer or pour.number != number:
            return
        for follower, number in pour.followers:
            self._say(follower, number, pieces)
        if over:
            self._end(name)
        elif pour.log is not None:
            size = sum(len(piece) for piece in pieces if isinstance(piece, bytes))
            pour.log += pieces
            pour.size += size
            self.bytes += size
            if pour.size > MOST_LOG or self.bytes > MOST_ALL:
                self.bytes -= pour.size
                pour.log, pour.size = None, 0

    def unfollow(self, peer: object, number: int, key: bytes, kind: bytes) -> None:
        """It does not want any more of it; with the last one the holder need not pour."""
        name = key, kind
        pour = self._pours.get(name)
        if pour is None or (peer, number) not in pour.followers:
            return
        pour.followers.remove((peer, number))
        if not pour.followers:
            self._end(name)
            self._say(pour.holder, 0, [key, kind, UNWANTED])

    def forget(self, peer: object) -> None:
        """Its connection is gone."""
        for name, pour in list(self._pours.items()):
            if pour.holder is peer:
                self._gone(name)
            else:
                for who, number in [follower for follower in pour.followers if follower[0] is peer]:
                    self.unfollow(who, number, *name)

    def _gone(self, name: Name) -> None:
        pour = self._pours[name]
        self._end(name)
        for follower, number in pour.followers:
            self._say(follower, number, GONE)

    def _end(self, name: Name) -> None:
        self.bytes -= self._pours.pop(name).size
