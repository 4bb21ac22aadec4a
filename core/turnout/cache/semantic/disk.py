"""The books in a file of this host, `state.dir/semantic.db`: SQLite, which several workers may write and a kill does not harm.

One thread of its own does all of it; writes wait a moment for each other and go in one transaction. What does not go in
(disk full, file damaged) is counted and let be: a damaged file is put aside and a new one begun.
"""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

from ..purge import Purge
from .books import News, Place, written
from .scopes import Item

T = TypeVar("T")
FILE = "semantic.db"
WRITE_S = 0.01
MOST_WAITING = 2_000  # writes that wait for the file; more are dropped and counted
MOST_LOG = 20_000  # rows that a worker may be behind
TRIM = 500  # transactions between two looks at the size
_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (scope BLOB, digest BLOB, owner TEXT, route TEXT, model TEXT, tenant TEXT, key TEXT,
    tags TEXT, dead INTEGER, data BLOB, PRIMARY KEY (scope, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS items_dead ON items (dead);
CREATE INDEX IF NOT EXISTS items_digest ON items (digest);
CREATE TABLE IF NOT EXISTS answers (digest BLOB PRIMARY KEY, dead INTEGER, body BLOB);
CREATE INDEX IF NOT EXISTS answers_dead ON answers (dead);
CREATE TABLE IF NOT EXISTS log (id INTEGER PRIMARY KEY AUTOINCREMENT, author INTEGER, what TEXT, scope BLOB, digest BLOB,
    value BLOB);
CREATE TABLE IF NOT EXISTS meters (name TEXT, author BLOB, data BLOB, PRIMARY KEY (name, author));
CREATE TEMP TABLE IF NOT EXISTS doomed (scope BLOB, digest BLOB, PRIMARY KEY (scope, digest)) WITHOUT ROWID;
"""
_ADD = "INSERT OR REPLACE INTO items VALUES (?,?,?,?,?,?,?,?,?,?)"
_ANSWER = "INSERT OR REPLACE INTO answers VALUES (?,?,?)"
_LOG = "INSERT INTO log (author, what, scope, digest, value) VALUES (?,?,?,?,?)"
_METER = "INSERT OR REPLACE INTO meters VALUES (?,?,?)"
Write = tuple[str, tuple[object, ...]]


class Disk:
    """Needs a running event loop to be made. `count(kind)`: of what went wrong. `told()`: there is news for the others."""

    def __init__(
        self,
        directory: str,
        most_bytes: int,
        count: Callable[[str], None],
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = os.path.join(directory, FILE)
        self._most = most_bytes
        self._count = count
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._author = int.from_bytes(os.urandom(6), "big")
        self._pool = ThreadPoolExecutor(1, "semantic-disk")
        self._db: sqlite3.Connection | None = None
        self._queue: list[Write] = []
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._seen = -1  # the last row of the log
        self._turns = 0
        self._closed = False
        self.up = True

    # ---- Books

    async def load(self, place: Place) -> list[bytes] | None:
        def look() -> list[bytes]:
            rows = self._open().execute(
                "SELECT data FROM items WHERE scope = ? AND dead > ? ORDER BY dead", (place.scope, time.time_ns())
            )
            return [row[0] for row in rows]

        return await self._do(look)

    def add(self, place: Place, item: Item, answer: bytes) -> None:
        data = written(item)
        row = (place.scope, item.digest, place.owner, place.route, place.model, item.tenant, item.key, item.tags)
        self._write(_ADD, *row, item.dead_ns, data)
        self._write(_ANSWER, item.digest, item.dead_ns, answer)
        self._write(_LOG, self._author, "add", place.scope, item.digest, data)

    def drop(self, place: Place, item: Item) -> None:
        self._write("DELETE FROM items WHERE scope = ? AND digest = ?", place.scope, item.digest)
        self._write("DELETE FROM answers WHERE digest = ?", item.digest)
        self._write(_LOG, self._author, "drop", place.scope, item.digest, item.digest)

    async def answer(self, item: Item) -> bytes | None:
        def look() -> bytes | None:
            row = self._open().execute("SELECT body FROM answers WHERE digest = ?", (item.digest,)).fetchone()
            return row[0] if row else None

        return await self._do(look)

    async def news(self) -> list[News]:
        def look() -> list[News]:
            db = self._open()
            if self._seen < 0:
                self._seen = db.execute("SELECT coalesce(max(id), 0) FROM log").fetchone()[0]
                return []
            rows = db.execute(
                "SELECT id, author, what, scope, value FROM log WHERE id > ? ORDER BY id LIMIT 1000", (self._seen,)
            ).fetchall()
            if not rows:
                return []
            out = [News("lost", b"", b"")] if rows[0][0] > self._seen + MOST_LOG // 2 else []
            self._seen = rows[-1][0]
            return out + [News(*row[2:]) for row in rows if row[1] != self._author]

        return await self._do(look) or []

    def listening(self) -> AbstractContextManager[asyncio.Event]:
        """Nobody but the other workers can know, and this one is told by the supervisor: `Knowledge.look`."""
        return contextlib.nullcontext(asyncio.Event())

    async def purge(self, what: Purge) -> None:
        """Gone from the file too: SQLite writes zeros over what it deletes, and the journal is emptied."""
        await self.flush()

        def delete() -> None:
            db = self._open()
            fits = [f"{name} = :{name}" for name in ("route", "tenant", "model", "key") if getattr(what, name)]
            fits += ["instr(',' || tags || ',', ',' || :tag || ',') > 0"] if what.tag else []
            fits += ["substr(lower(hex(digest)), 1, length(:entry)) = :entry"] if what.entry else []
            given = {name: getattr(what, name) for name in ("route", "tenant", "model", "key", "tag", "entry")}
            which = f"SELECT scope, digest FROM items WHERE {' AND '.join(fits) or 'true'}"
            with db:
                db.execute("DELETE FROM doomed")
                db.execute(f"INSERT OR IGNORE INTO doomed {which}", given)
                db.execute("DELETE FROM log WHERE (scope, digest) IN doomed")
                db.execute("DELETE FROM items WHERE (scope, digest) IN doomed")
                db.execute("DELETE FROM answers WHERE digest IN (SELECT digest FROM doomed)")
                db.execute("DELETE FROM doomed")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

        await self._do(delete)

    async def purged(self) -> list[tuple[Purge, int]] | None:
        """Who purges looks after all of this host."""
        return []

    async def load_meter(self, name: str) -> list[bytes]:
        def look() -> list[bytes]:
            return [row[0] for row in self._open().execute("SELECT data FROM meters WHERE name = ?", (name,))]

        return await self._do(look) or []

    def save_meter(self, name: str, who: bytes, data: bytes) -> None:
        self._write(_METER, name, who, data)

    async def flush(self) -> None:
        """Until all that waits is written."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queue, self._queue = self._queue, []
        if queue:
            await self._do(lambda: self._commit(queue))
            if any(statement is _LOG for statement, _ in queue):
                self._told()
        elif self._flushing is not None:
            await asyncio.wait([self._flushing])

    async def close(self) -> None:
        await self.flush()
        await self._do(self._shut)
        self._closed = True
        self._pool.shutdown(wait=False)

    # ---- the thread

    def _write(self, statement: str, *values: object) -> None:
        if len(self._queue) >= MOST_WAITING or self._closed:
            self._count("dropped")
            return
        self._queue.append((statement, values))
        if self._timer is None:
            self._timer = self._loop.call_later(WRITE_S, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._flushing = self._loop.create_task(self.flush())

    async def _do(self, work: Callable[[], T]) -> T | None:
        try:
            found = await self._loop.run_in_executor(self._pool, work)
        except sqlite3.DatabaseError as wrong:
            self._count("disk")
            self.up = False
            await self._loop.run_in_executor(self._pool, self._mend, wrong)
            return None
        except (OSError, RuntimeError):  # RuntimeError: it was closed meanwhile
            self._count("disk")
            self.up = False
            return None
        self.up = True
        return found

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))  # questions are private
            self._db = db = sqlite3.connect(self._path, timeout=1.0, check_same_thread=False)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last moments, nothing more
            db.execute("PRAGMA secure_delete = ON")
            db.execute("PRAGMA temp_store = MEMORY")
            db.executescript(_SCHEMA)
        return self._db

    def _commit(self, queue: list[Write]) -> None:
        db = self._open()
        with db:
            for statement, values in queue:
                db.execute(statement, values)
        self._turns += 1
        if self._turns % TRIM == 1:
            self._trim(db)

    def _trim(self, db: sqlite3.Connection) -> None:
        """Let go of what is over, and of what lives shortest where the file is too large."""
        now = time.time_ns()
        with db:
            db.execute("DELETE FROM items WHERE dead <= ?", (now,))
            db.execute("DELETE FROM answers WHERE dead <= ?", (now,))
            db.execute("DELETE FROM log WHERE id <= (SELECT max(id) FROM log) - ?", (MOST_LOG,))
        for _ in range(20):
            pages, free, size = (
                db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
            )
            if (pages - free) * size <= self._most:
                return
            with db:
                some = db.execute("SELECT digest FROM answers ORDER BY dead LIMIT 500").fetchall()
                db.executemany("DELETE FROM answers WHERE digest = ?", some)
                db.executemany("DELETE FROM items WHERE digest = ?", some)

    def _mend(self, wrong: sqlite3.DatabaseError) -> None:
        """Begin anew where the file is damaged; what is only busy or full may be better next time."""
        self._shut()
        if isinstance(wrong, sqlite3.OperationalError) and "malformed" not in str(wrong):
            return
        for end in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                os.replace(self._path + end, f"{self._path}.damaged{end}")

    def _shut(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None
