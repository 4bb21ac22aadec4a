"""Why a request goes where it goes: the decision itself, with its reasons written down. Pure but for what it looks at.

It is the same code in the same state: the random numbers that the next request will draw are drawn here too, and put back.
So what it says is what then happens to the next such request, if nothing else comes in between.
"""

from typing import Any

from ..exchange import Exchange, Target
from .stage import Routes
from .tree import kind
from .why import Why


def explain(routes: Routes, x: Exchange, now_ns: int) -> dict[str, Any]:
    """The route of this request, what its policy saw of each candidate, and the order of the attempts. Raises Fault where
    no route serves it."""
    route = routes.find(x)
    why: Why = []
    with routes.rehearsal():
        order = routes.rank(route, x, now_ns, why)
    free = [target for target in order if target.health.allows(now_ns)]
    # As attempts.py: where none is free, the one whose breaker opens first, of those that are not cooling down.
    warm = [target for target in order if now_ns >= target.health.cool_until_ns] or order
    first = free[0] if free else min(warm, key=lambda target: target.health.open_until_ns)
    return {
        "route": route.name,
        "model": x.model,
        "policy": kind(route.policy),
        "candidates": why,
        "order": [_line(target, now_ns) for target in order],
        "first": _name(first),
        "passed_over": [_name(target) for target in order if free and not target.health.allows(now_ns)],
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
    lines.append(f"  first attempt: {report['first']}")
    return "\n".join(lines)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
