"""Hooks that a run may have once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from mmengine.hooks import CheckpointHook, EMAHook, Hook, IterTimerHook, ParamSchedulerHook
from mmengine.runner import Runner

# mmengine's own that would change a run, or what it says of itself, if they were there twice.
LIBRARY = (CheckpointHook, EMAHook, IterTimerHook, ParamSchedulerHook)


class OnceHook(Hook):
    """Base of hooks that change something: a second one of the same kind would do it again, and is refused."""

    def before_run(self, runner: Runner) -> None:
        """Look for a second one.

        Raises:
            ValueError: As :func:`check_hooks`.
        """
        check_hooks(runner.hooks)


def check_hooks(hooks: Sequence[Hook]) -> None:
    """Check that hooks of which a run may have one are there once.

    These are the subclasses of :class:`OnceHook` and some of mmengine's. A hook and one of a class derived from it
    are of one kind. Two checkpoint hooks may write into different folders.

    Args:
        hooks: Those of a runner.

    Raises:
        ValueError: If two are of one kind; names both.
    """
    for first, second in combinations(hooks, 2):
        kind = _kind(first)
        if kind is None or kind is not _kind(second):
            continue
        if kind is CheckpointHook and _files(first) != _files(second):
            continue
        both = {type(first).__name__: None, type(second).__name__: None}
        raise ValueError(
            f'the run has two hooks of one kind, {" and ".join(both)}, and each would do the same thing again: '
            'default_hooks and custom_hooks may hold one of them; to change a setting of an inherited one, '
            'change it where it stands, such as custom_hooks[0].update(...), and do not add another'
        )


def _kind(hook: Hook) -> type | None:
    """The class of which there may be one hook; nothing if there may be several."""
    for library in LIBRARY:
        if isinstance(hook, library):
            return library
    own = [cls for cls in type(hook).__mro__ if issubclass(cls, OnceHook) and cls is not OnceHook]
    return own[-1] if own else None


def _files(hook: CheckpointHook) -> tuple[Any, ...]:
    return getattr(hook, 'out_dir', None), getattr(hook, 'filename_tmpl', None)


def check_lists(cfg: Mapping[str, Any]) -> None:
    """Check that no entry of ``custom_hooks`` and ``param_scheduler`` is there twice with the same settings.

    Args:
        cfg: Config of a run.

    Raises:
        ValueError: If one is.
    """
    for name in ('custom_hooks', 'param_scheduler'):
        entries = cfg.get(name)
        if not isinstance(entries, (list, tuple)):
            continue
        for (i, first), (j, second) in combinations(enumerate(entries), 2):
            if isinstance(first, Mapping) and first == second:
                raise ValueError(f'{name} holds the same entry twice, at {i} and {j}: {dict(first)}')
