"""What one rank does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process

from .mistakes import UserError


def on_main(function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function`` on rank 0; all ranks get what it returns, or raise its error.

    So no rank waits for one that has failed with an ``OSError``, a ``ValueError`` or a ``UserError``.
    """
    answer: list[Any] = [None, None]
    if is_main_process():
        try:
            answer[0] = function(*args)
        except (OSError, ValueError, UserError) as error:
            answer[1] = error
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]
