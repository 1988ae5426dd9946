"""A line in the log now and then, of work that may take minutes."""

from __future__ import annotations

import time

from mmengine.logging import print_log


class ProgressLog:
    """Logs how far work is, every few seconds; quick work logs nothing.

    Args:
        what: What is done, such as 'reading shards'.
        total: How much there is, where that is known: then the time left is told. Default: None.
        unit: Of what is counted. Default: 'files'.
        seconds: Between two lines. Default: 5.
    """

    def __init__(self, what: str, total: int | None = None, unit: str = 'files', seconds: float = 5):
        self.what, self.total, self.unit, self.seconds = what, total, unit, seconds
        self.start = self.last = time.monotonic()

    def update(self, done: int) -> None:
        """Tell that so much is done."""
        now = time.monotonic()
        if now - self.last < self.seconds:
            return
        self.last, spent = now, now - self.start
        if self.total is None:
            text = f'{self.what}: {done:,} {self.unit} in {spent:.0f} s'
        else:
            left = spent * (self.total - done) / max(done, 1)
            text = f'{self.what}: {done:,} of {self.total:,} {self.unit}, {left:.0f} s left'
        print_log(text, logger='current')
