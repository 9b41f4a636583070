"""From launch.sh to a finished run and back through `val`: what a person types, and what they see
and find."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import forks
from tests.dist.commands import SMALL, front_door, started, yolods
from tests.tiny import make_dataset
from yolods.launch.command import free_port
from yolods.telemetry.board.names import board_tag

pytestmark = [pytest.mark.slow, pytest.mark.timeout(220)]

PATIENCE_SECONDS = 100.0
MODEL = "yolov5n"
"""Learns to find something within seconds."""
GENTLE = ("--set", "optimizer=SGD", "--set", "lr0=0.0001")
"""So that the model still finds after the epoch what it found before."""
NAMES = ("colour0", "colour1")
LEFT = (
    *("weights/best.pt", "weights/last.pt", "checkpoints/latest", "checkpoints/step*/rank0.pt"),
    *(
        "checkpoints/step*/rank1.pt",
        "checkpoints/step*/progress.json",
        "results.csv",
        "results.png",
    ),
    *("BoxPR_curve.png", "BoxF1_curve.png", "BoxP_curve.png", "BoxR_curve.png"),
    *("confusion_matrix.png", "confusion_matrix_normalized.png", "labels.jpg", "train_batch0.jpg"),
    *(
        "val_batch0_labels.jpg",
        "val_batch0_pred.jpg",
        "events.out.tfevents.*",
        "config.json",
        "train.log",
    ),
)
"""What a run leaves, docs/outputs.md."""
CHATTER = re.compile(
    r"deepspeed|\[(info|warning|error)\]|warn|traceback|\[rank|\[gloo|\[w\d|\[c10d", re.IGNORECASE
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny", train=12, val=7, nc=len(NAMES))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .pt that finds coloured rectangles, so that the mAP of an evaluation is more than 0."""
    path = tmp_path_factory.mktemp("weights") / "finds.pt"
    _teach(path)
    return path


def _teach(path: Path) -> None:
    from ultralytics.cfg import get_cfg

    from yolods.checkpoint.pt_file import write_pt
    from yolods.model.architecture.build import architecture, build, parse_name

    torch.manual_seed(0)
    net = build(architecture(parse_name(MODEL), len(NAMES), 3), NAMES)
    skeleton = deepcopy(net)
    net.args = get_cfg()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1  # the statistics have to arrive within 50 steps
    steps = 50
    optimizer = torch.optim.AdamW(
        [each for name, each in net.named_parameters() if ".dfl" not in name], 0.003
    )
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.003 * (1 - step / steps)
        optimizer.zero_grad()
        net.loss(_rectangles(step))[0].sum().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
    write_pt(path, skeleton, net.state_dict().items(), {"train_args": {"imgsz": 64}})


def _rectangles(seed: int, images: int = 8) -> dict[str, torch.Tensor]:
    """Images like those of `make_dataset`, but none of them."""
    from tests.tiny import _draw

    drawn = [
        _draw(np.random.RandomState([7, seed, image]), 3 * image + image % 2, len(NAMES), 64)
        for image in range(images)
    ]
    rows = [
        [image, *map(float, row.split())] for image, (_, texts) in enumerate(drawn) for row in texts
    ]
    table = torch.tensor(rows)
    pixels = np.stack([image[..., ::-1].transpose(2, 0, 1) for image, _ in drawn])
    return {
        "img": torch.from_numpy(pixels.copy()).float() / 255,
        "batch_idx": table[:, 0],
        "cls": table[:, 1:2],
        "bboxes": table[:, 2:],
    }


def _run(
    words: list[str], folder: Path, popen: type[subprocess.Popen] = subprocess.Popen
) -> tuple[int, str]:
    """Exit status, and everything that came to the screen."""
    with (
        open(folder / "screen", "w+") as screen,
        started(words, folder, screen, popen=popen) as process,
    ):
        code = process.wait(PATIENCE_SECONDS)
        screen.seek(0)
        return code, screen.read()


def _flags(data: Path, weights: Path) -> list[str]:
    return [
        "--data",
        str(data),
        "--weights",
        str(weights),
        "--model",
        MODEL,
        *SMALL[2:],
        "--epochs",
        "1",
        "--set",
        "nbs=4",
    ]


