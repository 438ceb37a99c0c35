"""The terminal behind a stream: its width, whether it shows colours, and messages that fit it."""

from __future__ import annotations

import os
import signal
import sys
import termios
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import Any, Optional

_USUAL = 80  # characters per line, if the terminal does not report its width
_NARROWEST = 20
BOLD, RED = "1", "31"  # SGR parameters of ECMA-48


class Screen:
    """What is known of the terminal behind `stream`: nothing, if it is a file or a pipe.

    `width` is the number of characters per line, None without a terminal. NO_COLOR (not empty) and
    TERM=dumb turn colours off.
    """

    def __init__(self, stream: Any, environ: Optional[Mapping[str, str]] = None) -> None:
        env = os.environ if environ is None else environ
        self.terminal: bool = stream.isatty()
        self.colour = self.terminal and not env.get("NO_COLOR") and env.get("TERM") != "dumb"
        self._stream = stream
        self.width: Optional[int] = None
        self.refresh()

    def refresh(self) -> None:
        """Read the width again."""
        self.width = columns_of(self._stream) if self.terminal else None

    def paint(self, text: str, style: str) -> str:
        """Return `text` in a style, if the terminal shows it."""
        return f"\x1b[{style}m{text}\x1b[0m" if self.colour and text.strip() else text


def columns_of(stream: Any) -> int:
    """Return the characters per line of the terminal behind `stream`."""
    columns = 0
    with suppress(OSError, ValueError):  # io.UnsupportedOperation is both
        columns = os.get_terminal_size(stream.fileno()).columns
    return max(columns, _NARROWEST) if columns else _USUAL


def fold(text: str, width: Optional[int], indent: int = 2) -> str:
    """Return lines of at most `width` characters, broken between words; None: as it is."""
    if width is None:
        return text
    folder = textwrap.TextWrapper(
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(folder.fill(line) for line in text.split("\n"))


def report(text: str, style: str = "") -> None:
    """Write a message to stderr, folded and painted if that is a terminal."""
    screen = Screen(sys.stderr)
    folded = fold(text, screen.width)
    print(screen.paint(folded, style) if style else folded, file=sys.stderr, flush=True)


class Resizes:
    """Whether the terminal was resized since the last look (SIGWINCH)."""

    def __init__(self) -> None:
        """Watch from now on; only the main thread may."""
        self._resized = False
        self._before = signal.signal(signal.SIGWINCH, self._on_signal)

    def seen(self) -> bool:
        """Return whether there was one since the last call."""
        resized, self._resized = self._resized, False
        return resized

    def _on_signal(self, number: int, _: Optional[FrameType]) -> None:
        self._resized = True

    def close(self) -> None:
        """Stop watching."""
        signal.signal(signal.SIGWINCH, self._before or signal.SIG_DFL)


def end_echoed_line(out: Any) -> None:
    """Begin a new line if the terminal has shown ^C for the Ctrl-C that stopped us.

    `out` is standard output as an Outlet: a terminal that does not accept it must not block us.
    """
    for stream in (sys.stderr, out):
        if stream.isatty():
            if _echoes(stream):
                getattr(stream, "aside", stream.write)("\n")
                stream.flush()
            return


def _echoes(stream: Any) -> bool:
    local = 3  # of the list that tcgetattr() returns
    with suppress(OSError, ValueError, termios.error):
        return bool(termios.tcgetattr(stream.fileno())[local] & termios.ECHO)
    return False
