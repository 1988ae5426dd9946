"""Colour scenes of many objects, composed from garments or digits, in the layouts of COCO 2017 and ADE20K.

For testing and trying out detection and segmentation where the real data cannot be had. Scenes are exact by
construction: every pixel's class and every object's visible mask are known.
"""

from __future__ import annotations

import colorsys
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from mmpretrain.datasets import FashionMNIST
from PIL import Image

from poa_mm.compat import check_downstream

from .compositing import DARKEST, TEXTURES, background, paint, photographed, silhouette, tinted
from .digits import Digits

ZOOM = 2  # of a preview
SOURCES = {'fashion_mnist': FashionMNIST, 'digits': Digits}
SPLITS = ('train', 'val')
NAMES = ('own', 'library')
NUM_ITEM_CLASSES = 10  # of every source
MIN_SIDE = 32  # px; mmdet leaves smaller images out of training
MIN_VISIBLE = 0.25  # an item of which others hide more is left out


class Scene(NamedTuple):
    """A picture and what is on it."""

    image: np.ndarray  # (H, W, 3) uint8, RGB
    masks: np.ndarray  # (N, H, W) bool, the visible part of each object, from front to back; disjoint
    labels: np.ndarray  # (N,) int64, in 0..9
    semantic: np.ndarray  # (H, W) uint8, class of every pixel: 0..9 the items', from 10 on the backgrounds'


class _Sprite(NamedTuple):
    """An object ready to be painted on a picture."""

    colour: np.ndarray  # (h, w, 3) float32, in 0..255
    mask: np.ndarray  # (h, w) bool
    where: tuple[slice, slice]  # its rows and columns in the picture
    label: int


# --- one scene -------------------------------------------------------------------------------
def compose_scene(
    rng: np.random.Generator,
    items: np.ndarray,
    labels: np.ndarray,
    size: tuple[int, int],
    objects: tuple[int, int] = (3, 8),
    scale: tuple[float, float] = (0.15, 0.5),
) -> Scene:
    """Compose a scene of tinted, scaled and flipped items that overlap in front of two textures.

    Args:
        rng: The only source of randomness.
        items: Grey pictures to choose from, bright on black, ``(M, h, w)`` uint8.
        labels: Their classes in 0..9, ``(M,)``.
        size: Height and width of the scene in pixels.
        objects: Smallest and largest number of items. Those hidden to more than 75 % by items in front
            of them are left out, so that a scene may hold fewer. Default: (3, 8).
        scale: Smallest and largest longer side of an item, in shorter sides of the scene. Default: (0.15, 0.5).

    Returns:
        The scene.
    """
    chosen = rng.integers(len(items), size=rng.integers(objects[0], objects[1], endpoint=True))
    sprites = [_sprite(rng, items[i], int(labels[i]), size, scale) for i in chosen]
    sprites, masks = _occlude(sprites, size)

    image, textures = background(rng, size)
    semantic = NUM_ITEM_CLASSES + textures
    for sprite in reversed(sprites):  # from back to front
        paint(image[sprite.where], sprite.colour, sprite.mask)
        semantic[sprite.where][sprite.mask] = sprite.label
    return Scene(
        image=photographed(rng, image),
        masks=masks,
        labels=np.array([sprite.label for sprite in sprites], dtype=np.int64),
        semantic=semantic,
    )


def _occlude(sprites: list[_Sprite], size: tuple[int, int]) -> tuple[list[_Sprite], np.ndarray]:
    """Drop sprites that those before them hide, and find the visible mask of the others, ``(N, H, W)``."""
    covered = np.zeros(size, dtype=bool)
    kept, masks = [], []
    for sprite in sprites:
        visible = np.zeros(size, dtype=bool)
        visible[sprite.where] = sprite.mask & ~covered[sprite.where]
        if visible.any() and visible.sum() >= MIN_VISIBLE * sprite.mask.sum():
            kept.append(sprite)
            masks.append(visible)
            covered |= visible
    return kept, np.array(masks, dtype=bool).reshape(-1, *size)


