"""A lane on a wire that the test holds in its hands: deadlines, order, bounds, the breaker."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from random import Random

from turnout.state.lane import BUSY, DOWN, LATE, MOST_WAITING, STALLED, Lane, Reply, Wrong, pack
from turnout.state.seal import seal, unseal

OPERATION_S = 0.05


class Wire:
    """Replies come when the test says so."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.replies: asyncio.Queue[Reply | Wrong] = asyncio.Queue()
        self.closed = False

    async def send(self, data: bytes) -> Wrong | None:
        self.sent.append(data)
        return None

    async def receive(self) -> Reply | Wrong:
        return await self.replies.get()

    async def close(self) -> None:
        self.closed = True


class Setting:
    def __init__(self) -> None:
        self.wires: list[Wire] = []
        self.refuse = False
        self.counted: list[str] = []
        self.lane = Lane(self._dial, OPERATION_S, Random(1), self.counted.append)

    async def _dial(self) -> Wire | Wrong:
        if self.refuse:
            return Wrong("connect")
        self.wires.append(Wire())
        return self.wires[-1]

    async def up(self) -> None:
        async with asyncio.timeout(10):
            while not self.lane.up:
                await asyncio.sleep(0.001)


def on_a_lane(test: Callable[[Setting], Awaitable[None]]) -> None:
    async def run() -> None:
        setting = Setting()
        try:
            await setting.up()
            await test(setting)
        finally:
            await setting.lane.close()
        assert all(wire.closed for wire in setting.wires)
        assert setting.lane.ask(b"x").result() == DOWN

    asyncio.run(run())


def test_questions_of_one_turn_go_out_together_and_replies_come_in_their_order() -> None:
    async def test(s: Setting) -> None:
        asked = [s.lane.ask(b"%d" % i) for i in range(5)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert s.wires[0].sent == [b"01234"]
        for reply in (b"a", None, 3, [b"x"], Wrong("type")):
            s.wires[0].replies.put_nowait(reply)
        assert await asyncio.gather(*asked) == [b"a", None, 3, [b"x"], Wrong("type")]
        assert s.lane.up

    on_a_lane(test)


def test_a_reply_that_is_late_goes_to_nobody_else() -> None:
    async def test(s: Setting) -> None:
        late = s.lane.ask(b"a")
        assert await late == LATE
        next_ = s.lane.ask(b"b")
        s.wires[0].replies.put_nowait(b"for a")
        s.wires[0].replies.put_nowait(b"for b")
        assert await next_ == b"for b"
        assert s.lane.up
        assert s.lane.opens == 0

    on_a_lane(test)


def test_what_our_own_loop_was_too_busy_to_read_in_time_is_not_late() -> None:
    """As with a socket, what came meanwhile is seen when the loop turns again, and by its reader a turn later."""

    async def test(s: Setting) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(2 * STALLED):
            asked = s.lane.ask(b"a")
            time.sleep(2 * OPERATION_S)  # before it could be written
            await asyncio.sleep(0)
            loop.call_soon(loop.call_soon, s.wires[0].replies.put_nowait, b"x")
            time.sleep(2 * OPERATION_S)  # and before it could be read
            assert await asked == b"x"
        assert s.lane.opens == 0

    on_a_lane(test)


def test_when_nothing_comes_the_breaker_opens_and_whoever_asks_then_is_answered_at_once() -> None:
    async def test(s: Setting) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        s.refuse = True
        while s.lane.up:
            assert await s.lane.ask(b"a") in (LATE, Wrong("timeout"))
        assert loop.time() - began < (STALLED + 3) * OPERATION_S
        asked = s.lane.ask(b"b")
        assert asked.done()
        assert asked.result() == DOWN
        assert s.lane.opens == 1
        while "connect" not in s.counted:
            await asyncio.sleep(0.001)
        assert s.counted[0] == "timeout"
        s.refuse = False
        await s.up()
        asked = s.lane.ask(b"c")
        s.wires[1].replies.put_nowait(b"d")
        assert await asked == b"d"

    on_a_lane(test)


def test_whoever_waits_when_the_connection_breaks_is_told_at_once() -> None:
    async def test(s: Setting) -> None:
        asked = [s.lane.ask(b"a") for _ in range(3)]
        s.wires[0].replies.put_nowait(b"x")
        s.wires[0].replies.put_nowait(Wrong("loading", broken=True))
        assert await asyncio.gather(*asked) == [b"x", Wrong("loading"), Wrong("loading")]
        assert not s.lane.up
        await s.up()
        assert s.counted == ["loading"]

    on_a_lane(test)


def test_a_reply_that_nobody_asked_for_breaks_the_connection() -> None:
    async def test(s: Setting) -> None:
        s.wires[0].replies.put_nowait(b"?")
        while s.lane.up:
            await asyncio.sleep(0.001)
        assert s.counted == ["garbage"]

    on_a_lane(test)


def test_what_waits_is_bounded() -> None:
    async def test(s: Setting) -> None:
        asked = [s.lane.ask(b"a") for _ in range(MOST_WAITING + 10)]
        assert [future.done() for future in asked] == [False] * MOST_WAITING + [True] * 10
        assert asked[-1].result() == BUSY
        for _ in range(MOST_WAITING):
            s.wires[0].replies.put_nowait(b"x")
        assert await asyncio.gather(*asked[:MOST_WAITING]) == [b"x"] * MOST_WAITING

    on_a_lane(test)


def test_it_dials_anew_for_a_reason_but_not_all_the_time() -> None:
    async def test(s: Setting) -> None:
        for _ in range(3):
            s.lane.renew("readonly")
        while s.lane.up:
            await asyncio.sleep(0.001)
        await s.up()
        s.lane.renew("readonly")
        await asyncio.sleep(0.05)
        assert s.lane.up
        assert len(s.wires) == 2
        assert s.counted == ["readonly"]

    on_a_lane(test)


def test_a_command_is_packed_as_the_protocol_says() -> None:
    assert pack((b"SET", b"k\r\n", b"")) == b"*3\r\n$3\r\nSET\r\n$3\r\nk\r\n\r\n$0\r\n\r\n"


def test_a_sealed_value_is_one_name_s() -> None:
    sealed = seal(b"name", b"value")
    assert unseal(b"name", sealed) == b"value"
    assert unseal(b"other", sealed) is None
    assert unseal(b"name", sealed + b"x") is None
    assert all(unseal(b"name", sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :]) is None for i in range(len(sealed)))
    assert unseal(b"name", None) is None
