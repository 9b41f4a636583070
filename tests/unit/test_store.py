"""Checkpoints are whole or absent, and what they hold can be cut for another layout. Real engines:
tests/dist."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.stores import ALONE, GROUPS, MODEL, WEIGHTS, Engine, write_ranks
from tests.whole_shards import cut_shards, join_shards
from yolods.checkpoint import store as module
from yolods.checkpoint.checked_files import FileRecord, damage, write_file
from yolods.checkpoint.store import CheckpointStore, Progress, write_rank
from yolods.checkpoint.verify import End, end_of, faults_of, names_in, newest_in
from yolods.errors import UserError
from yolods.training.checks import resume_check


def store_in(folder: Path, keep: int = 2, keep_best: bool = True) -> CheckpointStore:
    return CheckpointStore(folder, ALONE, keep=keep, keep_best=keep_best, model=MODEL)


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step*"))


def test_what_was_saved_is_loaded(tmp_path):
    progress = Progress(
        position=40, step=5, loss_sums=(1.0, 2.0, 3.0), best_fitness=0.25, replaced=2
    )
    torch.manual_seed(3)
    store_in(tmp_path).save(Engine(), progress)
    expected = torch.rand(3)
    torch.manual_seed(99)
    engine = Engine()
    assert store_in(tmp_path).load(engine) == progress
    assert torch.equal(torch.rand(3), expected)
    assert all(map(torch.equal, engine.loaded["masters"], engine.held))
    assert engine.loaded["counters"] == {"global_steps": 5}
    assert not (tmp_path / ".writing").exists()


def test_each_line_of_a_save_is_on_the_disk_before_the_next(tmp_path, monkeypatch):
    """`latest` must not name a checkpoint that a power cut could take away."""
    done: list[str] = []
    replace, sync = os.replace, module.sync_folder

    def renamed(source, target):
        done.append(f"{Path(target).name} is renamed")
        replace(source, target)

    def synced(folder):
        done.append(f"{'in ' if folder == tmp_path else ''}{folder.name}")
        sync(folder)

    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(module, "sync_folder", synced)
    store_in(tmp_path).save(Engine(), Progress(step=5))
    named = done.index("step00000005 is renamed")
    assert done[named - 1] == "step00000005", "its files"
    assert done[named + 1] == f"in {tmp_path.name}", "its name"
    assert done.index("latest is renamed") > named + 1


def of_run(folder: Path, run: str, start: str = "s1") -> CheckpointStore:
    return CheckpointStore(folder, ALONE, keep=9, model=MODEL, run=run, start=start)


def test_another_run_s_checkpoint_is_not_loaded_and_is_named(tmp_path, caplog):
    of_run(tmp_path, "mine").save(Engine(), Progress(run="mine", step=2))
    of_run(tmp_path, "other").save(Engine(), Progress(run="other", step=6))
    assert of_run(tmp_path, "mine").load(Engine()) == Progress(run="mine", step=2)
    assert (
        f"{tmp_path / 'step00000006'}: written by another run (other), not by mine" in caplog.text
    )
    with pytest.raises(
        UserError,
        match=r"no intact checkpoint to resume from(?s:.*)written by another run \(mine\)",
    ):
        of_run(tmp_path, "third").load(Engine())
    assert names_in(tmp_path, "mine") == ["step00000002"]
    assert newest_in(tmp_path) == tmp_path / "step00000006", "for an export any will do"


def test_a_checkpoint_of_a_run_without_identity_goes_on_as_before(tmp_path):
    of_run(tmp_path, "").save(Engine(), Progress(step=2))
    file = tmp_path / "step00000002" / "progress.json"
    content = json.loads(file.read_text())
    del content["run"]
    file.write_text(json.dumps(content))
    assert names_in(tmp_path, "") == ["step00000002"]
    assert names_in(tmp_path, "another") == []


def test_an_end_says_whose_it_is_and_a_stop_is_none(tmp_path):
    def is_over(run: str, step: int) -> bool:
        return resume_check.is_over(
            SimpleNamespace(run=run, checkpoints=tmp_path / "checkpoints", epochs=2),
            step,
            epochs_done=2,
        )

    folder = tmp_path / "checkpoints"
    folder.mkdir()
    store = of_run(folder, "r1")
    store.note_end(Progress(step=5), 130)
    assert [path.name for path in folder.iterdir()] == ["stopped"]
    assert end_of(folder) == End("r1", "s1", 5, 130)
    assert not is_over("r1", 5)
    store.note_start()
    assert end_of(folder) is None
    store.note_end(Progress(step=9))
    assert [path.name for path in folder.iterdir()] == ["ended"]
    assert is_over("r1", 9)
    assert not is_over("r1", 8)
    assert not is_over("r2", 9)
    (folder / "ended").write_text("9 0")
    assert end_of(folder) is None


def test_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 100):
        store_in(tmp_path, keep=2).save(Engine(), Progress(step=step))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "latest",
        "step00000003",
        "step00000100",
    ]
    assert newest_in(tmp_path) == tmp_path / "step00000100"


# What a run of twelve steps saves, four an epoch: (step, epochs done, best epoch, best fitness).
RUN = [
    (2, 0, 0, None),
    (4, 1, 0, 0.1),
    (6, 1, 0, 0.1),
    (8, 2, 0, 0.1),
    (10, 2, 0, 0.1),
    (12, 3, 2, 0.2),
    (14, 3, 2, 0.2),
]


@pytest.mark.parametrize(
    ("keep", "keep_best", "left"),
    [
        (1, True, [[2], [4], [4, 6], [4, 8], [4, 10], [12], [12, 14]]),
        (1, False, [[2], [4], [6], [8], [10], [12], [14]]),
    ],
)
def test_the_best_stays_beside_the_newest(tmp_path, keep, keep_best, left):
    """It is the one at the end of the best epoch, not the later ones that know of no better."""
    for (step, epochs, best, fitness), expected in zip(RUN, left, strict=True):
        progress = Progress(step=step, epochs_done=epochs, best_epoch=best, best_fitness=fitness)
        store_in(tmp_path, keep, keep_best).save(Engine(), progress)
        assert steps_in(tmp_path) == [f"step{step:08d}" for step in expected]


def test_a_step_may_be_saved_again(tmp_path):
    for epochs in (1, 2):
        store_in(tmp_path).save(Engine(), Progress(step=1, epochs_done=epochs))
    assert store_in(tmp_path).load(Engine()).epochs_done == 2
    assert steps_in(tmp_path) == ["step00000001"]


def test_what_was_put_aside_for_its_successor_loads(tmp_path):
    """A kill came before the successor had its name; the one after that came later, and left
    both."""
    for step in (1, 2):
        store_in(tmp_path).save(Engine(), Progress(step=step))
    first, aside = tmp_path / "step00000001", tmp_path / "step00000001-old"
    (tmp_path / "latest").write_text(first.name)
    first.rename(aside)
    assert store_in(tmp_path).load(Engine()).step == 1
    store_in(tmp_path).save(Engine(), Progress(step=1, epochs_done=7))
    assert steps_in(tmp_path) == ["step00000001", "step00000002"]
    shutil.copytree(first, aside)
    store_in(tmp_path).save(Engine(), Progress(step=1, epochs_done=8))
    assert store_in(tmp_path).load(Engine()).epochs_done == 8
    assert steps_in(tmp_path) == ["step00000001", "step00000002"]


def test_a_run_set_back_leaves_its_earlier_course(tmp_path):
    """What it saves from there on is what it goes on from, and what it had saved past that point
    goes first."""
    for step in (1, 2, 3):
        store_in(tmp_path, keep=3).save(Engine(), Progress(step=step))
    (tmp_path / "latest").write_text("step00000001")
    assert store_in(tmp_path).load(Engine()).step == 1
    for keep, left in ((3, [1, 2, 3]), (2, [1, 2])):
        store_in(tmp_path, keep).save(Engine(), Progress(step=2, epochs_done=7))
        assert steps_in(tmp_path) == [f"step{step:08d}" for step in left]
        assert store_in(tmp_path).load(Engine()).epochs_done == 7


@pytest.mark.parametrize(
    "what", ["rank0.pt", "progress.json", "model.json", "manifest.json", "rename", "latest"]
)
def test_a_failure_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, what):
    """The disk fills up at each of the moments of a save."""
    store_in(tmp_path).save(Engine(), Progress(step=1))
    open_file, replace = os.open, os.replace

    def fail(name):
        if name == what:
            raise OSError(28, "No space left on device")

    def fail_to_open(path, *rest, **named):
        fail(Path(path).name)
        return open_file(path, *rest, **named)

    def fail_to_rename(source, target):
        fail({"step00000002": "rename"}.get(Path(target).name, Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "open", fail_to_open)
    monkeypatch.setattr(os, "replace", fail_to_rename)
    with pytest.raises(
        OSError,
        match=r"the checkpoint step00000002 could not be written: .*No space left on device",
    ):
        store_in(tmp_path).save(Engine(), Progress(step=2))
    monkeypatch.undo()
    assert newest_in(tmp_path) == tmp_path / "step00000001"
    assert store_in(tmp_path).load(Engine()).step == 1
    assert not (tmp_path / ".writing").exists()
    store_in(tmp_path).save(Engine(), Progress(step=3))
    assert newest_in(tmp_path) == tmp_path / "step00000003"


def test_torch_has_faults_of_its_own(tmp_path, monkeypatch):
    """They are a line like the others'."""
    store_in(tmp_path).save(Engine(), Progress(step=1))

    def fail(*_):
        raise RuntimeError(
            "[enforce fail at inline_container.cc:672] .\n unexpected pos 896 vs 790"
        )

    monkeypatch.setattr(module.torch, "save", fail)
    with pytest.raises(OSError) as caught:
        store_in(tmp_path).save(Engine(), Progress(step=2))
    assert str(caught.value) == (
        "the checkpoint step00000002 could not be written: rank 0 on here: [enforce fail at "
        "inline_container.cc:672] . unexpected pos 896 vs 790"
    )
    assert newest_in(tmp_path) == tmp_path / "step00000001"


