"""Whether a run is the one that its config was written for: images of an update, lengths."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log

from poa_mm.mistakes import UserError
from poa_mm.recipes import follow, read_recipe


class BatchError(UserError, ValueError):
    """A run has another number of images in an update than its recipe."""


class Batch(NamedTuple):
    """Images of an update.

    Args:
        processes: One a GPU.
        images: Of one process in one iteration.
        accumulate: Iterations of an update.
    """

    processes: int
    images: int
    accumulate: int

    @property
    def size(self) -> int:
        """Images of an update, of all processes."""
        return self.processes * self.images * self.accumulate

    def __str__(self) -> str:
        accumulated = f' x {self.accumulate} iterations' if self.accumulate > 1 else ''
        return f'{self.processes} GPUs x {self.images} images{accumulated} = {self.size:,} images an update'


def fit_batch(cfg: Config, processes: int, scale: bool = False) -> None:
    """Compare the images of an update with those that the config was written for, and fit the config if asked to.

    What a config was written for says its ``recipe``, or ``auto_scale_lr.base_batch_size``, together with
    ``auto_scale_lr.gpus`` where it is. On another number of processes than that, a run of other batches is refused. One
    whose loader or accumulation a config sets beside its recipe is warned of.

    Args:
        cfg: Config of a run; changed in place.
        processes: Number of them.
        scale: Let the recipe follow the number of processes: learning rate by its square-root rule, lengths in images;
            without recipe, the learning rate by mmengine's linear rule. Default: False.

    Raises:
        BatchError: If the batches are others and it is not asked to scale; names both and what to do. Also if there is
            nothing to scale by.
    """
    if 'recipe' in cfg:
        if scale and cfg.recipe.get('gpus', 1) != processes:
            follow(cfg, gpus=processes)
        recipe = read_recipe(cfg.recipe)
        written = Batch(recipe.gpus, recipe.batch_size, recipe.accumulate)
        pieces = (cfg.get('model') or {}).get('micro_batches', 1)
        _compare(_batch_of(cfg, processes), written, _what_to_do(written, processes, pieces))
        return
    auto = cfg.get('auto_scale_lr') or {}
    base = auto.get('base_batch_size')
    if scale:
        if not base:
            raise BatchError(
                '--scale-to-gpus needs a config with a recipe, or with auto_scale_lr.base_batch_size, to scale by'
            )
        auto['enable'] = True
    found = _batch_of(cfg, processes)
    if not base or auto.get('enable') or found.size == base:
        return
    text = (
        f'the learning rate of this config is for {base:,} images an update, and this run has {found}; --auto-scale-lr '
        'scales it in proportion'
    )
    if auto.get('gpus', processes) != processes:
        raise BatchError(f'{text}, and so does --scale-to-gpus; or start {auto["gpus"]} processes')
    _warn(text)


def _batch_of(cfg: Config, processes: int) -> Batch:
    images = (cfg.get('train_dataloader') or {}).get('batch_size', 1)
    return Batch(processes, images, (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1))


def _what_to_do(written: Batch, processes: int, pieces: int) -> str:
    text = (
        f'Start {written.processes} processes; or add --scale-to-gpus: the learning rate follows the square root '
        'of the batch and the run reads as many images'
    )
    share, rest = divmod(written.size, processes * written.images)
    if share and not rest and written.accumulate == 1:
        text += (
            f'; or keep the batch, in as large pieces as now: --cfg-options recipe.gpus={processes} '
            f'recipe.batch_size={share * written.images} model.micro_batches={share * pieces}'
        )
    elif share and not rest:
        text += f'; or keep the images of an update: --cfg-options recipe.gpus={processes} recipe.accumulate={share}'
    return text


def _compare(found: Batch, written: Batch, what_to_do: str) -> None:
    if found.size == written.size:
        return
    text = f'the recipe is for {written}, and this run has {found}: its learning rate and lengths would not fit'
    if found.processes != written.processes:
        raise BatchError(f'{text}. {what_to_do}')
    _warn(f'{text}; set recipe.batch_size and recipe.accumulate instead, and they follow')


def warn_of_accumulation(cfg: Mapping[str, Any]) -> str | None:
    """Warn of a run of POA that accumulates gradients, which is not a larger batch to it.

    Args:
        cfg: Config of a run.

    Returns:
        What it warned of.
    """
    batch = _batch_of(cfg, 1)
    if batch.accumulate == 1 or _kind(cfg.get('model') or {}) != 'POA':
        return None
    text = (
        f'an update is the mean of {batch.accumulate} batches (optim_wrapper.accumulative_counts): Sinkhorn-Knopp '
        f'balances and KoLeo spreads the {batch.images} images of a batch by themselves, each batch deals a subnet. '
        f'In as little memory, model.micro_batches={batch.accumulate} computes one batch of {batch.size} in pieces: '
        f'--cfg-options recipe.batch_size={batch.size} recipe.accumulate=1 model.micro_batches={batch.accumulate}'
    )
    _warn(text)
    return text


# --- lengths ----------------------------------------------------------------------------------


def check_lengths(cfg: Mapping[str, Any]) -> list[str]:
    """Warn of everything in a config that starts or ends at another time than the run allows.

    Args:
        cfg: Config of a run, with ``train_cfg.max_iters`` or ``train_cfg.max_epochs``.

    Returns:
        What it warned of, each in a sentence.
    """
    train_cfg = cfg.get('train_cfg') or {}
    ends = {False: train_cfg.get('max_iters'), True: train_cfg.get('max_epochs')}
    ends = {by_epoch: end for by_epoch, end in ends.items() if isinstance(end, int)}
    texts = [*_hooks_beyond(cfg, ends.get(False)), *_schedulers_beyond(cfg, ends), *_validation_beyond(train_cfg, ends)]
    for text in texts:
        _warn(text)
    return texts


# Of POAScheduleHook: what is missing if the run ends before.
_MISSING = {
    'patch_loss_start': 'there will be no masks and no patch loss',
    'teacher_temp_iters': "the teacher's temperature will not reach its last value",
    'freeze_prototypes_iters': 'the prototypes will never be trained',
    'freeze_backbone_iters': 'the backbone will never be trained',
}


def _entries(cfg: Mapping[str, Any], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    entries = cfg.get(name) or []
    entries = [entries] if isinstance(entries, Mapping) else entries
    yield from ((f'{name}.{index}', entry) for index, entry in enumerate(entries) if isinstance(entry, Mapping))


def _kind(entry: Mapping[str, Any]) -> str:
    kind = entry.get('type')
    return getattr(kind, '__name__', str(kind))


def _hooks_beyond(cfg: Mapping[str, Any], end: int | None) -> Iterator[str]:
    for where, hook in _entries(cfg, 'custom_hooks'):
        if end is None or _kind(hook) != 'POAScheduleHook':
            continue
        for name, missing in _MISSING.items():
            length = hook.get(name, 0)
            if length >= end and (name != 'teacher_temp_iters' or length > end):
                yield f'{where}.{name} is {length:,}, and the run has {end:,} iterations: {missing}'


def _schedulers_beyond(cfg: Mapping[str, Any], ends: Mapping[bool, int]) -> Iterator[str]:
    for where, entry in _entries(cfg, 'param_scheduler'):
        by_epoch = bool(entry.get('by_epoch', True))
        end, unit = ends.get(by_epoch), 'epochs' if by_epoch else 'iterations'
        first, last = entry.get('begin', 0), entry.get('end')
        if end is None or not isinstance(first, int):
            continue
        what = f'{where} ({_kind(entry)} of {entry.get("param_name", "the learning rate")})'
        if first >= end:
            yield f'{what} begins at {first:,}, and the run has {end:,} {unit}: it has no effect'
        elif isinstance(last, int) and last > end:
            yield f'{what} ends at {last:,}, and the run has {end:,} {unit}: it is cut'
        elif isinstance(last, int) and last < end and _kind(entry).startswith('Cosine'):
            if any(other.get('begin') == last for _, other in _entries(cfg, 'param_scheduler')):
                continue
            yield f'{what} ends at {last:,}, and the run has {end:,} {unit}: the rest runs with its last value'


def _validation_beyond(train_cfg: Mapping[str, Any], ends: Mapping[bool, int]) -> Iterator[str]:
    begin = train_cfg.get('val_begin', 1)
    for end in ends.values():
        if isinstance(begin, int) and begin > end:
            yield f'train_cfg.val_begin is {begin:,}, and the run ends at {end:,}: there will be no validation'


def _warn(text: str) -> None:
    if is_main_process():
        print_log(text, logger='current', level=logging.WARNING)