def _sprite(
    rng: np.random.Generator, item: np.ndarray, label: int, size: tuple[int, int], scale: tuple[float, float]
) -> _Sprite:
    """Scale, flip and tint an item, and choose its place in the picture."""
    grey, mask = _cut_out(item, side=round(rng.uniform(*scale) * min(size)))
    if rng.random() < 0.5:
        grey, mask = grey[:, ::-1], mask[:, ::-1]
    colour = tinted(rng, grey)
    top, left = (int(rng.integers(whole - part, endpoint=True)) for whole, part in zip(size, mask.shape))
    where = (slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1]))
    return _Sprite(colour, mask, where, label)


def _cut_out(item: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Crop an item to its silhouette and scale it; returns grey levels and the filled silhouette, ``(h, w)``."""
    left, top, width, height = cv2.boundingRect((item > DARKEST).astype(np.uint8))
    item = np.pad(item[top : top + height, left : left + width], 1)
    scale = side / max(item.shape)
    shape = [max(round(length * scale), 1) for length in item.shape]
    grey = cv2.resize(item, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return grey, silhouette(grey)


# --- many scenes -----------------------------------------------------------------------------
class Scenes(Sequence):
    """Scenes of a split, each composed when asked for: scene ``i`` depends on the seed, the split and ``i`` only.

    Those of ``'train'`` show items of the source's train part, those of ``'val'`` of its test part.

    Args:
        source: ``'fashion_mnist'`` or ``'digits'``.
        split: ``'train'`` or ``'val'``.
        length: Number of scenes.
        size: Height and width in pixels, at least 32.
        objects: Smallest and largest number of items, see :func:`compose_scene`. Default: (3, 8).
        scale: Smallest and largest size of an item, see :func:`compose_scene`. Default: (0.15, 0.5).
        seed: Default: 0.
        data_root: Folder with Fashion-MNIST's idx files. Default: ``'data/fashion_mnist'``.

    Raises:
        ValueError: If an argument is out of its range, or the idx files are broken.
        FileNotFoundError: If an idx file is missing.
    """

    def __init__(
        self,
        source: str,
        split: str,
        length: int,
        size: tuple[int, int],
        objects: tuple[int, int] = (3, 8),
        scale: tuple[float, float] = (0.15, 0.5),
        seed: int = 0,
        data_root: str | os.PathLike = 'data/fashion_mnist',
    ):
        _check_choice('split', split, SPLITS)
        if length < 1:
            raise ValueError(f'number of {split} scenes must be at least 1, not {length}')
        if len(size) != 2 or min(size) < MIN_SIDE:
            raise ValueError(f'size {size} is not a height and a width of at least {MIN_SIDE} pixels')
        if len(objects) != 2 or not 1 <= objects[0] <= objects[1]:
            raise ValueError(f'objects {objects} is not a smallest and a largest number, at least 1')
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] < 1:
            raise ValueError(f'scale {scale} is not a smallest and a largest share of the side, between 0 and 1')
        if seed < 0:
            raise ValueError(f'seed {seed} is negative')
        self.source, self.split, self.length = source, split, length
        self.size, self.objects, self.scale, self.seed = tuple(size), tuple(objects), tuple(scale), seed
        self.items, self.labels = load_items(source, split, data_root)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:
        spawn_key = (SPLITS.index(self.split), range(self.length)[index])
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=spawn_key))
        return compose_scene(rng, self.items, self.labels, self.size, self.objects, self.scale)


def load_items(
    source: str, split: str, data_root: str | os.PathLike = 'data/fashion_mnist'
) -> tuple[np.ndarray, np.ndarray]:
    """Load the items of a split: pictures ``(M, h, w)`` uint8 and labels ``(M,)``; see :class:`Scenes`."""
    _check_choice('source', source, SOURCES)
    part = 'train' if split == 'train' else 'test'
    data = Digits(part, lazy_init=True).load_data_list() if source == 'digits' else _fashion_mnist(part, data_root)
    pictures = np.stack([item['img'] for item in data])
    return pictures.reshape(*pictures.shape[:3], -1)[..., 0], np.array([item['gt_label'] for item in data])


def _fashion_mnist(part: str, data_root: str | os.PathLike) -> list[dict]:
    for name, _ in FashionMNIST.train_list + FashionMNIST.test_list:
        if not (path := Path(data_root, name).with_suffix('')).is_file():
            raise FileNotFoundError(f'no {path}: {data_root} must hold the four idx files of Fashion-MNIST, unpacked')
    # mmpretrain's class chooses its files by test_mode, whatever the split.
    which = dict(split=part, test_mode=part == 'test')
    try:
        return FashionMNIST(data_root=str(data_root), download=False, lazy_init=True, **which).load_data_list()
    except (RuntimeError, AssertionError, ValueError, KeyError) as error:  # as its reader happens to fail
        raise ValueError(f'{data_root} does not hold readable idx files of Fashion-MNIST: {error}') from error


def semantic_classes(source: str) -> tuple[str, ...]:
    """Names of the classes of :attr:`Scene.semantic`: the source's ten, then the backgrounds'."""
    _check_choice('source', source, SOURCES)
    return (*SOURCES[source].METAINFO['classes'], *TEXTURES)


def _check_choice(what: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise ValueError(f'{what} {value!r} is not one of {", ".join(valid)}')


# --- files -----------------------------------------------------------------------------------
def write_scenes(
    out_dir: str | os.PathLike,
    source: str = 'fashion_mnist',
    train: int = 4000,
    val: int = 500,
    size: int | tuple[int, int] = 128,
    objects: tuple[int, int] = (3, 8),
    scale: tuple[float, float] = (0.15, 0.5),
    seed: int = 0,
    names: str = 'own',
    data_root: str | os.PathLike = 'data/fashion_mnist',
    progress: Callable[[int], object] = lambda done: None,
) -> None:
    """Write scenes as a data folder that stock mmdet and mmseg read: the same pictures in both layouts.

    ``coco/{train2017,val2017,annotations}``, ``ade/ADEChallengeData2016/{images,annotations}/{training,validation}``
    and ``preview.png``. ADE20K's masks hold :attr:`Scene.semantic` plus 1. The folder appears complete or not at
    all, and is the same, byte by byte, for the same arguments.

    Args:
        out_dir: The folder; must not exist or be empty.
        source: ``'fashion_mnist'`` or ``'digits'``, which needs no data. Default: ``'fashion_mnist'``.
        train: Number of training scenes. Default: 4000.
        val: Number of validation scenes. Default: 500.
        size: Height and width in pixels, or one number for both. Default: 128.
        objects: Smallest and largest number of objects. Default: (3, 8).
        scale: Smallest and largest size of an object, see :func:`compose_scene`. Default: (0.15, 0.5).
        seed: Default: 0.
        names: COCO's categories: ``'own'``, the ten of the source, or ``'library'``, all 80 of COCO, of which the
            first ten occur, so that configs for COCO run unchanged. Default: ``'own'``.
        data_root: Folder with Fashion-MNIST's idx files. Default: ``'data/fashion_mnist'``.
        progress: Called with the number of scenes done since the last call.

    Raises:
        FileExistsError: If the folder exists and is not empty.
        FileNotFoundError: If an idx file is missing.
        ValueError: If another argument is invalid, or COCO's names are wanted and mmdet is not installed.
    """
    size = (size, size) if isinstance(size, int) else tuple(size)
    _check_choice('names', names, NAMES)
    options = dict(size=size, objects=objects, scale=scale, seed=seed, data_root=data_root)
    splits = [Scenes(source, split, length, **options) for split, length in zip(SPLITS, (train, val))]
    categories = _library_names() if names == 'library' else SOURCES[source].METAINFO['classes']
    with _complete_folder(Path(out_dir)) as folder:
        for scenes in splits:
            _write_split(folder, scenes, categories, progress)
        draw_preview([splits[0][i] for i in range(min(train, 6))], categories).save(folder / 'preview.png')


def _library_names() -> tuple[str, ...]:
    try:
        check_downstream('mmdet')
    except ImportError as error:
        raise ValueError(f"names='library': {error}") from error
    from mmdet.datasets import CocoDataset  # slow to import

    return CocoDataset.METAINFO['classes']


@contextmanager
def _complete_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to that gets its name when all is written."""
    folder = folder.resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f'{folder} exists and is not an empty folder')
    temporary = folder.with_name(f'.{folder.name}.{os.getpid()}.tmp')
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_split(folder: Path, scenes: Scenes, categories: Sequence[str], progress: Callable[[int], object]) -> None:
    coco, ade = folder / 'coco', folder / 'ade' / 'ADEChallengeData2016'
    photos = coco / f'{scenes.split}2017'
    ade_split = 'training' if scenes.split == 'train' else 'validation'
    for path in (photos, coco / 'annotations', ade / 'images' / ade_split, ade / 'annotations' / ade_split):
        path.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for image_id, scene in enumerate(scenes, start=1):
        photo, name = photos / f'{image_id:012}.jpg', f'ADE_{scenes.split}_{image_id:08}'
        Image.fromarray(scene.image).save(photo, quality=95)
        _link(photo, ade / 'images' / ade_split / f'{name}.jpg')
        _semantic_image(scene.semantic).save(ade / 'annotations' / ade_split / f'{name}.png')
        images.append(dict(id=image_id, file_name=photo.name, height=scenes.size[0], width=scenes.size[1]))
        for mask, label in zip(scene.masks, scene.labels):
            annotations.append(dict(id=len(annotations) + 1, image_id=image_id, **_coco_annotation(mask, label)))
        progress(1)
    content = dict(
        info=dict(description=f'scenes of {scenes.source}, {scenes.split}, seed {scenes.seed}'),
        images=images,
        annotations=annotations,
        categories=[dict(id=i, name=name) for i, name in enumerate(categories, start=1)],
    )
    (coco / 'annotations' / f'instances_{scenes.split}2017.json').write_text(json.dumps(content))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _semantic_image(semantic: np.ndarray) -> Image.Image:
    """ADE20K's kind of mask: 0 is unlabelled, classes count from 1."""
    image = Image.fromarray(semantic + 1)
    image.putpalette(bytes([0, 0, 0]) + _palette().tobytes())
    return image


