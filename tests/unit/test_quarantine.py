"""Images are left out when bad steps have been traced to them often enough."""

from __future__ import annotations

import pytest

from yolods.stability.attribution import INPUT, Culprit
from yolods.stability.quarantine import Quarantine


def culprit(*files: str, name: str = INPUT) -> Culprit:
    place = {"rank": 0, "host": "here", "stage": 0, "replica": 0, "micro_batch": 0}
    return Culprit(phase="forward", name=name, kind="nan", files=files, single_images=True, **place)


@pytest.mark.parametrize(
    ("limit", "excluded"), [(1, {"a.jpg", "b.jpg"}), (2, {"a.jpg"}), (3, set()), (0, set())]
)
def test_an_image_is_left_out_at_the_limit(limit: int, excluded: set[str]) -> None:
    quarantine = Quarantine(limit).after([culprit("b.jpg", "a.jpg")]).after([culprit("a.jpg")])
    assert quarantine.faults == (("a.jpg", 2), ("b.jpg", 1))
    assert quarantine.excluded == excluded


def test_a_file_counts_once_per_micro_batch() -> None:
    shown_twice = culprit("a.jpg", "a.jpg")
    assert Quarantine(2).after([shown_twice]).faults == (("a.jpg", 1),)
    assert Quarantine(2).after([shown_twice, shown_twice]).faults == (("a.jpg", 2),)


def test_images_are_not_to_blame_for_what_a_layer_made_of_them() -> None:
    assert Quarantine(1).after([culprit("a.jpg", name="model.3.conv")]).faults == ()


def test_it_goes_on_from_what_a_checkpoint_holds() -> None:
    before = Quarantine(2, (("a.jpg", 1), ("c.jpg", 5)))
    after = before.after([culprit("a.jpg")])
    assert after.excluded - before.excluded == {"a.jpg"}
    assert before.excluded == {"c.jpg"}, "the earlier one stays as it was"