@pytest.fixture(scope="module")
def trained(
    data: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, str, Path]:
    """A training run of one epoch: exit status, screen, and the folder it was typed in."""
    folder = tmp_path_factory.mktemp("typed")
    code, screen = _run([*front_door("train"), *_flags(data, weights), *GENTLE], folder)
    return code, screen, folder


def test_a_run_ends_well_and_leaves_everything(trained: tuple[int, str, Path]) -> None:
    code, screen, folder = trained
    assert code == 0, screen
    run = folder / "runs" / "exp"
    assert [
        name for name in LEFT if not [each for each in run.glob(name) if each.stat().st_size]
    ] == []
    # Nothing of it, and nothing else, lies where the command was typed.
    assert {each.name for each in folder.iterdir()} == {"runs", "screen"}


def test_the_screen_shows_the_run_and_nothing_of_its_machinery(
    trained: tuple[int, str, Path],
) -> None:
    _, screen, _ = trained
    (versions,) = [line for line in screen.splitlines() if CHATTER.search(line)]
    assert versions.startswith("yolods ") and ", deepspeed 0." in versions
    assert "Validating" in screen and "Best model: mAP50" in screen
    assert "2 ranks on cpu" in screen


def _all_classes(screen: str) -> list[str]:
    """The last row `all` of a table: images, instances, precision, recall, mAP50, mAP50-95."""
    rows = [line.split() for line in screen.splitlines() if line.split()[:1] == ["all"]]
    assert rows, screen
    return rows[-1][1:]


@pytest.mark.parametrize("ranks", [1, 2])
def test_val_shows_what_the_run_showed_last(
    trained: tuple[int, str, Path], data: Path, tmp_path: Path, ranks: int
) -> None:
    _, screen, folder = trained
    best = folder / "runs" / "exp" / "weights" / "best.pt"
    words = [
        "--weights",
        str(best),
        "--data",
        str(data),
        "--imgsz",
        "64",
        "--workers",
        "0",
        "--set",
        "plots=False",
    ]
    code, shown = _run([*yolods("val"), *words, "--num_gpus", str(ranks)], tmp_path, forks.Popen)
    assert code == 0, shown
    mine, last = _all_classes(shown), _all_classes(screen)
    assert float(last[-1]) > 0.1, "the model finds nothing, so that this shows nothing"
    assert mine == last
    assert f"Best model: mAP50 {mine[-2]}, mAP50-95 {mine[-1]}" in screen
    _leaves_its_numbers(tmp_path / "runs" / "val", mine)
    assert [line for line in shown.splitlines() if CHATTER.search(line)] == []


def _leaves_its_numbers(folder: Path, row: list[str]) -> None:
    """In a file, and as curves of one point; `row` is the screen's."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    left = json.loads((folder / "metrics.json").read_text())
    assert f"{left['metrics']['metrics/mAP50-95(B)']:.3g}" == f"{float(row[-1]):.3g}"
    assert (left["split"], str(left["images"])) == ("val", row[0]) and set(left["classes"]) == set(
        NAMES
    )
    events = EventAccumulator(str(folder))
    events.Reload()
    for tag, value in {
        **left["metrics"],
        **{f"val/{name}": loss for name, loss in left["loss"].items()},
    }.items():
        (point,) = events.Scalars(board_tag(tag))
        assert point.value == pytest.approx(value, rel=1e-6)


def test_deepspeeds_own_launcher_starts_a_run(data: Path, weights: Path, tmp_path: Path) -> None:
    """`deepspeed --module yolods train`, with the launcher's own --local_rank and without any
    preflight of ours."""
    launcher = shutil.which("deepspeed", path=str(Path(sys.executable).parent))
    assert launcher, "the environment of these tests has no deepspeed command"
    flags = [*_flags(data, weights), "--noplots", "--deepspeed_config", str(_zero3(tmp_path))]
    words = [
        launcher,
        "--num_gpus",
        "2",
        "--master_port",
        str(free_port()),
        "--module",
        "yolods",
        "train",
        *flags,
    ]
    code, screen = _run(words, tmp_path)
    assert code == 0, screen
    run = tmp_path / "runs" / "exp"
    assert "2 ranks on cpu, ZeRO-3" in screen
    assert (run / "weights" / "best.pt").stat().st_size and len(
        (run / "results.csv").read_text().splitlines()
    ) == 2


def _zero3(folder: Path) -> Path:
    file = folder / "zero3.json"
    file.write_text('{"zero_optimization": {"stage": 3}}')
    return file
