"""Why a request goes where it goes: the decision itself, with its reasons written down. Pure but for what it looks at.

It is the same code in the same state: the random numbers that the next request will draw are drawn here too, and put back.
So what it says is what then happens to the next such request, if nothing else comes in between.
"""

from collections.abc import Sequence
from typing import Any

from ..exchange import Exchange, Route, Target
from .attempts import MOST_WAIT_NS, spare
from .stage import Routes
from .tree import kind
from .why import Why


def explain(routes: Routes, x: Exchange, now_ns: int) -> dict[str, Any]:
    """The route of this request, what its policy saw of each candidate, and the order of the attempts. Raises Fault where
    no route serves it."""
    route = routes.find(x)
    x.assemble = route.assemble and not x.stream and x.surface.can_stream
    why: Why = []
    with routes.rehearsal():
        order = routes.rank(route, x, now_ns, why)
    free = [target for target in order if target.health.allows(now_ns)]
    first = free[0] if free else _last_resort(order, now_ns)
    wait_ns = max(0, first.health.cool_until_ns - now_ns)
    report: dict[str, Any] = {
        "route": route.name,
        "model": x.model,
        "policy": kind(route.policy),
        "candidates": why,
        "order": [_line(target, now_ns) for target in order],
        "first": _name(first) if wait_ns <= MOST_WAIT_NS else None,
        "passed_over": [_name(target) for target in order if free and not target.health.allows(now_ns)],
    }
    if wait_ns:
        report["wait_s"] = wait_ns / 1e9
    if route.hedge is not None and (x.stream or x.assemble):
        report["hedge"] = _hedge(route, x, order, first, now_ns)
    return report


def _last_resort(order: Sequence[Target], now_ns: int) -> Target:
    """As attempts.py: where none is free, the one whose breaker opens first of those that are not cooling down; where all
    are, the first that is not any more, which is waited for."""
    warm = [target for target in order if now_ns >= target.health.cool_until_ns]
    if warm:
        return min(warm, key=lambda target: target.health.open_until_ns)
    return min(order, key=lambda target: target.health.cool_until_ns)


def _hedge(route: Route, x: Exchange, order: Sequence[Target], first: Target, now_ns: int) -> dict[str, Any]:
    """When the first attempt is joined by another, at whom, and how many such the budget has left."""
    second = spare(order, [i for i, target in enumerate(order) if target is not first], now_ns)
    return {
        "target": _name(order[second]) if second is not None else None,
        "after_s": route.hedge.delay_ns(first.stats, len(x.body), now_ns, 1) / 1e9,
        "left": int(route.hedge.purse.left(1)),
    }


def _name(target: Target) -> str:
    name = target.label or target.name
    return f"{name} ({target.account})" if target.account else name


def _line(target: Target, now_ns: int) -> dict[str, Any]:
    health, stats = target.health, target.stats
    line: dict[str, Any] = {
        "target": _name(target),
        "provider": target.provider,
        "model": target.model,
        "breaker": health.state(now_ns),
    }
    if (wait_ns := health.free_at_ns() - now_ns) > 0:
        line["free_in_s"] = round(wait_ns / 1e9, 3)
    if stats is not None:
        sketch = stats.sketch
        line["ttft_s"] = {f"p{q:g}": round(sketch.quantile(q / 100), 4) for q in (50, 95, 99)} if sketch.n else None
        line["gap_s"] = round(stats.gap_s, 5)
    return line


def show(report: dict[str, Any]) -> str:
    """The same for a person at a terminal."""
    lines = [f"{report['model']} -> route {report['route']}, policy {report['policy']}"]

    def table(rows: Why, indent: str) -> None:
        for row in rows:
            if "group" in row:
                lines.append(f"{indent}group {row['group']}, policy {row['policy']}")
                table(row["candidates"], indent + "  ")
            elif "chosen" in row:
                what = row.get("target") or ", ".join(row.get("to", ())) or "all"
                lines.append(f"{indent}chosen: {what}: {row['chosen']}")
            else:
                rest = "  ".join(f"{k}={_short(v)}" for k, v in row.items() if k != "target")
                lines.append(f"{indent}{row['target']}: {rest}")

    table(report["candidates"], "  ")
    for i, line in enumerate(report["order"], 1):
        closed = "" if line["breaker"] == "closed" else f", breaker {line['breaker']}"
        lines.append(f"  {i}. {line['target']}{closed}")
    after = f", after {report['wait_s']:.3g} s: all are cooling down" if "wait_s" in report else ""
    lines.append(f"  first attempt: {report['first'] or 'none'}{after}")
    if hedge := report.get("hedge"):
        to = (
            f"{hedge['target']} beside it after {hedge['after_s'] * 1e3:.0f} ms"
            if hedge["target"]
            else "nobody is free"
        )
        lines.append(f"  hedge: {to}; the budget has {hedge['left'] or 'none'} left")
    return "\n".join(lines)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
