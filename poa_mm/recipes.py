"""What a pre-training config would spell out again: schedules, hooks and settings of the optimizer.

A config states its numbers once, as plain data, and lets :func:`schedule` work out the rest::

    recipe = dict(gpus=32, batch_size=50, images=1281167, epochs=346, warmup_epochs=10, ramp_epochs=30)
    optim_wrapper, param_scheduler, custom_hooks, train_cfg = schedule(**recipe)

So ``recipe`` is the one place of batch, lengths and learning rate. :func:`follow` makes a config that was read already
follow other numbers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from mmengine.config import Config

LENGTHS = ('warmup', 'ramp', 'freeze', 'heads')
COUNT = 'data'  # in the place of a number of images that is not known yet


class Schedule(NamedTuple):
    """Entries of a config that follow from a recipe."""

    optim_wrapper: dict[str, Any]
    param_scheduler: list[dict[str, Any]]
    custom_hooks: list[dict[str, Any]]
    train_cfg: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers of a pre-training run (POA, implementation details).

    Lengths are in epochs of ``images``, or in iterations: ``epochs``, ``warmup_epochs``, ``ramp_epochs``,
    ``freeze_epochs`` and ``heads_epochs``, or ``max_iters``, ``warmup_iters``, ``ramp_iters``, ``freeze_iters`` and
    ``heads_iters``. An epoch is a whole number of updates.

    Args:
        batch_size: Images of one process in one iteration.
        gpus: Processes. Default: 1.
        accumulate: Iterations of one update. Default: 1.
        images: Images in an epoch, needed for lengths in epochs; ``'data'``: as many as the data has, which
            :func:`~poa_mm.engine.data_config.count_images` counts when a run starts. Default: None.
        epochs: Length of the run.
        warmup_epochs: In which the learning rate rises, linearly, from almost 0. Default: 0.
        ramp_epochs: In which the teacher's temperature rises, and after which the patch loss starts. Default: 0.
        freeze_epochs: In which the prototypes keep their weights. Default: 0.
        heads_epochs: In which the backbone keeps its weights, and only the heads learn. Default: 0.
        max_iters: Length of the run.
        warmup_iters: As ``warmup_epochs``, in iterations.
        ramp_iters: As ``ramp_epochs``, in iterations.
        freeze_iters: As ``freeze_epochs``, in iterations.
        heads_iters: As ``heads_epochs``, in iterations.
        lr: Learning rate of a global batch of ``lr_batch`` images. It grows with the square root of the global batch.
            Default: 0.004.
        lr_batch: Default: 1024.
        min_lr: Learning rate at the end of its cosine. Default: 2e-5.
        warmup_start: Learning rate at the first iteration, as a share. Default: 1e-6.
        betas: Of AdamW. Default: (0.9, 0.999).
        weight_decay: First and last value. Default: (0.04, 0.4).
        clip_grad: Largest norm of the gradients of backbone and head, each by itself. Default: 1.5.
        amp: ``'float16'`` or ``'bfloat16'`` for mixed precision. Default: None.
        paramwise_cfg: Of :class:`~poa_mm.engine.POAOptimWrapperConstructor`. Default: one learning rate for all layers,
            and no weight decay of bias, norm and LayerScale.
        momentum: Of the teacher, first and last value. Default: (0.992, 0.9999).
        teacher_temp: First and last value. Default: (0.04, 0.07).
        stretch: Lengths of the run that the cosines are laid out over; they are cut at its end (``1 / iter_num_scale``
            in the authors' code). Default: 1.

    Raises:
        ValueError: If lengths are missing, mixed or not positive; names them.
    """

    batch_size: int
    gpus: int = 1
    accumulate: int = 1
    images: int | str | None = None
    epochs: int | None = None
    warmup_epochs: int | None = None
    ramp_epochs: int | None = None
    freeze_epochs: int | None = None
    heads_epochs: int | None = None
    max_iters: int | None = None
    warmup_iters: int | None = None
    ramp_iters: int | None = None
    freeze_iters: int | None = None
    heads_iters: int | None = None
    lr: float = 0.004
    lr_batch: int = 1024
    min_lr: float = 2e-5
    warmup_start: float = 1e-6
    betas: Sequence[float] = (0.9, 0.999)
    weight_decay: Sequence[float] = (0.04, 0.4)
    clip_grad: float = 1.5
    amp: str | None = None
    paramwise_cfg: Mapping[str, Any] = field(default_factory=lambda: dict(layer_decay_rate=1.0, flat_decay_mult=0.0))
    momentum: Sequence[float] = (0.992, 0.9999)
    teacher_temp: Sequence[float] = (0.04, 0.07)
    stretch: float = 1.0

    def __post_init__(self) -> None:
        for name in ('batch_size', 'gpus', 'accumulate', 'lr_batch'):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise ValueError(f'recipe.{name} {value!r} is not a positive whole number')
        for name in ('lr', 'min_lr', 'warmup_start', 'clip_grad'):
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                raise ValueError(f'recipe.{name} {value!r} is not a positive number')
        if self.images is not None and self.images != COUNT and (not isinstance(self.images, int) or self.images < 1):
            raise ValueError(f'recipe.images {self.images!r} is neither a positive whole number nor {COUNT!r}')
        given = {
            unit: [name for name in names if getattr(self, name) is not None]
            for unit, names in dict(
                epochs=('epochs', *(f'{name}_epochs' for name in LENGTHS)),
                iterations=('max_iters', *(f'{name}_iters' for name in LENGTHS)),
            ).items()
        }
        if given['epochs'] and given['iterations']:
            both = ' and '.join(', '.join(names) for names in given.values())
            raise ValueError(f'recipe has lengths in epochs and in iterations, {both}; one unit is needed')
        if self.epochs is None and self.max_iters is None:
            raise ValueError('recipe needs its length: epochs or max_iters')
        for name in ('epochs', 'max_iters'):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f'recipe.{name} {value!r} is not positive')
        if self.amp not in (None, 'float16', 'bfloat16'):
            raise ValueError(f'recipe.amp {self.amp!r} is not valid: float16, bfloat16 or None')
        if self.epochs is not None and not self.images:
            raise ValueError(f'recipe of {self.epochs} epochs needs the number of images')

    @property
    def global_batch(self) -> int:
        """Images of an update."""
        return self.gpus * self.batch_size * self.accumulate

    @property
    def epoch_iters(self) -> int:
        """Iterations of an epoch: whole updates, at least one. Without images 1, before they are counted an update."""
        if self.images == COUNT:
            return self.accumulate
        return max(self.images // self.global_batch, 1) * self.accumulate if self.images else 1

    @property
    def learning_rate(self) -> float:
        """That of the global batch, by the square-root rule."""
        return self.lr * (self.global_batch / self.lr_batch) ** 0.5

    def iters(self, name: str) -> int:
        """Length ``'warmup'``, ``'ramp'``, ``'freeze'`` or ``'heads'`` in iterations; ``'max'`` is that of the run."""
        epochs = self.epochs if name == 'max' else getattr(self, f'{name}_epochs')
        if epochs is not None:
            return round(epochs * self.epoch_iters)
        return getattr(self, f'{name}_iters') or 0


def schedule(**recipe: Any) -> Schedule:
    """What follows from a recipe.

    Args:
        **recipe: As :class:`Recipe`.

    Raises:
        ValueError: If there is no such number, or ``batch_size`` is missing (names the valid ones); as :class:`Recipe`.
    """
    return _schedule(read_recipe(recipe))


def read_recipe(recipe: Mapping[str, Any]) -> Recipe:
    """The numbers of a config's entry ``recipe``.

    Raises:
        ValueError: As :func:`schedule`.
    """
    known = [entry.name for entry in fields(Recipe)]
    if unknown := set(recipe) - set(known):
        raise ValueError(f'recipe has no {", ".join(sorted(unknown))}; valid: {", ".join(known)}')
    if 'batch_size' not in recipe:
        raise ValueError('recipe needs batch_size')
    return Recipe(**recipe)


def _schedule(recipe: Recipe) -> Schedule:
    max_iters, warmup, ramp = (recipe.iters(name) for name in ('max', 'warmup', 'ramp'))
    cosine_iters = round(max_iters * recipe.stretch)
    first, last = recipe.weight_decay
    rate = recipe.learning_rate
    stretched = recipe.stretch != 1
    amp = dict(type='POAAmpOptimWrapper', dtype=recipe.amp) if recipe.amp else dict(type='POAOptimWrapper')
    optim_wrapper = dict(
        **amp,
        accumulative_counts=recipe.accumulate,
        optimizer=dict(type='AdamW', lr=rate, betas=tuple(recipe.betas), weight_decay=first),
        clip_grad=dict(max_norm=recipe.clip_grad),
        constructor='POAOptimWrapperConstructor',
        paramwise_cfg=copy.deepcopy(dict(recipe.paramwise_cfg)),
    )
    param_scheduler = [
        dict(type='LinearLR', start_factor=recipe.warmup_start, by_epoch=False, begin=0, end=warmup),
        dict(
            type='CosineAnnealingLR',
            eta_min_ratio=recipe.min_lr / rate,
            **(dict(T_max=cosine_iters - warmup) if stretched else {}),
            by_epoch=False,
            begin=warmup,
            end=max_iters,
        ),
        dict(
            type='CosineAnnealingParamScheduler',
            param_name='weight_decay',
            eta_min_ratio=last / first,  # a ratio, so that 0 stays 0
            **(dict(T_max=cosine_iters) if stretched else {}),
            by_epoch=False,
            begin=0,
            end=max_iters,
        ),
    ]
    custom_hooks = [
        dict(
            type='TeacherEMAHook',
            momentum=tuple(recipe.momentum),
            **(dict(stretch=recipe.stretch) if stretched else {}),
        ),
        dict(
            type='POAScheduleHook',
            teacher_temp=tuple(recipe.teacher_temp),
            teacher_temp_iters=ramp,
            patch_loss_start=ramp,
            freeze_prototypes_iters=recipe.iters('freeze'),
            **(dict(freeze_backbone_iters=heads) if (heads := recipe.iters('heads')) else {}),
        ),
        dict(type='SupernetCheckpointHook'),
    ]
    # A run without warm-up has no scheduler for it: mmengine refuses one of length 0.
    # Images that are not counted yet go to the loop, which refuses to run before they are.
    train_cfg = dict(max_iters=max_iters, **(dict(images=COUNT) if recipe.images == COUNT else {}))
    param_scheduler = [entry for entry in param_scheduler[not warmup :] if entry['begin'] < max_iters]
    return Schedule(optim_wrapper, param_scheduler, custom_hooks, train_cfg)


# --- a config that follows other numbers ------------------------------------------------------


def follow(cfg: Config, **changes: Any) -> None:
    """Change numbers of ``cfg.recipe`` and, with them, all that follows from it.

    What a config of its own sets beside the recipe stays, such as a further hook, and a ``train_cfg.max_iters`` that
    ends the run before its schedule does.

    Args:
        cfg: A pre-training config with an entry ``recipe``; changed in place, or not at all.
        **changes: As :class:`Recipe`. Lengths given in iterations stay what they are in images if the global batch
            changes and they do not.

    Raises:
        ValueError: As :func:`schedule`; also if an entry that would change is not what the recipe says (names it), or
            the config has no recipe.
    """
    if 'recipe' not in cfg:
        raise ValueError("the config has no 'recipe' whose numbers could be changed")
    old_numbers = cfg.recipe.to_dict()
    numbers = {**old_numbers, **changes}
    old, new = read_recipe(old_numbers), read_recipe(numbers)
    share = old.gpus * old.batch_size / (new.gpus * new.batch_size)  # an iteration reads as many images as that
    for key in ('max_iters', *(f'{name}_iters' for name in LENGTHS)):
        if numbers.get(key) and key not in changes:
            numbers[key] = max(round(numbers[key] * share), 1)
    new = read_recipe(numbers)
    before, after = (
        {**entries._asdict(), 'train_dataloader': dict(batch_size=recipe.batch_size)}
        for recipe, entries in ((old, _schedule(old)), (new, _schedule(new)))
    )
    ends = cfg.get('train_cfg', {}).get('max_iters')
    if isinstance(ends, int) and ends != before['train_cfg']['max_iters'] and ends < after['train_cfg']['max_iters']:
        before['train_cfg']['max_iters'] = after['train_cfg']['max_iters'] = ends  # a trial run: cut off, as it says
    changed = {key: _changed(cfg.get(key), before[key], after[key], key) for key in before}
    for key, value in changed.items():
        cfg[key] = value
    cfg.recipe = numbers


def _changed(found: Any, before: Any, after: Any, where: str) -> Any:
    """``found`` with each value that differs between ``before`` and ``after`` changed alike."""
    if before == after:
        return found
    if isinstance(before, Mapping) and isinstance(after, Mapping) and isinstance(found, Mapping):
        result = dict(found)
        for key in {**before, **after}:
            if key not in after:
                result.pop(key, None)
            elif key not in before:
                result[key] = after[key]
            elif before[key] != after[key]:
                result[key] = _changed(found.get(key), before[key], after[key], f'{where}.{key}')
        return result
    if isinstance(before, list) and isinstance(found, (list, tuple)):
        return _changed_list(list(found), before, after, where)
    if found != before:
        raise ValueError(
            f'{where} is {found!r} in the config, and {before!r} by its recipe, which now asks for {after!r}: '
            'set it, or numbers of the recipe, not both'
        )
    return after


def _changed_list(found: list, before: list[dict], after: list[dict], where: str) -> list:
    """Entries are told by their type, and by ``param_name`` where there are several."""

    def name(entry: Mapping[str, Any]) -> tuple:
        return entry.get('type'), entry.get('param_name')

    old, new = ({name(entry): entry for entry in entries} for entries in (before, after))
    there = {name(entry): index for index, entry in enumerate(found)}
    for key, entry in new.items():
        if key in old and key in there:
            found[there[key]] = _changed(found[there[key]], old[key], entry, f'{where}.{there[key]}')
        elif key not in old:
            found.insert(0, entry)
        elif old[key] != entry:
            raise ValueError(f'{where} has no {key[0]}, whose numbers would change')
    return [entry for entry in found if name(entry) in new or name(entry) not in old]
