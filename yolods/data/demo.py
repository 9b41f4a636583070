"""The demo data set, made on first use: drawn objects on crops of ultralytics' two photographs.

The objects of the three classes (cone, ball, sign) vary in size, rotation, colour, light, sharpness
and occlusion. The backgrounds of training and validation come from disjoint parts of the
photographs.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from yolods.errors import UserError

DEMO_VERSION = "demo-v1"  # change it with any drawing: an existing folder is used as it is
NAMES = ("cone", "ball", "sign")
COUNTS = {"train": 192, "val": 64}
SIDE = 320  # pixels of a finished image
CANVAS = 192  # side in pixels of an object's drawing, before rotation and scaling
SIZES = (60, 150)  # pixels of an object's long side in a finished image
SEED = 20

# (photograph, x0, y0, x1, y1) as fractions of its size. A gap of 2% separates the splits.
REGIONS = {
    "train": (("bus.jpg", 0.0, 0.0, 1.0, 0.66), ("zidane.jpg", 0.0, 0.0, 0.62, 1.0)),
    "val": (("bus.jpg", 0.0, 0.68, 1.0, 1.0), ("zidane.jpg", 0.64, 0.0, 1.0, 1.0)),
}

README = """Demo data of yolods, made on first use and safe to delete.

{train} training and {val} validation images of {side}x{side} pixels with the classes {names}. Backgrounds are crops of
the two photographs in ultralytics' assets (bus.jpg, zidane.jpg); train and val use parts that do not touch. Objects are
drawn. Labels are in YOLO format: class, centre x, centre y, width, height in parts of the image.
"""  # noqa: E501


def ensure_demo(cache: Path) -> Path:
    """The demo's data yaml below `cache`; makes the data set in a few seconds if it is incomplete.

    Several processes may call this at once.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = cache / DEMO_VERSION
    if _whole(folder):
        return folder / "demo.yaml"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Built in a folder of its own and renamed, so that no process sees a part of it.
        making = Path(tempfile.mkdtemp(prefix=f"{DEMO_VERSION}.", dir=cache))
        try:
            _make(making)
            making.chmod(0o755)
            _put(making, folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot create the demo data in {cache}: {error.strerror or error}; "
            "set YOLODS_CACHE to a writable folder with 20 MB free"
        ) from error
    return folder / "demo.yaml"


def _whole(folder: Path) -> bool:
    if not (folder / "demo.yaml").is_file():
        return False
    kinds = (("images", "jpg"), ("labels", "txt"))
    return all(
        len(list((folder / kind / split).glob(f"*.{suffix}"))) == count
        for split, count in COUNTS.items()
        for kind, suffix in kinds
    )


def _put(making: Path, folder: Path) -> None:
    try:
        os.rename(making, folder)
    except OSError:
        if _whole(folder):
            return  # another process was faster
        shutil.rmtree(folder)  # incomplete: some files are missing
        os.rename(making, folder)


def _make(folder: Path) -> None:
    from ultralytics.utils import ASSETS

    for split, count in COUNTS.items():
        # RandomState's streams never change, so that every machine draws the same images.
        rng = np.random.RandomState([SEED, list(COUNTS).index(split)])
        backgrounds = [
            _region(cv2.imread(str(ASSETS / name)), *box) for name, *box in REGIONS[split]
        ]
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for i in range(count):
            image, rows = _scene(rng, backgrounds[i % len(backgrounds)])
            ok, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])
            if not ok:
                raise OSError("OpenCV cannot write JPEG")
            (images / f"{i:04}.jpg").write_bytes(data.tobytes())
            lines = (f"{cls} {' '.join(f'{v:.6f}' for v in box)}\n" for cls, box in rows)
            (labels / f"{i:04}.txt").write_text("".join(lines))
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(NAMES))
    (folder / "README.md").write_text(README.format(side=SIDE, names=", ".join(NAMES), **COUNTS))
    (folder / "demo.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{names}")


def _region(photo: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    height, width = photo.shape[:2]
    return photo[round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)]


