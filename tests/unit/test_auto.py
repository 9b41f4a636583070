"""`--deepspeed_config auto`: the plan's best, as a JSON that the run's configuration records."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.tiny import make_dataset
from yolods.commands.parsers import train_parser
from yolods.config import RunConfig
from yolods.config.flags import AUTO_BATCH
from yolods.errors import UserError
from yolods.planner import auto, request
from yolods.system import files
from yolods.training.checks.preflight import check_train


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("YOLODS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    data = make_dataset(tmp_path / "data", train=6)
    return ["--data", str(data), "--model", "yolov5[0.33,0.1]", "--imgsz", "64"]


def configured(words: list[str], ranks: int, said: list[str] | None = None) -> RunConfig:
    tell = None if said is None else said.append
    return check_train(train_parser().read(words), ranks, "cpu", tell)


@pytest.mark.slow
def test_auto_keeps_the_batch_and_is_recorded(words: list[str], tmp_path: Path) -> None:
    said: list[str] = []
    config = configured([*words, "--batch-size", "8", "--deepspeed_config", "auto"], 2, said)
    plain = configured([*words, "--batch-size", "8"], 2)
    assert any(line.startswith("--deepspeed_config auto: ") for line in said)
    batches, usual = config.deepspeed.batches, plain.deepspeed.batches
    assert (batches.batch, batches.train_batch) == (usual.batch, usual.train_batch)
    assert batches.accumulation_auto
    assert config.deepspeed.path is not None
    assert config.deepspeed.path.is_relative_to(tmp_path / "cache")
    again = RunConfig.from_json(config.to_json(), tmp_path)
    assert again.deepspeed.raw == config.deepspeed.raw
    # The same on every process that asks.
    same = configured([*words, "--batch-size", "8", "--deepspeed_config", "auto"], 2)
    assert same.deepspeed.path == config.deepspeed.path


def test_a_resume_keeps_the_runs_json(words: list[str], tmp_path: Path) -> None:
    config = configured([*words, "--batch-size", "8", "--deepspeed_config", "zero2_fp32"], 2)
    run = tmp_path / "runs" / "exp"
    run.mkdir(parents=True)
    (run / "config.json").write_text(config.to_json())
    args = train_parser().read(["--resume", str(run), "--deepspeed_config", "auto"])
    assert auto.settled(args, lambda _: RunConfig.from_json(config.to_json(), run)) != args
    kept = auto.settled(args, lambda _: RunConfig.from_json(config.to_json(), run))
    assert kept.deepspeed_config is None
    said: list[str] = []
    auto.settled(args, lambda _: RunConfig.from_json(config.to_json(), run), tell=said.append)
    assert said == ["--deepspeed_config auto is ignored: --resume keeps the layout of the run"]


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_one_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "replace_text", full)
    with pytest.raises(UserError, match="No space left on device; set YOLODS_CACHE to a writable"):
        configured([*words, "--batch-size", "8", "--deepspeed_config", "auto"], 2)


@pytest.mark.slow
def test_auto_refuses_a_batch_that_does_not_fit(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "_ram", lambda: 2 * 4 * 2**20)
    with pytest.raises(UserError, match="--deepspeed_config auto: no layout fits; the nearest is"):
        configured([*words, "--batch-size", "8", "--deepspeed_config", "auto"], 2)


def test_other_values_and_a_file_of_that_name_are_left_alone(
    words: list[str], tmp_path: Path
) -> None:
    parser = train_parser()
    args = parser.read([*words, "--deepspeed_config", "zero2_fp32"])
    assert auto.settled(args, lambda _: pytest.fail("built")) is args
    (tmp_path / "auto").write_text("{}")
    args = parser.read([*words, "--deepspeed_config", "auto"])
    assert auto.settled(args, lambda _: pytest.fail("built")) is args


def test_faults_of_other_flags_are_reported_as_ever(words: list[str]) -> None:
    with pytest.raises(UserError, match="--imgsz 65"):
        configured([*words, "--imgsz", "65", "--deepspeed_config", "auto"], 2)


@pytest.mark.slow
def test_the_batch_is_what_fits_and_a_step_keeps_its_images(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    config = configured([*words, "--batch-size", "auto"], 2, said)
    planning, line = said
    assert planning == "planning the layout"
    assert line.startswith(
        "--batch-size auto: 64 images = 32 x 2; a step accumulates 1: 64 images; "
    )
    assert "its share of this host's memory; on a CPU, more images are not faster" in line
    assert (config.batch_size, config.deepspeed.train_batch) == (64, 64)
    # The most that fit: with a byte less than they take, it is half of them.
    need = taken_by(line)
    monkeypatch.setattr(request, "_ram", lambda: int(2 * need * 0.9 * 2**30))
    less = configured([*words, "--batch-size", "auto"], 2)
    assert less.batch_size < 64 and less.deepspeed.train_batch == 64
    monkeypatch.setattr(request, "_ram", lambda: 2 * 2**20)
    with pytest.raises(UserError, match=r"--batch-size auto: even [12] images? per rank would"):
        configured([*words, "--batch-size", "auto"], 2)


def taken_by(line: str) -> float:
    """The GiB in a line."""
    return float(line.partition("predicted ")[2].partition(" GiB")[0])


@pytest.mark.slow
def test_layout_and_batch_may_both_be_left_to_the_plan(words: list[str]) -> None:
    said: list[str] = []
    both = [*words, "--batch-size", "auto", "--deepspeed_config", "auto"]
    config = configured(both, 2, said)
    assert [line.partition(":")[0] for line in said] == [
        "planning the layout",
        "--deepspeed_config auto",
        "--batch-size auto",
    ]
    assert config.deepspeed.train_batch == 64
    assert f"{config.batch_size} images" in said[2]
    again = configured(both, 2)
    assert (again.batch_size, again.deepspeed.path) == (config.batch_size, config.deepspeed.path)


def test_a_pipeline_and_a_batch_of_the_json_are_refused_with_the_remedy(
    words: list[str], tmp_path: Path
) -> None:
    auto_batch = [*words, "--batch-size", "auto", "--deepspeed_config"]
    with pytest.raises(UserError, match=r"in a pipeline, .* add --deepspeed_config auto"):
        configured([*auto_batch, "pipeline2_fp32"], 2)
    (tmp_path / "own.json").write_text('{"train_micro_batch_size_per_gpu": 4}')
    with pytest.raises(UserError, match="_size_per_gpu 4, so that there is nothing"):
        configured([*auto_batch, str(tmp_path / "own.json")], 2)


@pytest.mark.parametrize("typed", ["--batch-size=auto", "--batch-size=-1", "--batch=-1"])
def test_auto_has_ultralytics_spelling_too(typed: str) -> None:
    args = train_parser().read([typed])
    assert (args.batch_size, args.faults) == (AUTO_BATCH, ())
    assert train_parser().read(typed.split("=")).batch_size == AUTO_BATCH


def test_a_batch_that_is_neither_is_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match="--batch-size is 'x': it must be a whole number, or auto"):
        configured([*words, "--batch-size", "x"], 2)
