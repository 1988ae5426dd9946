"""How far a long evaluation is, and when it will be done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from mmengine.dist import is_main_process

LOG_INTERVAL = 30  # seconds between lines where there is no terminal


@contextmanager
def show_progress(title: str, total: int, enabled: bool = True, unit: str = 'images') -> Iterator[Callable[..., None]]:
    """Show progress with the estimated time left on stderr, on rank 0 only.

    A bar on a terminal; elsewhere, such as in the log of a batch job, a line now and then.

    Args:
        title: What is going on.
        total: Number of images in all.
        enabled: Show anything. Default: True.
        unit: What is counted. Default: 'images'.

    Yields:
        A function to call with the number of them done since the last call and, where there is something to say, a
        short text to show beside it.
    """
    if not enabled or not is_main_process():
        yield lambda done, note='': None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn())
        remaining = (TextColumn(f'{unit}, left'), TimeRemainingColumn())
        with Progress(*columns, *remaining, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done, note='': bar.update(task, advance=done, description=f'{title} {note}'.rstrip())
    else:
        yield _line_printer(title, total, unit)


def _line_printer(title: str, total: int, unit: str) -> Callable[..., None]:
    start = printed = time.monotonic()
    sofar = 0

    def advance(done: int, note: str = '') -> None:
        nonlocal printed, sofar
        sofar += done
        now = time.monotonic()
        if now - printed >= LOG_INTERVAL or sofar == total:
            printed = now
            left = timedelta(seconds=round((now - start) / sofar * (total - sofar)))
            print(f'{title}: {sofar}/{total} {unit}, left {left} {note}'.rstrip(), file=sys.stderr, flush=True)

    return advance
