"""How a pack stores an image: as it is, or at training size as JPEG or uncompressed."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from yolods.data.pack.bitmap import to_bitmap
from yolods.data.pack.decode import Undecodable, decode_image, upright_jpeg_shape
from yolods.data.resize import fit

QUALITY = 95
"""Default quality of a JPEG."""


@dataclass(frozen=True)
class Encoding:
    """How images are stored."""

    imgsz: int | None = None
    """Long side in pixels; smaller images are not enlarged. None: as they are."""
    quality: int = QUALITY
    """Quality of a JPEG that is made, from 1 to 100."""
    uncompressed: bool = False
    """Store pixels without compression."""

    def as_dict(self) -> dict[str, Any]:
        """All that decides about the stored bytes, as JSON."""
        # Another version may resize and compress to other bytes.
        made_by = None if self.imgsz is None else cv2.__version__
        return {**asdict(self), "opencv": made_by}


@dataclass(frozen=True)
class Encoded:
    """A stored image."""

    data: bytes
    """The bytes of an image file."""
    suffix: str
    """Ending of its name, with the dot."""
    plain_jpeg: bool
    """Whether it is a JPEG in colour that lies upright."""


def encode_image(
    data: bytes | np.ndarray, identity: str, encoding: Encoding, channels: int
) -> Encoded:
    """An image as it is stored.

    Args:
        data: an image file, or pixels (h, w, channels) uint8 as BGR.
        identity: its name, whose ending is that of the file; without one it is a JPEG.
        encoding: how it is stored; pixels become a JPEG also without a size.
        channels: of the data set.

    Raises:
        Undecodable: the file is damaged, and would have to be decoded.
        ValueError: pixels of other than 1 or 3 channels.
    """
    image = data
    if isinstance(data, bytes):
        suffix = os.path.splitext(identity)[1] or ".jpg"
        shape = upright_jpeg_shape(data)
        if encoding.imgsz is None:
            return Encoded(data, suffix, shape is not None)
        # It would lose quality, and become larger, if it were compressed again.
        if shape and max(shape) <= encoding.imgsz and not encoding.uncompressed:
            return Encoded(data, ".jpg", True)
        image = decode_image(np.frombuffer(data, np.uint8), suffix, channels)
    return _of_pixels(image, encoding)


def _of_pixels(image: np.ndarray, encoding: Encoding) -> Encoded:
    if encoding.imgsz is not None and max(image.shape[:2]) > encoding.imgsz:
        image = fit(image, encoding.imgsz)
    if encoding.uncompressed:
        return Encoded(to_bitmap(image), ".bmp", False)
    if image.shape[2] not in (1, 3):
        raise ValueError(f"an image of {image.shape[2]} channels is no JPEG")
    done, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, encoding.quality])
    if not done:
        raise Undecodable
    return Encoded(jpeg.tobytes(), ".jpg", image.shape[2] == 3)
