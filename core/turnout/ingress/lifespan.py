"""The ASGI lifespan protocol."""

from collections.abc import Awaitable, Callable

from ..exchange import Receive, Send


async def lifespan(
    receive: Receive, send: Send, start: Callable[[], None] | None, stop: Callable[[], Awaitable[None]]
) -> None:
    """The ASGI lifespan protocol: `start` before the first request, `stop` once no new connection is taken."""
    while True:
        event = await receive()
        if event["type"] == "lifespan.startup":
            try:
                if start is not None:
                    start()
            except Exception as exc:
                await send({"type": "lifespan.startup.failed", "message": str(exc)})
                return
            await send({"type": "lifespan.startup.complete"})
        elif event["type"] == "lifespan.shutdown":
            await stop()
            await send({"type": "lifespan.shutdown.complete"})
            return
