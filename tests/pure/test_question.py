"""The scope of a question: all that decides about its answer but its words, so nothing else is ever looked for in it."""

import random
from typing import Any

import msgspec
import pytest

from turnout.cache.policy import LOOKED_AT, TRANSPORT
from turnout.cache.semantic.question import LOOKED_AT as LOOKED_AT_TOO
from turnout.cache.semantic.question import Question, Questions
from turnout.cache.semantic.spec import Semantic
from turnout.exchange import Exchange, Principal, Surface
from turnout.wire.request import RequestReader

CHAT = Surface("chat", "/v1/chat/completions", "/chat/completions", ("messages",), True, "chat")
READER = RequestReader((*LOOKED_AT, *LOOKED_AT_TOO))


def questions(**spec: Any) -> Questions:
    return Questions(Semantic(**spec), READER.names, sorted(TRANSPORT), b"route 1", None, b"v1")


ONES = questions()


def ask(body: dict[str, Any] | bytes, tenant: str = "t", key: str = "k", by: Questions = ONES, beta: bytes = b"") -> Question | str:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    x = Exchange(id="1", surface=CHAT, started_ns=0, wall_ns=0, config_version=1, body=data, spans=READER.scan(data))
    x.principal = Principal(name=key, fingerprint="", tenant=tenant)
    return by.of(x, beta)


def body(text: Any = "How do I cook rice?", *, before: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [*(before or []), {"role": "user", "content": text}], **more}


def scope(found: Question | str) -> bytes:
    assert isinstance(found, Question), found
    return found.scope


def test_words_of_the_last_message_are_looked_for_and_nothing_else() -> None:
    first, other = ask(body("How do I cook rice?")), ask(body("How do I boil pasta?"))
    assert isinstance(first, Question) and first.text == "How do I cook rice?"
    assert scope(first) == scope(other)
    assert scope(ask(body([{"type": "text", "text": "How do I cook"}, {"type": "text", "text": "rice?"}]))) == scope(first)
    for same in ({"stream": True}, {"stream_options": {"include_usage": True}}, {"tools": []}, {"tool_choice": "none"}):
        if "tool" not in next(iter(same)):
            assert scope(ask(body(**same))) == scope(first)
    spelt = b'{ "messages" : [ {"content":"How do I cook rice?", "role":"user"} ], "model":"m" }'
    assert scope(ask(spelt)) == scope(first)


CHANGES: list[dict[str, Any]] = [
    {"model": "m2"}, {"temperature": 0}, {"top_p": 0.5}, {"stop": ["x"]}, {"seed": 1}, {"max_tokens": 5}, {"presence_penalty": 1}, {"logit_bias": {"1": 2}},
    {"reasoning_effort": "low"}, {"response_format": {"type": "json_object"}}, {"user": "u"}, {"verbosity": "low"}, {"unheard_of": {"x": [1]}}, {"metadata": {"a": "b"}},
]  # fmt: skip
BEFORE: list[list[dict[str, Any]]] = [
    [{"role": "system", "content": "be brief"}],
    [{"role": "system", "content": "be brief."}],
    [{"role": "developer", "content": "be brief"}],
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello!"}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}, {"role": "assistant", "content": "a cat"}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAB"}}]}, {"role": "assistant", "content": "a cat"}],
]


def test_whatever_else_changes_is_another_scope() -> None:
    found = [ask(body())]
    found += [ask({**body(), **change}) for change in CHANGES]
    found += [ask(body(before=before)) for before in BEFORE]
    found += [ask(body(), tenant="t2"), ask(body(), beta=b"openai-beta:x"), ask(body(), by=Questions(Semantic(), READER.names, sorted(TRANSPORT), b"route 2", None, b"v1"))]
    found.append(ask(body(), by=Questions(Semantic(), READER.names, sorted(TRANSPORT), b"route 1", None, b"v2")))
    scopes = [scope(one) for one in found]
    assert len(set(scopes)) == len(scopes)


def test_whose_it_is_says_the_route() -> None:
    def seen(share: str) -> int:
        by = questions(share=share)
        return len({scope(ask(body(), tenant, key, by)) for tenant, key in (("t", "a"), ("t", "b"), ("u", "c"))})

    assert [seen(share) for share in ("key", "tenant", "route")] == [3, 2, 1]


