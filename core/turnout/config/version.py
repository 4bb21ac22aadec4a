"""The version of a route's answers: what of its config makes that an answer of yesterday would not be given today."""

import hashlib

import msgspec

from ..exchange import Exchange
from ..route.condition import Condition
from ..route.policies.conditional import Conditional
from ..route.spec import RouteSpec, leaves, policies
from .model import Config

_FORM = 1  # of what is kept; a new one makes the old unreadable


def version_of(route: RouteSpec, config: Config) -> bytes:
    """16 bytes. They change with the route's targets, what these are asked at and as, with what it sets and with its
    conditions; not with weights, limits, timeouts or keys."""
    asked = []
    for target in leaves(route):
        provider = config.providers[target.provider]
        # Of the provider, what goes into a request; a simulated one says all by its spec.
        asked.append(
            (
                target.provider,
                target.model,
                type(provider).__struct_config__.tag,
                getattr(provider, "base_url", None) or msgspec.to_builtins(provider),
                getattr(provider, "headers", None),
            )
        )
    rules = [policy for policy in policies(route) if isinstance(policy, Conditional)]
    said = msgspec.json.encode([_FORM, route.name, asked, route.set, rules], order="deterministic")
    return hashlib.blake2b(said, digest_size=16).digest()


class Facts:
    """How a request meets the conditions of a route, as bytes: they may send it to another model."""

    def __init__(self, conditions: list[Condition]) -> None:
        self._conditions = conditions

    def __call__(self, x: Exchange) -> bytes:
        return b"".join([b"1" if condition.met(x) else b"0" for condition in self._conditions])


def _conditions(route: RouteSpec) -> list[Condition]:
    return [c for p in policies(route) if isinstance(p, Conditional) for rule in p.rules for c in rule.when]


def facts_of(route: RouteSpec) -> Facts | None:
    found = _conditions(route)
    return Facts(found) if found else None


def heeds_headers(route: RouteSpec) -> bool:
    """Whether its conditions look at headers of the client's."""
    return any(condition.field.startswith("header.") for condition in _conditions(route))
