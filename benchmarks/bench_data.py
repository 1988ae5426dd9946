"""Images a second and core of the multi-crop pipeline, beside the same augmentations in torchvision and PIL.

The training data set of `configs/poa/vitl_in1k.py` (2 x 224 and 8 x 96 px crops, block masks) reads JPEGs of about
ImageNet's size, made here from scikit-learn's sample photographs. The reference is the usual pipeline of DINO: PIL
images through `torchvision.transforms`, each view ending in `ToTensor` and `Normalize`; `reference_uint8` ends in
`PILToTensor` instead, since this project normalises on the device. One process, one thread; all pipelines take turns
on the same files, and the seconds are those of the processor, so that other work on the machine hardly counts.

    python benchmarks/bench_data.py [--images 24] [--rounds 7] [--json OUT]
    python benchmarks/bench_data.py --sources [--images 2000] [--rounds 3]     # folder, tar, Arrow
    python benchmarks/bench_data.py --scan 1000000 [--folder DIR]              # lists of millions of files
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from data_sources import compare_sources, scan
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.datasets import build_dataset
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images
from torchvision import transforms as T

CONFIG = Path(__file__).parents[1] / 'configs' / 'poa' / 'vitl_in1k.py'
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_images(folder: Path, number: int) -> list[Path]:
    """JPEGs of about 500 x 375, one in four upright: crops of two photographs of 640 x 427, resized."""
    rng = np.random.default_rng(0)
    photos = [photo[..., ::-1] for photo in load_sample_images().images]
    paths = []
    for index in range(number):
        photo = photos[index % 2]
        share = rng.uniform(0.75, 1.0)
        height, width = (int(share * side) for side in photo.shape[:2])
        top, left = (rng.integers(0, space + 1) for space in (photo.shape[0] - height, photo.shape[1] - width))
        size = (500, int(rng.integers(333, 400)))
        image = cv2.resize(photo[top : top + height, left : left + width], size, interpolation=cv2.INTER_AREA)
        image = np.rot90(image) if index % 4 == 3 else image
        paths.append(folder / f'{index:04d}.jpg')
        cv2.imwrite(str(paths[-1]), image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(85, 96))])
    return paths


class PILGaussianBlur:
    """DINO's random blur."""

    def __init__(self, prob: float):
        self.prob = prob

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() > self.prob:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def reference(finish: Callable) -> Callable[[Path], list[torch.Tensor]]:
    """The recipe's views in torchvision and PIL; ``finish`` makes a tensor of an image."""
    flip_and_colour = [
        T.RandomHorizontalFlip(0.5),
        T.RandomApply([T.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)], p=0.8),
        T.RandomGrayscale(0.2),
    ]
    bicubic = T.InterpolationMode.BICUBIC
    global_crop = T.RandomResizedCrop(224, scale=(0.32, 1.0), interpolation=bicubic)
    local_crop = T.RandomResizedCrop(96, scale=(0.05, 0.32), interpolation=bicubic)
    views = [
        T.Compose([global_crop, *flip_and_colour, PILGaussianBlur(1.0), finish]),
        T.Compose([global_crop, *flip_and_colour, PILGaussianBlur(0.1), T.RandomSolarize(128, 0.2), finish]),
        *[T.Compose([local_crop, *flip_and_colour, PILGaussianBlur(0.5), finish])] * 8,
    ]

    def read(path: Path) -> list[torch.Tensor]:
        with Image.open(path) as file:
            image = file.convert('RGB')
        return [view(image) for view in views]

    return read


def pipelines(folder: Path, paths: list[Path]) -> dict[str, Callable[[int], object]]:
    """What is timed: functions from the index of an image to its views."""
    cfg = Config.fromfile(CONFIG)
    init_default_scope(cfg.default_scope)
    cfg.train_dataloader.dataset.data_prefix = str(folder)
    dataset = build_dataset(cfg.train_dataloader.dataset)
    usual = reference(T.Compose([T.ToTensor(), T.Normalize(MEAN, STD)]))
    uint8 = reference(T.PILToTensor())
    return dict(
        poa_mm=dataset.__getitem__,
        reference=lambda index: usual(paths[index]),
        reference_uint8=lambda index: uint8(paths[index]),
    )


def measure(rounds: int, number: int) -> dict[str, float]:
    """Images a second of each pipeline, the median over rounds, after one round to warm up."""
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = make_images(Path(folder), number)
        read = pipelines(Path(folder), paths)
        for turn in range(rounds + 1):
            for name, load in read.items():
                start = time.process_time()
                for index in range(number):
                    load(index)
                if turn:
                    rates.setdefault(name, []).append(number / (time.process_time() - start))
    return {name: median(values) for name, values in rates.items()}


def measure_sources(rounds: int, number: int, folder: str | None) -> dict[str, dict[str, float]]:
    """Images a second from each kind of source."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        images = Path(place, 'images')
        images.mkdir()
        return compare_sources(make_images(images, number), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=24, help='default: 24')
    parser.add_argument('--sources', action='store_true', help='read the images from a folder, tar and Arrow instead')
    parser.add_argument('--scan', type=int, metavar='FILES', help='list so many empty files instead')
    parser.add_argument('--folder', metavar='DIR', help='where files are made (default: that of temporary ones)')
    parser.add_argument('--rounds', type=int, default=7, help='default: 7')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the result there too')
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    for module in (random, np.random):
        module.seed(0)
    torch.manual_seed(0)

    if args.scan or args.sources:
        result = scan(args.scan, args.folder) if args.scan else measure_sources(args.rounds, args.images, args.folder)
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + '\n')
        return
    rates = measure(args.rounds, args.images)
    table = Table('pipeline', 'images/s a core', 'ms an image', 'poa_mm is faster by')
    for name, rate in rates.items():
        table.add_row(name, f'{rate:.1f}', f'{1000 / rate:.2f}', f'{rates["poa_mm"] / rate:.2f}x')
    Console().print(table)
    result = dict(
        speedup=round(rates['poa_mm'] / rates['reference'], 3),
        speedup_uint8=round(rates['poa_mm'] / rates['reference_uint8'], 3),
        images_per_second={name: round(rate, 2) for name, rate in rates.items()},
    )
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result) + '\n')


if __name__ == '__main__':
    main()
