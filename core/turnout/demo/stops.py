"""The stops of the tour. Each does one thing through the gateway, shows what came of it and
checks it: it returns a sentence about what was seen, or raises `Wrong`."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import httpx

from ..route.explain import show
from .screen import Screen

QUESTION = "What does a railway turnout do?"
OTHER_WORDS = "What does a railway turnout do, please?"
LOOK_ALIKE = "What does a railway turnout not do?"
# Counters reach the admin listener by way of other processes.
_METRICS_TIMEOUT_S = 5.0


class Wrong(Exception):
    """What was seen is not what should have been; the message says both."""


class Skipped(Exception):
    """This stop cannot be shown here; the message says why."""


class Visit:
    """What a stop works with."""

    def __init__(
        self,
        gateway: httpx.Client,
        admin_url: str | None,
        admin_key: str | None,
        controls: Mapping[str, str],
        screen: Screen,
    ) -> None:
        self.gateway = gateway  # has the base URL and the key
        self.admin_url = admin_url
        self.admin_key = admin_key
        self.controls = controls
        self.screen = screen
        self.asked = 0  # requests sent to the gateway so far
        self.said = ""  # the first stop's answer: a fallback has to give the same

    def ask(self, model: str, **more: Any) -> httpx.Response:
        """A plain chat request that has to succeed."""
        self.asked += 1
        answer = self.gateway.post("/v1/chat/completions", json=_body(model, **more))
        check(answer.status_code == 200, f"status {answer.status_code} instead of 200: {answer.text[:200]}")
        return answer

    @contextlib.contextmanager
    def faults(self, provider: str, *faults: dict[str, Any]) -> Iterator[None]:
        """The provider has these faults inside the block, none after it."""
        if provider not in self.controls:
            raise Skipped(f"there is no simulated provider {provider!r}")
        url = self.controls[provider] + "/__faults"
        self.gateway.post(url, json=list(faults), headers=_NOBODY).raise_for_status()
        try:
            yield
        finally:
            self.gateway.post(url, json=[], headers=_NOBODY).raise_for_status()

    def failures(self, provider: str) -> int:
        """How many of its requests the provider itself says it has failed."""
        stats = self.gateway.get(self.controls[provider] + "/__stats", headers=_NOBODY).json()
        return sum(stats["by_fault"].values())


# The client's key is for the gateway; a simulator's control paths take none.
_NOBODY = {"authorization": ""}


class Stop(NamedTuple):
    title: str
    aside: str
    run: Callable[[Visit], str]


def check(holds: bool, message: str) -> None:
    if not holds:
        raise Wrong(message)


def plain_chat(visit: Visit) -> str:
    started = time.perf_counter()
    answer = visit.ask("fast")
    took_ms = (time.perf_counter() - started) * 1000
    visit.said = _text(answer)
    visit.screen.row("answer", _snippet(visit.said))
    _show_way(visit.screen, answer)
    cost = answer.headers.get("x-turnout-cost-usd")
    overhead = _header(answer, "overhead-us")
    paid = f"${cost}" if cost else "no price known"
    visit.screen.row("cost", f"{paid}   took {took_ms:,.0f} ms, of which Turnout {overhead} us")
    _expect(answer, "route", "chat")
    _expect(answer, "attempts", "1")
    _expect(answer, "fallback", "none")
    return "one attempt, and the headers say where it went and what it cost"


def streamed_chat(visit: Visit) -> str:
    visit.asked += 1
    started = time.perf_counter()
    times: list[float] = []
    finish = ""
    done = False
    body = _body("fast", stream=True, stream_options={"include_usage": True})
    with visit.gateway.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise Wrong(f"status {answer.status_code} instead of 200: {answer.read()[:200]!r}")
        visit.screen.begin_live("answer")
        try:
            for event in _events(answer):
                done = event is None
                for choice in (event or {}).get("choices", ()):
                    finish = choice.get("finish_reason") or finish
                    if piece := choice["delta"].get("content"):
                        times.append(time.perf_counter())
                        visit.screen.live(piece)
        finally:
            visit.screen.end_live()
    check(len(times) > 1, "the stream had no text")
    check(finish == "stop" and done, f"the stream ended with finish_reason {finish!r}, [DONE] {done}")
    rate = (len(times) - 1) / max(times[-1] - times[0], 1e-9)
    ttft_ms = (times[0] - started) * 1000
    visit.screen.row("pace", f"first token after {ttft_ms:,.0f} ms, then {rate:,.0f} tokens/s")
    _show_way(visit.screen, answer)
    # As one block it would all come at the end: the gateway must not hold a stream back.
    spread_s = times[-1] - times[0]
    check(spread_s > 0.1, f"{len(times)} tokens came within {spread_s * 1000:.0f} ms: it was not streamed")
    return f"{len(times)} tokens, each passed on as it came"


def cut_over(visit: Visit) -> str:
    """A stream whose provider dies in the middle of it, and another one that goes on."""
    said, note, finish = "", "", ""
    with visit.faults("sim-a", {"kind": "cut", "after_tokens": 22, "count": 1}):
        visit.asked += 1
        with visit.gateway.stream("POST", "/v1/chat/completions", json=_body("fast", stream=True)) as answer:
            if answer.status_code != 200:
                raise Wrong(f"status {answer.status_code} instead of 200: {answer.read()[:200]!r}")
            visit.screen.begin_live("answer")
            try:
                for line in answer.iter_lines():
                    if line.startswith(": turnout cut-over"):
                        note = line[2:]
                        visit.screen.live(visit.screen.bold(" >> "))
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line[len("data: ") :])
                    check("error" not in event, f"an error inside the stream: {event.get('error')}")
                    for choice in event["choices"]:
                        finish = choice.get("finish_reason") or finish
                        if piece := choice["delta"].get("content"):
                            said += piece
                            visit.screen.live(piece)
            finally:
                visit.screen.end_live()
    visit.screen.row("in the stream", f": {note}")
    check(note.startswith("turnout cut-over sim-a>sim-b after="), f"the stream says {note!r} of a cut-over")
    check(finish == "stop", f"the stream ended with finish_reason {finish!r}")
    check(not visit.said or said == visit.said, "the joined text differs from the one sim-a gave whole")
    return "sim-a died at >>, sim-b went on, and the text is the one sim-a gave before, to the letter"


def fallback(visit: Visit) -> str:
    with visit.faults("sim-a", {"kind": "status", "status": 503}):
        before = visit.failures("sim-a")
        answer = visit.ask("fast")
        failed = visit.failures("sim-a") - before
    visit.screen.row("sim-a", f"answered 503 ({failed} by its own count)")
    visit.screen.row("client", f"saw 200 and {_snippet(_text(answer), 50)}")
    _show_way(visit.screen, answer)
    check(failed > 0, "sim-a was not asked at all")
    _expect(answer, "provider", "sim-b")
    went = _header(answer, "fallback")
    check(went.startswith("sim-a>sim-b;reason="), f"x-turnout-fallback is {went!r}, not sim-a>sim-b;reason=...")
    check(not visit.said or _text(answer) == visit.said, "the answer differs from sim-a's")
    return "the client noticed nothing, and the text is the one sim-a gave before"


def retry(visit: Visit) -> str:
    with visit.faults("sim-c", {"kind": "status", "status": 503, "count": 1}):
        before = visit.failures("sim-c")
        answer = visit.ask("solo")
        failed = visit.failures("sim-c") - before
    visit.screen.row("sim-c", f"answered 503 ({failed} by its own count), then worked")
    visit.screen.row("client", f"saw 200 and {_snippet(_text(answer), 50)}")
    _show_way(visit.screen, answer)
    check(failed == 1, f"sim-c failed {failed} times, not once")
    _expect(answer, "provider", "sim-c")
    _expect(answer, "attempts", "2")
    return "with nobody to fall back to, the same provider was asked once more"


def kept(visit: Visit) -> str:
    """The same question, the same in other words, and one that only looks alike."""
    outcomes = []
    texts = []
    for question in (QUESTION, QUESTION, OTHER_WORDS, LOOK_ALIKE):
        started = time.perf_counter()
        answer = visit.ask("kept", messages=[{"role": "user", "content": question}])
        took_ms = (time.perf_counter() - started) * 1000
        outcomes.append(_header(answer, "cache"))
        texts.append(_text(answer))
        label, _, detail = outcomes[-1].partition(";")
        visit.screen.row(label, f"{took_ms:7,.1f} ms   {question}   {detail}".rstrip())
        time.sleep(0.1)  # an answer is kept behind its end
    wanted = ["miss", "hit-exact", "hit-semantic", "miss"]
    check([said.partition(";")[0] for said in outcomes] == wanted, f"{outcomes} instead of {wanted}")
    check(texts[0] == texts[1] == texts[2], "a hit gave another answer than was kept")
    return "given again to the same question in any words, and not to one that looks alike"


def routing(visit: Visit) -> str:
    """What would become of a request now, and why."""
    if not visit.admin_url:
        raise Skipped("no admin listener")
    headers = {"authorization": f"Bearer {visit.admin_key}"} if visit.admin_key else _NOBODY
    found = visit.gateway.get(visit.admin_url + "/admin/routes/kept?model=kept", headers=headers).raise_for_status()
    (worker,) = found.json()["workers"]
    for line in show(worker).splitlines()[:8]:
        visit.screen.row("", line)
    check(worker.get("route") == "kept", f"explain speaks of {worker.get('route')!r}")
    return "GET /admin/routes/NAME tells what a request would do now, and why"


def metrics(visit: Visit) -> str:
    if not visit.admin_url:
        raise Skipped("no admin listener")
    give_up_at = time.monotonic() + _METRICS_TIMEOUT_S
    headers = {"authorization": f"Bearer {visit.admin_key}"} if visit.admin_key else _NOBODY
    while True:
        text = visit.gateway.get(visit.admin_url + "/metrics", headers=headers).raise_for_status().text
        totals = _counters(text)
        counted = max((value for name, value in totals.items() if "request" in name), default=0.0)
        if counted >= visit.asked or time.monotonic() > give_up_at:
            break
        time.sleep(0.1)
    for name, value in sorted(totals.items())[:8]:
        visit.screen.row("", f"{name:<44} {value:>14,.10g}")
    check(counted >= visit.asked, f"{visit.asked} requests were sent, /metrics counts {counted:g}")
    return f"/metrics knows of all {visit.asked} requests"


def _body(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": QUESTION}], **more}


def _text(answer: httpx.Response) -> str:
    text = answer.json()["choices"][0]["message"]["content"]
    check(isinstance(text, str) and text != "", "the answer has no text")
    return str(text)


def _snippet(text: str, length: int = 66) -> str:
    return '"' + (text if len(text) <= length else text[: length - 3].rstrip() + "...") + '"'


def _header(answer: httpx.Response, name: str) -> str:
    value = answer.headers.get(f"x-turnout-{name}")
    if value is None:
        raise Wrong(f"the response has no x-turnout-{name}")
    return str(value)


def _expect(answer: httpx.Response, name: str, wanted: str) -> None:
    value = _header(answer, name)
    check(value == wanted, f"x-turnout-{name} is {value!r}, not {wanted!r}")


def _show_way(screen: Screen, answer: httpx.Response) -> None:
    names = ("route", "provider", "attempts", "fallback")
    screen.row("x-turnout-*", "   ".join(f"{name} {_header(answer, name)}" for name in names))


def _events(answer: httpx.Response) -> Iterator[dict[str, Any] | None]:
    """The stream's JSON events, None for [DONE]. Raises Wrong at an error event."""
    for line in answer.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line[len("data:") :].strip()
        if data == "[DONE]":
            yield None
            continue
        event: dict[str, Any] = json.loads(data)
        check("error" not in event, f"an error inside the stream: {event.get('error')}")
        yield event


def _counters(text: str) -> dict[str, float]:
    """Prometheus text -> our counters that are not zero, each summed over its labels."""
    totals: dict[str, float] = {}
    for line in text.splitlines():
        sample, _, value = line.rpartition(" ")
        name = sample.partition("{")[0]
        if name.startswith("turnout_") and name.endswith("_total"):
            totals[name] = totals.get(name, 0.0) + float(value)
    return {name: value for name, value in totals.items() if value}
