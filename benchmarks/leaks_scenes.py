"""Images for the measurement of leaks: changed copies, generated videos, and drawings on white."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np

HEIGHT, WIDTH = 480, 640
PAN = 3
"""Pixels that the moving camera goes on in a frame."""
TREMOR = 1.0
"""Standard deviation in pixels of a fixed camera's place."""
SHAPES = 6
"""Moving shapes in a video."""

Shape = tuple[np.ndarray, np.ndarray, int, list[float]]
"""Start and speed in pixels, radius, and BGR colour of a moving shape."""


def recompressed(image: np.ndarray, quality: int) -> np.ndarray:
    """The image after JPEG at this quality."""
    return cv2.imdecode(
        cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR
    )


def _scaled(image: np.ndarray, factor: float, how: int) -> np.ndarray:
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=how)


def _clipped(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 255).astype(np.uint8)


def _without_border(image: np.ndarray, share: float) -> np.ndarray:
    height, width = (round(side * share) for side in image.shape[:2])
    return image[height : image.shape[0] - height, width : image.shape[1] - width]


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "half the size": lambda image: _scaled(image, 0.5, cv2.INTER_AREA),
    "half the size, bilinear": lambda image: _scaled(image, 0.5, cv2.INTER_LINEAR),
    "1.5 times the size": lambda image: _scaled(image, 1.5, cv2.INTER_CUBIC),
    "JPEG quality 50": lambda image: recompressed(image, 50),
    "JPEG quality 20": lambda image: recompressed(image, 20),
    "30 grey levels brighter": lambda image: _clipped(image.astype(np.float32) + 30),
    "contrast x 0.7": lambda image: _clipped(image * 0.7 + 20),
    "contrast x 1.3": lambda image: _clipped((image - 128.0) * 1.3 + 128),
    "noise of 5 grey levels": lambda image: _clipped(
        image + np.random.RandomState(0).randn(*image.shape) * 5
    ),
    "without 1% at each border": lambda image: _without_border(image, 0.01),
    "without 2% at each border": lambda image: _without_border(image, 0.02),
    "mirrored": lambda image: image[:, ::-1],
}
"""What happens to copies of an image, by name."""


def moving_camera(seed: int, frames: int) -> Iterator[np.ndarray]:
    """Frames of a camera that pans over a place of its own, with shapes that move through it."""
    rng = np.random.RandomState(seed)
    ground = _ground(rng, HEIGHT + 40, WIDTH + PAN * frames)
    shapes = _shapes(rng, 20, 70)
    for number in range(frames):
        x, y = number * PAN, int(20 + 20 * np.sin(number / 15))
        yield _frame(rng, ground[y : y + HEIGHT, x : x + WIDTH], shapes, number)


def fixed_camera(place: int, seed: int, frames: int) -> Iterator[np.ndarray]:
    """Frames of a camera that stays at a place, with smaller shapes that `seed` draws."""
    ground = _ground(np.random.RandomState(place), HEIGHT, WIDTH)
    rng = np.random.RandomState(seed)
    shapes = _shapes(rng, 8, 24)
    for number in range(frames):
        shift = np.float32([[1, 0, rng.randn() * TREMOR], [0, 1, rng.randn() * TREMOR]])
        still = cv2.warpAffine(ground, shift, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)
        yield _frame(rng, still, shapes, number)


def _ground(rng: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """A place (height, width, 3) float32: noise of five octaves."""
    ground = np.zeros((height, width, 3), np.float32)
    for octave in range(2, 7):
        across = 2**octave
        noise = rng.uniform(-1, 1, (max(across * height // width, 2), across, 3)).astype(np.float32)
        ground += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * (60 / octave)
    return np.clip(ground + rng.uniform(60, 190, 3), 0, 255).astype(np.float32)


def _shapes(rng: np.random.RandomState, least: float, most: float) -> list[Shape]:
    return [
        (
            rng.uniform((0, 0), (WIDTH, HEIGHT)),
            rng.uniform((-6, -4), (6, 4)),
            int(rng.uniform(least, most)),
            rng.uniform(0, 255, 3).tolist(),
        )
        for _ in range(SHAPES)
    ]


def _frame(
    rng: np.random.RandomState, still: np.ndarray, shapes: list[Shape], number: int
) -> np.ndarray:
    image = still.copy()
    for start, speed, radius, colour in shapes:
        x, y = (start + speed * number) % (WIDTH, HEIGHT)
        cv2.circle(image, (int(x), int(y)), radius, colour, -1, cv2.LINE_AA)
    return recompressed(_clipped(image + rng.randn(HEIGHT, WIDTH, 1) * 4), 90)


def on_white(rng: np.random.RandomState, count: int) -> np.ndarray:
    """`count` discs and squares of 5 to 20% of the height, at random places on white."""
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    for _ in range(count):
        side = int(rng.uniform(0.05, 0.2) * HEIGHT)
        x, y, colour = (
            rng.randint(WIDTH - side),
            rng.randint(HEIGHT - side),
            rng.uniform(0, 200, 3).tolist(),
        )
        if rng.rand() < 0.5:
            cv2.circle(image, (x + side // 2, y + side // 2), side // 2, colour, -1)
        else:
            cv2.rectangle(image, (x, y), (x + side, y + side), colour, -1)
    return recompressed(image, 90)
