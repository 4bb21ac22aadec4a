"""From a request to an answer, and from an answer to JSON bodies and SSE events. Pure.

An answer is decided whole before its first byte is sent; sending it is `serve`'s business.
A `Frame` says what it carries, so that pace and faults can be applied without looking inside.

Going on from a prefix: when the conversation ends with an assistant message, or with one
and a user message after it, and that assistant text is the beginning of what this provider
would have said there, the answer is the rest of it. This is how a real model behaves when
asked to continue, and what lets a gateway move a running stream to another provider.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Literal

import msgspec

from .asks import ChatAsk, CompletionAsk, EmbeddingsAsk, Refused, Stop, content_text, each_input, prompt_text
from .prose import count_tokens, dice_for, split_tokens, write_answer
from .schema import sample
from .vectors import DEFAULT_DIMENSIONS, embed, to_base64

encode = msgspec.json.encode
DONE = b"data: [DONE]\n\n"


class Call(msgspec.Struct):
    id: str
    name: str


class Choice(msgspec.Struct):
    """One choice: its text (or a call's arguments) as tokens, and why it ends."""

    tokens: list[str]
    finish: str
    call: Call | None = None


class Answer(msgspec.Struct):
    kind: Literal["chat", "completion"]
    id: str
    created: int  # wall clock, seconds: it goes to the client
    model: str
    choices: list[Choice]
    usage: dict[str, Any]

    @property
    def token_count(self) -> int:
        return sum(len(choice.tokens) for choice in self.choices)


class Frame(msgspec.Struct):
    part: Literal["role", "token", "finish", "usage", "done"]
    data: bytes  # one whole SSE event


# --- deciding ---


def answer_chat(seed: int, length: int, ask: ChatAsk, id: str, created: int) -> Answer:
    """`length`: about how many tokens an unlimited answer has."""
    prompt = prompt_text(ask.messages)
    limit = ask.max_completion_tokens or ask.max_tokens
    name = _tool_to_call(ask)
    choices: list[Choice] = []
    for index in range(ask.n or 1):
        if name is not None:
            choices.append(_call_choice(seed, prompt, index, ask.tools or [], name, limit))
        else:
            text = _structured(seed, prompt, index, ask.response_format)
            if text is None:
                text = _spoken(seed, length, index, ask.messages)
            choices.append(_text_choice(text, limit, ask.stop))
    tools = encode(ask.tools).decode() if ask.tools else ""
    usage = _usage(count_tokens(prompt + tools), choices)
    return Answer("chat", id, created, ask.model, choices, usage)


def answer_completion(seed: int, length: int, ask: CompletionAsk, id: str, created: int) -> Answer:
    """OpenAI's older completions; 16 is its default for max_tokens."""
    choices: list[Choice] = []
    billed = 0
    for prompt, ids in each_input(ask.prompt):
        billed += count_tokens(prompt) if ids is None else ids
        for index in range(ask.n or 1):
            text = " " + write_answer(seed, prompt, length, index)
            choices.append(_text_choice(text, ask.max_tokens or 16, ask.stop))
    return Answer("completion", id, created, ask.model, choices, _usage(billed, choices))


def embeddings_body(seed: int, ask: EmbeddingsAsk) -> bytes:
    """The whole JSON body of POST /v1/embeddings. Raises Refused."""
    if ask.encoding_format not in (None, "float", "base64"):
        raise Refused(400, "encoding_format: must be 'float' or 'base64'")
    inputs = each_input(ask.input)
    if not inputs:
        raise Refused(400, "input: must not be empty")
    data: list[dict[str, Any]] = []
    billed = 0
    for index, (text, ids) in enumerate(inputs):
        billed += count_tokens(text) if ids is None else ids
        vector = embed(seed, text, ask.dimensions or DEFAULT_DIMENSIONS)
        value = to_base64(vector) if ask.encoding_format == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": value})
    usage = {"prompt_tokens": billed, "total_tokens": billed}
    return encode({"object": "list", "data": data, "model": ask.model, "usage": usage})


def models_body(models: list[str]) -> bytes:
    return encode({"object": "list", "data": [model_card(model) for model in models]})


def model_card(model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": 1_700_000_000, "owned_by": "turnout-simulator"}


def error_body(status: int, message: str, code: str | None = None) -> bytes:
    """OpenAI's error shape; `type` follows from the status as it does there."""
    types = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = types.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return encode({"error": {"message": message, "type": kind, "param": None, "code": code}})


def _spoken(seed: int, length: int, index: int, messages: list[dict[str, Any]]) -> str:
    last = messages[-1]
    if last.get("role") == "assistant" and (said := content_text(last.get("content"))):
        full = write_answer(seed, prompt_text(messages[:-1]), length, index)
        if full.startswith(said):
            return full[len(said) :]
        # Not our words: a model goes on all the same, from a new word.
        return ("" if said[-1:].isspace() else " ") + write_answer(seed, prompt_text(messages), length, index)
    if len(messages) > 1 and messages[-2].get("role") == "assistant":
        said = content_text(messages[-2].get("content"))
        full = write_answer(seed, prompt_text(messages[:-2]), length, index)
        # A finished earlier turn equals `full`; only a proper beginning is gone on with. Asked
        # in words, chat models never begin with a space, hence lstrip.
        if said and len(said) < len(full) and full.startswith(said):
            return full[len(said) :].lstrip()
    return write_answer(seed, prompt_text(messages), length, index)


def _text_choice(text: str, limit: int | None, stop: Stop) -> Choice:
    finish = "stop"
    stops = [stop] if isinstance(stop, str) else stop or []
    found = [at for word in stops if word and (at := text.find(word)) >= 0]
    tokens = split_tokens(text[: min(found)] if found else text)
    if limit is not None and len(tokens) > limit:
        tokens, finish = tokens[:limit], "length"
    return Choice(tokens, finish)


def _structured(seed: int, prompt: str, index: int, wanted: dict[str, Any] | None) -> str | None:
    kind = wanted.get("type") if wanted else None
    dice = dice_for(seed, prompt, index)
    if kind == "json_object":
        return encode({"topic": "railways", "answer": write_answer(seed, prompt, 20, index)}).decode()
    if kind == "json_schema" and wanted is not None:
        outer = wanted.get("json_schema")
        return encode(sample(outer.get("schema") if isinstance(outer, dict) else None, dice)).decode()
    return None


def _tool_to_call(ask: ChatAsk) -> str | None:
    """The function to call: the one that tool_choice names, else the first, else none."""
    if not ask.tools or ask.tool_choice == "none" or ask.messages[-1].get("role") != "user":
        return None
    for holder in (ask.tool_choice, ask.tools[0]):
        function = holder.get("function") if isinstance(holder, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            return str(function["name"])
    return None


def _call_choice(
    seed: int, prompt: str, index: int, tools: list[dict[str, Any]], name: str, limit: int | None
) -> Choice:
    functions = [tool.get("function") for tool in tools]
    schemas = [f.get("parameters") for f in functions if isinstance(f, dict) and f.get("name") == name]
    arguments = sample(schemas[0] if schemas else None, dice_for(seed, prompt, index))
    tokens = split_tokens(encode(arguments if isinstance(arguments, dict) else {}).decode())
    digest = blake2b(f"{seed}\0{index}\0{prompt}".encode("utf-8", "surrogatepass"), digest_size=12)
    call = Call("call_" + digest.hexdigest(), name)
    if limit is not None and len(tokens) > limit:
        return Choice(tokens[:limit], "length", call)
    return Choice(tokens, "tool_calls", call)


def _usage(prompt_tokens: int, choices: list[Choice]) -> dict[str, Any]:
    completion_tokens = sum(len(choice.tokens) for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


# --- saying it ---


def plain_body(answer: Answer) -> bytes:
    """The JSON body of an answer that is not streamed."""
    choices: list[dict[str, Any]] = []
    for index, choice in enumerate(answer.choices):
        text = "".join(choice.tokens)
        said: dict[str, Any]
        if answer.kind == "completion":
            said = {"text": text}
        elif choice.call is None:
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        else:
            said = {"message": {"role": "assistant", "content": None, "tool_calls": [_whole_call(choice.call, text)]}}
        choices.append({"index": index, **said, "logprobs": None, "finish_reason": choice.finish})
    return encode({**_outer(answer, whole=True), "choices": choices, "usage": answer.usage})


def stream_frames(answer: Answer, include_usage: bool) -> Iterator[Frame]:
    """The answer as SSE events; several choices take turns, as they do at OpenAI."""
    outer = _outer(answer, whole=False)
    # With include_usage every chunk has the field; it is null until the last one.
    tail: dict[str, Any] = {"usage": None} if include_usage else {}

    def event(choices: list[dict[str, Any]], more: dict[str, Any]) -> bytes:
        return b"data: " + encode({**outer, "choices": choices, **more}) + b"\n\n"

    def say(index: int, said: dict[str, Any], finish: str | None) -> bytes:
        return event([{"index": index, **said, "logprobs": None, "finish_reason": finish}], tail)

    chat = answer.kind == "chat"
    if chat:
        for index, choice in enumerate(answer.choices):
            content = None if choice.call else ""
            delta = {"role": "assistant", "content": content, "refusal": None}
            yield Frame("role", say(index, {"delta": delta}, None))
        for index, choice in enumerate(answer.choices):
            if choice.call:
                opening = {"tool_calls": [{"index": 0, **_whole_call(choice.call, "")}]}
                yield Frame("token", say(index, {"delta": opening}, None))
    for at in range(max(len(choice.tokens) for choice in answer.choices)):
        for index, choice in enumerate(answer.choices):
            if at < len(choice.tokens):
                yield Frame("token", say(index, _piece(choice, choice.tokens[at], chat), None))
    for index, choice in enumerate(answer.choices):
        yield Frame("finish", say(index, {"delta": {}} if chat else {"text": ""}, choice.finish))
    if include_usage:
        yield Frame("usage", event([], {"usage": answer.usage}))
    yield Frame("done", DONE)


def error_event(message: str) -> bytes:
    return b"data: " + error_body(500, message, "server_error") + b"\n\n"


def _outer(answer: Answer, whole: bool) -> dict[str, Any]:
    name = "text_completion"
    if answer.kind == "chat":
        name = "chat.completion" if whole else "chat.completion.chunk"
    return {
        "id": answer.id,
        "object": name,
        "created": answer.created,
        "model": answer.model,
        "system_fingerprint": "fp_turnout_sim",
    }


def _piece(choice: Choice, token: str, chat: bool) -> dict[str, Any]:
    if not chat:
        return {"text": token}
    if choice.call:
        return {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": token}}]}}
    return {"delta": {"content": token}}


def _whole_call(call: Call, arguments: str) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
