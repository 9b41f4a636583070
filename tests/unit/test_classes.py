"""Two lists of class names, side by side."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from yolods.data.classes import both, class_names, difference


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ("cat dog", "cat dog", ""),
        ("cat dog", "cat", "count"),
        ("cat dog", "dog cat", "order"),
        ("cat dog cow", "dog cat bull", "order"),
        ("cat dog", "cat hound", "names"),
    ],
)
def test_the_gravest_difference_is_told(one, other, found):
    assert difference(one.split(), other.split()) == found


def test_short_lists_are_shown_whole_and_of_long_ones_what_differs():
    assert both(["cat"], ["cat", "dog"]) == ("1 class (0 cat)", "2 classes (0 cat, 1 dog)")
    names = [f"c{place}" for place in range(20)]
    changed = [*names[:15], "new", *names[16:]]
    assert both(names, changed) == ("20 classes (15 c15, ...)", "20 classes (15 new, ...)")


def test_a_run_of_one_class_has_one_name():
    names = ("cat", "dog")
    assert class_names(names, SimpleNamespace(single_cls=False)) == names
    assert class_names(names, SimpleNamespace(single_cls=True)) == ("item",)
