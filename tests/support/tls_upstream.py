"""An upstream that speaks TLS, in a process of its own: `python tls_upstream.py CERT KEY`.

Prints its port. Answers each request with `{"resumed": whether the session was}`; `connection: close` as asked for.
Goes on until its stdin ends.
"""

import asyncio
import contextlib
import os
import ssl
import sys

import uvloop


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            secure = writer.get_extra_info("ssl_object")
            body = b'{"resumed": true}' if secure.session_reused else b'{"resumed": false}'
            close = b"/close" in head
            line = b"connection: close\r\n" if close else b""
            writer.write(b"HTTP/1.1 200 OK\r\n%scontent-length: %d\r\n\r\n%s" % (line, len(body), body))
            if close:
                break
    writer.close()


async def main() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)


uvloop.run(main())
