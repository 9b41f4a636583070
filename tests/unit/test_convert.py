"""From a run's checkpoints to one .pt: which is taken, what is written, and what is said where none
can be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.stores import ALONE, MODEL, WEIGHTS, Engine, write_ranks
from yolods.checkpoint import convert
from yolods.checkpoint.convert import export, find_checkpoint
from yolods.checkpoint.store import CheckpointStore, Progress
from yolods.errors import UserError


def test_what_an_export_names_as_damaged(tmp_path, caplog):
    """Asked for one checkpoint it takes that or none, and asked for a run's it takes the newest
    that is whole."""
    run = tmp_path / "run"
    checkpoint = write_ranks(run / "checkpoints", "flat", 4)
    for rank in (1, 3):
        (checkpoint.folder / f"rank{rank}.pt").unlink()
    missing = [f"{checkpoint.folder}/rank{rank}.pt: missing" for rank in (1, 3)]
    remedies = {
        checkpoint.folder: (
            f"this checkpoint is damaged; use {run / 'checkpoints'} to export the newest intact one"
        ),
        run: (
            "no intact checkpoint in it; name a run's folder, its checkpoints/, or one checkpoint "
            "in it"
        ),
    }
    for place, remedy in remedies.items():
        with pytest.raises(UserError) as caught:
            find_checkpoint(place)
        assert str(caught.value).splitlines() == [f"{place}: {remedy}", *missing]
    CheckpointStore(run / "checkpoints", ALONE, keep=2, model=MODEL).save(
        Engine(), Progress(step=0)
    )
    (run / "checkpoints" / "latest").write_text(checkpoint.folder.name)
    assert find_checkpoint(run) == run / "checkpoints" / "step00000000"
    assert caplog.messages == missing


def test_a_checkpoint_is_found_by_any_of_its_paths(tmp_path):
    run = tmp_path / "run"
    folder = write_ranks(run / "checkpoints", "whole", 1).folder
    assert (
        find_checkpoint(run)
        == find_checkpoint(run / "checkpoints")
        == find_checkpoint(folder)
        == folder
    )
    for place, what in (
        (tmp_path, "no intact checkpoint in it"),
        (tmp_path / "gone", "no such folder"),
    ):
        with pytest.raises(UserError) as caught:
            find_checkpoint(place)
        assert str(caught.value) == (
            f"{place}: {what}; name a run's folder, its checkpoints/, or one checkpoint in it"
        )


def test_a_run_may_be_named_as_a_checkpoint_is(tmp_path):
    run = tmp_path / "step1"
    folder = write_ranks(run / "checkpoints", "whole", 1).folder
    assert find_checkpoint(run) == folder


@pytest.mark.parametrize(
    ("live", "more", "which"), [(True, 0.0, "trained weights"), (False, 0.5, "moving average")]
)
@pytest.mark.parametrize("fp32", [True, False])
def test_an_export_writes_what_was_asked_for_and_says_so(
    tmp_path, monkeypatch, live, more, which, fp32
):
    checkpoint = write_ranks(tmp_path / "checkpoints", "flat", 2)
    written = {}

    def write(target: Path, net: object, state: dict, further: dict, *, half: bool) -> None:
        written.update(target=target, net=net, state=dict(state), further=further, half=half)

    def described(architecture: dict) -> torch.nn.Module:
        net = torch.nn.BatchNorm2d(3, device="meta")
        net.architecture = architecture
        return net

    monkeypatch.setattr(convert, "meta_model", described)
    monkeypatch.setattr(convert, "write_pt", write)
    target = tmp_path / "best.pt"
    line = export(tmp_path, target, live=live, fp32=fp32)
    assert line == f"{target}: {which} of {checkpoint.folder}, after step 1"
    assert written["net"].architecture == MODEL["architecture"]
    assert written["net"].names == dict(enumerate(MODEL["names"]))
    assert (written["further"], written["half"]) == ({"train_args": {}}, not fp32)
    assert torch.equal(written["state"]["conv.bias"], WEIGHTS["conv.bias"] + more)
    assert written["state"].pop("num_batches_tracked").tolist() == 0, "as in a new model"
    assert written["state"].keys() == {*WEIGHTS, "bn.mean", "dfl.weight"}


def test_an_export_to_another_suffix_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(
        UserError, match=r"^--to .*best\.onnx: ultralytics loads files that end in \.pt$"
    ):
        export(tmp_path / "gone", tmp_path / "best.onnx", live=False, fp32=False)


def test_a_target_that_cannot_be_written_is_a_line(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    write_ranks(tmp_path, "whole", 1)
    monkeypatch.setattr(convert, "meta_model", lambda _: torch.nn.Identity())
    monkeypatch.setattr(convert, "write_pt", full)
    with pytest.raises(
        UserError, match=r"^--to .*best\.pt: cannot write: .*No space left on device$"
    ):
        export(tmp_path, tmp_path / "best.pt", live=False, fp32=False)
