"""What a run shows on the screen; its log file has everything."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner

MAX_LINES, MAX_CHARACTERS = 4, 600


class ShortRecords(logging.Filter):
    """Lets short messages pass, and warnings of any length.

    Long ones are the machine's description, the whole config and the list of hooks, which mmengine logs at the start.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return record.levelno > logging.INFO or (text.count('\n') < MAX_LINES and len(text) <= MAX_CHARACTERS)


class ShortConsole:
    """Mixin for what builds mmengine's logger: long messages go to the log file only."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """As mmengine's."""
        logger = super().build_logger(*args, **kwargs)
        for handler in screen_handlers(logger):
            handler.addFilter(ShortRecords())
        return logger


class ShortConsoleRunner(ShortConsole, Runner):
    """mmengine's ``Runner`` with few lines on the screen before the first iteration."""


def only_warnings(logger: logging.Logger) -> None:
    """Keep what is less than a warning off the screen; the log file has it."""
    for handler in screen_handlers(logger):
        handler.setLevel(logging.WARNING)


def screen_handlers(logger: logging.Logger) -> list[logging.Handler]:
    """The handlers of ``logger`` that write to the screen."""
    return [
        handler
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
    ]
