"""Packs for tests and benchmarks: made of a data yaml, compared, and killed while they are made."""

from __future__ import annotations

import os
import signal
import sys
import tarfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from tests.tiny import make_dataset
from yolods.data.pack.encode import Encoding
from yolods.data.pack.manifest import PackRecord
from yolods.data.pack.split import SplitSamples
from yolods.data.pack.writer import PackWriter
from yolods.data.scan import scan
from yolods.data.spec import read_spec

AS_IS = Encoding()
TURNED = 6
"""EXIF orientation of an image that has to be turned by a quarter to be upright."""


def make_odd_set(root: Path, train: int = 6, size: int = 96) -> Path:
    """A set of `make_dataset`, and in its training split an image of odd sides, a PNG, one that is
    turned by its EXIF, one in grey, and a background; returns the yaml."""
    yaml = make_dataset(root, train=train, val=4, size=size)
    images, labels = root / "images/train", root / "labels/train"
    rng = np.random.default_rng(0)
    pixels = cv2.GaussianBlur(rng.integers(0, 256, (97, 143, 3), dtype=np.uint8), (7, 7), 2)
    cv2.imwrite(str(images / "odd.jpg"), pixels[:71, :53])
    cv2.imwrite(str(images / "loss.png"), pixels)
    cv2.imwrite(str(images / "grey.jpg"), pixels[..., 0])
    cv2.imwrite(str(images / "none.jpg"), pixels[::-1])
    exif = Image.Exif()
    exif[274] = TURNED
    Image.fromarray(pixels[..., ::-1]).save(images / "turned.jpg", exif=exif, quality=90)
    for name in ("odd", "loss", "grey", "turned"):
        (labels / f"{name}.txt").write_text("0 0.5 0.4 0.3 0.2\n1 0.25 0.25 0.2 0.3\n")
    return yaml


def pack_of(
    yaml: Path, folder: Path, split: str = "train", encoding: Encoding = AS_IS, **options: Any
) -> PackRecord:
    """Pack a split into `folder`; `options` go to `PackWriter`."""
    spec = read_spec(yaml)
    found = scan(spec, split, cache=yaml.parent.parent / "cache")
    samples = SplitSamples.of(found, encoding, spec.channels)
    options = {"channels": spec.channels, **options}
    with PackWriter(folder, split, encoding, **options) as writer:
        return samples.pack(writer, 1, lambda _: None)


def packed_yaml(yaml: Path, folder: Path, encoding: Encoding = AS_IS, **options: Any) -> Path:
    """Pack a set into `folder`; returns the yaml of the packs."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        pack_of(yaml, folder / f"{split}.pack", split, encoding, **options)
    names = yaml.read_text().partition("names:")[2]
    made = folder / "packed.yaml"
    made.write_text(f"train: train.pack\nval: val.pack\nnames:{names}")
    return made


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    return {
        str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def steps_of(work: Callable[[], Any], below: Path) -> int:
    """How many changes of files below a folder `work` makes, in a fork of this process."""
    reading, writing = os.pipe()

    def counted() -> None:
        count = [0]
        _watch(below, lambda: count.__setitem__(0, count[0] + 1))
        work()
        os.write(writing, str(count[0]).encode())

    status = _in_fork(counted)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    assert status == 0, f"ended with {status}"
    return int(text)


def killed_at(step: int, work: Callable[[], Any], below: Path) -> bool:
    """Kill a fork of this process in `work`, just before it changes files below a folder for the
    `step`-th time (from 1). Returns whether it was killed before it ended."""

    def ended() -> None:
        left = [step]

        def count() -> None:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        _watch(below, count)
        work()

    status = _in_fork(ended)
    assert status in (0, -signal.SIGKILL), f"ended with {status}"
    return status != 0


def _watch(below: Path, changed: Callable[[], Any]) -> None:
    """Call `changed` before each opening for writing, renaming, removal and new folder."""
    top = str(below)

    def heed(event: str, words: tuple[Any, ...]) -> None:
        names = [str(word) for word in words[:2] if isinstance(word, str | Path)]
        writes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir") or (
            event == "open" and isinstance(words[2], int) and words[2] & os.O_ACCMODE
        )
        if writes and any(name.startswith(top) or "/" not in name for name in names):
            changed()

    sys.addaudithook(heed)


def _in_fork(work: Callable[[], Any]) -> int:
    """Exit status of a fork that does some work; negative: the signal that ended it."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def flip(file: Path, place: int) -> None:
    """Change one bit of a file."""
    with file.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 1]))


def unpack(pack: Path, folder: Path) -> None:
    """What `tar xf` of every file of a pack makes."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(pack.glob("*.tar")):
        with tarfile.open(file) as archive:
            # Python before 3.11.4 has no filters.
            filters = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(folder, **filters)
