"""Statistics that hosts have together. Pure; the supervisor of each host carries them (ingress/sharing.py), off every
request's way.

Each host says what its own workers have seen since it started, as sums that only grow, in numbered reports; the others take
the difference to what it said before. So a report that is lost, late, said twice or out of order does no harm, nor does a
Redis that forgets: the next report has all. Nobody counts in Redis, so nothing is counted twice after a time-out.

For who has just started a report also tells what is remembered: (sum of w * x, sum of w, t), w halving every minute. The
same lies in a file for the time when all hosts, or the only one, were down.
"""

import msgspec

from .share import MOST_REMEMBERED, Outside, Seen

REMEMBER_S = 60.0  # half-life of what is remembered
TRUST_S = 120.0  # and of the trust in it while nobody looks: a latency of two minutes ago is worth half its answers
OLDEST_S = 900.0  # what is older says nothing about now
GONE_S = 3600.0  # a host that has said nothing for so long will not
GAP_NS = 5_000_000_000  # what was seen in a longer silence is old, and not to be taken for news
QUIET_NS = 60_000_000_000  # targets without a request for so long are left out of a report
MOST_HOSTS = 1000
VERSION = 1


class Line(msgspec.Struct, array_like=True, frozen=True):
    """One target: its key, what its host has seen since it started, and the remembered sums of streamed and plain answers."""

    key: int
    streamed: int
    streamed_us: int
    plain: int
    plain_us: int
    good: int
    bad: int
    begun: int
    streamed_w: float
    streamed_wx: float
    plain_w: float
    plain_wx: float


class Report(msgspec.Struct, array_like=True, frozen=True):
    version: int
    number: int  # of the host's reports
    at_s: float  # wall clock
    lines: list[Line]


NOTHING = Line(0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0)
_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(Report).decode
_SUMS = ("streamed", "streamed_us", "plain", "plain_us", "good", "bad", "begun")


class Memory:
    """Remembered sums of one kind of answers."""

    __slots__ = ("at_ns", "w", "wx")

    def __init__(self) -> None:
        self.w = self.wx = 0.0
        self.at_ns = 0

    def add(self, n: float, seconds: float, now_ns: int) -> None:
        """`n` answers that took `seconds` in all."""
        f = 0.5 ** ((now_ns - self.at_ns) / 1e9 / REMEMBER_S) if self.w else 0.0
        self.w = self.w * f + n
        self.wx = self.wx * f + seconds
        self.at_ns = now_ns


class Target:
    """One row of this host."""

    __slots__ = ("begun_ns", "everybody", "known", "outside", "own", "sums")

    def __init__(self, outside: Outside) -> None:
        self.outside = outside
        self.sums = Seen()
        self.own = (Memory(), Memory())  # streamed, plain; of this host's own workers
        self.everybody = (Memory(), Memory())
        self.known = [
            False,
            False,
        ]  # by a living host's answers, this one's or another's; a file's are only a beginning
        self.begun_ns = 0


class Host:
    """Another one: what it said last."""

    __slots__ = ("heard_ns", "lines", "number")

    def __init__(self) -> None:
        self.number = -1
        self.heard_ns = 0
        self.lines: dict[int, Line] = {}


