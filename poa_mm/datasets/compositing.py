"""Grey items cut out of their black ground, tinted, and painted onto random textures."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

DARKEST = 32  # grey level that an item's pixels exceed; lower ones are the noise around it


# --- items -----------------------------------------------------------------------------------
def silhouette(grey: np.ndarray) -> np.ndarray:
    """What an item covers, its holes filled: bool ``(h, w)``, of a grey picture ``(h, w)`` uint8, bright on black."""
    outlines, _ = cv2.findContours((grey > DARKEST).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(grey), outlines, -1, 1, cv2.FILLED).astype(bool)


def tinted(rng: np.random.Generator, grey: np.ndarray) -> np.ndarray:
    """An item in a random colour, ``(h, w, 3)`` float32 in 0..255; black parts stay a little lit."""
    shade = 0.3 + 0.7 * grey.astype(np.float32) / 255
    return shade[..., None] * _colour(rng, saturation=(0.2, 1.0), value=(0.6, 1.0))


def paint(image: np.ndarray, colour: np.ndarray, mask: np.ndarray) -> None:
    """Paint ``colour`` where ``mask`` is, with soft edges, on an image ``(h, w, 3)``, in place."""
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0)[..., None]
    image += alpha * (colour - image)


def photographed(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """The image with a camera's noise, uint8."""
    return (image + rng.normal(0, 3, image.shape)).round().clip(0, 255).astype(np.uint8)


# --- backgrounds -----------------------------------------------------------------------------
def background(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Two textures that meet at a line.

    Args:
        rng: The only source of randomness.
        size: Height and width in pixels.

    Returns:
        Image ``(H, W, 3)`` float32 in 0..255, and indices into ``TEXTURES``, ``(H, W)`` uint8.
    """
    y, x = np.indices(size, dtype=np.float32) / min(size)
    first, second = rng.choice(len(TEXTURES), size=2, replace=False)
    beyond = _rotated(rng, y - y.mean(), x - x.mean())[0] > rng.uniform(-0.4, 0.4)
    image = np.where(beyond[..., None], _textured(rng, second, y, x), _textured(rng, first, y, x))
    return image, np.where(beyond, second, first).astype(np.uint8)


def _textured(rng: np.random.Generator, kind: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    colour = _colour(rng, saturation=(0.0, 0.6), value=(0.2, 0.9))
    other = np.clip(colour + rng.choice([-1, 1], size=3) * rng.uniform(25, 70, size=3), 0, 255)
    weight = list(TEXTURES.values())[kind](rng, y, x)[..., None]
    return (colour + weight * (other - colour)).astype(np.float32)


def _gradient(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    along, _ = _rotated(rng, y, x)
    return (along - along.min()) / np.ptp(along)


def _clouds(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    octaves = [
        cv2.resize(rng.random((cells, cells), dtype=np.float32), x.shape[::-1], interpolation=cv2.INTER_CUBIC) / cells
        for cells in (4, 8, 16)
    ]
    clouds = sum(octaves)
    return (clouds - clouds.min()) / np.ptp(clouds)


def _stripes(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    along, _ = _rotated(rng, y, x)
    wave = np.sin(2 * np.pi * rng.uniform(4, 12) * along)
    return np.clip(0.5 + 2 * wave, 0, 1)


def _checks(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    frequency = rng.uniform(4, 12)
    along, across = _rotated(rng, y, x)
    return (np.floor(along * frequency) + np.floor(across * frequency)) % 2


TEXTURES = {'gradient': _gradient, 'clouds': _clouds, 'stripes': _stripes, 'checks': _checks}


def _rotated(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along and across a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    """A random colour of any hue, ``(3,)`` in 0..255."""
    return 255 * np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value)), np.float32)
