"""yolods.data.images.decoded: what is decoded again, and what is not."""

from collections import Counter

import numpy as np
import pytest

from yolods.data.images.decoded import Decoded, DecodedImages

BYTES = 12


class Reader:
    """Images of 12 bytes that all hold their index."""

    def __init__(self) -> None:
        self.reads: Counter = Counter()

    def __call__(self, i: int) -> Decoded:
        self.reads[i] += 1
        return Decoded(np.full((2, 2, 3), i, np.uint8), (4, 4))


def test_the_first_that_fit_are_kept_for_good():
    reader = Reader()
    images = DecodedImages(reader, 2 * BYTES + 5)
    for _ in range(3):
        for i in (7, 1, 4):
            assert images[i].pixels[0, 0, 0] == i and images[i].original == (4, 4)
    assert reader.reads == {7: 1, 1: 1, 4: 6}
    assert images.kept_bytes == 2 * BYTES and [*images.kept] == [7, 1]


def test_images_of_the_block_are_kept_until_the_next():
    reader = Reader()
    images = DecodedImages(reader, 0)
    images.begin((1, 2, 3))
    for i in (1, 2, 1, 3, 1, 9, 9):
        images[i]
    assert reader.reads == {1: 1, 2: 1, 3: 1, 9: 2}
    images.begin((1, 2, 3))
    images[2]
    images.begin((3, 4))
    for i in (3, 4, 4, 1, 1):
        images[i]
    assert reader.reads == {1: 3, 2: 1, 3: 1, 4: 1, 9: 2}
    images.begin(())
    images[3]
    assert reader.reads[3] == 2


def test_kept_images_cannot_be_written_into():
    for limit, block in ((BYTES, ()), (0, (5,))):
        images = DecodedImages(Reader(), limit)
        images.begin(block)
        for _ in range(2):
            with pytest.raises(ValueError, match="read-only"):
                images[5].pixels[:] = 0


def test_what_cannot_be_decoded_is_passed_on_and_not_kept():
    def fail(i: int) -> Decoded:
        raise OSError(i)

    images = DecodedImages(fail, 100)
    for _ in range(2):
        with pytest.raises(OSError, match="8"):
            images[8]
