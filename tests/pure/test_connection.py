"""The upstream connection over a scripted transport: framing, reuse, and what must never be reused."""

import asyncio
from typing import Any

import pytest

from support.transport import Transport
from turnout.errors import Fault
from turnout.upstream.client import Client, Connection
from turnout.upstream.connect import Origin

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture
def conn() -> Any:
    loop = asyncio.new_event_loop()
    client = Client(loop, lambda: 7)
    origin = Origin("http://127.0.0.1:9/v1", ca_bundle=None, proxy=None, max_idle=4)
    connection = Connection(client, origin)
    connection.connection_made(Transport())  # type: ignore[arg-type]
    yield connection
    loop.close()


def ask(conn: Any, whole: bool = True) -> Any:
    return conn._client.send(conn, [b"POST / HTTP/1.1\r\n\r\n"], whole, 1 << 20)


def test_a_whole_answer_gives_the_connection_back(conn: Any) -> None:
    call = ask(conn)
    conn.data_received(ANSWER)
    assert call.done
    assert (call.status, call.take_nowait(), call.media_type) == (200, b"{}", b"application/json")
    assert conn._client.checkout(conn.origin) is conn


@pytest.mark.parametrize("cut", range(1, len(ANSWER)))
def test_any_split_of_an_answer_is_the_same_answer(conn: Any, cut: int) -> None:
    call = ask(conn)
    conn.data_received(ANSWER[:cut])
    conn.data_received(ANSWER[cut:])
    assert call.done
    assert (call.status, call.take_nowait()) == (200, b"{}")


@pytest.mark.parametrize("extra", [ANSWER, ANSWER[:20], b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nsecret of another"])
def test_an_answer_nobody_asked_for_ends_the_connection(conn: Any, extra: bytes) -> None:
    call = ask(conn)
    conn.data_received(ANSWER + extra)
    assert call.take_nowait() == b"{}"
    assert conn._client.checkout(conn.origin) is None


def test_bytes_on_an_idle_connection_end_it(conn: Any) -> None:
    ask(conn)
    conn.data_received(ANSWER)
    conn.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert conn._client.checkout(conn.origin) is None


def test_an_interim_answer_is_not_the_answer(conn: Any) -> None:
    call = ask(conn)
    conn.data_received(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
    assert not call.done
    assert call.status == 0
    conn.data_received(ANSWER)
    assert call.done
    assert call.status == 200


def test_a_close_ends_an_answer_that_has_neither_length_nor_chunks(conn: Any) -> None:
    call = ask(conn)
    conn.data_received(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{}")
    assert not call.done
    conn.connection_lost(None)
    assert call.done
    assert call.take_nowait() == b"{}"


def test_a_close_in_the_middle_of_a_framed_answer_is_a_fault(conn: Any) -> None:
    call = ask(conn)
    conn.data_received(ANSWER[:-1])
    conn.connection_lost(None)
    assert not call.done
    assert isinstance(call.fault, Fault)
    assert (call.fault.kind, call.stale) == ("reset", False)


def test_a_reused_connection_that_was_closed_before_any_answer_is_stale(conn: Any) -> None:
    ask(conn)
    conn.data_received(ANSWER)
    again = conn._client.checkout(conn.origin)
    call = ask(again)
    again.connection_lost(None)
    assert call.stale


def test_garbage_is_a_protocol_fault(conn: Any) -> None:
    call = ask(conn)
    conn.data_received(b"SSH-2.0-OpenSSH\r\n")
    assert call.fault.kind == "protocol"
    assert conn.transport.closing


def test_an_answer_over_the_limit_is_refused(conn: Any) -> None:
    call = conn._client.send(conn, [b"x"], True, 10)
    conn.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n" + b"x" * 50)
    assert call.fault.kind == "answer_too_large"


def test_a_stream_nobody_reads_pauses_the_socket(conn: Any) -> None:
    call = ask(conn, whole=False)
    conn.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 300_000)
    assert conn.transport.paused
    assert len(call.take_nowait()) == 300_000
    assert not conn.transport.paused
