"""benchmarks/leaks: a video split at random by frame is warned of, one split by video is not."""

import numpy as np
import pytest

from benchmarks import leaks, leaks_scenes
from benchmarks.leaks_parts import Case, Part, _by_video, _hashed
from benchmarks.leaks_scenes import CHANGES, moving_camera


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """Hashes of three short videos."""
    return [_hashed(moving_camera(seed, 12)) for seed in range(3)]


def test_by_frame_is_warned_of_and_by_video_is_silent(clips):
    frames = np.concatenate(clips)
    by_frame = Case("by frame", frames[np.arange(36) % 4 > 0], frames[::4], warned=True)
    by_video = Case("by video", *_by_video(clips), warned=False)
    assert by_frame.right and by_video.right
    assert "| by frame | 27 | 9 | 9 (100.0%) |" in by_frame.row
    assert "| by video | 24 | 12 | none |" in by_video.row


def test_a_case_that_is_not_as_it_should_be_fails(clips):
    wrong = Case("by video", *_by_video(clips), warned=True)
    assert leaks.judged([Part(["a"]), Part(["b"], (wrong,))])[1] == 1
    lines, status = leaks.judged([Part(["a"])])
    assert status == 0 and lines[-1] == "a"


def test_frames_and_copies_are_images():
    frame = next(leaks_scenes.fixed_camera(0, 0, 1))
    for image in (frame, leaks_scenes.on_white(np.random.RandomState(0), 3)):
        assert image.shape == (480, 640, 3) and image.dtype == np.uint8
    changed = {name: change(frame) for name, change in CHANGES.items()}
    assert all(image.dtype == np.uint8 and image.ndim == 3 for image in changed.values())
    assert changed["without 2% at each border"].shape == (460, 614, 3)
