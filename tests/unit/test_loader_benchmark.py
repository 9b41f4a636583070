"""benchmarks/loader.py and partners.py: cases, arithmetic, sets, and what is said."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from benchmarks import loader, loader_report, loader_run, loader_sets, partners
from benchmarks.loader_report import CASES, TARGETS, Costs, judged, missed, tables, verdict
from benchmarks.loader_sets import ImageSet
from yolods.data.augment import partner_choice
from yolods.data.sampler import BLOCK_LENGTH

HD = ImageSet("HD", Path("x.yaml"), 480, 100_000.0)


def costs(imgsz: int = 640, **milliseconds) -> Costs:
    given = {key.replace("_", "-"): value for key, value in milliseconds.items()}
    return Costs(HD, imgsz, given)


def test_ratios_compare_neighbours_in_time():
    speed = costs(old=[20.0, 40.0, 21.0], block=[10.0, 10.0, 7.0]).speed("block", "old")
    assert (speed.median, speed.low, speed.high) == (3.0, 2.0, 4.0)
    assert costs(old=[20.0]).speed("block", "old") is None


def test_a_target_is_judged_where_both_were_measured():
    fast = costs(old=[20.0], block=[10.0])
    assert [each.target for each in judged([fast])] == [1.6] and missed([fast]) == []
    assert verdict([fast]) == f"**1 of {len(TARGETS)} targets could be judged, and are met.**"
    slow = costs(imgsz=320, old=[20.0], jpeg_pack=[10.0])
    assert [each.target for each in missed([fast, slow])] == [3.5]
    assert "Missed: HD at 320 px, jpeg-pack 2.00 (2.00..2.00), not 3.5." in verdict([fast, slow])


def test_tables_have_a_row_per_case_that_was_measured_everywhere():
    both = [costs(old=[20.0], block=[10.0], all=[12.0]), costs(320, old=[16.0], block=[4.0])]
    text = "\n".join(tables(both))
    assert "| loader | HD 640 | HD 320 |" in text
    assert "| partners `block` | 10.00 (10.00..10.00) | 4.00 (4.00..4.00) |" in text
    assert "| partners `block` | 2.00 (2.00..2.00) | 4.00 (4.00..4.00) |" in text
    assert "partners `all`" not in text and "ultralytics" not in text


def test_cases_and_targets_name_each_other():
    assert {key for case, other, *_ in TARGETS for key in (case, other)} <= set(CASES)
    assert loader_report.BLOCK == BLOCK_LENGTH


@pytest.mark.parametrize(("raw", "length"), [(False, BLOCK_LENGTH), (True, 0)])
def test_the_default_is_that_of_a_set_larger_than_the_cache(monkeypatch, raw, length):
    monkeypatch.setattr(partner_choice, "is_raw_pack", lambda source: raw)
    labels = SimpleNamespace(shapes=np.full((7, 2), 480))
    found = SimpleNamespace(source=None, labels=labels)
    assert [loader_run.default_block(found, imgsz) for imgsz in (320, 640)] == [length] * 2


def test_cases_of_one_kind_share_a_pack(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(loader_sets.subprocess, "run", lambda words, **_: make(words))

    def make(words: list[str]) -> None:
        out = Path(words[words.index("--out") + 1])
        out.mkdir()
        (out / "x.yaml").touch()
        made.append(out)

    yamls = [
        loader.as_read(CASES[key], HD, 640, tmp_path).yaml
        for key in ("jpeg-pack", "jpeg-default", "raw-pack")
    ]
    assert yamls[0] == yamls[1] != yamls[2] and len(made) == 2


@pytest.mark.parametrize(
    ("key", "why"),
    [("old", "no --old"), ("raw-pack", "no `yolods pack`"), ("all-fast", "simplejpeg is not")],
)
def test_what_cannot_be_measured_is_left_out_and_told(key, why, monkeypatch, capsys):
    monkeypatch.setattr(loader, "can_pack", lambda: False)
    monkeypatch.setattr(loader.importlib.util, "find_spec", lambda name: None)
    assert not loader.possible(CASES[key], SimpleNamespace(old=None))
    assert why in capsys.readouterr().out
    assert loader.possible(CASES["block"], SimpleNamespace(old=None))


@pytest.mark.parametrize("words", [["--samples", "20"], ["--rounds", "0"], ["--old", "/dev"]])
def test_what_makes_no_sense_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        loader.main(words)
    assert words[0] in capsys.readouterr().err


def test_the_generated_set(tmp_path, monkeypatch):
    monkeypatch.setattr(loader_sets, "SCENES", 1)
    made = loader_sets.hd_set(tmp_path / "hd", 3)
    assert (made.title, made.images) == ("HD", 2) and 70_000 < made.bytes < 130_000
    file = tmp_path / "hd/images/train/00001.jpg"
    assert cv2.imread(str(file)).shape == (720, 1280, 3)
    rows = (tmp_path / "hd/labels/train/00001.txt").read_text().split("\n")[:-1]
    assert 2 <= len(rows) <= 12 and all(len(row.split()) == 5 for row in rows)


def test_the_cells_are_there_several_times(tmp_path):
    source = tmp_path / "source"
    for split in ("train", "val"):
        for kind, name, content in (("images", "a.jpg", "x"), ("labels", "a.txt", "0 1 1 1 1")):
            folder = source / kind / split
            folder.mkdir(parents=True)
            (folder / name).write_text(content)
    made = loader_sets.cells_set(tmp_path / "cells", source)
    assert made.images == loader_sets.COPIES
    assert len([*(tmp_path / "cells/labels/train").iterdir()]) == loader_sets.COPIES


def test_a_process_that_has_ended_is_told(tmp_path, monkeypatch):
    gone = SimpleNamespace(stdin=io.StringIO(), stdout=io.StringIO(""))
    gone.kill = gone.wait = lambda: None
    monkeypatch.setattr(loader.subprocess, "Popen", lambda *_, **__: gone)
    with (
        loader.Loader(CASES["all"], None, tmp_path) as process,
        pytest.raises(RuntimeError, match="partners `all`: its process has ended"),
    ):
        process.cost(HD, 640, 32)
    assert json.loads(gone.stdin.getvalue())["imgsz"] == 640


def line(kind: str, seed: int, best: float, last: float) -> dict:
    return {"case": kind, "set": "demo", "seed": seed, "mAP50-95": best, "last.pt's mAP50-95": last}


def test_partners_are_compared_seed_by_seed():
    lines = [line("all", 0, 0.30, 0.20), line("block", 0, 0.31, 0.18), line("all", 1, 0.2, 0.2)]
    text = "\n".join(partners.compared(lines))
    assert "| best.pt | 0 | 0.3000 | 0.3100 | +0.0100 |" in text
    assert "| last.pt | **mean** | 0.2000 | 0.1800 | -0.0200 |" in text
    assert "| best.pt | 1 |" not in text  # its other kind has not run
    lines += [line("block", 1, 0.24, 0.2)]
    assert "| best.pt | **mean** | 0.2500 | 0.2750 | +0.0250 +- 0.0150 |" in "\n".join(
        partners.compared(lines)
    )
