"""Exchanges of every kind that have ended, for what is made of them afterwards."""

from typing import Any

import hypothesis.strategies as st

from turnout.exchange import Attempt, Cut, Exchange, Principal, Route, Saved, Surface, Trace, Usage

CHAT = Surface("chat", "/v1/chat/completions", "/chat/completions", ("messages",), True, "chat")
ROUTE: Any = Route(
    name="r", match="m", groups=(), policy=None, retries_max=2, budget=None, connect_ms=1, idle_ms=1, total_ms=1, max_body_bytes=1, header=(b"", b"")
)
TIMES = st.one_of(st.just(0), st.integers(0, 2**58), st.sampled_from([127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 100_000_000]))
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
USAGE = st.none() | st.builds(Usage, *[st.integers(0, 2**40)] * 5, st.booleans())
ATTEMPTS = st.builds(Attempt, TEXT, TEXT, TEXT, TEXT, *[TIMES] * 4, st.integers(0, 600), TEXT, USAGE, TIMES, st.booleans())
EXCHANGES = st.builds(
    Exchange, id=TEXT, surface=st.just(CHAT), started_ns=TIMES, wall_ns=st.integers(-(2**40), 2**63 - 1), config_version=st.integers(-70_000, 2**20),
    principal=st.none() | st.builds(Principal, TEXT, TEXT, TEXT), body=st.binary(max_size=40), model=st.text("ab", max_size=300), stream=st.booleans(),
    session=TEXT, tags=TEXT, prompt_version=TEXT, trace=st.none() | st.builds(Trace, TEXT, TEXT), route=st.none() | st.just(ROUTE),
    attempts=st.lists(ATTEMPTS, max_size=3), cuts=st.lists(st.builds(Cut, TEXT, TEXT, TIMES, TEXT, TEXT, TIMES), max_size=20),
    cache=st.sampled_from(["miss", "hit-exact", "bypass;n"]), saved=st.none() | st.builds(Saved, TEXT, TEXT, TIMES), guard=TEXT, admitted_ns=TIMES, parsed_ns=TIMES,
    routed_ns=TIMES, upstream_ns=TIMES, first_byte_ns=TIMES, first_content_ns=TIMES, head_ns=TIMES, ended_ns=TIMES, status=st.sampled_from([0, 200, 429, 502]),
    usage=USAGE, cost_nanos=TIMES, finish=TEXT, bytes_out=TIMES, chunks=st.integers(0, 5),
)  # fmt: skip
