"""Cross-checks of a route's targets and its policies: what each policy needs of the targets it ranks."""

import math
from typing import Any

from ..cache.semantic.spec import Embedding
from ..catalog import Catalog
from ..route.condition import Condition
from ..route.policies import Ordered
from ..route.policies.conditional import Conditional
from ..route.policies.usage import Usage
from ..route.policies.weighted import Weighted
from ..route.spec import RouteSpec, TargetSpec, leaves
from ..wire.headers import KEY_HEADERS
from .model import Config
from .problem import Findings, Path, shorten

MOST_DEPTH = 5  # groups in groups: more says less than a flat list, and a rank walks all of it
MOST_TARGETS = 64


def is_header_text(text: str) -> bool:
    return text.isascii() and text.isprintable() and text == text.strip()


def check_targets(path: Path, route: RouteSpec, config: Config, found: Findings) -> None:
    """All that is wrong with a route's targets and policies, groups included."""
    if len(leaves(route)) > MOST_TARGETS:
        found.error((*path, "targets"), f"more than {MOST_TARGETS} targets")
    _check_group(path, route, config, found, {}, 0)
    if route.hedge is not None and sum(_places(t, config) for t in leaves(route)) < 2:
        found.error((*path, "hedge"), "this route has one target: there is nobody else to ask")


def check_embedding(path: Path, spec: Embedding | str | None, config: Config, found: Findings) -> None:
    """Whether there can be vectors from there."""
    if not isinstance(spec, Embedding):
        return
    provider = config.providers.get(spec.provider)
    if provider is None:
        known = ", ".join(shorten(name) for name in config.providers) or "none"
        found.error((*path, "provider"), f"no such provider; configured: {known}")
    elif not getattr(type(provider), "embeds", False):
        kind = type(provider).__struct_config__.tag
        found.error((*path, "provider"), f"a provider of kind {kind} has no embeddings")
    if not (spec.model and is_header_text(spec.model)):
        found.error((*path, "model"), "expected printable ASCII")
        return
    told = config.models.get(spec.model)
    facts = Catalog.builtin().find(spec.model, spec.provider)
    kind = told.kind if told is not None and told.kind is not None else facts.kind if facts is not None else "embedding"
    if kind != "embedding":
        found.warn((*path, "model"), "is not known as a model for embeddings")


def _places(target: TargetSpec, config: Config) -> int:
    provider = config.providers.get(target.provider)
    return max(1, len(getattr(provider, "accounts", ())))


def _check_group(
    path: Path, group: RouteSpec | TargetSpec, config: Config, found: Findings, seen: dict[str, Path], depth: int
) -> None:
    if depth > MOST_DEPTH:
        found.error(path, f"groups are nested more than {MOST_DEPTH} deep")
        return
    nested = depth > 0 or any(target.targets for target in group.targets)
    for j, target in enumerate(group.targets):
        here = (*path, "targets", j)
        if target.targets:
            _check_outside(here, target, found)
            _check_group(here, target, config, found, seen, depth + 1)
        else:
            if target.routing_policy is not None:
                found.error((*here, "routing_policy"), "belongs to a group: one with `targets` of its own")
            if not target.provider:
                found.error((*here, "provider"), "required, but missing")
            elif target.provider not in config.providers:
                known = ", ".join(shorten(name) for name in config.providers) or "none"
                found.error((*here, "provider"), f"no such provider; configured: {known}")
            if target.model is not None and not (target.model and is_header_text(target.model)):
                found.error((*here, "model"), "expected printable ASCII: it is sent back in a header")
        told = target.name is not None or nested or isinstance(group.routing_policy, Conditional)
        if told and (first := seen.setdefault(target.label, here)) != here:
            where = f"{first[-2]}[{first[-1]}]"
            found.error((*here, "name"), f"another target of this route, {where}, is called {target.label!r} already")
    _check_policy((*path, "routing_policy"), group.routing_policy or Ordered(), group, path, found)


def _check_outside(path: Path, group: TargetSpec, found: Findings) -> None:
    if group.name is None:
        found.error((*path, "name"), "required for a group: it is what policies and reports call it")
    for field in ("provider", "model", "rpm", "tpm"):
        if getattr(group, field):
            found.error((*path, field), "a group has none of its own: it belongs to its targets")
    if group.prefill != "auto":
        found.error((*path, "prefill"), "a group has none of its own: it belongs to its targets")


def _check_policy(path: Path, policy: Any, group: RouteSpec | TargetSpec, above: Path, found: Findings) -> None:
    if isinstance(policy, Weighted) or type(policy).__name__ in ("LeastBusy", "PrefixAffinity"):
        total = sum(target.weight for target in group.targets)
        kind = type(policy).__struct_config__.tag
        if total == 0:
            found.error((*above, "targets"), f"all weights are 0: a {kind} route needs one above 0")
        elif not math.isfinite(total):
            found.error((*above, "targets"), "the weights add up beyond what a float holds")
    elif isinstance(policy, Usage):
        if not any(target.rpm or target.tpm for target in group.targets):
            found.error((*above, "targets"), "policy usage needs `rpm` or `tpm` of at least one target")
    elif isinstance(policy, Conditional):
        known = [target.label for target in group.targets]
        for i, rule in enumerate(policy.rules):
            here = (*path, "rules", i)
            if not rule.when:
                found.error((*here, "if"), "no condition: what always holds goes into `otherwise`")
            for j, condition in enumerate(rule.when):
                _check_condition((*here, "if", j), condition, found)
            if not rule.to:
                found.error((*here, "to"), "names no target")
            _check_names((*here, "to"), rule.to, known, found)
        if not policy.rules:
            found.error((*path, "rules"), "no rule: then it is a route of kind ordered")
        _check_names((*path, "otherwise"), policy.otherwise, known, found)


def _check_condition(path: Path, condition: Condition, found: Findings) -> None:
    field = condition.field.lower()
    if field.startswith("header.") and field.removeprefix("header.").encode() in (*KEY_HEADERS, b"cookie"):
        found.error((*path, "field"), "carries a credential: routes go by `key` or `team`")
    elif wrong := condition.wrong():
        what = "field" if wrong.startswith(("no such field", "expected header", "expected metadata")) else "value"
        found.error((*path, what), wrong)


def _check_names(path: Path, names: list[str], known: list[str], found: Findings) -> None:
    for i, name in enumerate(names):
        if name not in known:
            found.error((*path, i), f"no such target here; known: {', '.join(map(shorten, known))}")
        elif name in names[:i]:
            found.error((*path, i), "stands here twice")