def test_why_torch_could_not_write_is_said(tmp_path, monkeypatch):
    """torch itself speaks of positions in the file when a write in its middle fails."""
    write = os.write

    def fail(handle, data):
        if len(data) > 1000:
            raise OSError(28, "No space left on device")
        return write(handle, data)

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$"):
        write_rank(tmp_path, 0, {"a": torch.zeros(1000), "b": torch.ones(3)})


def test_a_write_that_takes_a_part_is_gone_on_with(tmp_path, monkeypatch):
    """As of more than 2 GiB at once."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:7]))
    record = write_file(tmp_path / "a", lambda file: file.write(b"123456789"))
    assert (tmp_path / "a").read_bytes() == b"123456789"
    assert record == FileRecord(9, "cbf43926") and damage(tmp_path / "a", record) is None


def test_a_host_with_a_disk_of_its_own_is_told_of(tmp_path):
    """Its rank has written, but not to where rank 0 looks."""

    class Elsewhere(CheckpointStore):
        def _write(self, writing, state):
            record, _ = super()._write(writing, state)
            (writing / "rank0.pt").unlink()
            return record, "rank 0 on node7"

    with pytest.raises(OSError) as caught:
        Elsewhere(tmp_path, ALONE, keep=2, model=MODEL).save(Engine(), Progress(step=1))
    assert str(caught.value) == (
        "the checkpoint step00000001 could not be written: rank0.pt of rank 0 on node7 is not in "
        f"rank 0's {tmp_path}/.writing/step00000001: all hosts must share the run's folder"
    )


def test_a_kill_while_writing_is_not_taken_for_a_checkpoint(tmp_path):
    store_in(tmp_path).save(Engine(), Progress(step=1))
    half = tmp_path / ".writing" / "step00000002"
    half.mkdir(parents=True)
    (half / "rank0.pt").write_bytes(b"half")
    assert store_in(tmp_path).load(Engine()).step == 1
    store_in(tmp_path).save(Engine(), Progress(step=2))
    assert not (tmp_path / ".writing").exists()


@pytest.mark.parametrize("latest", [None, "", "step00000009", "nowhere"])
def test_without_any_checkpoint_there_is_one_line(tmp_path, latest):
    (tmp_path / ".writing" / "step00000009").mkdir(parents=True)
    if latest is not None:
        (tmp_path / "latest").write_text(latest)
    with pytest.raises(UserError) as caught:
        store_in(tmp_path).load(Engine())
    assert (
        str(caught.value)
        == f"{tmp_path}: no intact checkpoint to resume from; start again without --resume"
    )


def test_without_a_whole_checkpoint_all_damage_is_listed(tmp_path):
    for step in (1, 2):
        store_in(tmp_path).save(Engine(), Progress(step=step))
    first, second = tmp_path / "step00000001", tmp_path / "step00000002"
    (first / "manifest.json").unlink()
    os.truncate(second / "progress.json", 3)
    size = (second / "progress.json").with_name("model.json").stat().st_size
    with (second / "model.json").open("a") as file:
        file.write("  ")
    (tmp_path / "latest").write_text("step00000003")
    whole = json.loads((second / "manifest.json").read_text())["files"]["progress.json"]["size"]
    with pytest.raises(UserError) as caught:
        store_in(tmp_path).load(Engine())
    assert str(caught.value).splitlines() == [
        f"{tmp_path}: no intact checkpoint to resume from; start again without --resume",
        f"{tmp_path}/latest: names 'step00000003', which is not there",
        f"{second}/model.json: too long, {size + 2} of {size} bytes",
        f"{second}/progress.json: cut short, 3 of {whole} bytes",
        f"{first}/manifest.json: missing, so the checkpoint cannot be verified",
    ]


@pytest.mark.parametrize(("ranks", "kind"), [(1, "whole"), (2, "flat"), (2, "pieces")])
def test_a_head_of_another_size_is_refused_by_name_under_every_layout(
    tmp_path, monkeypatch, ranks, kind
):
    store_in(tmp_path).save(Engine(), Progress(step=1))
    engine = Engine(kind, 0, ranks)
    monkeypatch.setattr("tests.stores.GROUPS", [[("conv.weight", (4, 3))], [("conv.bias", (3,))]])
    engine.held[0] = torch.zeros(12 if kind == "whole" else 6)
    with pytest.raises(UserError) as caught:
        store_in(tmp_path).load(engine)
    assert str(caught.value) == (
        f"{tmp_path}/step00000001 is of another model: conv.weight is (2, 3) instead of (4, 3)"
    )
    assert engine.loaded == {}


@pytest.mark.parametrize(
    ("position", "done", "before", "images", "expected"),
    [
        (20, 1, 12, 18, 18),  # in the middle of the second epoch, which begins anew
        (20, 1, 12, 6, 6),
        (12, 1, 12, 18, 18),
        (24, 1, 12, 18, 36),  # the second is still to be evaluated
        (3, 0, 12, 18, 0),
        (20, 1, None, 18, 18),
    ],
)
def test_epochs_behind_count_when_the_train_set_has_grown_or_shrunk(
    position, done, before, images, expected
):
    progress = Progress(
        position=position, epochs_done=done, step=5, loss_sums=(1.0, 2.0, 3.0), loss_weight=2
    )
    moved = progress.among(images, before)
    assert (moved.position, moved.epochs_done, moved.step) == (expected, done, 5)
    waiting = expected // images > done
    assert moved.loss_sums == (progress.loss_sums if waiting else ()) and moved.loss_weight == (
        2 if waiting else 0
    )


@pytest.mark.parametrize(
    ("position", "images", "fits"),
    [(12, 12, True), (27, 12, True), (28, 12, False), (8, 12, False), (12, 4, False)],
)
def test_a_position_tells_that_the_train_set_is_another(position, images, fits):
    """After one epoch, with steps of 4 images."""
    assert Progress(position=position, epochs_done=1).fits(images, 4) == fits


@pytest.mark.parametrize("latest", [None, "step00000001"])
def test_what_latest_does_not_name(tmp_path, caplog, latest):
    """Lost, it is done without; naming an earlier one, it is believed. Either is said."""
    for step in (1, 2):
        store_in(tmp_path).save(Engine(), Progress(step=step))
    (tmp_path / "latest").unlink()
    if latest is not None:
        (tmp_path / "latest").write_text(latest)
    step = store_in(tmp_path).load(Engine()).step
    expected = (
        (2, "missing") if latest is None else (1, "names step00000001, so step00000002 is skipped")
    )
    assert (step, caplog.messages[0]) == (expected[0], f"{tmp_path}/latest: {expected[1]}")
    assert caplog.messages[1:] == [f"resuming from {tmp_path}/step0000000{step}, which is intact"]


def test_every_byte_of_a_manifest_counts(tmp_path):
    store_in(tmp_path).save(Engine(), Progress(step=1))
    manifest = tmp_path / "step00000001" / "manifest.json"
    assert faults_of(manifest.parent, ALONE) == []
    content = manifest.read_bytes()
    for place, byte in enumerate(content):
        manifest.write_bytes(
            content[:place] + bytes([byte ^ 1 << place % 8]) + content[place + 1 :]
        )
        expected = f"{manifest}: damaged, its {len(content)} bytes are not what was written"
        assert faults_of(manifest.parent, ALONE) == [expected], place


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "7", '{"files": 3}', '{"files": {"a": {"size": 1}}}']
)
def test_a_manifest_may_be_anything(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    (fault,) = faults_of(tmp_path, ALONE)
    assert (
        fault
        == f"{tmp_path}/manifest.json: damaged, its {len(content)} bytes are not what was written"
    )


@pytest.mark.parametrize(
    ("kind", "count"), [("whole", 1), ("flat", 3), ("pieces", 2), ("pieces", 4)]
)
def test_cut_is_the_inverse_of_join(kind, count):
    ranks = [Engine(kind, rank, count).held for rank in range(count)]
    whole = join_shards(kind, GROUPS, ranks)
    assert all(torch.equal(whole[name], value) for name, value in WEIGHTS.items())
    again = [
        cut_shards(kind, GROUPS, whole, [t.numel() for t in held], rank, count)
        for rank, held in enumerate(ranks)
    ]
    assert all(
        torch.equal(a, b)
        for held, other in zip(ranks, again, strict=True)
        for a, b in zip(held, other, strict=True)
    )


@pytest.mark.parametrize(("kind", "count"), [("flat", 2), ("pieces", 3)])
def test_a_checkpoint_goes_on_under_another_layout(tmp_path, kind, count):
    write_ranks(tmp_path, kind, count, Progress(step=7, loss_sums=(1.0, 2.0, 3.0)))
    engine = Engine("whole")
    assert store_in(tmp_path).load(engine) == Progress(step=7, loss_sums=(1.0, 2.0, 3.0))
    for got, expected in zip(engine.loaded["masters"], engine.held, strict=True):
        assert torch.equal(got.flatten(), expected.flatten())
    assert torch.equal(
        engine.loaded["optimizer"][1]["exp_avg"].flatten(), WEIGHTS["conv.bias"] * 10
    )
    assert engine.loaded["optimizer"][0]["step"].item() == 5.0
    assert engine.loaded["ema"]["updates"] == 5
    assert engine.loaded["stability"] == {"scale": {"cur_scale": 128.0}}
    assert torch.equal(engine.loaded["statistics"][0], torch.tensor([(count - 1) / 2]))
