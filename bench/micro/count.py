"""Run by bench/gate.py under valgrind: does every case N and then 2 N times, each in a process of its own.

    valgrind --tool=callgrind ... python bench/micro/count.py [--only WORD,WORD] [--list]

All processes are forked from this one after everything was imported and done a few times: they begin alike, so that
the difference of their instruction counts is that of N turns of the work and of nothing else. Prints one JSON line per
process: its name, number of turns, pid and exit code. Two run at a time.
"""

import argparse
import asyncio
import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator

# Where objects lie decides about collisions in the interpreter's method cache and how a copy is aligned. Over 15 layouts
# (3 installations, 5 shifts) the counts lay within 1.3 %; the least of three shifts within 0.9 %, most within 0.3 %.
SHIFT = [bytes(24 + 16 * (i % 13)) for i in range(997 * int(os.environ.get("COUNT_SHIFT", "0")))]

import uvloop  # noqa: E402
from cases import Case, all_cases  # noqa: E402  (first: it finds bench/ and Turnout)
from drive import Driver  # noqa: E402

AT_ONCE = 2
WARM_UP = 20  # the interpreter has specialized its bytecode by then (8 calls, PEP 659), pools and caches are filled
WHOLE = {"small": 150, "agent": 60, "stream": 12, "hit-small": 150, "hit-agent": 60, "miss-small": 60, "miss-agent": 30}  # whole requests: how often


def run_case(case: Case, loops: int) -> None:
    work = case.ready()
    for _ in range(WARM_UP):
        work()
    for _ in range(loops):
        result = work()
    case.check(result)


def run_whole(kind: str, loops: int) -> None:
    async def run() -> None:
        driver = Driver(kind, os.memfd_create("drive"))
        # The app's clock ticks by the wall, and valgrind's wall is fifty times as long.
        driver.app._timer.cancel()
        for _ in range(WARM_UP + loops):
            await driver.one()
        driver.app.close()

    uvloop.run(run())


def jobs(only: list[str]) -> Iterator[tuple[str, int, Callable[[int], None]]]:
    """(name, N, what to do N times)."""
    everything: list[tuple[str, int, Callable[[int], None]]] = [
        (f"whole request, {kind}", loops, lambda n, kind=kind: run_whole(kind, n)) for kind, loops in WHOLE.items()
    ]
    everything += [(c.name, c.loops, lambda n, c=c: run_case(c, n)) for c in all_cases() if c.loops]
    return (job for job in everything if not only or any(word in job[0] for word in only))


def in_child(work: Callable[[int], None], loops: int) -> int:
    """Starts a process that does the work and ends; its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work(loops)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    chosen = list(jobs([word for word in args.only.split(",") if word]))
    if args.list:
        print("\n".join(name for name, _, _ in chosen))
        return 0
    for _, _, work in chosen:
        work(3)
    asyncio.set_event_loop(None)
    gc.collect()
    gc.disable()  # when it runs depends on all that is alive, not on the work
    running: dict[int, tuple[str, int]] = {}
    wrong = 0

    def wait_one() -> None:
        nonlocal wrong
        pid, status = os.wait()
        name, loops = running.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        wrong += code != 0
        print(json.dumps({"name": name, "loops": loops, "pid": pid, "code": code}), flush=True)

    for name, loops, work in chosen:
        for n in (loops, 2 * loops):
            if len(running) == AT_ONCE:
                wait_one()
            running[in_child(work, n)] = (name, n)
    while running:
        wait_one()
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
