"""The snapshots of a host, `state.dir/semantic/`: a file for each large scope, written by whichever worker comes first and
read by all. Bounded in all and for each owner of a scope; the one that was not used for longest goes first.

One thread does all that touches the disk, one thing after the other. What goes wrong is counted, said once, and let be:
the books have it all.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from ..purge import Purge
from . import snapshot
from .books import Place
from .snapshot import SIDE, Over, Refused, Snapshot, Writing

T = TypeVar("T")
FOLDER = "semantic"
END = ".snap"
MOST_OPEN = 256  # checked at the start; each takes a file descriptor until its scope is asked for
_STALE_S = 600.0  # a side file of that age has nobody who writes it

Rows = AsyncIterator[tuple[list[bytes], list[bytes], int]]


class Snapshots:
    """Of one worker. `count(what)`: what was done, or went wrong; `say(text)`: a line for the operator. Needs a running
    event loop to be made; `close` it."""

    def __init__(
        self, directory: str, bounds: tuple[int, int], version: bytes, count: Callable[[str], None],
        say: Callable[[str], None], wall_ns: Callable[[], int],
    ) -> None:  # fmt: skip
        self._folder = os.path.join(directory, FOLDER)
        self.bounds = bounds
        self._version = version
        self._count = count
        self._say = say
        self._wall = wall_ns
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(1, "semantic-snapshots")
        self._ready: dict[bytes, Snapshot] = {}
        self._purges = 0
        self._ending = False

    # ---- reading

    async def prepare(self, seconds: float) -> None:
        """Have those that were used last ready, as far as that goes in this time; the rest is made ready behind."""
        work = self._loop.run_in_executor(self._pool, self._prepare)
        await asyncio.wait([work], timeout=seconds)

    def take(self, place: Place) -> Snapshot | None:
        """That of this scope, if it is ready and still the one that lies there."""
        found = self._ready.pop(place.scope, None)
        if found is None or found.place != place:
            return None
        path = self._path(place)
        try:
            if os.stat(path).st_ino != found.inode:
                return None
            os.utime(path)
        except OSError:
            return None
        self._count("used")
        return found

    async def open(self, place: Place) -> Snapshot | None:
        """That of this scope, looked at from end to end first."""

        path = self._path(place)
        if not os.path.exists(path):  # as of most scopes: they need not wait for the thread
            return None

        def look() -> Snapshot | None:
            found = self._read(path)
            if found is not None and found.place != place:
                self._refuse(path, "it is another scope's")
                return None
            if found is not None:
                os.utime(path)
                self._tell("used")
            return found

        return await self._do(look)

    # ---- writing

    async def write(self, place: Place, count: int, text_bytes: int, pieces: Rows, least_age_s: float) -> bool:
        """Write one of `count` items: `pieces` gives lists of rows and of items, and when the last of them is over. False:
        it was not, because there is no room for one so large, another worker is at it, one of less than `least_age_s` is
        there, or something was purged meanwhile."""
        size = Writing.size(count, text_bytes)
        if size > min(self.bounds) or not count:
            self._count("large")
            return False
        purges = self._purges
        path = self._path(place)
        begun = await self._do(lambda: self._begin(path, place, count, least_age_s))
        if begun is None:
            return False
        writing, lock = begun
        done = False
        try:
            first = 0
            async for rows, items, dead_ns in pieces:
                writing.add(items, dead_ns)
                if not await self._do(partial(_put, writing, first, rows, items)):
                    return False
                first += len(items)
            if first == count:
                done = bool(await self._do(lambda: self._finish(writing, purges)))
        finally:
            await self._do(lambda: self._leave(writing, lock))
        if done:
            self._count("written")
        return done

    # ---- letting go

    async def purge(self, what: Purge) -> None:
        """Away with all that may hold what fits, to the last byte; the books know what is to stay."""
        if not what.dry:
            self._purges += 1
            await self._erase([(what, None)], END, SIDE)

    async def purge_past(self, past: list[tuple[Purge, int]]) -> None:
        """The same of those (with their times) that nobody here may have heard of: what was written later has heard of them."""
        if past:
            await self._erase([(what, at) for what, at in past if not what.dry], END)

    async def _erase(self, purges: list[tuple[Purge, int | None]], *ends: str) -> None:
        for scope, held in list(self._ready.items()):
            if any(may_hold(held.place, what) for what, _ in purges):
                del self._ready[scope]

        def erase() -> None:
            for name in self._names(*ends):
                path = os.path.join(self._folder, name)
                said = snapshot.peek(path)
                if said is None or any(
                    may_hold(said[0], what) and (at is None or said[1] <= at) for what, at in purges
                ):
                    snapshot.erase(path)

        await self._do(erase)

    async def erase(self, place: Place) -> None:
        await self._do(lambda: snapshot.erase(self._path(place)))

    async def close(self) -> None:
        """What is under way is finished."""
        self._ending = True
        self._ready.clear()
        await self._loop.run_in_executor(self._pool, lambda: None)
        self._pool.shutdown(wait=False)

    # ---- the thread

    async def _do(self, work: Callable[[], T]) -> T | None:
        try:
            return await self._loop.run_in_executor(self._pool, work)
        except (OSError, RuntimeError, ValueError) as wrong:  # RuntimeError: it was closed meanwhile
            self._count("failed")
            if isinstance(wrong, OSError):
                self._say(f"semantic cache: a snapshot could not be written or read: {wrong.strerror}")
            return None

    def _prepare(self) -> None:
        try:
            os.makedirs(self._folder, 0o700, exist_ok=True)
            self._trim(None, 0)
            found = sorted(self._aged(), reverse=True)
        except OSError:
            self._tell("failed")
            return
        for _, _, name in found[:MOST_OPEN]:
            if self._ending:
                return
            with contextlib.suppress(OSError):
                purges = self._purges
                held = self._read(os.path.join(self._folder, name))
                if held is not None:
                    self._loop.call_soon_threadsafe(self._keep, held, purges)

    def _keep(self, held: Snapshot, purges: int) -> None:
        if purges == self._purges and not self._ending:
            self._ready[held.place.scope] = held

    def _read(self, path: str) -> Snapshot | None:
        try:
            return snapshot.read(path, self._version, self._wall())
        except FileNotFoundError:
            return None
        except Over:
            snapshot.erase(path)
            return None
        except (Refused, ValueError) as why:  # ValueError: an empty file cannot be mapped
            self._refuse(path, str(why))
            return None

    def _refuse(self, path: str, why: str) -> None:
        self._tell("refused")
        self._loop.call_soon_threadsafe(
            self._say, f"semantic cache: {os.path.basename(path)} is not used and made anew: {why}"
        )
        snapshot.erase(path)

    def _begin(self, path: str, place: Place, count: int, least_age_s: float) -> tuple[Writing, int] | None:
        os.makedirs(self._folder, 0o700, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system gives it back for who is killed
            said = snapshot.peek(path)
            if said is not None and abs(self._wall() - said[1]) < least_age_s * 1e9:
                os.close(lock)
                return None
            return Writing(path, place, count), lock
        except BlockingIOError:
            os.close(lock)
            return None
        except BaseException:
            os.close(lock)
            raise

    def _finish(self, writing: Writing, purges: int) -> bool:
        if purges != self._purges:
            return False
        self._trim(writing.path, writing.total)
        writing.finish(self._version, self._wall())
        return True

    def _leave(self, writing: Writing, lock: int) -> None:
        writing.abandon()
        with contextlib.suppress(OSError):
            os.unlink(f"{writing.path}.lock")
        os.close(lock)

    def _trim(self, path: str | None, size: int) -> None:
        """Make room for one of this size in this place, and away with what nobody will ask for."""
        now = time.time()
        for name in self._names(SIDE):
            side = os.path.join(self._folder, name)
            with contextlib.suppress(OSError):
                if not _alive(name) or now - os.stat(side).st_mtime > _STALE_S:
                    snapshot.erase(side)
        name = os.path.basename(path) if path is not None else ""
        owner = _owner_of(name)
        kept = [entry for entry in sorted(self._aged()) if entry[2] != name]
        total = size + sum(entry[1] for entry in kept)
        mine = size + sum(entry[1] for entry in kept if _owner_of(entry[2]) == owner)
        most, owners_most = self.bounds
        for _, held, other in kept:
            own = _owner_of(other) == owner
            if total > most or (own and mine > owners_most):
                snapshot.erase(os.path.join(self._folder, other))
                total -= held
                mine -= held if own else 0
                self._tell("evicted")

    def _aged(self) -> list[tuple[float, int, str]]:
        """(time of the last use, size, name) of each."""
        out = []
        for name in self._names(END):
            with contextlib.suppress(OSError):
                stat = os.stat(os.path.join(self._folder, name))
                out.append((stat.st_mtime, stat.st_size, name))
        return out

    def _names(self, *ends: str) -> list[str]:
        try:
            return [name for name in os.listdir(self._folder) if name.endswith(ends)]
        except FileNotFoundError:
            return []

    def _path(self, place: Place) -> str:
        """The scope's own name is a hash of all that decides about an answer: nobody can guess it."""
        owner = hashlib.blake2b(place.owner.encode(), digest_size=8).hexdigest()
        return os.path.join(self._folder, f"{owner}-{place.scope.hex()}{END}")

    def _tell(self, what: str) -> None:
        self._loop.call_soon_threadsafe(self._count, what)


def may_hold(place: Place, what: Purge) -> bool:
    """Whether something of this scope may be among what is purged."""
    return (
        (not what.route or place.route == what.route)
        and (not what.model or place.model == what.model)
        and (not what.tenant or place.owner in ("", what.tenant))
    )


def _put(writing: Writing, first: int, rows: list[bytes], items: list[bytes]) -> bool:
    writing.write(first, rows, items)
    return True


def _owner_of(name: str) -> str:
    return name.partition("-")[0]


def _alive(side: str) -> bool:
    """Whether the process that this side file is of runs."""
    try:
        os.kill(int(side.split(".")[-3]), 0)
    except (ValueError, IndexError, OverflowError, ProcessLookupError):
        return False
    except OSError:
        return True
    return True
