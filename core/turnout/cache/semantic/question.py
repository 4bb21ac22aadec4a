"""What a request asks, as the semantic cache sees it: the words of its last message, and the scope they stand in. Pure."""

import hashlib
import re
from collections.abc import Callable, Sequence

import msgspec

from ...exchange import Exchange
from ...native import canonical
from ..joined import joined
from .spec import PERSONAL, Semantic

# Fields that make an answer more, or something else, than a text that the words ask for.
LOOKED_AT = ("tools", "tool_choice", "functions", "logprobs", "modalities", "audio", "web_search_options", "prediction")
_NOTHING = (b"null", b"false", b"[]")
_HARMLESS = {"tool_choice": (b'"none"',), "modalities": (b'["text"]',)}
MOST_TEXT = 16 * 1024  # characters: 512 tokens of any language are fewer


class _Part(msgspec.Struct):
    type: str
    text: str


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part]


_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_message = msgspec.json.Decoder(_Message).decode
_encode = msgspec.json.encode


class Question(msgspec.Struct, frozen=True):
    scope: bytes  # 16 bytes: all that decides about the answer but the text
    text: str
    also: bytes = b""  # another scope whose answers do for this question


class Questions:
    """Of one route. `names`: of the fields in the spans of a request. `skip`: fields that do not change an answer.
    `partition`: the route and its version. `facts`: what else of a request decides about who is asked. `version`: of
    what makes vectors of texts."""

    def __init__(
        self,
        spec: Semantic,
        names: Sequence[str],
        skip: Sequence[str],
        partition: bytes,
        facts: Callable[[Exchange], bytes] | None,
        version: bytes,
    ) -> None:
        self._places = tuple((name, 2 * names.index(name)) for name in LOOKED_AT)
        self._messages = 2 * names.index("messages")
        self._skip = sorted({*skip, "messages"})
        self._partition = joined(b"semantic", version, partition)
        self._share = spec.share
        self._both = spec.profile == "faq" and spec.share != "key"
        self._facts = facts
        self._volatile = _any_of(spec.volatile)
        self._personal = _any_of(PERSONAL if spec.personal == "key" else ())

    def of(self, x: Exchange, beta: bytes) -> Question | str:
        """The question; or why it is one that only its own answer answers. `beta`: of the headers that go upstream."""
        if x.surface.name != "chat":
            return "surface"
        body, spans = x.body, x.spans
        for name, i in self._places:
            value = body[spans[i] : spans[i + 1]] if spans[i] >= 0 else b"null"
            if value in _NOTHING or value in _HARMLESS.get(name, ()) or _is_idle(name, spans, self._places, body):
                continue
            return "tools" if name in ("tools", "tool_choice", "functions") else name
        try:
            *earlier, last = _decode_list(body[spans[self._messages] : spans[self._messages + 1]])
            message = _decode_message(last)
        except (ValueError, RecursionError):  # no messages, or none whose content is words
            return "parts"
        if message.role != "user":
            return "role"
        content = message.content
        text = content if isinstance(content, str) else "\n".join([part.text for part in content])
        if len(text) > MOST_TEXT:
            return "long"
        # Anything more than a user's text, a key that stands twice too, would be lost in what is looked for.
        if canonical(bytes(last), []) != canonical(_encode({"role": "user", "content": content}), []):
            return "parts"
        if self._volatile is not None and self._volatile.search(text):
            return "volatile"
        own = self._personal is not None and self._personal.search(text) is not None
        rest = self._rest(x, earlier, beta)
        if self._personal is None or not self._both:
            return Question(self._scope(x, "key" if own else self._share, rest), text)
        # "How do I block my card?" and "how does one block a card?" are one intent. What was answered to a question about
        # the one who asks goes to its own key alone; but that key may have both, whichever way it asks.
        shared, mine = self._scope(x, self._share, rest), self._scope(x, "key", rest)
        return Question(mine, text, shared) if own else Question(shared, text, mine)

    def _scope(self, x: Exchange, share: str, rest: bytes) -> bytes:
        who = x.principal
        assert who is not None
        owner = {"key": f"key:{who.tenant}:{who.name}", "tenant": f"tenant:{who.tenant}", "route": "route"}[share]
        return hashlib.sha256(joined(self._partition, owner.encode()) + rest).digest()[:16]

    def _rest(self, x: Exchange, earlier: list[msgspec.Raw], beta: bytes) -> bytes:
        """What else decides about the answer."""
        return joined(
            x.surface.name.encode(),
            beta,
            self._facts(x) if self._facts is not None else b"",
            canonical(x.body, self._skip),
            canonical(b'{"m":[%b]}' % b",".join(map(bytes, earlier)), []) if earlier else b"",
        )


def _any_of(words: Sequence[str]) -> re.Pattern[str] | None:
    """Any of them as a whole word, in any case."""
    if not words:
        return None
    either = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)


def _is_idle(name: str, spans: tuple[int, ...], places: tuple[tuple[str, int], ...], body: bytes) -> bool:
    """Whether these are tools that must not be called."""
    if name != "tools":
        return False
    i = dict(places)["tool_choice"]
    return spans[i] >= 0 and body[spans[i] : spans[i + 1]] == b'"none"'
