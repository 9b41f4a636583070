"""yolods.data.leaks.hashing: copies keep their hash, other images do not, plain ones have none."""

import os
import signal

import cv2
import numpy as np
import pytest
import torch

from yolods.data.leaks import hashing
from yolods.data.leaks.hashing import PLAIN, cell_rises, dhash, hash_images, slopes
from yolods.data.source import Unreadable
from yolods.errors import UserError


def scene(seed: int, height: int = 240, width: int = 320) -> np.ndarray:
    """A picture of smooth noise, like no other seed's."""
    noise = np.random.RandomState(seed).uniform(0, 255, (12, 16, 3)).astype(np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.unpackbits((one ^ other).view(np.uint8)).sum())


def compressed(image: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], 1)


@pytest.mark.parametrize(
    "change",
    [
        compressed,
        lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        lambda image: cv2.resize(image, None, fx=1.7, fy=1.7, interpolation=cv2.INTER_LINEAR),
        lambda image: np.clip(image + 20.0, 0, 255).astype(np.uint8),
        lambda image: (image * 0.6 + 30).astype(np.uint8),
    ],
)
def test_a_copy_is_near_and_another_image_far(change):
    hashes = [dhash(scene(seed)) for seed in range(8)]
    assert all(apart(known, dhash(change(scene(seed)))) <= 10 for seed, known in enumerate(hashes))
    assert min(apart(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > 60


def test_bits_say_where_grey_rises():
    ramp = np.repeat(np.arange(0, 180, 20, np.uint8), 20)[None].repeat(160, axis=0)
    rises = cell_rises(ramp)
    assert rises[:128] == pytest.approx(np.full(128, 20))
    assert rises[128:] == pytest.approx(np.zeros(128))
    assert cell_rises(ramp.T)[128:] == pytest.approx(np.full(128, 20))
    assert dhash(scene(0)).shape == (4,) and dhash(scene(0)).dtype == np.uint64
    high = np.unpackbits(dhash(scene(0)).view(np.uint8))
    assert np.array_equal(high, cell_rises(scene(0)) > 0)


def test_plain_images_have_no_hash():
    ramp = np.repeat(np.arange(0, 180, 20, np.uint8), 20)[None].repeat(160, axis=0)
    white = np.full((240, 320, 3), 255, np.uint8)
    shape = cv2.circle(white.copy(), (100, 90), 40, (40, 90, 20), -1)
    faint = (scene(0) / 255 * 4 + 100).astype(np.uint8)
    for image in (white, np.zeros_like(white), ramp, ramp.T[::-1], shape, faint):
        assert np.array_equal(dhash(image), PLAIN)
    assert slopes(cell_rises(ramp)) == 0  # it rises 128 times and never falls
    assert slopes(cell_rises(scene(0))) >= 64


def test_a_plain_hash_cannot_be_changed_from_outside():
    dhash(np.zeros((20, 20), np.uint8))[:] = 7
    assert np.array_equal(dhash(np.zeros((20, 20), np.uint8)), np.zeros(4))


def test_any_number_of_channels_and_any_size():
    grey = cv2.cvtColor(scene(1), cv2.COLOR_BGR2GRAY)
    same = [grey, grey[..., None], *(grey[..., None].repeat(k, axis=2) for k in (2, 3, 4, 6))]
    assert all(apart(dhash(grey), dhash(image)) <= 1 for image in same)
    for height, width in ((10, 10), (10, 3000), (2000, 11)):
        assert dhash(scene(1, height, width)).shape == (4,)


def read(row: int) -> np.ndarray:
    if row % 5 == 3:
        raise Unreadable(str(row))
    return scene(row, 60, 80) if row % 5 else np.zeros((60, 80, 3), np.uint8)


def test_what_cannot_be_compared_is_counted():
    found = hash_images(read, [1, 2, 3, 5, 6, 8])
    assert [bool(row.any()) for row in found.values] == [True, True, False, False, True, False]
    assert np.array_equal(found.values[1], dhash(read(2)))
    assert (found.unreadable, found.plain) == (2, 1)
    assert (
        found.left_out("val")
        == "val: 3 images not compared for leaks: 2 unreadable, 1 too plain to tell apart"
    )
    assert hash_images(read, [1]).left_out("val") == ""
    assert hash_images(read, [3]).left_out("val") == (
        "val: 1 image not compared for leaks: 1 unreadable"
    )
    assert hash_images(read, []).values.shape == (0, 4)


@pytest.fixture
def processes(monkeypatch):
    """Processes are used for 5 images and more, on a machine of at least 2 cores."""
    monkeypatch.setattr(hashing, "_FEW", 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})


@pytest.mark.process
@pytest.mark.parametrize("progress", ["", "comparing"])
def test_processes_find_the_same(monkeypatch, processes, progress):
    alone = hash_images(read, range(23), workers=1)
    monkeypatch.setattr(hashing, "_CHUNK", 3)
    parents, state = [], torch.get_rng_state()
    monkeypatch.setattr(hashing, "dhash", lambda image: parents.append(1) or dhash(image))
    found = hash_images(read, range(23), workers=9, progress=progress)
    assert np.array_equal(found.values, alone.values)
    assert (found.unreadable, found.plain) == (alone.unreadable, alone.plain) == (4, 5)
    assert parents == []  # this process hashed nothing
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.process
def test_a_process_that_dies_is_told(processes):
    def fatal(row):
        if row == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return scene(row, 60, 80)

    with pytest.raises(UserError, match=r"that hashes images died; .*use fewer workers \(now 2\)"):
        hash_images(fatal, range(40), workers=2)


@pytest.mark.process
def test_a_fault_ends_the_processes(processes):
    """The fixture `no_process_left_behind` looks for them."""

    def wrong(row):
        raise ZeroDivisionError(row)

    with pytest.raises(ZeroDivisionError):
        hash_images(wrong, range(40), workers=2)
