"""What an answer says about how it came about: the `x-turnout-*` headers, and what stands in for them in a stream."""

from collections.abc import Callable

import msgspec

from .account.cost import usd
from .exchange import OFF, Exchange, Headers, Route, Target, Usage
from .wire.headers import header_value

MOST_KEPT = 256
_DIGITS = tuple(b"%d" % n for n in range(1000))  # what the overhead mostly is, in microseconds


class Marks:
    """The marks of one config's answers."""

    def __init__(self, version: int, now_ns: Callable[[], int]) -> None:
        self._version = (b"x-turnout-config-version", b"%d" % version)
        self._now = now_ns
        self._usual: dict[int, Headers] = {}  # by target; targets live as long as their flow
        # What answers with one attempt or none have in common, and what they name: kept as it is, because an engine knows again
        # what it has sent before.
        self._kept: dict[tuple[str, str, int], Headers] = {}
        self._named: dict[tuple[str, str], Headers] = {}

    def headers(self, x: Exchange, target: Target | None) -> Headers:
        """The headers of an answer, a new list. `target` is None where none served."""
        if target is not None and len(x.attempts) == 1 and target.model is not None and x.cache is OFF:
            # The usual case, put together once per target.
            out = self._usual.get(id(target))
            if out is None:
                out = self._usual[id(target)] = self._story(x, target)
            out = out.copy()
        else:
            out = self._story(x, target)
        out.append((b"x-request-id", x.id.encode()))
        us = ((x.head_ns or self._now()) - x.started_ns - x.upstream_ns) // 1000
        out.append((b"x-turnout-overhead-us", _DIGITS[us] if 0 <= us < 1000 else b"%d" % us))
        return out

    def of(self, provider: str, model: str) -> Headers:
        """The headers that name who served an answer that is given again."""
        found = self._named.get((provider, model))
        if found is None:
            if len(self._named) == MOST_KEPT:
                self._named.clear()
            head = [(b"x-turnout-provider", provider.encode()), (b"x-turnout-model", model.encode())]
            found = self._named[provider, model] = head
        return found

    def early(self, x: Exchange) -> Headers:
        """What is known before an upstream has committed: for a head that goes out early."""
        assert x.route is not None
        return [(b"x-request-id", x.id.encode()), self._version, x.route.header]

    def note(self, x: Exchange, target: Target) -> bytes:
        """A comment in the stream with what would have been headers, had the head waited."""
        return self.late(self._story(x, target))

    @staticmethod
    def late(headers: Headers) -> bytes:
        """Headers that are known only when the head is out, as such a comment."""
        pairs = b" ".join(name + b"=" + value for name, value in headers if name.startswith(b"x-turnout-"))
        return b": turnout " + pairs.replace(b"x-turnout-", b"") + b"\n\n"

    def closing(self, x: Exchange, target: Target | None) -> bytes:
        """The closing event of a stream, for a client that asked for it: what a plain answer says in its headers."""
        story = {n.decode().removeprefix("x-turnout-"): v.decode() for n, v in self._story(x, target)}
        story["request-id"] = x.id
        if not x.attempts or x.attempts[-1].priced:
            story["cost-usd"] = usd(x.cost_nanos)
        usage = x.usage or Usage()
        tokens = {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion, "estimated": usage.estimated}
        data = {"turnout": {name.replace("-", "_"): value for name, value in story.items()}, "usage": tokens}
        event = b"event: turnout.metadata\ndata: " + msgspec.json.encode(data) + b"\n\n"
        x.bytes_out += len(event)
        return event

    def _story(self, x: Exchange, target: Target | None) -> Headers:
        out: Headers
        if x.route is None:
            out = [self._version]
        else:
            tries = len(x.attempts)
            if tries > 1:
                out = self._course(x, x.route)
            else:
                kept = self._kept.get((x.route.name, x.cache, tries))
                if kept is None:
                    if len(self._kept) == MOST_KEPT:
                        self._kept.clear()
                    kept = self._kept[x.route.name, x.cache, tries] = self._course(x, x.route)
                out = kept.copy()
            if x.cache_key:
                out.append((b"x-turnout-cache-key", x.cache_key.encode()))
        if target is not None:
            out += target.head
            if target.model is None:
                out.append((b"x-turnout-model", header_value(x.own_model)))
        return out

    def _course(self, x: Exchange, route: Route) -> Headers:
        tries = len(x.attempts)
        return [
            self._version,
            route.header,
            (b"x-turnout-attempts", b"%d" % tries),
            (b"x-turnout-fallback", x.fallback.encode() if tries > 1 else b"none"),
            (b"x-turnout-cache", x.cache.encode()),
        ]
