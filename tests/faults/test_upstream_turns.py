"""Faults that need an exact order of events within one turn of the loop, over a scripted transport."""

import asyncio
from typing import Any

import msgspec
import pytest

from support.transport import Transport
from turnout.errors import Fault
from turnout.exchange import Exchange, Surface
from turnout.stream.reader import StreamReader
from turnout.stream.relay import Relay
from turnout.upstream.attempt import event_fault
from turnout.upstream.client import HIGH_WATER, MOST_HEAD_BYTES, Client, Connection
from turnout.upstream.connect import Origin

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHAT = Surface("chat", "/v1/chat/completions", "/chat/completions", ("messages",), True, "chat")


class Full:
    """A client whose connection has no room: it takes nothing without being waited for."""

    def __init__(self) -> None:
        self.got = b""

    def push(self, data: bytes) -> bool:
        return False

    async def send(self, data: bytes, more: bool) -> None:
        self.got += data


def connection() -> Any:
    client = Client(asyncio.get_running_loop(), lambda: 7)
    made = Connection(client, Origin("http://127.0.0.1:9/v1", ca_bundle=None, proxy=None, max_idle=4))
    made.connection_made(Transport())  # type: ignore[arg-type]
    return made


def ask(conn: Any, whole: bool) -> Any:
    return conn._client.send(conn, [b"POST / HTTP/1.1\r\n\r\n"], whole, 1 << 20)


def event(content: str | None, finish: str | None = None) -> bytes:
    delta = {} if content is None else {"content": content}
    data = (
        b"data: " + msgspec.json.encode({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}) + b"\n\n"
    )
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.mark.parametrize("finish", [None, "stop"])
def test_what_came_right_before_a_break_reaches_a_client_that_had_no_room(finish: str | None) -> None:
    """The last bytes and the reset in one turn: no text is lost, and no finish is claimed that was not handed on."""

    async def run() -> None:
        conn = connection()
        call = ask(conn, whole=False)
        x = Exchange(id="x", surface=CHAT, started_ns=1, wall_ns=1, config_version=1, stream=True)
        relay = Relay(call, StreamReader(False, event_fault), lambda: 7)
        conn.data_received(HEAD + event("one "))
        await relay.commit()
        full = Full()
        task = asyncio.ensure_future(relay.run(x, full))
        await asyncio.sleep(0)
        conn.data_received(event("two ", finish))
        conn.connection_lost(ConnectionResetError())
        fault = await task
        assert b"one " in full.got
        assert b"two " in full.got
        assert (fault is None) == (finish is not None)

    asyncio.run(run())


def test_an_error_body_larger_than_a_stream_may_hold_is_read_on() -> None:
    async def run() -> None:
        conn = connection()
        call = ask(conn, whole=False)
        size = HIGH_WATER + 100_000
        conn.data_received(b"HTTP/1.1 500 No\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % size)
        conn.data_received(b"x" * (HIGH_WATER + 1))
        assert conn.transport.paused
        waiting = asyncio.ensure_future(call.wait_whole(1 << 20))
        await asyncio.sleep(0)
        assert not conn.transport.paused
        conn.data_received(b"x" * (size - HIGH_WATER - 1))
        assert len(await waiting) == size

    asyncio.run(run())


@pytest.mark.parametrize("behind", [b"nonsense", b"\x00\x01", b"HTTP/9.9 what\r\n\r\n"])
def test_nonsense_behind_a_whole_answer_spoils_the_connection_and_not_the_answer(behind: bytes) -> None:
    async def run() -> None:
        conn = connection()
        call = ask(conn, whole=True)
        waiting = asyncio.ensure_future(call.wait_whole())
        await asyncio.sleep(0)
        conn.data_received(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}" + behind)
        assert await asyncio.wait_for(waiting, 1) == b"{}"
        assert conn._client.checkout(conn.origin) is None

    asyncio.run(run())


def test_a_switch_of_protocols_is_a_fault_and_no_exception_of_the_loops() -> None:
    async def run() -> None:
        conn = connection()
        call = ask(conn, whole=True)
        conn.data_received(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n\x00")
        assert isinstance(call.fault, Fault)
        assert call.fault.kind == "protocol"
        assert conn.transport.closing

    asyncio.run(run())


def test_a_head_without_an_end_is_given_up() -> None:
    async def run() -> None:
        conn = connection()
        call = ask(conn, whole=False)
        conn.data_received(b"HTTP/1.1 200 OK\r\nx-filler: ")
        for _ in range(MOST_HEAD_BYTES // 65536 + 1):
            assert call.fault is None
            conn.data_received(b"f" * 65536)
            if call.fault is not None:
                break
        assert call.fault is not None
        assert call.fault.kind == "protocol"

    asyncio.run(run())


def test_heads_that_come_in_pieces_do_not_add_up_over_a_connections_life() -> None:
    async def run() -> None:
        conn = connection()
        filler = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-filler: " + b"f" * (MOST_HEAD_BYTES // 3)
        for _ in range(10):
            call = ask(conn, whole=True)
            conn.data_received(filler)
            conn.data_received(b"\r\ncontent-length: 2\r\n\r\n{}")
            assert call.fault is None
            assert call.done
            assert conn._client.checkout(conn.origin) is conn

    asyncio.run(run())
