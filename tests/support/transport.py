"""A transport for protocols under test: takes everything, remembers what was written, paused and closed."""

from typing import Any


class Transport:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closing = False
        self.paused = False

    def writelines(self, pieces: Any) -> None:
        self.written += [bytes(p) for p in pieces]

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