class Fleet:
    """This host among the others."""

    def __init__(self) -> None:
        self._targets: dict[int, Target] = {}
        self._hosts: dict[str, Host] = {}
        self._number = 0

    def share(self, key: int, outside: Outside) -> None:
        """Carry this row from now on."""
        if key not in self._targets:
            self._targets[key] = Target(outside)

    @property
    def keys(self) -> set[int]:
        return set(self._targets)

    def hosts(self, now_ns: int) -> int:
        """How many others have spoken of late."""
        return sum(now_ns - host.heard_ns < GAP_NS for host in self._hosts.values())

    # ---- what this host says

    def look(self, now_ns: int) -> None:
        """Take what the workers have seen since the last look. O(targets)."""
        for target in self._targets.values():
            seen = target.outside.take()
            sums = target.sums
            for field in _SUMS:
                if n := getattr(seen, field):
                    setattr(sums, field, getattr(sums, field) + n)
            _remember(target.own, seen, now_ns)
            _learn(target, seen, now_ns)
            if seen.begun:
                target.begun_ns = now_ns

    def report(self, now_ns: int, wall_s: float) -> bytes:
        """For the others: of the targets that had a request of late."""
        self._number += 1
        lines = []
        for key, target in self._targets.items():
            if target.begun_ns and now_ns - target.begun_ns < QUIET_NS:
                lines.append(_line(key, target, target.own, now_ns))
            else:
                target.sums = Seen()  # so that whoever finds it in a report again, and not in the one before, has all
        return _encode(Report(VERSION, self._number, wall_s, lines))

    def snapshot(self, now_ns: int, wall_s: float) -> bytes:
        """For this host's next start: of all targets, and what other hosts saw of them too."""
        lines = [
            _line(key, target, target.everybody, now_ns)
            for key, target in self._targets.items()
            if any(side.w for side in target.everybody)
        ]
        return _encode(Report(VERSION, 0, wall_s, lines))

    # ---- what it hears

    def heard(self, name: str, data: bytes, now_ns: int, wall_s: float) -> bool:
        """A host's report. False: it is none."""
        report = _read(data)
        if report is None:
            return False
        host = self._hosts.get(name)
        if host is None:
            if len(self._hosts) >= MOST_HOSTS:
                return True
            host = self._hosts[name] = Host()
            self._recall(report, now_ns, wall_s, living=True)
        elif report.number <= host.number:  # nothing new, or an older one
            return True
        news = now_ns - host.heard_ns < GAP_NS
        for line in report.lines if news else ():
            if (target := self._targets.get(line.key)) is not None:
                self._pass_on(target, host.lines.get(line.key, NOTHING), line, now_ns)
        host.lines = {line.key: line for line in report.lines}
        host.number = report.number
        host.heard_ns = now_ns
        return True

    def _pass_on(self, target: Target, before: Line, line: Line, now_ns: int) -> None:
        new = {field: getattr(line, field) - getattr(before, field) for field in _SUMS}
        if any(not 0 <= n < 1 << 40 for n in new.values()) or not any(new.values()):
            return
        seen = Seen(**{field: min(n, 1 << 17) if field[-3:] != "_us" else n for field, n in new.items()})
        target.outside.put(seen, now_ns)
        _learn(target, seen, now_ns)

    def forget(self, name: str) -> None:
        self._hosts.pop(name, None)

    def restore(self, data: bytes, now_ns: int, wall_s: float) -> bool:
        """What a file remembers from before. False: nothing of use."""
        report = _read(data)
        return report is not None and self._recall(report, now_ns, wall_s, living=False)

    def _recall(self, report: Report, now_ns: int, wall_s: float, living: bool) -> bool:
        """Tell the workers of today what is remembered of targets that they know nothing of."""
        age_s = max(0.0, wall_s - report.at_s)
        if age_s > OLDEST_S:
            return False
        trust = 0.5 ** (age_s / TRUST_S)
        for line in report.lines:
            target = self._targets.get(line.key)
            if target is None:
                continue
            seen = Seen()
            if not target.known[0]:
                seen.streamed, seen.streamed_us = _worth(line.streamed_w, line.streamed_wx, trust)
            if not target.known[1]:
                seen.plain, seen.plain_us = _worth(line.plain_w, line.plain_wx, trust)
            if seen.streamed or seen.plain:
                target.outside.put(seen, now_ns)
                (_learn if living else _keep)(target, seen, now_ns)
        return True


def is_gone(data: bytes, wall_s: float) -> bool:
    """Whether this report is of a host that has gone for good, or none at all."""
    report = _read(data)
    return report is None or wall_s - report.at_s > GONE_S


def _read(data: bytes) -> Report | None:
    try:
        report = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    good = report.version == VERSION and 0 <= report.at_s < 1e12
    return report if good and all(_sane(line) for line in report.lines) else None


def _sane(line: Line) -> bool:
    pairs = ((line.streamed_w, line.streamed_wx), (line.plain_w, line.plain_wx))
    return all(0 <= w < 1e15 and 0 <= wx < 1e15 for w, wx in pairs) and all(getattr(line, f) >= 0 for f in _SUMS)


def _worth(w: float, wx: float, trust: float) -> tuple[int, int]:
    """So many answers, and their microseconds."""
    n = round(min(w, MOST_REMEMBERED) * trust)
    return (n, int(wx / w * n * 1e6)) if n and wx / w < 3600 else (0, 0)


def _remember(sides: tuple[Memory, Memory], seen: Seen, now_ns: int) -> None:
    for side, n, us in zip(sides, (seen.streamed, seen.plain), (seen.streamed_us, seen.plain_us), strict=True):
        if n:
            side.add(n, us / 1e6, now_ns)


def _keep(target: Target, seen: Seen, now_ns: int) -> None:
    _remember(target.everybody, seen, now_ns)


def _learn(target: Target, seen: Seen, now_ns: int) -> None:
    _keep(target, seen, now_ns)
    target.known[0] |= seen.streamed > 0
    target.known[1] |= seen.plain > 0


def _line(key: int, target: Target, sides: tuple[Memory, Memory], now_ns: int) -> Line:
    remembered = []
    for side in sides:
        f = 0.5 ** ((now_ns - side.at_ns) / 1e9 / REMEMBER_S)
        remembered += [side.w * f, side.wx * f]
    return Line(key, *(getattr(target.sums, field) for field in _SUMS), *remembered)
