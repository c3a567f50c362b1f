"""A bar on standard error for work that takes longer than a second; nothing where that is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE_S = 1.0  # before which nobody wonders whether it is still running


class Bars:
    """Counts what is done; used as a context, so that no bar is left behind after an error or an interrupt."""

    def __init__(self) -> None:
        self._since, self._live = time.monotonic(), sys.stderr.isatty()
        self._shown: Progress | None = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown is not None:
            self._shown.stop()

    def bar(self, what: str, total: int) -> Callable[[int], None]:
        """A function to call with the number of things done since the last call."""
        done, task = 0, None

        def tick(more: int) -> None:
            nonlocal done, task
            done += more
            if not self._live or time.monotonic() - self._since < PATIENCE_S:
                return
            if self._shown is None:
                self._shown = _started()
            if task is None:
                task = self._shown.add_task(what, total=total)
            self._shown.update(task, completed=done)

        return tick


class Doing:
    """Says in one line what is being done, from a second on; gone when it is over."""

    def __init__(self) -> None:
        self._since, self._live, self._said = time.monotonic(), sys.stderr.isatty(), False

    def __enter__(self) -> Callable[[str], None]:
        return self._say

    def __exit__(self, *_: object) -> None:
        if self._said:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _say(self, what: str) -> None:
        if self._live:
            self._said = True
            sys.stderr.write(f"\r\x1b[K{what} ...")
            sys.stderr.flush()


def _started() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    progress.start()
    return progress
