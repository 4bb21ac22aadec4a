"""Fault servers, and requests sent and followed byte by byte."""

import json
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from faults.server import FaultServer
from support.gateway import KEY, PATIENCE_S, Gateway

MODEL = "gpt-4o-mini"  # in the price table
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def a() -> Iterator[FaultServer]:
    """The server that fails."""
    with FaultServer() as server:
        yield server


@pytest.fixture(scope="module")
def b() -> Iterator[FaultServer]:
    """The one that does not."""
    with FaultServer() as server:
        yield server


def slug(fault: str) -> str:
    """A fault's spelling as a name of a provider or model."""
    return "".join(c if c.isalnum() else "-" for c in fault)


def body(model: str, stream: bool = False, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": MESSAGES, **({"stream": True} if stream else {}), **more}


def ask(client: httpx.Client, model: str, stream: bool = False, **more: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json=body(model, stream, **more))


def text_of(answer: httpx.Response) -> str:
    """What the answer says, of a plain one or of a stream."""
    if answer.headers["content-type"].startswith("application/json"):
        return str(answer.json()["choices"][0]["message"]["content"])
    return said(answer.content)


def said(stream: bytes) -> str:
    """The text of a stream's events."""
    out = ""
    for event in stream.split(b"\n\n"):
        if event.startswith(b"data: {"):
            for choice in json.loads(event[6:]).get("choices", []):
                out += choice["delta"].get("content") or ""
    return out


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error object, checked to have OpenAI's shape."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return dict(error)


class Wire:
    """A client on a raw socket: sees every byte of the answer and how the connection ends."""

    def __init__(self, gateway: Gateway, data: dict[str, Any], recv_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if recv_buffer:  # before connecting, or it does not bind the window
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, recv_buffer)
        self.socket.connect((gateway.host, gateway.port))
        self.socket.settimeout(PATIENCE_S)
        raw = json.dumps(data).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {gateway.host}\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        self.socket.sendall(head.encode() + raw)
        self.data = b""
        self.ended = ""  # how: fin or reset

    def read_until(self, wanted: bytes, seconds: float = PATIENCE_S) -> bytes:
        """Read until `wanted` is there. Fails at the end of the connection or of the time."""
        end = time.monotonic() + seconds
        while wanted not in self.data:
            assert time.monotonic() < end, self.data[-500:]
            piece = self.socket.recv(65536)
            assert piece, self.data[-500:]
            self.data += piece
        return self.data

    def read_to_end(self, seconds: float = PATIENCE_S) -> bytes:
        """All bytes until the other side ends the connection."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                piece = self.socket.recv(65536)
            except ConnectionResetError:
                self.ended = "reset"
                break
            if not piece:
                self.ended = "fin"
                break
            self.data += piece
        assert self.ended, f"still open after {seconds} s: {self.data[-300:]!r}"
        return self.data

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0]

    @property
    def status(self) -> int:
        return int(self.data.split(b" ", 2)[1])

    def header(self, name: str) -> str:
        for line in self.head.decode().split("\r\n")[1:]:
            key, _, value = line.partition(": ")
            if key.lower() == name:
                return value
        return ""

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()


def dechunk(data: bytes) -> bytes:
    """The body out of chunked framing, as far as it goes."""
    out = b""
    while b"\r\n" in data:
        size, _, data = data.partition(b"\r\n")
        n = int(size, 16)
        if not n:
            break
        out += data[:n]
        data = data[n + 2 :]
    return out