def _scene(
    rng: np.random.RandomState, photo: np.ndarray
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """An image (SIDE, SIDE, 3) uint8 BGR and its rows (class, normalised xywh)."""
    image = _background(rng, photo)
    boxes: list[tuple[int, np.ndarray]] = []
    for _ in range(rng.randint(2, 6)):
        cls = rng.randint(len(NAMES))
        patch, alpha = _shaped(rng, *DRAWERS[cls](rng))
        box = _place(rng, image, patch, alpha, [box for _, box in boxes])
        if box is not None:
            boxes.append((cls, box))
    if rng.rand() < 0.25:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.0))
    noisy = image + rng.randn(*image.shape) * rng.uniform(0, 6)
    image = np.clip(noisy, 0, 255).astype(np.uint8)
    corners = [(cls, box / SIDE) for cls, box in boxes]
    return image, [(cls, np.array([*(b[:2] + b[2:]) / 2, *(b[2:] - b[:2])])) for cls, b in corners]


def _background(rng: np.random.RandomState, photo: np.ndarray) -> np.ndarray:
    """A random crop, mirrored half of the time, with random brightness and colour."""
    height, width = photo.shape[:2]
    side = int(min(height, width) * rng.uniform(0.5, 1.0))
    x, y = rng.randint(width - side + 1), rng.randint(height - side + 1)
    crop = cv2.resize(photo[y : y + side, x : x + side], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    crop = crop[:, ::-1] if rng.rand() < 0.5 else crop
    return np.clip(crop * rng.uniform(0.6, 1.2) + rng.uniform(-20, 20, 3), 0, 255).astype(
        np.float32
    )


def _place(
    rng: np.random.RandomState,
    image: np.ndarray,
    patch: np.ndarray,
    alpha: np.ndarray,
    others: list[np.ndarray],
) -> np.ndarray | None:
    """Blend an object into the image where it hides little of others; its corners, or None."""
    height, width = alpha.shape
    for _ in range(10):
        x, y = rng.randint(SIDE - width + 1), rng.randint(SIDE - height + 1)
        box = np.array([x, y, x + width, y + height], float)
        if all(_overlap(box, other) < 0.15 for other in others):
            break
    else:
        return None
    if rng.rand() < 0.3:
        _hide_part(rng, alpha)
    window = image[y : y + height, x : x + width]
    window += (patch - window) * alpha[..., None]
    return box


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Shared area over the smaller of two boxes."""
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(width, 0) * max(height, 0) / smaller


def _hide_part(rng: np.random.RandomState, alpha: np.ndarray) -> None:
    """Hide a bar of the object behind the background; the edges of its box stay visible."""
    across = alpha if rng.rand() < 0.5 else alpha.T
    size = across.shape[0]
    start = int(size * rng.uniform(0.2, 0.6))
    across[start : start + max(int(size * rng.uniform(0.08, 0.2)), 1)] = 0


def _shaped(
    rng: np.random.RandomState, patch: np.ndarray, alpha: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Light, rotate, scale and crop an object: (h, w, 3) and (h, w) float32, alpha in [0, 1]."""
    slope = np.linspace(-1, 1, CANVAS, dtype=np.float32)
    light = (
        rng.uniform(0.75, 1.15)
        + rng.uniform(-0.2, 0.2) * slope[None]
        + rng.uniform(-0.2, 0.2) * slope[:, None]
    )
    grain = cv2.resize(rng.randn(24, 24).astype(np.float32), (CANVAS, CANVAS)) * 12
    patch = np.clip(patch * light[..., None] + grain[..., None], 0, 255)
    scale = np.exp(rng.uniform(*np.log(SIZES))) / CANVAS
    centre = CANVAS / 2
    turn = cv2.getRotationMatrix2D((centre, centre), rng.uniform(-25, 25), 1.0)
    turn[0] *= rng.uniform(0.85, 1.15)
    turn[:, 2] += centre * 1.5 - turn[:, :2] @ (centre, centre)
    turn *= scale
    size = int(np.ceil(CANVAS * 1.5 * scale)) + 2
    # Multiply by alpha before filtering, so that the black background does not bleed in.
    premultiplied = cv2.GaussianBlur(
        np.dstack((patch * alpha[..., None], alpha)), (0, 0), 0.5 / scale
    )
    warped = cv2.warpAffine(premultiplied, turn, (size, size), flags=cv2.INTER_LINEAR)
    alpha = warped[..., 3]
    rows, columns = np.flatnonzero(alpha.max(1) > 0.5), np.flatnonzero(alpha.max(0) > 0.5)
    cut = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    alpha = alpha[cut]
    return warped[cut][..., :3] / np.maximum(alpha, 1e-3)[..., None], np.clip(alpha, 0, 1)


def _blank() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((CANVAS, CANVAS, 3), np.float32), np.zeros((CANVAS, CANVAS), np.float32)


def _colour(rng: np.random.RandomState, hue: float, spread: float) -> tuple[float, float, float]:
    """A saturated BGR colour near a hue (0 to 180, OpenCV's scale)."""
    hsv = np.uint8(
        [
            [
                [
                    (hue + rng.uniform(-spread, spread)) % 180,
                    rng.randint(170, 256),
                    rng.randint(170, 256),
                ]
            ]
        ]
    )
    return tuple(float(v) for v in cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0])


