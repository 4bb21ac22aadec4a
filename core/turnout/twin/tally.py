"""What is left of a request that has ended: counts by who served it, and a record in the ring. Twin of
`native/src/kernels/tally.rs`."""

from bisect import bisect_left
from typing import Any

import msgspec
from msgspec.structs import astuple

# What is recorded of an exchange: its last fields, and their places among these.
RECORDED = 28
STARTED, ENDED, STREAM, STATUS, CACHE, GUARD, USAGE, COST, CHUNKS = range(2, 11)
ADMITTED, PARSED, ROUTED, UPSTREAM, HEAD = range(11, 16)
FIRST_CONTENT = 17

_encode = msgspec.msgpack.Encoder().encode
Labels = tuple[str, ...]


class _Series:
    """Requests of one (route, surface, provider, model)."""

    def __init__(self, bounds: tuple[tuple[float, ...], ...]) -> None:
        self.statuses: dict[int, int] = {}
        self.spreads = [([0] * (len(one) + 1), [0.0]) for one in bounds]
        self.stages = [0] * 5
        self.sums = [0] * 6
        self.usual: dict[Labels, int] = {}


class Tally:
    """Counts of one worker's requests by series, and their records in its ring.

    `ring`: what has `memory`, a writable buffer (see telemetry/ring.py), and `put_nowait`, which the twin calls; None:
    records are not kept. `bounds`: of the histograms of duration, overhead, time to the first token and mean gap, in seconds.
    Beyond `most` series all models of a (route, surface, provider) share one that is called `other`.
    """

    def __init__(self, ring: Any, bounds: tuple[tuple[float, ...], ...], most: int) -> None:
        self._ring = ring
        self._bounds = bounds
        self._most = most
        self._series: dict[Labels, _Series] = {}

    def settle(self, labels: Labels, usual: str | None, context: tuple[Any, ...], x: Any) -> None:
        """Count the exchange `x`, and put its record into the ring: `context` and the last fields of `x`. Where the ring is
        full it counts the record as dropped. `usual`: the account that served it at once, empty if none had to: then
        outcomes of cache and guard are counted here; None: they are not."""
        record = astuple(x)[-RECORDED:]
        series = self._series.get(labels)
        if series is None:
            if len(self._series) >= self._most:
                labels = (*labels[:3], "other")
            series = self._series.setdefault(labels, _Series(self._bounds))
        status = record[STATUS]
        series.statuses[status] = series.statuses.get(status, 0) + 1
        started, ended, first, routed = record[STARTED], record[ENDED], record[FIRST_CONTENT], record[ROUTED]
        self._spread(series, 0, (ended - started) / 1e9)
        upstream = record[UPSTREAM]
        if head := record[HEAD]:
            self._spread(series, 1, max(0, head - started - upstream) / 1e9)
        if record[STREAM] and first:
            self._spread(series, 2, (first - started) / 1e9)
            if record[CHUNKS] > 1:
                self._spread(series, 3, (ended - first) / 1e9 / (record[CHUNKS] - 1))
        usage = record[USAGE]
        if usage is not None:
            prompt, completion, cached, _, reasoning, estimated = astuple(usage)
            for i, more in enumerate((prompt, completion, cached, reasoning, estimated, record[COST])):
                series.sums[i] += more
        if routed:
            admitted, parsed = record[ADMITTED], record[PARSED]
            took = (admitted - started, parsed - admitted, routed - parsed, upstream, max(0, ended - routed - upstream))
            for i, more in enumerate(took):
                series.stages[i] += more
        if usual is not None:
            outcome = (usual, record[CACHE], record[GUARD])
            series.usual[outcome] = series.usual.get(outcome, 0) + 1
        if self._ring is not None:
            self._ring.put_nowait(_encode(context + record))

    def rows(self) -> list[Any]:
        """Of each series its labels; (status, requests) pairs; the histograms in the order of `bounds` as (counts, sum); ns
        of admit, parse, route, upstream, answer; sums of prompt, completion, cached and reasoning tokens, of requests with
        estimated ones, and of the cost in nano-dollars; and ((account, cache, guard), requests) pairs."""
        return [
            (
                labels,
                list(s.statuses.items()),
                tuple((list(counts), total[0]) for counts, total in s.spreads),
                tuple(s.stages),
                tuple(s.sums),
                list(s.usual.items()),
            )
            for labels, s in self._series.items()
        ]

    def _spread(self, series: _Series, which: int, seconds: float) -> None:
        counts, total = series.spreads[which]
        counts[bisect_left(self._bounds[which], seconds)] += 1
        total[0] += seconds
