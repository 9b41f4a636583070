"""OpenCV's number of threads within, in a forked process, and afterwards, also after a failure."""

from __future__ import annotations

import cv2
import pytest

from yolods.data.images.threads import one_opencv_thread
from yolods.system.workers import in_workers


@pytest.mark.process
def test_one_thread_within_and_in_forked_processes_and_as_many_as_before_afterwards():
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        with pytest.raises(ZeroDivisionError), one_opencv_thread():
            assert cv2.getNumThreads() == 1
            found = in_workers(lambda _: cv2.getNumThreads(), range(4), 2, doing="counts threads")
            assert list(found) == [1] * 4
            raise ZeroDivisionError
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)
