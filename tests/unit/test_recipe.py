"""A layout's JSON is read back as the same layout, by the product's own parser."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests import plans
from yolods.errors import UserError
from yolods.plan.layout import Layout
from yolods.planner.choices import Choice, Layouts, families
from yolods.planner.recipe import check_recipe, recipe_of, refuse_existing

WORDS = ["--data", "demo", "--model", "yolov5[0.33,0.1]", "--imgsz", str(plans.IMGSZ)]


def check(layout: Layout, folder: Path, device: str = "cuda", *, batch_keys: bool = True) -> None:
    path = folder / "ds.json"
    recipe = recipe_of(layout, plans.graph(), batch_keys=batch_keys)
    path.write_text(json.dumps(recipe))
    check_recipe(path, layout, plans.blueprint(), WORDS, device)


def test_a_layout_of_each_family_is_read_back_as_itself(tmp_path: Path) -> None:
    choice = Choice(plans.IMGSZ, 4, 16, ("fp32", "fp16"))
    layouts = Layouts(choice, plans.clock(), 1e12)
    for family in families(choice, layouts.nodes):
        found = list(layouts.of(family))
        for layout in (found[0], found[-1]):
            check(layout, tmp_path)


def test_another_layout_is_noticed(tmp_path: Path) -> None:
    layout = Layout(imgsz=plans.IMGSZ, micro_batch=2, replicas=2, zero_stage=1)
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(recipe_of(layout, plans.graph())))
    for other in (replace(layout, zero_stage=2), replace(layout, reduce_bucket=7)):
        with pytest.raises(RuntimeError, match="describes"):
            check_recipe(path, other, plans.blueprint(), WORDS, "cuda")


def test_what_train_refuses_is_refused(tmp_path: Path) -> None:
    layout = Layout(imgsz=plans.IMGSZ, micro_batch=2, precision="fp16", zero_stage=1)
    with pytest.raises(UserError, match="the CPU backend has no fp16"):
        check(layout, tmp_path, "cpu")


def test_without_batch_keys_the_flag_decides() -> None:
    layout = Layout(imgsz=plans.IMGSZ, micro_batch=2, accumulation=3)
    assert recipe_of(layout, plans.graph(), batch_keys=False)["train_batch_size"] == "auto"
    assert recipe_of(layout, plans.graph())["train_batch_size"] == 6


def test_a_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    refuse_existing(path, "--out", exist_ok=False)
    path.write_text("mine")
    with pytest.raises(UserError, match=r"this file exists.*--exist-ok"):
        refuse_existing(path, "--out", exist_ok=False)
    refuse_existing(path, "--out", exist_ok=True)
    with pytest.raises(UserError, match="this is a folder"):
        refuse_existing(tmp_path, "--plot", exist_ok=True)
    with pytest.raises(UserError, match="there is no folder"):
        refuse_existing(tmp_path / "no" / "ds.json", "--out", exist_ok=True)
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_refused_before_the_search(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file can be written to /proc \(.+\); choose another"):
        refuse_existing(Path("/proc/ds.json"), "--out", exist_ok=False)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="this is a device or a pipe, not a file"):
        refuse_existing(pipe, "--out", exist_ok=True)
    assert pipe.is_fifo()
