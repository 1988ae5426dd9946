"""Which keys of a config are read, and which one works where a key is not."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from mmengine import registry as registries
from mmengine.registry import Registry
from mmengine.runner import FlexibleRunner, Runner
from torch.utils.data import DataLoader

from poa_mm.recipes import Recipe

MISSING = object()
# The top-level entries of a config that a run reads: parameters of the runners, what they and `tools/` look up beside.
READ_BY_A_RUN = frozenset(
    {
        *(name for runner in (Runner, FlexibleRunner) for name in inspect.signature(runner.__init__).parameters),
        *('custom_imports', 'runner_type', 'model_wrapper_cfg', 'sync_bn', 'find_unused_parameters', 'compile'),
        *('activation_checkpointing', 'efficient_conv_bn_eval', 'recipe', 'knn'),
    }
    - {'self', 'cfg', 'launcher', 'kwargs'}
)
_LOADER = {*inspect.signature(DataLoader).parameters, 'num_batch_per_epoch'}
# What is read of dicts that are no arguments of one class. Patterns of keys, the first that fits.
_ENTRIES: dict[str, set[str]] = {
    '*_dataloader': _LOADER,
    'knn': {'bank', 'query', 'ks', 'temperature', 'subnets_per_pass'},
    'knn.bank': _LOADER,
    'knn.query': _LOADER,
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    'env_cfg.mp_cfg': {'mp_start_method', 'opencv_num_threads'},
    'env_cfg.dist_cfg': {'timeout'},  # the backend follows from the machine
    'randomness': {'seed', 'diff_rank_seed', 'deterministic'},
    'auto_scale_lr': {'enable', 'base_batch_size', 'gpus'},
    'custom_imports': {'imports', 'allow_failed_imports'},
    'optim_wrapper.clip_grad': {'type', 'max_norm', 'norm_type', 'error_if_nonfinite', 'foreach', 'clip_value'},
    'recipe': set(Recipe.__dataclass_fields__),
}
_PLAIN_PARAMWISE = {  # of mmengine's own constructor, which passes over anything else
    *('custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult', 'dwconv_decay_mult'),
    *('dcn_offset_lr_mult', 'bypass_duplicate'),
}
_TYPES = {  # of dicts that may leave theirs out
    'optim_wrapper': 'OptimWrapper',
    'val_cfg': 'ValLoop',
    'test_cfg': 'TestLoop',
    'log_processor': 'LogProcessor',
}
_MORE = {'optim_wrapper': {'constructor', 'paramwise_cfg'}}  # taken out before the class is called
_REGISTRIES = [value for value in vars(registries).values() if isinstance(value, Registry)]


def find(cfg: Any, key: str, default: Any = None) -> Any:
    """What a config holds at a dotted key."""
    for part in key.split('.'):
        cfg = _item(cfg, part)
        if cfg is MISSING:
            return default
    return cfg


def _item(node: Any, part: str) -> Any:
    if isinstance(node, Mapping) or hasattr(node, '_cfg_dict'):
        return node.get(part, MISSING)
    if isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
        return node[int(part)]
    return MISSING


def default_of(cfg: Mapping[str, Any], key: str) -> Any:
    """The default of the argument that a key names, where the config does not hold it; None if that is not known."""
    path, _, name = key.rpartition('.')
    cls = _class_of(cfg, path, find(cfg, path)) if path else None
    parameter = _arguments(cls).get(name) if cls else None
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def check_keys(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    keys: Sequence[str],
    reads: Collection[str],
    only_paths: bool = False,
) -> None:
    """Check that something reads each of ``keys``.

    Args:
        before: The config as it was.
        after: The config with the new values.
        keys: Dotted keys of the new values.
        reads: Names of the top-level entries that are read.
        only_paths: Check no names of arguments, for which classes have to be known. Default: False.

    Raises:
        KeyError: If nothing does; the message names a key that works, or the valid ones.
    """
    for key in keys:
        parts = key.split('.')
        _check_root(before, key, parts[0], reads)
        node = before
        for depth, part in enumerate(parts):
            path = '.'.join(parts[:depth])
            if part == '_delete_':
                break
            if isinstance(node, tuple):
                raise KeyError(f'{key}: {path} is {node!r}, which is set as a whole: {path}=...')
            if isinstance(node, list):
                if _item(node, part) is MISSING:
                    raise KeyError(f'{key}: {path} is a list of {len(node)}; valid: {path}.0 to {path}.{len(node) - 1}')
            elif node is not None and not isinstance(node, Mapping):
                raise KeyError(f'{key}: {path} is {node!r}, which has nothing below it')
            elif _item(node or {}, part) is MISSING:
                if not only_paths and depth:
                    _check_name(after, key, path, part, node or {})
                break
            node = _item(node, part)


def _check_root(cfg: Mapping[str, Any], key: str, root: str, reads: Collection[str]) -> None:
    if root == 'data_preprocessor' and (cfg.get('model') or {}).get('data_preprocessor'):
        raise KeyError(f'{key}: nothing reads it, for the model has its own; this works: model.{key}')
    if root in reads:
        return
    works = list(dict.fromkeys(_alternatives(cfg, key, root, reads)))[:3]
    hint = f'this works: {", ".join(works)}' if works else f'valid begin with one of {", ".join(sorted(reads))}'
    why = ', for other entries were computed from it' if root in cfg else ''
    raise KeyError(f'{key}: nothing reads {root}{why}; {hint}')


def _alternatives(cfg: Mapping[str, Any], key: str, root: str, reads: Collection[str]) -> Iterator[str]:
    """Keys that are read, for one that is not: of the same name and value, of the same value, of the same name."""
    value, rest = cfg.get(root, MISSING), key.removeprefix(root)
    there = [(path, item) for path, item in _walk(cfg) if path.split('.')[0] in reads]
    if 'recipe' in cfg and not rest:
        yield from (f'recipe.{name}' for name in (root, root.removeprefix('base_')) if name in _ENTRIES['recipe'])
    names = [path for path, _ in there if path.rpartition('.')[2] == root]
    equal = [path for path, item in there if value is not MISSING and type(item) is type(value) and item == value]
    yield from (path + rest for path in names if path in equal)
    if isinstance(value, (Mapping, list, tuple, str, float)):
        yield from (path + rest for path in equal)
    yield from (path + rest for path in names)
    words = {path.rpartition('.')[2]: path for path, _ in reversed(there)}
    words |= {path: path for path in (*reads, *(f'recipe.{name}' for name in _ENTRIES['recipe'] if 'recipe' in cfg))}
    yield from (words[word] + rest for word in get_close_matches(root, words, cutoff=0.75))


def _walk(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Each key of a config with what it holds."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for name, item in items:
        key = f'{path}.{name}' if path else str(name)
        yield key, item
        yield from _walk(item, key)


def _check_name(cfg: Mapping[str, Any], key: str, path: str, name: str, siblings: Mapping[str, Any]) -> None:
    """Check a key that the config does not hold yet, below a dict that it holds.

    Where it is not known what is read, a misspelt name is told by its likeness to one that is there.
    """
    valid, known = _valid(cfg, path, find(cfg, path))
    if name in valid:
        return
    close = get_close_matches(name, {*valid, *siblings}, n=1, cutoff=0.6 if known else 0.85)
    if close:
        raise KeyError(f'{key}: nothing reads {name}; this works: {path}.{close[0]}')
    if known:
        raise KeyError(f'{key}: nothing reads {name}; valid below {path}: {", ".join(sorted(valid))}')


def _valid(cfg: Mapping[str, Any], path: str, node: Any) -> tuple[set[str], bool]:
    """Names that may stand below ``path``, and whether these are all."""
    for pattern, names in _ENTRIES.items():
        if path.count('.') == pattern.count('.') and fnmatch.fnmatchcase(path, pattern):
            return names, True
    if path == 'optim_wrapper.paramwise_cfg':
        constructor = find(cfg, 'optim_wrapper.constructor', 'DefaultOptimWrapperConstructor')
        return _PLAIN_PARAMWISE, constructor == 'DefaultOptimWrapperConstructor'
    cls = _class_of(cfg, path, node)
    if cls is None:
        return set(), False
    arguments = _arguments(cls)
    return {*arguments, 'type', '_scope_', 'by_epoch', *_MORE.get(path, ())}, '**' not in arguments


def _class_of(cfg: Mapping[str, Any], path: str, node: Any) -> Any:
    """What is called with the entries of a dict; None if that is not known."""
    if not isinstance(node, Mapping):
        return None
    kind = node.get('type', _TYPES.get(path))
    if path == 'train_cfg' and kind is None:
        kind = 'EpochBasedTrainLoop' if node.get('by_epoch', True) else 'IterBasedTrainLoop'
    if not isinstance(kind, str):
        return kind
    scope = cfg.get('default_scope') or 'mmengine'  # as of mmengine's runners
    with registries.MODELS.switch_scope_and_registry(scope):  # imports the registries of that library
        for registry in _REGISTRIES:
            # Not `switch_scope_and_registry`, which warns where a library has no registry of its own.
            if (found := registry.children.get(scope, registry).get(kind)) is not None:
                return found
    return None


def _arguments(cls: Any) -> dict[str, inspect.Parameter]:
    """What a class or function can be called with; ``'**'`` is among it if it is not known what else."""
    arguments: dict[str, inspect.Parameter] = {}
    bases = inspect.getmro(cls) if inspect.isclass(cls) else ()
    for init in [vars(base)['__init__'] for base in bases if '__init__' in vars(base)] or [cls]:
        try:
            parameters = inspect.signature(init).parameters
        except (TypeError, ValueError):
            break
        for name, parameter in parameters.items():
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name != 'self':
                arguments.setdefault(name, parameter)
        rest = [parameter for parameter in parameters.values() if parameter.kind == parameter.VAR_KEYWORD]
        if not rest:
            return arguments
        arguments['**'] = rest[0]  # they may go to the parent class, whose names count, or anywhere
    return arguments