def test_what_is_personal_stays_with_the_key() -> None:
    def seen(text: str, **spec: Any) -> int:
        by = questions(**spec)
        return len({scope(ask(body(text), tenant, key, by)) for tenant, key in (("t", "a"), ("t", "b"), ("u", "c"))})

    assert [seen("Where is MY order?", share=share) for share in ("key", "tenant", "route")] == [3, 3, 3]
    assert [seen("Where is my order?", personal="share", share=share) for share in ("key", "tenant", "route")] == [3, 2, 1]
    assert seen("Where is the mystery order?", share="route") == 1


@pytest.mark.parametrize(
    "asked, why",
    [
        (body(tools=[{"type": "function", "function": {"name": "f"}}]), "tools"),
        (body(functions=[{"name": "f"}]), "tools"),
        (body(logprobs=True), "logprobs"),
        (body(modalities=["text", "audio"]), "modalities"),
        (body(web_search_options={}), "web_search_options"),
        (body([{"type": "text", "text": "what is this"}, {"type": "image_url", "image_url": {"url": "data:,"}}]), "parts"),
        (body(None), "parts"),
        ({"model": "m", "messages": [{"role": "user", "content": "a b", "name": "bob"}]}, "parts"),
        (b'{"model":"m","messages":[{"role":"user","content":"one thing","content":"another thing"}]}', "parts"),
        (b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a","text":"b"}]}]}', "parts"),
        ({"model": "m", "messages": []}, "parts"),
        ({"model": "m", "messages": [{"role": "assistant", "content": "hello there"}]}, "role"),
        (body("What is the latest news about trains?"), "volatile"),
        (body("who won TODAY"), "volatile"),
        (body("x " * 9000), "long"),
    ],
)
def test_what_only_its_own_answer_answers(asked: Any, why: str) -> None:
    assert ask(asked) == why


def test_tools_that_must_not_be_called_are_part_of_the_scope() -> None:
    tools = [[{"type": "function", "function": {"name": name}}] for name in ("f", "g")]
    scopes = {scope(ask(body(tools=given, tool_choice="none"))) for given in tools} | {scope(ask(body()))}
    assert len(scopes) == 3


def test_volatile_words_are_words_and_the_routes_own() -> None:
    assert isinstance(ask(body("the snow and the knowledge of nowhere")), Question)
    assert ask(body("what is the score"), by=questions(volatile=["score"])) == "volatile"
    assert isinstance(ask(body("what happened today"), by=questions(volatile=[])), Question)


def test_a_hundred_thousand_others_never_share_a_scope(full: bool) -> None:
    """Other tenants, system prompts, earlier turns, tools, images and parameters, at random: each scope is one combination."""
    lot = random.Random(7)
    seen: dict[bytes, str] = {}
    looked = 100_000 if full else 5_000
    for i in range(looked):
        tenant = f"t{lot.randrange(30)}"
        before = [{"role": "system", "content": f"s{lot.randrange(30)}"}] if lot.random() < 0.7 else []
        if lot.random() < 0.4:
            image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,AAA{lot.choice('ABCDEFGH')}"}}
            before += [{"role": "user", "content": [{"type": "text", "text": "look"}, image]}, {"role": "assistant", "content": f"a{lot.randrange(3)}"}]
        more: dict[str, Any] = {}
        if lot.random() < 0.5:
            more["tools"] = [{"type": "function", "function": {"name": f"f{lot.randrange(5)}"}}]
            more["tool_choice"] = "none"
        for name, values in (("max_tokens", (1, 10, 100)), ("seed", (1, 2)), ("temperature", (0, 0.0)), ("stop", ("a", ["a"])), ("user", ("a", "b"))):
            if lot.random() < 0.4:
                more[name] = lot.choice(values)
        asked = body(f"question number {i}?", before=before, **more)
        what = repr((tenant, asked["messages"][:-1], sorted((k, repr(v)) for k, v in asked.items() if k != "messages")))
        assert seen.setdefault(scope(ask(asked, tenant)), what) == what
    assert len(seen) > looked / 3
    print(f"\n{looked} questions in {len(seen)} scopes: none is shared by two kinds")