def _cone(rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """A traffic cone, orange with pale bands and a dark foot: BGR patch, and alpha in [0, 1]."""
    patch, alpha = _blank()
    body = np.array([[88, 12], [104, 12], [144, 168], [48, 168]], np.int32)
    foot = np.array([[28, 164], [164, 164], [172, 184], [20, 184]], np.int32)
    orange = _colour(rng, 9, 5)
    cv2.fillConvexPoly(patch, body, orange, cv2.LINE_AA)
    inside = np.zeros_like(alpha)
    cv2.fillConvexPoly(inside, body, 1, cv2.LINE_AA)
    pale = np.full(3, rng.uniform(200, 255), np.float32)
    for top in (58, 112):
        band = np.zeros_like(alpha)
        band[top : top + rng.randint(20, 30)] = 1
        patch += (pale - patch) * (band * inside)[..., None]
    cv2.fillConvexPoly(patch, foot, tuple(v * 0.5 for v in orange), cv2.LINE_AA)
    cv2.fillConvexPoly(alpha, body, 1, cv2.LINE_AA)
    cv2.fillConvexPoly(alpha, foot, 1, cv2.LINE_AA)
    return patch, alpha


def _ball(rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """A beach ball: six sectors of two colours, any hue, darker towards the rim."""
    patch, alpha = _blank()
    hue, start, middle = rng.uniform(0, 180), rng.uniform(0, 60), (CANVAS // 2, CANVAS // 2)
    pair = (_colour(rng, hue, 0), (245.0, 245.0, 245.0))
    for sector in range(6):
        cv2.ellipse(
            patch,
            middle,
            (84, 84),
            start,
            60 * sector,
            60 * sector + 60,
            pair[sector % 2],
            -1,
            cv2.LINE_AA,
        )
    cv2.circle(patch, middle, 16, _colour(rng, hue + 90, 20), -1, cv2.LINE_AA)
    cv2.circle(alpha, middle, 82, 1, -1, cv2.LINE_AA)
    y, x = np.mgrid[:CANVAS, :CANVAS].astype(np.float32) / CANVAS - 0.5
    patch *= (1.1 - 1.6 * ((x + 0.1) ** 2 + (y + 0.12) ** 2))[..., None]
    return patch, alpha


def _sign(rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """An eight-sided red or blue sign with a pale rim and bar."""
    patch, alpha = _blank()
    angles = np.deg2rad(np.arange(8) * 45 + 22.5)
    ring = np.stack((np.cos(angles), np.sin(angles)), 1)
    outer, inner = ((CANVAS / 2 + ring * radius).round().astype(np.int32) for radius in (88, 76))
    cv2.fillConvexPoly(alpha, outer, 1, cv2.LINE_AA)
    cv2.fillConvexPoly(patch, outer, (240.0, 240.0, 240.0), cv2.LINE_AA)
    cv2.fillConvexPoly(patch, inner, _colour(rng, 0 if rng.rand() < 0.6 else 112, 5), cv2.LINE_AA)
    half = rng.randint(12, 20)
    cv2.rectangle(patch, (46, 96 - half), (146, 96 + half), (245.0, 245.0, 245.0), -1, cv2.LINE_AA)
    return patch, alpha


DRAWERS: tuple[Callable[[np.random.RandomState], tuple[np.ndarray, np.ndarray]], ...] = (
    _cone,
    _ball,
    _sign,
)