def _palette() -> np.ndarray:
    """A colour for each semantic class, ``(14, 3)`` uint8."""
    classes = NUM_ITEM_CLASSES + len(TEXTURES)
    colours = [colorsys.hsv_to_rgb(i / NUM_ITEM_CLASSES, 0.8, 1) for i in range(NUM_ITEM_CLASSES)]
    greys = [[0.2 + 0.15 * i] * 3 for i in range(classes - NUM_ITEM_CLASSES)]
    return (255 * np.array([*colours, *greys])).astype(np.uint8)


def _coco_annotation(mask: np.ndarray, label: int) -> dict:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return dict(
        category_id=int(label) + 1,
        bbox=[x, y, width, height],
        area=int(mask.sum()),
        iscrowd=0,
        segmentation=_segmentation(mask),
    )


def _segmentation(mask: np.ndarray) -> list[list[float]] | dict:
    """Polygons in COCO's coordinates, where pixel 0 reaches from 0 to 1; run lengths if there is a hole."""
    # OpenCV's outlines go through the centres of the outermost pixels. At twice the size they lie a quarter of
    # a pixel inside the object's edge, and the polygon covers exactly the centres of its pixels.
    doubled = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    outlines, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if (hierarchy[0, :, 3] < 0).all():  # no outline has a parent
        return [((outline.reshape(-1) + 0.5) / 2).tolist() for outline in outlines]
    from pycocotools.mask import encode

    rle = encode(np.asfortranarray(mask, dtype=np.uint8))
    return dict(size=rle['size'], counts=rle['counts'].decode())


