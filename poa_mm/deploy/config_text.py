"""The text of the configs that extraction writes.

A config is a program. Whatever is written into one here is a literal (:func:`literal`), never text within text: names
of files and values out of a checkpoint may hold quotes, braces, backslashes or code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

PHOTO = 96  # pixels from which on images are taken for photographs, of which a margin is cut off
GREY = dict(
    type='mmpretrain.RandomGrayscale', prob=1.0, channel_weights=(0.114, 0.587, 0.299)
)  # as OpenCV weighs B, G and R

# Without an import: mmengine may take a config that has one for a config in pure Python, which cannot do this.
BESIDE = '''

def beside(name):
    """Path of a file in the folder of this config, which is where its code is from."""
    path = __import__('os').path
    return path.join(path.dirname(beside.__code__.co_filename), name)

'''

CONFIG = (
    '''"""Subnet {subnet} of {source} (SHA-256 {source_sha256}), extracted by poa_mm {poa_mm}.

A feature extractor; the linear classifier on top of it is not trained.
"""
'''
    + BESIDE
    + """
default_scope = 'mmpretrain'
{custom_imports}data_preprocessor = dict({data_preprocessor})
model = dict(
    type={classifier},
    backbone=dict(
{backbone}
        init_cfg=dict(type='Pretrained', checkpoint=beside({file})),
    ),
    neck={neck},
    head=dict(type='LinearClsHead', num_classes=1000, in_channels={channels}, loss=dict(type='CrossEntropyLoss')),
)
{load_from}
# How single images are prepared for the network, whatever library was used before; there is no data to test on.
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    dataset=dict(
        type='CustomDataset',
        pipeline=[
{pipeline}
            dict(type='mmpretrain.PackInputs'),
        ],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = dict(type='Accuracy')
test_cfg = dict()
"""
)
CUSTOM_IMPORTS = "custom_imports = dict(imports=['poa_mm'], allow_failed_imports=False)\n"
# SubnetClassifier takes the weights of its backbone alone, which mmpretrain's own class does not.
LOAD_FROM = 'load_from = beside({file})  # what mmpretrain.get_model(.., pretrained=True) loads\n'
STOCK_WEIGHTS = '# Weights: model = mmpretrain.get_model(THIS_FILE); model.init_weights()\n'

DOWNSTREAM_CONFIG = (
    '''"""Fine-tuning in {library}: subnet {subnet} of {source} (SHA-256 {source_sha256}).

    tools/dist_train.sh {name} GPUS
"""

_base_ = f'{{__import__("poa_mm").__path__[0]}}/.mim/configs/{base}'
'''
    + '\n{task_import}\n'
    + BESIDE
    + """
model = {task}(
    dict(
{backbone}
        init_cfg=dict(type='Pretrained', checkpoint=beside({file})),
    )
)
{preprocessor} = dict({data_preprocessor})
{classifier}{optim_wrapper}{data}{hint}"""
)
BANDS = """
# Images with bands in folders by their class; the colour augmentations of the base do not apply to them.
train_pipeline = [
{train}
    dict(type='PackInputs'),
]
test_pipeline = [
{test}
    dict(type='PackInputs'),
]
data = dict(_delete_=True, type='ImageFolder', extensions=('.tif', '.tiff', '.png', {suffix}))
train_dataloader = dict(dataset=dict(**data, data_prefix='data/train', pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**data, data_prefix='data/val', class_root='data/train', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
"""
CLASSIFIER = "model['type'] = 'SubnetClassifier'  # takes the weights of its backbone alone, too\n"
# What a backbone cannot say by itself.
HINTS = {
    'VisionTransformer': (
        "# Less memory, more time: custom_hooks = [*_base_.custom_hooks, dict(type='ActivationCheckpointHook')]\n"
    ),
    'SwinTransformer': (
        '# With frozen_stages, several processes need find_unused_parameters = True, which tools/train.py sets: this\n'
        '# Swin freezes itself in its first training step only. with_cp=True: less memory, more time.\n'
    ),
    'ResNet': '# with_cp=True in the backbone: less memory, more time.\n',
    'BottleneckResNet': '# with_cp=True in the backbone: less memory, more time.\n',
}
LAYER_DECAY = 'optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate={}))\n'


def literal(value: Any) -> str:
    """Python source of a value, which is that value and nothing else wherever it stands in a config.

    mmengine replaces ``{{ .. }}`` anywhere in the text of a config, in literals as well. So texts are written
    without braces, and without anything but ASCII.

    Args:
        value: Text, a number, a truth value, None, or a list, tuple or dict of such.

    Raises:
        TypeError: If it is anything else.
    """
    if isinstance(value, str):
        return ascii(str(value)).replace('{', r'\x7b').replace('}', r'\x7d')
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else f"float('{float(value)}')"
    if isinstance(value, Mapping):
        return '{' + ', '.join(f'{literal(key)}: {literal(item)}' for key, item in value.items()) + '}'
    if isinstance(value, (list, tuple)):
        items = ', '.join(map(literal, value))
        if isinstance(value, list):
            return f'[{items}]'
        return f'({items},)' if len(value) == 1 else f'({items})'
    raise TypeError(f'{value!r} of type {type(value).__name__} cannot be written into a config')


def readable(text: str) -> str:
    """A name for a docstring: all but letters, digits and a few harmless signs become ``_``."""
    return re.sub(r'[^\w .,()+=@-]', '_', text)


def feature_config(
    entry: Mapping[str, Any],
    backbone: Mapping[str, Any],
    neck: Mapping[str, Any] | None,
    channels: int,
    normalisation: Mapping[str, Any],
    own_class: bool,
) -> str:
    """The mmpretrain config beside the weights.

    Args:
        entry: Of the manifest.
        backbone: Config of the network.
        neck: Config of what makes class features of its output, if it does not give them itself.
        channels: Of the class features.
        normalisation: ``mean``, ``std`` and ``to_rgb``; ``value_range`` of images that :class:`LoadBands` loads.
        own_class: Whether the network is none of mmpretrain's own.
    """
    file = literal(entry['file'])
    normalisation = dict(normalisation)
    steps = single_image(entry['image_size'], backbone.get('in_channels', 3), normalisation.pop('value_range', None))
    bands = steps[0]['type'] == 'LoadBands'
    needs_poa_mm = own_class or bands or entry['format'] == 'safetensors'
    return CONFIG.format(
        **_origin(entry),
        file=file,
        neck=literal(neck),
        channels=literal(channels),
        custom_imports=CUSTOM_IMPORTS if needs_poa_mm else '',
        classifier=literal('SubnetClassifier' if needs_poa_mm else 'ImageClassifier'),
        load_from=LOAD_FROM.format(file=file) if needs_poa_mm else STOCK_WEIGHTS,
        data_preprocessor=_call({**normalisation, 'num_classes': 1000}),
        backbone=_arguments(backbone),
        pipeline=''.join(f'            dict({_call(step)}),\n' for step in steps).rstrip('\n'),
    )


def downstream_config(
    entry: Mapping[str, Any],
    library: str,
    base: str,
    task: str,
    backbone: Mapping[str, Any],
    preprocessor: str,
    normalisation: Mapping[str, Any],
    layer_decay_rate: float | None,
    data: str = '',
) -> str:
    """The config beside the weights that trains the subnet in a library.

    Args:
        entry: Of the manifest.
        library: Its name.
        base: The shipped config that it inherits from, within ``configs``.
        task: Name of the function of :mod:`~poa_mm.deploy.downstream` that fits the model to the backbone.
        backbone: Config of the network.
        preprocessor: Where in the config the normalisation goes, as Python.
        normalisation: ``mean``, ``std`` and the order of channels, as the library calls it.
        layer_decay_rate: In place of the one of ``base``. None leaves that.
        data: Entries of data in place of those of ``base``. Default: none.
    """
    return DOWNSTREAM_CONFIG.format(
        **_origin(entry),
        file=literal(entry['file']),
        library=library,
        name=f'poa_{entry["subnet"]}_{library}.py',
        base=base,
        task=task,
        task_import=f'from poa_mm.deploy.downstream import {task}',
        backbone=_arguments(backbone),
        preprocessor=preprocessor,
        data_preprocessor=_call(normalisation),
        classifier=CLASSIFIER if library == 'mmpretrain' else '',
        hint=HINTS.get(str(backbone['type']).rpartition('.')[2], ''),
        optim_wrapper='' if layer_decay_rate is None else LAYER_DECAY.format(literal(layer_decay_rate)),
        data=data,
    )


def _origin(entry: Mapping[str, Any]) -> dict[str, str]:
    return {key: readable(str(entry[key])) for key in ('subnet', 'source', 'source_sha256', 'poa_mm')}


def single_image(image_size: Sequence[int], in_channels: int, value_range: Any = None) -> list[Mapping[str, Any]]:
    """Transforms that load an image and bring it to the size of the pre-training.

    Args:
        image_size: Height and width of the pre-training in pixels.
        in_channels: Channels that the network takes.
        value_range: Of :class:`~poa_mm.datasets.LoadBands`, if that loaded the images. Default: they are files of 8
            bits, grey or colour; of any other number of channels, bands of 8 bits.
    """
    if value_range is None and in_channels in (1, 3):
        return [dict(type='LoadImageFromFile'), *preparation(image_size, in_channels)]
    load = dict(type='LoadBands', in_channels=in_channels, value_range=value_range or (0, 255))
    return [load, *preparation(image_size, 3, backend='cv2')]


def preparation(image_size: Sequence[int], in_channels: int, backend: str = 'pillow') -> list[Mapping[str, Any]]:
    """Transforms that bring an image to the size of the pre-training.

    Of photographs, the middle at 7/8 of the short edge, as is customary (224 of 256); small pictures as a whole.

    Args:
        image_size: Height and width of the pre-training in pixels.
        in_channels: Channels that the network takes.
        backend: What resizes: ``'cv2'`` takes any number of channels, but does not antialias. Default: 'pillow'.
    """
    rows, columns = image_size
    how = dict(backend=backend, interpolation='bicubic')
    if rows == columns >= PHOTO:
        # An even margin: other libraries round the half of an odd one to the other side.
        steps = [dict(type='mmpretrain.ResizeEdge', scale=rows + 2 * round(rows / 14), edge='short', **how)]
        steps.append(dict(type='mmpretrain.CenterCrop', crop_size=rows))
    else:
        steps = [dict(type='mmpretrain.Resize', scale=(columns, rows), **how)]
    return [*steps, GREY] if in_channels == 1 else steps


def bands_of_folders(image_size: Sequence[int], in_channels: int, value_range: Any = None) -> str:
    """Entries of a config that classify images with bands in folders, in place of the colour images of a base."""
    steps = single_image(image_size, in_channels, value_range)
    train = [
        steps[0],
        dict(type='FastRandomResizedCrop', scale=tuple(image_size)),
        dict(type='FastRandomFlip', prob=0.5),
    ]
    return BANDS.format(train=_lines(train), test=_lines(steps), suffix=literal('.npy'))


def _lines(steps: Sequence[Mapping[str, Any]]) -> str:
    return '\n'.join(f'    dict({_call(step)}),' for step in steps)


def _call(config: Mapping[str, Any]) -> str:
    """Items of a dict as the arguments of a call."""
    return ', '.join(f'{key}={literal(value)}' for key, value in config.items())


def _arguments(config: Mapping[str, Any]) -> str:
    """The same as lines, indented for a config."""
    return '\n'.join(f'        {key}={literal(value)},' for key, value in config.items())
