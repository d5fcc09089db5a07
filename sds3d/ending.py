"""How a command ends: its exit code, the sentence of an error, and what an interrupt does."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

import click

FAILED, REFUSED, INTERRUPTED = 1, 2, 130


class Stop:
    """What an interrupt does: it ends the process at once, but while `saves` is set the first one only sets a flag.

    Use it as a context. An exception would not do, because it may be lost in the middle of an import.
    """

    def __init__(self) -> None:
        self.asked = False
        self.saves = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        self.before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self.asked

    def _hear(self, number: int, frame: FrameType | None) -> None:
        # Python's own streams may be in the middle of a write, which the lower level does not disturb.
        if self.asked or not self.saves:
            os.write(2, b"\nInterrupted.\n")
            os._exit(INTERRUPTED)
        self.asked = True
        os.write(2, b"\nFinishing this step and saving; interrupt again to leave at once.\n")


def end(error: BaseException, code: int) -> NoReturn:
    """Leave with a sentence, and with the traceback where --debug asks for it."""
    from .files import explain

    if click.get_current_context().find_root().meta.get("debug"):
        traceback.print_exception(error, file=sys.stderr)
    message = explain(error) if isinstance(error, OSError) else " ".join(str(error).split())
    # What was typed may hold control or unpaired characters, which must reach no terminal.
    message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    click.echo(f"error: {message or type(error).__name__}", err=True)
    raise SystemExit(code)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Before anything is written: what cannot be done is refused."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        end(error, REFUSED)
    except Exception as error:
        end(error, FAILED)


@contextlib.contextmanager
def running() -> Iterator[None]:
    """While the run is at work: an error ends it."""
    try:
        yield
    except Exception as error:
        end(error, FAILED)