# --- preview ---------------------------------------------------------------------------------
def draw_preview(scenes: Sequence[Scene], names: Sequence[str]) -> Image.Image:
    """Draw scenes side by side: the picture, its boxes and masks below, its semantic classes at the bottom."""
    columns = []
    for scene in scenes:
        drawn = _draw_objects(scene, names)
        plain, semantic = (_enlarge(image) for image in (scene.image, _palette()[scene.semantic]))
        columns.append(np.pad(np.concatenate([plain, drawn, semantic]), ((0, 0), (2, 2), (0, 0))))
    return Image.fromarray(np.concatenate(columns, axis=1))


def _draw_objects(scene: Scene, names: Sequence[str]) -> np.ndarray:
    image = _enlarge(scene.image)
    for mask, label in zip(scene.masks, scene.labels):
        colour = _palette()[label]
        inside = _enlarge(mask.astype(np.uint8)).astype(bool)
        image[inside] = image[inside] // 2 + colour // 2
        x, y, width, height = (ZOOM * length for length in cv2.boundingRect(mask.astype(np.uint8)))
        cv2.rectangle(image, (x, y), (x + width - 1, y + height - 1), colour.tolist())
        cv2.putText(image, names[label], (x + 2, y + 10), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255, 255, 255))
    return image


def _enlarge(image: np.ndarray) -> np.ndarray:
    return image.repeat(ZOOM, 0).repeat(ZOOM, 1)
