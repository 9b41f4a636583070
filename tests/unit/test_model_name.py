"""The grammar of model names: one for --model, for the names of weights files, and for image
sizes."""

from pathlib import Path

import pytest

from yolods.config.image_size import drawn_between, single_value_fault, size_fault
from yolods.config.names.model_name import name_of_weights, parse_name


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("yolov5n.pt", "yolov5n"),
        ("yolov5nu.pt", "yolov5n"),
        ("yolov5n6.pt", "yolov5n6"),
        ("yolov5n6u.pt", "yolov5n6"),
        ("yolov5n-p6.pt", "yolov5n6"),
        ("yolov5nu-p6.pt", "yolov5n6"),
        ("yolov5s-best.pt", "yolov5s"),
        ("yolov5s6-best.pt", "yolov5s6"),
        ("yolov5x-p6-coco-2.pt", "yolov5x6"),
        ("yolov5[0.5,0.5]6.pt", "yolov5[0.5,0.5]6"),
        ("best.pt", None),
        ("yolov5.pt", None),
        ("crop6.pt", None),
        ("yolov8n.pt", None),
        ("my-yolov5n.pt", None),
    ],
)
def test_weights_called_after_a_p6_model_are_of_a_p6_model(file, model):
    assert name_of_weights(Path("somewhere") / file) == model
    if model is not None:
        assert parse_name(model).stride == (64 if "6" in model else 32)


@pytest.mark.parametrize("name", ["crop6.yaml", "p6.yaml", "up6u.yaml", "yolov5n6.yaml"])
def test_a_users_yaml_is_not_judged_by_its_name(tmp_path, name):
    (tmp_path / name).write_text("")
    assert parse_name(str(tmp_path / name)).stride == 32


def test_sizes_are_said_with_the_nearest_two():
    assert size_fault(640, 32, "m", "--imgsz") is None
    assert (
        size_fault(100, 32, "m", "--imgsz")
        == "--imgsz 100: m needs a multiple of 32; use 96 or 128"
    )
    assert (
        size_fault(20, 64, "m", "--imgsz") == "--imgsz 20: m needs a multiple of 64; use 64 or 128"
    )


@pytest.mark.parametrize(
    ("imgsz", "stride", "micro", "multi_scale", "ranks", "refused"),
    [
        (32, 32, 1, 0.0, 1, True),
        (32, 32, 2, 0.0, 1, False),
        (32, 32, 1, 0.0, 2, False),
        (64, 32, 1, 0.0, 1, False),
        (64, 64, 1, 0.0, 1, True),
        (64, 32, 1, 0.5, 1, True),
        (64, 32, 1, 0.01, 1, True),
        (96, 32, 1, 0.3, 1, False),
        (96, 32, 1, 0.5, 1, True),
        (640, 32, 1, 0.5, 1, False),
        (32, 8, 1, 0.0, 1, False),
    ],
)
def test_one_value_per_channel_is_refused_with_the_arithmetic(
    imgsz, stride, micro, multi_scale, ranks, refused
):
    fault = single_value_fault(imgsz, stride, micro, multi_scale=multi_scale, ranks=ranks)
    assert (fault is not None) == refused
    if fault:
        assert "= 1 value per channel" in fault and f"sizes of at least {2 * stride}" in fault


def test_the_smallest_size_is_the_one_that_multi_scale_draws():
    from yolods.data.loader import scaled_size

    for imgsz, share in ((64, 0.5), (64, 0.01), (96, 0.3), (640, 0.5)):
        drawn = {scaled_size(0, step, imgsz, share, 32) for step in range(2000)}
        assert min(drawn) == drawn_between(imgsz, share, 32)[0] // 32 * 32
