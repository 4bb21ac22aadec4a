"""A request that nobody sent: what `turnout explain` and the admin listener ask a worker about."""

from typing import Any

import msgspec

from ..errors import Fault
from ..exchange import Exchange
from ..flow import Flow
from ..route.explain import explain
from .endpoints import SURFACES

MOST_BYTES = 4 * 1024 * 1024


class Question(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`route` or `model` must be given. `body` stands in for one of `bytes` of prompt; `headers` are the client's."""

    model: str = ""
    route: str = ""
    key: str = ""  # name of a key of the config; not set: the first one
    tags: str = ""
    session: str = ""
    stream: bool = True
    bytes: int = 200
    tools: bool = False
    body: dict[str, Any] | None = None
    headers: dict[str, str] = {}


def answer(flow: Flow, question: Question, now_ns: int, wall_ns: int) -> dict[str, Any]:
    """What would become of it now; `refused` says why where nothing would."""
    try:
        return explain(flow.routes, request(flow, question, now_ns, wall_ns), now_ns)
    except Fault as fault:
        return {"refused": fault.message}


def request(flow: Flow, question: Question, now_ns: int, wall_ns: int) -> Exchange:
    """Raises Fault."""
    principal = flow.keyring.named(question.key)
    if principal is None:
        raise Fault("bad_key", f"no key is named {question.key!r}")
    model = question.model
    if not model:
        named = next((r for r in flow.routes.all if r.name == question.route), None)
        if named is None:
            raise Fault("no_route", f"no route is named {question.route!r}")
        model = named.match.replace("*", "x")
    size = min(max(question.bytes, 0), MOST_BYTES)
    body = dict(question.body or {"messages": [{"role": "user", "content": "x" * size}]})
    body = {"model": model, "stream": question.stream, **body}
    if question.tools:
        body.setdefault("tools", [{"type": "function", "function": {"name": "f"}}])
    x = Exchange(
        id="explain",
        surface=SURFACES["/v1/chat/completions"],
        started_ns=now_ns,
        wall_ns=wall_ns,
        config_version=flow.version,
        principal=principal,
        body=msgspec.json.encode(body),
        asked_route=question.route,
        session=question.session,
        tags=question.tags,
        headers=[
            (name.lower().encode("latin-1", "replace"), value.encode("latin-1", "replace"))
            for name, value in question.headers.items()
        ],
    )
    flow.read(x)
    return x
