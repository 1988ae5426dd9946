"""Toy images with many bands, to try a configuration on."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('city', 'field', 'forest', 'water')
BANDS = 13
TOP = 4000  # about the largest value, of 12 bits


def write_multispectral(folder: str | os.PathLike, images: int = 20, size: int = 64, seed: int = 0) -> list[Path]:
    """Write TIFF files of 16 bits, of which 12 are used: a folder for each of four classes.

    Each class has a spectrum of its own, and patches of the others in it; light varies from image to image.

    Args:
        folder: Where the folders of the classes go; made if it is missing.
        images: Of each class. Default: 20.
        size: Rows and columns. Default: 64.
        seed: Of all random choices. Default: 0.

    Returns:
        The files.
    """
    import tifffile  # takes a while to import

    if min(images, size) < 1:
        raise ValueError(f'images {images} and size {size} must be positive')
    spectra = np.random.default_rng(1234).uniform(0.1, 0.8, (len(CLASSES), BANDS))  # the same for every seed
    rng = np.random.default_rng(seed)
    paths = []
    for label, name in enumerate(CLASSES):
        (Path(folder) / name).mkdir(parents=True, exist_ok=True)
        for index in range(images):
            image = _scene(rng, spectra, label, size)
            paths.append(Path(folder) / name / f'{index:04d}.tif')
            tifffile.imwrite(paths[-1], image, photometric='minisblack', planarconfig='contig')
    return paths


def _scene(rng: np.random.Generator, spectra: np.ndarray, label: int, size: int) -> np.ndarray:
    coarse = rng.random((4, 4)).astype(np.float32)
    cover = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    other = spectra[rng.integers(len(spectra))]
    mixed = np.where((cover > 0.8)[..., None], other, spectra[label])
    light = rng.uniform(0.7, 1.3) * (1 + 0.2 * (cover[..., None] - 0.5))
    noisy = mixed * light + rng.normal(0, 0.02, mixed.shape)
    return (noisy * TOP).clip(0, 4095).astype(np.uint16)
