"""The meters of a worker: what they know outlives it, and what they spend is counted with the others'."""

import asyncio
import os
import time
from pathlib import Path

from turnout.cache.semantic.disk import Disk
from turnout.cache.semantic.meters import Meters
from turnout.cache.semantic.spec import Checks, Semantic
from turnout.native import Counters
from turnout.state.table import Row, memory, row

SCOPE = b"scope"
SPEC = Semantic(checks=Checks(share=1, first=1_000, max_usd_per_hour=0.001))


def asked(meters: Meters, hits: int, nanos: int) -> int:
    """How many of so many hits were asked again, each for that price."""
    meter = meters.of("tenant", "route", SPEC, 0.9)
    found = 0
    for number in range(hits):
        now = time.time_ns()
        meter.served(now, 0.95, SCOPE, number)
        if meter.wants_check(0.95, SCOPE, now, 0.0):
            meter.spent(nanos)
            found += 1
    return found


def test_the_workers_of_a_host_have_one_purse(tmp_path: Path) -> None:
    async def work() -> list[int]:
        fd = memory()
        rows = Counters(fd)
        os.close(fd)
        names: set[str] = set()

        def window(name: str) -> Row | None:
            names.add(name)
            return row(rows, name)

        books = Disk(str(tmp_path), 1 << 24, print)
        workers = [Meters(books, b"host/%d" % number, time.time_ns, window) for number in range(8)]
        found = [asked(worker, 100, 40_000) for worker in workers]
        for worker in workers:
            worker.close()
        await books.close()
        assert len(names) == 1
        return found

    found = asyncio.run(work())
    # A fifth of a million nanos at once is the most of each worker; a million, of all.
    assert 4 <= found[0] <= 6 and sum(found) <= 26 and found[-1] == 0


def test_a_worker_that_is_started_again_goes_on_where_it_was(tmp_path: Path) -> None:
    async def work() -> None:
        books = Disk(str(tmp_path), 1 << 24, print)
        before = Meters(books, b"host/0", time.time_ns)
        meter = before.of("tenant", "route", SPEC, 0.9)
        for number in range(200):
            now = time.time_ns()
            meter.request(now)
            meter.missed(now, 0.89, SCOPE, number)
            meter.label(now, 0.89, SCOPE, number, number % 4 > 0, 1.0, "miss")
        walks = meter._drift.walks(0)
        before.close()
        await books.flush()
        after = Meters(books, b"host/0", time.time_ns)
        again = after.of("tenant", "route", SPEC, 0.9)
        await asyncio.wait(after._fresh)
        assert again._drift.asked == walks.asked == 200
        assert (again._drift.up, again._drift.down) == (walks.up, walks.down)
        assert again.estimate(time.time_ns()).requests > 199
        after.close()
        await books.close()

    asyncio.run(work())
