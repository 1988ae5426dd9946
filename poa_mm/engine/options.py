"""What a command line changes in a config: ``--cfg-options key=value ...``."""

from __future__ import annotations

import argparse
import ast
import copy
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.config.config import import_modules_from_strings

from poa_mm.mistakes import UserError
from poa_mm.recipes import COUNT, Recipe, follow

from .config_keys import READ_BY_A_RUN, check_keys, default_of, find

# Where the config holds nothing, or None, a value of these names is text all the same.
TEXT = (
    *('load_from', 'work_dir', 'experiment_name', 'checkpoint', 'data_root', 'data_prefix', 'ann_file', 'split'),
    *('type', 'prefix', 'img_suffix', 'seg_map_suffix', 'img_path', 'seg_map_path', 'out_dir', 'save_dir'),
)
WORD = re.compile(r'[\w.+-]*')
OPEN, CLOSE = '([{', ')]}'


class OptionError(UserError, ValueError):
    """A value or key of ``--cfg-options`` that cannot have the effect it was given for."""


class Text(str):
    """A value as it stands on the command line. What it becomes depends on what the config holds there."""

    __slots__ = ()


class ConfigOptions(argparse.Action):
    """Collects ``KEY=VALUE`` pairs into a dict of :class:`Text`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Add the pairs; a key that is there with another value is refused."""
        options = dict(getattr(namespace, self.dest, None) or {})
        for pair in values or ():
            key, equals, value = pair.partition('=')
            if not equals or not key.strip():
                parser.error(
                    f'{option_string}: expected KEY=VALUE, got {pair!r} (a value with blanks needs quotes: "KEY=a b")'
                )
            if options.get(key, value) != value:
                parser.error(f'{option_string}: {key} is given twice, as {options[key]!r} and as {value!r}')
            options[key] = Text(value)
        setattr(namespace, self.dest, options)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        metavar='KEY=VALUE',
        help='override the config; where it holds a text, VALUE is that text as it stands',
    )


def merge_options(
    cfg: Config, options: Mapping[str, Any] | None, reads: Collection[str] = READ_BY_A_RUN, name: str = '--cfg-options'
) -> None:
    """Change a config as a command line says.

    Where the config holds a text, so does it afterwards: blanks, commas, quotes and digits stay. Elsewhere a value is a
    number, ``True``, ``False``, ``None``, a list as ``1,2`` or ``[1,2]``, anything else that Python can write, or text.
    A number of the recipe changes all that follows from it (:func:`~poa_mm.recipes.follow`).

    Args:
        cfg: Changed in place.
        options: Values by dotted keys; those that are no :class:`Text` are taken as they are, and so are their keys.
            Default: None.
        reads: Names of the top-level entries that the command reads. Default: those of a run.
        name: Of the option, for errors. Default: ``'--cfg-options'``.

    Raises:
        OptionError: If nothing will read a key (names one that works), or a value cannot be meant.
        ValueError: If the recipe has no such number.
    """
    typed = [key for key, value in (options or {}).items() if isinstance(value, Text) and not key.startswith('recipe.')]
    options = {key: _value(cfg, key, value, name) for key, value in (options or {}).items()}
    before = copy.deepcopy(cfg._cfg_dict.to_dict())
    numbers = {key: options.pop(key) for key in list(options) if key.startswith('recipe.')}
    if numbers:
        follow(cfg, **{key.removeprefix('recipe.'): value for key, value in numbers.items()})
    try:
        check_keys(before, before, typed, reads, only_paths=True)
        cfg.merge_from_dict(options)
        check_keys(before, cfg._cfg_dict.to_dict(), typed, reads)
    except (KeyError, TypeError, ValueError) as error:
        raise OptionError(f'{name} {error.args[0] if error.args else error}') from error
    if any(key.startswith('custom_imports.') or key == 'custom_imports' for key in options):
        import_modules_from_strings(**cfg.custom_imports)


def _value(cfg: Config, key: str, value: Any, name: str) -> Any:
    if not isinstance(value, Text):
        return value
    if key.startswith('recipe.'):
        fields = Recipe.__dataclass_fields__
        known = fields.get(key.removeprefix('recipe.'))
        held = find(cfg, key, known.default if known else None)
        held = None if held == COUNT else held  # which is a text where there is a number, too
    else:
        held = find(cfg, key, default_of(cfg, key))
    try:
        return parse(value, held, key.rpartition('.')[2])
    except ValueError as error:
        raise OptionError(f'{name} {key}={value}: {error}') from error


def parse(text: str, held: Any = None, name: str = '') -> Any:
    """What a value on the command line means.

    Args:
        text: As it stands there.
        held: What the config holds in its place. Default: None.
        name: The last part of the key. Default: ``''``.

    Raises:
        ValueError: If the config holds True or False and the text is neither; if brackets are not closed.

    Examples:
        >>> parse('2023'), parse('2023', 'data'), parse('a b, c', 'data')
        (2023, '2023', 'a b, c')
        >>> parse('1,2'), parse('1,2', (3, 4)), parse('1,2', ['a'])
        ([1, 2], (1, 2), ['1', '2'])
    """
    text = str(text)
    if isinstance(held, str):
        return text
    if held is None and name in TEXT:
        return None if text == 'None' else text
    if isinstance(held, (list, tuple)) and held and all(isinstance(item, str) for item in held):
        return type(held)(_texts(text))
    value = _literal(text)
    if isinstance(held, bool) and isinstance(value, (str, float)):
        raise ValueError('expected True or False')
    if isinstance(held, int) and isinstance(value, float) and value.is_integer() and not isinstance(held, bool):
        return int(value)  # 1e3 iterations
    if isinstance(held, tuple) and isinstance(value, list):
        return tuple(value)
    return value


def _literal(text: str) -> Any:
    word = text.strip()
    if word.lower() in ('true', 'false'):
        return word.lower() == 'true'
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            pass
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return _list(text)
    return list(value) if isinstance(value, tuple) and word[:1] not in OPEN else value  # 1,2


def _list(text: str) -> Any:
    """A list of words without quotes, as ``[a,b]``, ``(a,1)`` or ``a,b``; else the text itself."""
    word = text.strip()
    bracketed = word[:1] in ('[', '(') and word[-1:] == CLOSE[OPEN.index(word[0])]
    if not bracketed and not (',' in word and all(WORD.fullmatch(item.strip()) for item in word.split(','))):
        return text
    items = [_literal(item.strip()) for item in _split(word[1:-1] if bracketed else word)]
    return tuple(items) if word[0] == '(' else items


def _texts(text: str) -> Iterator[str]:
    """The items of a list that holds texts; a single text is a list of one."""
    word = text.strip()
    if word[:1] in ('[', '('):
        try:
            value = ast.literal_eval(word)
        except (ValueError, SyntaxError):
            value = None
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return iter(value)
        word = word[1:-1]
    return (item.strip() for item in _split(word)) if ',' in word else iter([word if word != text.strip() else text])


def _split(text: str) -> Iterator[str]:
    """The parts between commas that are in no brackets.

    Raises:
        ValueError: If a bracket is not closed, or was not opened.
    """
    depth, part = 0, ''
    for char in text:
        depth += (char in OPEN) - (char in CLOSE)
        if depth < 0:
            break
        if char == ',' and depth == 0:
            yield part
            part = ''
        else:
            part += char
    if depth:
        raise ValueError('brackets do not match')
    if part.strip() or text.strip() == '':
        yield part
