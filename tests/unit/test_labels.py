"""Labels out of the index: those of a list of dictionaries, and none of them kept."""

from __future__ import annotations

import numpy as np
import pytest

from tests.indexes import boxes_of, index_of
from yolods.data.index.labels import Identities, Labels
from yolods.data.verify import CheckedPair

TRIANGLE = np.array([[0.1, 0.1], [0.2, 0.2], [0.3, 0.1]], np.float32)


def pairs(polygons: bool) -> list[CheckedPair]:
    """Three intact images and a skipped one, with 2, 0 and 1 boxes."""
    boxes = np.array([[2, 0.5, 0.5, 0.2, 0.2], [1, 0.4, 0.4, 0.1, 0.1]], np.float32)
    return [
        CheckedPair("a.jpg", (4, 5), boxes, [TRIANGLE, TRIANGLE] * polygons, id="a"),
        CheckedPair("x.jpg", None, id="x"),
        CheckedPair("b.jpg", (6, 7), id="b"),
        CheckedPair("c.jpg", (8, 9), boxes[:1], [TRIANGLE] * polygons, id="c"),
    ]


def labels_with(polygons: bool = True, **settings) -> Labels:
    index = index_of(pairs(polygons))
    return Labels(index, index.kept_rows(), **settings)


def test_a_label_is_what_ultralytics_expects_and_a_new_one_each_time():
    labels = labels_with()
    first = labels[0]
    assert (first["im_file"], first["shape"], first["normalized"]) == ("a", (4, 5), True)
    assert first["cls"].tolist() == [[2], [1]] and first["cls"].dtype == np.float32
    assert first["bboxes"].shape == (2, 4) and [len(each) for each in first["segments"]] == [3, 3]
    first["cls"][:] = 9
    first["segments"][0][:] = 9
    assert labels[0]["cls"].tolist() == [[2], [1]]
    assert np.array_equal(labels[0]["segments"][0], TRIANGLE)
    assert [each["im_file"] for each in labels] == ["a", "b", "c"] and labels[-1]["im_file"] == "c"
    assert labels[1]["cls"].shape == (0, 1) and labels[1]["bboxes"].shape == (0, 4)


@pytest.mark.parametrize(
    ("settings", "classes", "counts"),
    [
        ({}, [2, 1, 2], [2, 0, 1]),
        ({"single_cls": True}, [0, 0, 0], [2, 0, 1]),
        ({"classes": [2]}, [2, 2], [1, 0, 1]),
        ({"classes": [1], "single_cls": True}, [0], [1, 0, 0]),
        ({"classes": []}, [], [0, 0, 0]),
    ],
)
def test_settings_count_for_every_view(settings, classes, counts):
    labels = labels_with(**settings)
    assert [int(cls) for each in labels for (cls,) in each["cls"]] == classes
    assert labels.boxes()[:, 0].tolist() == classes
    assert labels.counts.tolist() == counts == [len(each["cls"]) for each in labels]
    assert all(len(each["segments"]) == len(each["cls"]) for each in labels)
    assert labels.totals == (sum(counts), max(counts), counts.count(0))
    assert labels.shapes.tolist() == [[4, 5], [6, 7], [8, 9]]


def test_a_choice_of_rows_keeps_the_settings_and_counts_for_itself():
    labels = labels_with(classes=[2]).chosen(np.array([3, 0]))
    assert [each["im_file"] for each in labels] == ["c", "a"] == list(Identities(labels))
    assert labels.totals == (2, 1, 0)
    assert labels.shape(0) == (8, 9) and labels.boxes().shape == (2, 5)


def test_polygons_are_dropped_where_one_box_of_the_set_has_none():
    assert labels_with().has_polygons
    some = pairs(polygons=True)
    some[3].segments = []
    index = index_of(some)
    labels = Labels(index, index.kept_rows())
    assert not labels.has_polygons and labels[0]["segments"] == []
    assert not boxes_of([], []).has_polygons


def test_digests_are_of_the_boxes_that_count():
    plain, same, single = labels_with(), labels_with(), labels_with(single_cls=True)
    assert list(plain.digests()) == list(same.digests())
    one, other = list(plain.digests()), list(single.digests())
    assert [a == b for a, b in zip(one, other, strict=True)] == [False, True, False]
    assert plain.chosen_as() == same.chosen_as() != single.chosen_as()
    assert plain.chosen(np.array([0, 3])).chosen_as() != plain.chosen_as()
