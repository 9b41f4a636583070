"""Which checkpoint is taken, and which files a rank reads to tell. Damage of every kind:
test_store.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.stores import ALONE, write_ranks
from yolods.checkpoint import verify
from yolods.checkpoint.verify import (
    End,
    end_of,
    faults_of,
    names_in,
    newest_in,
    run_of,
    search,
    step_of,
)


def empty_checkpoints(folder: Path, *names: str, run: str = "r") -> None:
    """Folders of checkpoints without a manifest."""
    for name in names:
        (folder / name).mkdir()
        (folder / name / "progress.json").write_text(json.dumps({"run": run}))


def test_names_are_ordered_by_step_and_the_later_save_of_a_step_comes_last(tmp_path):
    names = ["step00000100", "step99", "step00000100-old", "step100000000"]
    empty_checkpoints(tmp_path, *names, "step12x", "stepping", ".writing")
    assert names_in(tmp_path) == ["step99", "step00000100-old", "step00000100", "step100000000"]
    assert step_of("step00000100-old") < step_of("step00000100") < step_of("step101-old")
    assert names_in(tmp_path / "gone") == []


def test_a_checkpoint_that_does_not_say_whose_it_is_may_be_anyones(tmp_path):
    empty_checkpoints(tmp_path, "step1", run="mine")
    empty_checkpoints(tmp_path, "step2", run="other")
    empty_checkpoints(tmp_path, "step3")
    (tmp_path / "step3" / "progress.json").write_text("[]")
    assert [run_of(tmp_path / f"step{number}") for number in (1, 2, 3, 4)] == [
        "mine",
        "other",
        None,
        None,
    ]
    assert names_in(tmp_path, "mine") == ["step1", "step3"]


def test_latest_is_tried_first_and_the_copy_put_aside_stands_in_for_it(tmp_path):
    empty_checkpoints(tmp_path, "step1", "step2-old", "step3")
    (tmp_path / "latest").write_text("step2\n")
    found = search(tmp_path, ALONE)
    assert found.folder is None
    assert found.skipped[0] == f"{tmp_path}/latest: names step2-old, so step3 is skipped"
    manifests = [f"{tmp_path}/{name}/manifest.json" for name in ("step2-old", "step3", "step1")]
    assert [line.split(":")[0] for line in found.skipped[1:]] == manifests


def test_a_latest_that_names_nothing_is_said_and_the_newest_whole_one_taken(tmp_path):
    whole = write_ranks(tmp_path, "whole", 1).folder
    empty_checkpoints(tmp_path, "step7")
    (tmp_path / "latest").write_text("\x00" * 50)
    found = search(tmp_path, ALONE)
    assert found.folder == newest_in(tmp_path) == whole
    assert found.skipped == (
        f"{tmp_path}/latest: names {chr(0) * 40!r}, which is not there",
        f"{tmp_path}/step7/manifest.json: missing, so the checkpoint cannot be verified",
    )


def test_every_file_is_read_by_one_rank_and_a_rank_s_own_by_itself():
    names = ["model.json", "progress.json", *(f"rank{number}.pt" for number in range(5))]
    shares = [verify._share(names, replace(ALONE, rank=rank, size=3)) for rank in range(3)]
    assert shares[0] == ["model.json", "progress.json", "rank0.pt", "rank3.pt"]
    assert shares[1:] == [["rank1.pt", "rank4.pt"], ["rank2.pt"]]


def test_damage_that_another_host_sees_is_told_with_its_name(tmp_path, monkeypatch):
    folder = write_ranks(tmp_path, "flat", 2).folder
    (folder / "rank1.pt").unlink()
    assert faults_of(folder, ALONE) == [f"{folder}/rank1.pt: missing"]

    class Far(type(ALONE)):
        def from_main(self, value):
            return value if value is not None else (*verify._read_manifest(folder), "first")

        def to_main(self, value):
            return [value]

    assert faults_of(folder, Far(1, 2, 0, "second", ALONE.device)) == [
        f"{folder}/rank1.pt: missing (seen from second)"
    ]


@pytest.mark.parametrize(
    ("ended", "stopped", "expected"),
    [
        ('{"run": "r", "start": "s", "step": 4, "status": 0}', None, End("r", "s", 4, 0)),
        (
            '{"run": "r"}',
            '{"run": "r", "start": "s", "step": 3, "status": 130}',
            End("r", "s", 3, 130),
        ),
        ("9 0", "[]", None),
        (None, None, None),
    ],
)
def test_an_end_that_cannot_be_read_is_none(tmp_path, ended, stopped, expected):
    for name, text in (("ended", ended), ("stopped", stopped)):
        if text is not None:
            (tmp_path / name).write_text(text)
    assert end_of(tmp_path) == expected
