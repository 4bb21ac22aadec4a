"""An agent fleet against an OpenAI-compatible gateway: every answer is checked, and the run fails on its error rate.

    locust -f bench/load/locustfile.py --headless -u 50 -t 60s --host http://127.0.0.1:8080      (or: bench/load/run)

Three kinds of users, by their share of a fleet: agents (short turns with eight tools, over a conversation that grows),
readers of long streams, and makers of embeddings. The time to the first token of streams is an entry of its own, TTFT,
which does not count as a request. With --fault a share of the requests asks the simulated provider named by
--fault-provider to fail them, and must be served by another all the same.
"""

import json
import random
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

from geventhttpclient.response import HTTPParseError
from locust import FastHttpUser, between, events, task
from locust.argument_parser import LocustArgumentParser
from locust.contrib.fasthttp import ResponseContextManager
from locust.env import Environment
from locust.exception import ResponseError

# What is over before anything has been said, so that another provider can take it.
FAULTS = ("status=500", "status=503", "status=529", "status=429;retry_after_s=0.05", "reset", "refuse", "html")
MOST_MESSAGES = 15
TTFT = "TTFT"

SYSTEM = "You are a careful agent in a signal box. Look things up before you answer. " * 20
NAMES = ("find_train", "list_tracks", "set_turnout", "read_signal", "plan_route", "ask_driver", "write_log", "wait")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name.replace('_', ' ').capitalize()} at a station",
            "parameters": {
                "type": "object",
                "properties": {
                    "station": {"type": "string", "description": "name of the station"},
                    "platform": {"type": "integer", "minimum": 1, "maximum": 9},
                    "class": {"enum": ["first", "second"]},
                },
                "required": ["station", "platform", "class"],
            },
        },
    }
    for name in NAMES
]


class Wrong(ResponseError):
    """An answer that is not what it should be."""


def expect(holds: Any, what: str) -> None:
    if not holds:
        raise Wrong(what)


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    add = parser.add_argument
    add("--key", env_var="TURNOUT_LOAD_KEY", default="", is_secret=True, help="the gateway's key (or TURNOUT_LOAD_KEY)")
    add("--model", env_var="TURNOUT_LOAD_MODEL", default="fast", help="model of chats")
    add("--embed-model", env_var="TURNOUT_LOAD_EMBED_MODEL", default="embed", help="model of embeddings")
    add("--fault", action="store_true", help="let a share of the requests fail at one simulated provider")
    add("--fault-share", type=float, default=0.2, help="that share, 0 to 1")
    add("--fault-provider", default="sim-a", help="that provider; the gateway must have another for the same route")
    add("--most-failures", env_var="TURNOUT_LOAD_MOST_FAILURES", type=float, default=0.001, help="exit 1 above it")


class GatewayUser(FastHttpUser):
    """What all kinds have in common: a key, faults by the dice, answers under judgement."""

    abstract = True
    network_timeout = 60.0
    connection_timeout = 10.0

    def on_start(self) -> None:
        options: Namespace = self.environment.parsed_options
        self.options = options
        self.head = {"authorization": f"Bearer {options.key}"} if options.key else {}

    def ask(
        self,
        name: str,
        path: str,
        body: dict[str, Any],
        check: Callable[[ResponseContextManager], None],
        stream: bool = False,
    ) -> bool:
        """Sends the request and has its answer checked; whether all was well. What is not is counted as its failure."""
        faulty = self.options.fault and random.random() < self.options.fault_share
        if faulty:
            wish = {"turnout-fault": random.choice(FAULTS), "turnout-fault-provider": self.options.fault_provider}
            body = {**body, "metadata": wish}
            name += ", faulty"
        started = time.perf_counter()
        with self.client.request(
            "POST", path, name=name, json=body, headers=self.head, catch_response=True, stream=stream
        ) as answer:
            try:
                if answer.status_code != 200:
                    why = (answer.text or "")[:200] if answer.status_code else repr(getattr(answer, "error", ""))
                    raise Wrong(f"status {answer.status_code}: {why}")
                if faulty:
                    served = answer.headers.get("x-turnout-provider")
                    expect(served != self.options.fault_provider, "served by the provider that was to fail it")
                check(answer)
                answer.success()
            except Wrong as wrong:
                answer.failure(wrong)
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                answer.failure(Wrong(f"not an answer: {type(error).__name__}: {error}"))
            except (OSError, HTTPParseError) as error:
                answer.failure(Wrong(f"broke off: {type(error).__name__}"))
            answer.request_meta["response_time"] = (time.perf_counter() - started) * 1000
        return answer.request_meta["exception"] is None


