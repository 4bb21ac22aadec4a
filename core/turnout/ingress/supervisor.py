"""The process that keeps the others running: workers, recorder, simulated providers, admin listener.

It owns what must outlive a worker: the listening sockets (one per worker slot with SO_REUSEPORT, so that what waits in
an accept queue is not lost when a worker dies), the rings, the config and its number, and the counters of workers that
have gone. It serves no request itself.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from random import Random
from typing import Any
from urllib.parse import urlsplit

import msgspec

from .. import native
from ..config.live import Live, Watch
from ..config.load import Loaded
from ..state import table
from ..state.launch import StateProcess
from ..state.remote import Remote
from ..telemetry import metrics
from ..telemetry.ring import Ring
from ..upstream.providers.simulated import SimulatedSpec
from ..upstream.simulator.launch import Simulator
from . import control
from .admin import Admin
from .listeners import open_listeners
from .sharing import Sharing

Say = Callable[[str], None]
RESTART_S = 0.2  # pause before a worker that died is started again; doubles up to RESTART_MAX_S while it keeps dying
RESTART_MAX_S = 5.0
POLL_S = 1.0  # how often workers are asked for their counters, so that little is lost with one that is killed
START_S = 20.0


class Slot:
    """One worker: its listening socket and ring for good, its process for now."""

    def __init__(self, number: int, listener: socket.socket) -> None:
        self.number = number
        self.listener = listener
        self.ring_fd = os.memfd_create(f"turnout-ring-{number}")
        self.ring = Ring(self.ring_fd)
        self.process: subprocess.Popen[bytes] | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.ready = asyncio.Event()
        self.gone: metrics.Snapshot = {}  # counters of its earlier processes
        self.last: metrics.Snapshot = {}  # as its process last said
        self.answers: dict[int, asyncio.Future[Any]] = {}
        self.restarts = 0
        self.applied = 0


class Supervisor:
    """Runs until `stop()`. `say` gets one line for a person at a time."""

    def __init__(
        self, load: Callable[[], Loaded], *, engine: str, dev: bool, say: Say, path: str | None = None
    ) -> None:
        """`path`: the file that `load` reads, to be watched for changes. Raises ConfigError."""
        self._live = Live(load)
        self._path = path
        self._watch = Watch.over(path, self._live.current) if path else None
        self._engine = engine
        self._dev = dev
        self.say = say
        self.slots: list[Slot] = []
        self.port = 0
        self.admin: Admin | None = None
        self.simulators: dict[str, str] = {}
        self._simulator: Simulator | None = None
        self._simulated = b"{}"  # the specs it was started with
        self._recorder: subprocess.Popen[bytes] | None = None
        self._counters_fd = table.memory()  # what workers count together outlives each of them
        self._state: StateProcess | None = None  # where they have no shared memory
        self._board: StateProcess | None = None  # what they keep for each other, where a route has a cache
        self.sharing: Sharing | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._forced = False
        self._numbers = iter(range(1, 1 << 62))

    @property
    def loaded(self) -> Loaded:
        return self._live.current

    @property
    def version(self) -> int:
        return self._live.version

    # ---- life

    async def start(self) -> None:
        """Open sockets, start all processes, return when every worker is ready."""
        config = self.loaded.config
        control.raise_file_limit()
        control.schedule_in_turns()
        self._start_simulators()
        listeners = open_listeners(config.listen.host, config.listen.port, config.listen.workers, config.listen.backlog)
        self.port = listeners[0].getsockname()[1]
        self.slots = [Slot(i, listener) for i, listener in enumerate(listeners)]
        self._start_recorder()
        if (len(self.slots) > 1 or config.state.redis) and not native.shares:
            self._state = StateProcess()
        self._start_sharing()
        for slot in self.slots:
            self._spawn(slot)
        self.admin = Admin(self)
        await self.admin.start(config.admin)
        try:
            async with asyncio.timeout(START_S):
                for slot in self.slots:
                    await slot.ready.wait()
        except TimeoutError:
            raise RuntimeError("a worker did not start in time") from None
        self._tasks.append(asyncio.create_task(self._poll()))

    async def run(self) -> None:
        """Serve until asked to stop, then drain."""
        await self._stopping.wait()
        await self._shut_down()

    def stop(self) -> None:
        """Ask for a graceful end; a second time: at once."""
        if self._stopping.is_set():
            self._forced = True
        self._stopping.set()

    def reload(self) -> bool:
        """Read the config again: all of it is taken, or none. Returns whether the file was good."""
        old = self.loaded.config
        swap = self._live.reload()
        if swap.error is not None:
            self.say(f"config refused, version {self.version} stays in force:\n{swap.why}")
            return False
        if swap.changed:
            if self._path:  # the new config may take secrets from other files
                self._watch = Watch.over(self._path, self.loaded)
            self._start_simulators()
            self._start_sharing()
            for slot in self.slots:
                self._send(slot, "config", self._config_message())
            self._settings()
            self.say(f"config version {self.version} ({self.loaded.digest}) in force")
            if self._engine == "granian" and old.listen.tls and self.loaded.config.listen.tls != old.listen.tls:
                self.say("warning: listen.tls: changed: engine granian takes it over at the next start")
        for problem in swap.warnings:
            self.say(f"warning: {problem}")
        return True

    async def _shut_down(self) -> None:
        drain_s = self.loaded.config.listen.drain_s
        live = [slot for slot in self.slots if slot.process is not None and slot.process.poll() is None]
        self.say(f"stopping: live requests have {drain_s:g} s to finish")
        for slot in self.slots:
            slot.listener.close()
        for slot in live:
            self._send(slot, "drain", drain_s)
        end = asyncio.get_running_loop().time() + drain_s + 5.0
        while any(s.process is not None and s.process.poll() is None for s in live):
            if self._forced or asyncio.get_running_loop().time() > end:
                break
            await asyncio.sleep(0.02)
        for task in self._tasks:
            task.cancel()
        for slot in live:
            if slot.process is not None and slot.process.poll() is None:
                slot.process.kill()
            if slot.process is not None:
                slot.process.wait()
        if self.sharing is not None:
            await self.sharing.stop()
        if self.admin is not None:
            await self.admin.stop()
        if self._recorder is not None and self._recorder.stdin is not None:
            self._recorder.stdin.close()  # it drains the rings, flushes and ends
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._recorder.wait, 10)
            if self._recorder.poll() is None:
                self._recorder.kill()
                self._recorder.wait()
        for helper in (self._state, self._board):
            if helper is not None:
                helper.stop()
        if self._simulator is not None:
            self._simulator.stop()

    # ---- workers

    def _spawn(self, slot: Slot) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        fds = (theirs.fileno(), slot.listener.fileno(), slot.ring_fd, self._counters_fd)
        slot.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "turnout.worker", *map(str, fds), str(slot.number), str(os.getpid())],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            env=control.child_environment(),
        )
        theirs.close()
        slot.ready.clear()
        self._tasks.append(asyncio.create_task(self._attend(slot, ours, slot.process)))

    async def _attend(self, slot: Slot, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
        """Talk with one worker process until it ends; start the next one unless we are stopping."""
        reader, writer = await asyncio.open_connection(sock=sock)
        slot.writer = writer
        self._send(slot, "config", self._config_message())
        try:
            while True:
                kind, value = await control.receive(reader)
                if kind == "ready":
                    slot.applied = self.version
                    slot.ready.set()
                elif kind in ("metrics", "answer"):
                    if kind == "metrics":
                        slot.last = metrics.decode(value[1])
                    answer = slot.answers.pop(value[0], None)
                    if answer is not None and not answer.done():
                        answer.set_result(value[1])
                elif kind == "applied":
                    slot.applied = value
                elif kind == "news":
                    for other in self.slots:
                        if other is not slot:
                            self._send(other, kind, value)
                elif kind in ("failed", "note"):
                    self.say(f"worker {slot.number}: {value}")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            slot.writer = None
        slot.gone = metrics.add((slot.gone, metrics.counters_only(slot.last)))
        slot.last = {}
        for answer in slot.answers.values():
            answer.cancel()
        slot.answers.clear()
        code = await asyncio.to_thread(process.wait)
        if self._stopping.is_set():
            return
        was_ready = slot.ready.is_set()
        slot.restarts += 1
        pause = RESTART_S if was_ready else min(RESTART_MAX_S, RESTART_S * 2 ** min(slot.restarts, 6))
        self.say(f"worker {slot.number} ended with code {code}; starting it again")
        await asyncio.sleep(pause)
        if not self._stopping.is_set():
            self._spawn(slot)

    def _send(self, slot: Slot, kind: str, value: Any) -> None:
        if slot.writer is not None and not slot.writer.is_closing():
            slot.writer.write(control.pack(kind, value))

    def _config_message(self) -> dict[str, Any]:
        loaded = self.loaded
        return {
            "version": self.version,
            "data": loaded.data,
            "secrets": loaded.secrets,
            "dev": self._dev,
            "engine": self._engine,
            "simulators": self.simulators,
            "state": self._state.address if self._state is not None else b"",
            "board": self._board.address if self._board is not None else b"",
        }

    # ---- metrics

    async def ask(self, kind: str, value: Any, wait_s: float = 1.0) -> dict[int, Any]:
        """Every worker's answer to a question, by its number."""
        number = next(self._numbers)
        asked: dict[int, asyncio.Future[Any]] = {}
        for slot in self.slots:
            if slot.writer is not None and slot.ready.is_set():
                asked[slot.number] = slot.answers[number] = asyncio.get_running_loop().create_future()
                self._send(slot, kind, [number, value])
        if asked:
            await asyncio.wait(asked.values(), timeout=wait_s)
        for slot in self.slots:
            slot.answers.pop(number, None)
        return {n: f.result() for n, f in asked.items() if f.done() and not f.cancelled()}

    async def snapshot(self, wait_s: float = 1.0) -> metrics.Snapshot:
        """The sum over all workers, those that have gone included."""
        await self.ask("metrics", None, wait_s)  # each answer is its slot's `last` too
        total = metrics.add(part for slot in self.slots for part in (slot.gone, slot.last))
        total["turnout_worker_restarts_total"] = {(): sum(slot.restarts for slot in self.slots)}
        if self.sharing is not None:
            total = metrics.add((total, self.sharing.snapshot()))
        total["turnout_config_version"] = {(): self.version}
        resident: dict[metrics.Labels, float | list[float]] = {}
        for slot in self.slots:
            if slot.process is not None:
                with contextlib.suppress(OSError), open(f"/proc/{slot.process.pid}/statm", encoding="ascii") as file:
                    resident[(str(slot.number),)] = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
        total["turnout_worker_resident_bytes"] = resident
        return total

    async def _poll(self) -> None:
        """Once a second: fetch counters, look at the config file and at the recorder."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.snapshot()
            if self._watch is not None and self._watch.has_changed():
                self.reload()
            if self._recorder is not None and self._recorder.poll() is not None and not self._stopping.is_set():
                self.say("the recorder ended; starting it again (its rings kept what was waiting)")
                self._start_recorder()
            if self._state is not None and self._state.restarted():
                self.say("the state process ended; started it again (what workers count together begins anew)")
            if self._board is not None and self._board.restarted():
                self.say("the board ended; started it again (what workers keep for each other begins anew)")

    # ---- the other processes

    def _start_sharing(self) -> None:
        """What was learned of targets goes out to other hosts and to disk, from the config in force; workers get a board."""
        config = self.loaded.config
        if self._board is None and len(self.slots) > 1 and config.needs_board:
            self._board = StateProcess("board_process", str(config.cache.max_mb))
        if self.sharing is None:
            cells = Remote(self._state.address) if self._state else native.Counters(self._counters_fd)
            self.sharing = Sharing(cells, self.say, Random())
            self.sharing.start(config)
        elif native.shares or self._state is not None:
            self._tasks.append(asyncio.create_task(self.sharing.apply(config)))
        elif config.state.redis:
            self.say("warning: state.redis: taken over at the next start, as there is no shared memory")

    def _start_recorder(self) -> None:
        rings = [slot.ring_fd for slot in self.slots]
        self._recorder = subprocess.Popen(
            [sys.executable, "-P", "-m", "turnout.recorder"],
            stdin=subprocess.PIPE,
            pass_fds=rings,
            env=control.child_environment(),
        )
        self._settings(rings)

    def _settings(self, rings: list[int] | None = None) -> None:
        """Tell the recorder what to do with records."""
        if self._recorder is None or self._recorder.stdin is None:
            return
        config = self.loaded.config
        traces, alerts = config.telemetry.traces, config.telemetry.alerts
        message: dict[str, Any] = {
            "state_dir": os.path.abspath(config.state.dir),
            "log": {"requests": config.log.requests},
            "traces": {
                "endpoint": traces.endpoint,
                "sample": traces.sample,
                "service_name": traces.service_name,
                "headers": {name: value.reveal() for name, value in traces.headers.items()},
            },
            "alerts": {"webhook": alerts.webhook.reveal() if alerts.webhook else None, "every_s": alerts.every_s},
            "providers": {name: self._address(name, spec) for name, spec in config.providers.items()},
            "config_version": self.version,
        }
        if rings is not None:
            message["rings"] = rings
        with contextlib.suppress(BrokenPipeError):
            self._recorder.stdin.write(json.dumps(message).encode() + b"\n")
            self._recorder.stdin.flush()

    def _address(self, name: str, spec: Any) -> dict[str, Any]:
        """Kind, host and port of a provider, for spans."""
        url = urlsplit(self.simulators.get(name) or spec.base_url)
        port = url.port or (443 if url.scheme == "https" else 80)
        return {"kind": type(spec).__struct_config__.tag, "address": url.hostname or "", "port": port}

    def _start_simulators(self) -> None:
        """Simulated providers are one process, started anew when their specs change."""
        specs = {n: s for n, s in self.loaded.config.providers.items() if isinstance(s, SimulatedSpec)}
        encoded = msgspec.json.encode(specs)
        if encoded == self._simulated:
            return
        self._simulated = encoded
        old = self._simulator
        self._simulator = Simulator()
        self.simulators = self._simulator.start(specs) if specs else {}
        if old is not None:
            old.stop()


def install_signals(supervisor: Supervisor) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, supervisor.stop)
    loop.add_signal_handler(signal.SIGINT, supervisor.stop)
    loop.add_signal_handler(signal.SIGHUP, supervisor.reload)
