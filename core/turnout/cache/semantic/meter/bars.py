"""Items that were served wrongly once: each has its own bar, until it has been found right often enough nearby. Pure.

A record is (when, bar, labels found right since): the later one stands, so merges commute and the doubled does no harm.
"""

MARGIN = 0.02  # above the score at which it was wrong
MOST_BAR = 2.0  # over any score
FORGIVEN = 5  # labels in a row, below the bar, that say right: a comparer errs too, and misses label for free
MOST_ITEMS = 4096  # remembered; the one with the oldest label goes first

Record = tuple[int, float, int]


class Bars:
    __slots__ = ("records",)

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}

    def of(self, item: int) -> float:
        """The score below which this item is not served. O(1)."""
        record = self.records.get(item)
        return record[1] if record is not None else 0.0

    def label(self, item: int, now_ns: int, score: float, right: bool) -> None:
        record = self.records.get(item)
        if not right:
            bar = min(score + MARGIN, MOST_BAR)
            if record is not None:
                bar = max(bar, record[1])
                now_ns = max(now_ns, record[0] + 1)
            self._put(item, (now_ns, bar, 0))
        elif record is not None and score < record[1]:
            at_ns, bar, rights = record
            rights += 1
            self._put(item, (max(now_ns, at_ns + 1), 0.0 if rights >= FORGIVEN else bar, rights))

    def merge(self, item: int, record: Record) -> None:
        if record > self.records.get(item, (-1, 0.0, 0)):
            self._put(item, record)

    def _put(self, item: int, record: Record) -> None:
        self.records.pop(item, None)
        self.records[item] = record
        if len(self.records) > MOST_ITEMS:
            oldest = min(self.records.items(), key=lambda kv: (kv[1], kv[0]))[0]
            del self.records[oldest]