class Agent(GatewayUser):
    """Short turns one after the other: the user asks, the model calls a tool, its result goes back, the model says."""

    weight = 8
    wait_time = between(0.02, 0.2)

    def on_start(self) -> None:
        super().on_start()
        self.messages: list[dict[str, Any]] = []

    @task
    def turn(self) -> None:
        messages = self.messages
        if not messages or len(messages) >= MOST_MESSAGES:
            messages = self.messages = [{"role": "system", "content": SYSTEM}]
        if messages[-1]["role"] != "tool":
            number = random.randrange(10_000)
            messages.append({"role": "user", "content": f"Where does train {number} stand, and who has to know?"})
        want = NAMES[len(messages) % len(NAMES)]
        choice = {"type": "function", "function": {"name": want}}
        body = {"model": self.options.model, "messages": messages, "tools": TOOLS, "max_tokens": 60}
        if messages[-1]["role"] == "user":
            body["tool_choice"] = choice
        if not self.ask("agent turn", "/v1/chat/completions", body, lambda answer: self.follow(answer.json(), want)):
            self.messages = []

    def follow(self, got: dict[str, Any], want: str) -> None:
        """Checks the answer and takes it into the conversation."""
        usage, choice = got["usage"], got["choices"][0]
        expect(got["object"] == "chat.completion", "not a chat completion")
        expect(usage["prompt_tokens"] > 0 and usage["completion_tokens"] > 0, f"usage {usage}")
        expect(usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"], f"usage {usage}")
        said, calls = choice["message"], choice["message"].get("tool_calls")
        if self.messages[-1]["role"] == "user":
            expect(calls and choice["finish_reason"] == "tool_calls", f"no tool call: {choice['finish_reason']}")
            call = calls[0]["function"]
            expect(call["name"] == want, f"called {call['name']} instead of {want}")
            expect("station" in json.loads(call["arguments"]), "arguments without a station")
            result = json.dumps({"rows": [f"track {n} is free" for n in range(random.randrange(1, 12))]})
            self.messages += [said, {"role": "tool", "tool_call_id": calls[0]["id"], "content": result}]
        else:
            expect(choice["finish_reason"] in ("stop", "length") and said["content"], "no text")
            self.messages.append(said)


class Reader(GatewayUser):
    """Long streams, read to the end."""

    weight = 2
    wait_time = between(0.1, 0.5)

    @task
    def read(self) -> None:
        ask_usage = random.random() < 0.5
        prompt = f"Tell the history of line {random.randrange(10_000)}, with all of its turnouts."
        body = {"model": self.options.model, "stream": True, "messages": [{"role": "user", "content": prompt}]}
        if ask_usage:
            body["stream_options"] = {"include_usage": True}
        started = time.perf_counter()
        first_s = 0.0

        def check(answer: ResponseContextManager) -> None:
            nonlocal first_s
            pieces, usage, finish, last = 0, False, "", ""
            ids: set[str] = set()
            for data in self.data_lines(answer):
                expect(last != "[DONE]", "data after [DONE]")
                last = data
                if data == "[DONE]":
                    continue
                chunk = json.loads(data)
                expect("error" not in chunk, f"error in the stream: {data[:200]}")
                ids.add(chunk["id"])
                usage = usage or bool(chunk.get("usage"))
                for choice in chunk["choices"]:
                    finish = choice.get("finish_reason") or finish
                    if choice["delta"].get("content"):
                        pieces += 1
                        first_s = first_s or time.perf_counter() - started
            expect(last == "[DONE]", "the stream ended without [DONE]")
            expect(finish == "stop", f"finish_reason {finish!r}")
            expect(pieces > 1 and len(ids) == 1, f"{pieces} pieces of text, {len(ids)} ids")
            expect(usage == ask_usage, f"usage {'came unasked' if usage else 'did not come'}")

        if self.ask("long stream", "/v1/chat/completions", body, check, stream=True):
            self.environment.events.request.fire(
                request_type=TTFT, name=TTFT, response_time=first_s * 1000, response_length=0, exception=None, context={}
            )

    @staticmethod
    def data_lines(answer: ResponseContextManager) -> Iterator[str]:
        """The data of each event. A connection that breaks raises, other than with locust's own iter_content."""
        while line := answer.stream.readline(b"\n"):
            if line.startswith(b"data:"):
                yield line[5:].strip().decode()


class Embedder(GatewayUser):
    weight = 1
    wait_time = between(0.05, 0.3)

    @task
    def embed(self) -> None:
        texts = [f"Signal {random.randrange(10_000)} shows caution." for _ in range(random.randrange(1, 9))]
        body = {"model": self.options.embed_model, "input": texts}

        def check(answer: ResponseContextManager) -> None:
            got = answer.json()
            sizes = {len(row["embedding"]) for row in got["data"]}
            expect([row["index"] for row in got["data"]] == list(range(len(texts))), "vectors missing or out of order")
            expect(len(sizes) == 1 and sizes.pop() > 0, "vectors of different sizes")
            expect(got["usage"]["prompt_tokens"] > 0, "no usage")

        self.ask("embeddings", "/v1/embeddings", body, check)


# What users raise that is no request's failure (a mistake in this file): it must not pass for a success.
_raised = 0


@events.user_error.add_listener
def count_errors(**_: Any) -> None:
    global _raised
    _raised += 1


@events.quitting.add_listener
def judge(environment: Environment, **_: Any) -> None:
    """Says how it went in one line and sets the exit code."""
    entries = [entry for entry in environment.stats.entries.values() if entry.method != TTFT]
    asked = sum(entry.num_requests for entry in entries)
    failed = sum(entry.num_failures for entry in entries)
    first = environment.stats.get(TTFT, TTFT)
    share = failed / asked if asked else 1.0
    bad = not asked or share > environment.parsed_options.most_failures or _raised > 0
    environment.process_exit_code = int(bad)
    print(
        f"load: {asked} requests, {failed} failed ({share:.3%}), {_raised} errors in users, {first.num_requests} streams"
        f" with a TTFT of {first.get_response_time_percentile(0.5):.0f} ms at p50,"
        f" {first.get_response_time_percentile(0.99):.0f} ms at p99: {'FAILED' if bad else 'ok'}",
        flush=True,
    )
