"""Commands of one process: what `yolods doctor` finds before it asks hosts. The others are tested
with their rooms."""

import os
import shutil
from pathlib import Path

import pytest

from tests.packs import AS_IS, make_odd_set, packed_yaml
from yolods import cli
from yolods.commands import one_process


@pytest.fixture
def doctor(monkeypatch):
    """`yolods doctor` without a visit: its status, what it found before it asked hosts, and what it
    printed."""
    asked = []

    def visit(hosts, flags, *, faults, **settings):
        asked.append({**settings, "faults": list(faults)})
        return ["verdict"], not faults

    monkeypatch.setattr("yolods.doctor.run.run_doctor", visit)
    monkeypatch.setattr(one_process, "count_gpus", lambda environ: 0)

    def run(*words: str) -> tuple[int, dict]:
        return cli.main(["launch", "doctor", *words]), asked[-1]

    return run


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"foo": 1}', 'ds.json: unknown key "foo"'),
        (
            '{"fp16": {"enabled": true}, "zero_optimization": {"stage": 1}}',
            "the CPU backend has no fp16",
        ),
        ('{"pipeline": {"stages": 4}}', '"pipeline".stages 4 does not divide 2 ranks'),
        ('{"train_batch_size": 3}', "train_batch_size 3 / (2 ranks) = 1.50 is not an integer"),
        ('{"zero_optimization": {"offload_optimizer": "cpu"}}', "it must be an object"),
    ],
)
def test_doctor_does_not_pass_a_json_that_train_refuses(tmp_path, monkeypatch, doctor, text, told):
    monkeypatch.chdir(tmp_path)
    Path("ds.json").write_text(text)
    status, found = doctor("--num_gpus", "2", "--deepspeed_config", "ds.json")
    assert status == 2 and len(found["faults"]) == 1 and told in found["faults"][0]


def test_doctor_leaves_the_batch_to_the_start(tmp_path, monkeypatch, doctor):
    """16 images, the default of --batch-size, cannot be divided evenly among 5 ranks; others
    can."""
    monkeypatch.chdir(tmp_path)
    Path("ds.json").write_text(
        '{"gradient_accumulation_steps": 2, "zero_optimization": {"offload_optimizer": null}}'
    )
    assert doctor("--num_gpus", "5", "--deepspeed_config", "ds.json")[0] == 0


def test_doctor_counts_a_json_that_is_not_there_once(tmp_path, monkeypatch, doctor):
    monkeypatch.chdir(tmp_path)
    assert len(doctor("--deepspeed_config", "nope")[1]["faults"]) == 1
    assert len(doctor("--deepspeed_config", "nope.json")[1]["faults"]) == 1


def test_doctor_leaves_a_pack_that_is_cut_off_to_the_reports_of_the_hosts(
    tmp_path, monkeypatch, doctor, capsys
):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    yaml = packed_yaml(make_odd_set(tmp_path / "set"), tmp_path / "out", AS_IS)
    shard = tmp_path / "out/train.pack/00000.tar"
    whole = shard.read_bytes()
    os.truncate(shard, len(whole) // 2)
    status, found = doctor("--data", str(yaml))
    assert (status, found["faults"]) == (0, [])
    assert str(tmp_path / "out/train.pack") in found["trees"]
    assert capsys.readouterr().out.splitlines() == [one_process.NO_LEAKS, "verdict"]
    shutil.rmtree(tmp_path / "out/val.pack/index")  # which no report shows
    shard.write_bytes(whole)
    (line,) = doctor("--data", str(yaml))[1]["faults"]
    assert "out/val.pack/index is damaged" in line


def test_doctor_says_that_a_start_would_download_what_is_not_here(tmp_path, doctor, capsys):
    file = tmp_path / "data.yaml"
    file.write_text("train: images\nval: images\nnames: [x]\ndownload: https://example.org/x.zip\n")
    status, found = doctor("--data", str(file))
    assert (status, found["trees"], found["faults"]) == (0, (), [])
    told = f"{file}: some of its images are missing; a start would download them first"
    assert capsys.readouterr().out.splitlines() == [told, "verdict"]
