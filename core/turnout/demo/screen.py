"""Lines, columns and a little colour on a terminal; plain text anywhere else."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TextIO

_INDENT = 3
_LABEL = 14


class Screen:
    """Writes the tour. Colour only on a terminal, and not if NO_COLOR is set (no-color.org)."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        is_terminal = self._out.isatty()
        self._colour = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._width = min(100, shutil.get_terminal_size((88, 24)).columns) if is_terminal else 88
        self._column = 0

    def line(self, text: str = "") -> None:
        self._write(text + "\n")

    def title(self, number: int, title: str, aside: str) -> None:
        self.line()
        self.line(f"{self.bold(f'{number}  {title}')}  {self.dim(aside)}")

    def row(self, label: str, text: str) -> None:
        """`label` in the left column, `text` in the right one, wrapped."""
        lines = textwrap.wrap(text, self._width - _INDENT - _LABEL) or [""]
        self.line(" " * _INDENT + self.dim(label.ljust(_LABEL)) + lines[0])
        for more in lines[1:]:
            self.line(" " * (_INDENT + _LABEL) + more)

    def good(self, text: str) -> None:
        self.line(" " * _INDENT + self._paint("32", "ok".ljust(_LABEL)) + text)

    def failed(self, text: str) -> None:
        self.line(" " * _INDENT + self._paint("1;31", "FAILED".ljust(_LABEL)) + text)

    def skipped(self, text: str) -> None:
        self.line(" " * _INDENT + self._paint("33", "skipped".ljust(_LABEL)) + text)

    # --- text that arrives bit by bit ---

    def begin_live(self, label: str) -> None:
        self._write(" " * _INDENT + self.dim(label.ljust(_LABEL)))
        self._column = _INDENT + _LABEL

    def live(self, piece: str) -> None:
        """One token as it comes; breaks the line at a token that begins a word."""
        if self._column + len(piece) > self._width and piece[:1].isspace():
            self._write("\n" + " " * (_INDENT + _LABEL))
            self._column = _INDENT + _LABEL
            piece = piece.lstrip()
        self._write(piece)
        self._column += len(piece)

    def end_live(self) -> None:
        self._write("\n")

    # --- colour ---

    def bold(self, text: str) -> str:
        return self._paint("1", text)

    def dim(self, text: str) -> str:
        return self._paint("2", text)

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
