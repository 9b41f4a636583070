"""Real runs as users type them: a tiny model and a tiny data set, two runs at a time in two
processes."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from tests.faults.in_process import results_of
from tests.tiny import make_dataset
from yolods.model.weights import read_pt

pytestmark = [pytest.mark.slow, pytest.mark.process]
ROOT = Path(__file__).parents[2]
READY = ROOT / "ds_configs"
BASE = {
    "--model": "yolov5[0.1,0.1]",
    "--imgsz": "64",
    "--batch-size": "4",
    "--epochs": "2",
    "--workers": "0",
}
FP32 = ("zero0_fp32", "zero1_fp32", "zero2_fp32", "zero3_fp32", "zero2_offload_fp32")
LOW = ("zero1_bf16", "zero2_bf16", "zero3_bf16", "zero0_bf16_autocast", "zero2_bf16_autocast")
EXPORTED_LOW = ("zero1_bf16", "zero3_bf16")
EXPORTED = ("zero0_fp32", "zero2_fp32", "zero3_fp32", *EXPORTED_LOW, "zero3_offload")
RESTATED = ("plain", "cosine", "zero3_fp32")
"""Runs that take BatchNorm's statistics anew at their end."""
OFFLOAD = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}


class Runs:
    """The runs of this module: `row` and `add` before `start`, then ask for what they left."""

    def __init__(self, root: Path) -> None:
        self.root, self.results = root, {}
        self._rows: list[list[dict]] = []

    def add(
        self, name: str, *words: str, data: Path | None = None, nbs: int = 4, **flags: str | None
    ) -> None:
        """A training run; `flags` change BASE (None leaves a flag out)."""
        settings = {**BASE, **{f"--{key.replace('_', '-')}": value for key, value in flags.items()}}
        typed = [
            word for flag, value in settings.items() if value is not None for word in (flag, value)
        ]
        place = [
            "--data",
            str(data or self.root / "tiny" / "tiny.yaml"),
            "--project",
            str(self.root / "runs"),
        ]
        plots = [] if "plots" in words else ["--noplots"]
        further = [word for word in words if word != "plots"]
        if name not in RESTATED:  # a pass and an evaluation that the other tests do not ask about
            further += ["--set", "precise_bn=0"]
        self.command(
            name, "train", *place, "--name", name, *typed, "--set", f"nbs={nbs}", *plots, *further
        )

    def row(self) -> None:
        """What is added from now on runs beside what was added before."""
        self._rows.append([])

    def command(self, name: str, *words: str) -> None:
        self._rows[-1].append({"name": name, "words": list(words)})

    def start(self) -> None:
        self.results = results_of(*self._rows, folder=self.root, timeout=170)

    def screen(self, name: str) -> str:
        """What a command that succeeded showed."""
        result = self.results[name]
        assert result["code"] == 0, result["out"] + result["err"]
        assert "Traceback" not in result["out"] + result["err"]
        return result["out"]

    def folder(self, name: str) -> Path:
        self.screen(name)
        return self.root / "runs" / name

    def model(self, name: str, file: str = "last.pt"):
        return read_pt(self.folder(name) / "weights" / file)

    def rows(self, name: str) -> list[dict[str, float]]:
        with open(self.folder(name) / "results.csv", newline="") as file:
            return [
                {key: float(value) for key, value in row.items()} for row in csv.DictReader(file)
            ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    root = tmp_path_factory.mktemp("train")
    runs = Runs(root)
    make_dataset(root / "tiny", train=12, val=6)
    runs.row()
    _add_layouts(runs, root)
    runs.row()
    _add_data_sets(runs, root)
    _add_flags(runs, root)
    runs.start()
    return runs


def _add_layouts(runs: Runs, root: Path) -> None:
    for name in (*FP32, *EXPORTED_LOW):
        runs.add(name, deepspeed_config=str(READY / f"{name}.json"), epochs="1")
    many = make_dataset(root / "many", train=16, val=2)
    for name in ("zero0_fp32", *LOW):
        words = {"data": many, "nbs": 16, "batch_size": "16", "epochs": "1"}
        runs.add(f"a step of {name}", deepspeed_config=str(READY / f"{name}.json"), **words)
    (root / "offload.json").write_text(json.dumps({"zero_optimization": OFFLOAD}))
    runs.add("zero3_offload", deepspeed_config=str(root / "offload.json"), epochs="1")
    for name in EXPORTED:
        runs.command(
            f"export {name}", "export", str(root / "runs" / name), "--to", str(root / f"{name}.pt")
        )
        checkpoints, live = str(root / "runs" / name / "checkpoints"), str(root / f"{name}-live.pt")
        runs.command(f"live {name}", "export", checkpoints, "--to", live, "--live", "--fp32")


def _add_data_sets(runs: Runs, root: Path) -> None:
    runs.add("plain", "plots")
    texts = make_dataset(root / "mit Leerzeichen ü", train=4, val=2)
    (texts.parent / "train.txt").write_text(
        "".join(f"./images/train/{i:03}.jpg\n" for i in range(3))
    )
    (texts.parent / "val.txt").write_text(
        "".join(f"{texts.parent}/images/val/{i:03}.jpg\n" for i in range(2))
    )
    texts.write_text("train: train.txt\nval: val.txt\nnames: [a, b]\n")
    runs.add("läuft 好", data=texts, epochs="1")
    lists = make_dataset(root / "png", train=4, val=2, suffix="png")
    lists.write_text("train: [images/train, images/val]\nval: [images/val]\nnames: [a, b]\n")
    runs.add("png", data=lists, epochs="1", workers="2")
    other = make_dataset(root / "other", train=4, val=2, nc=3)
    runs.add(
        "other classes",
        "--weights",
        str(root / "runs" / "plain" / "weights" / "best.pt"),
        data=other,
        epochs="1",
    )


def _add_flags(runs: Runs, root: Path) -> None:
    (root / "hyp.yaml").write_text(
        "lr0: 0.02\noptimizer: SGD\nwarmup_epochs: 0\nmosaic: 0.5\nfliplr: 0.0\n"
    )
    best = str(root / "runs" / "plain" / "weights" / "best.pt")
    runs.add("four levels", "--single-cls", model="yolov5[0.1,0.1]6", epochs="1")
    runs.add("frozen", "--weights", best, "--freeze", "10", epochs="1")
    runs.add("scales", "--multi-scale")
    runs.add(
        "cosine",
        "--cos-lr",
        "--noval",
        "--optimizer",
        "SGD",
        "--set",
        "warmup_epochs=0",
        epochs="3",
    )
    runs.add("sgd", "--optimizer", "SGD", "--set", "mixup=0.5", epochs="1")
    runs.add("hyp", "--hyp", str(root / "hyp.yaml"), "--save-period", "1", "--patience", "1")
    runs.add("kept", "--cache", "--sync-bn")
    still = ("--optimizer", "SGD", "--set", "momentum=0", "--set", "warmup_momentum=0")
    runs.add("unjudged", "--noval", "--save-period", "1", *still)
    bare = make_dataset(root / "bare", train=4, val=2)
    for file in (bare.parent / "labels" / "val").iterdir():
        file.unlink()
    runs.add(
        "bare",
        "--set",
        "lr0=0.5",
        "--set",
        "classes=1",
        "--freeze",
        "model.0",
        data=bare,
    )
    runs.add("short", nbs=64, epochs="4")
    again = str(root / "runs" / "cosine")
    runs.command("more", "train", "--resume", again, "--epochs", "4")
    words = [
        "--data",
        str(root / "tiny" / "tiny.yaml"),
        "--split",
        "train",
        "--save-json",
        "--workers",
        "0",
    ]
    runs.command(
        "val", "val", "--weights", best, *words, "--project", str(root / "runs"), "--name", "val"
    )
    runs.command("demo of nothing", "export", str(root / "runs"), "--to", str(root / "none.pt"))


def test_a_run_leaves_what_was_promised(runs):
    folder = runs.folder("plain")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = {
        "config.json",
        "results.csv",
        "results.png",
        "train.log",
        "labels.jpg",
        "weights/best.pt",
        "weights/last.pt",
    }
    expected |= {f"train_batch{i}.jpg" for i in range(3)} | {
        "val_batch0_labels.jpg",
        "val_batch0_pred.jpg",
    }
    expected |= {"confusion_matrix.png", "confusion_matrix_normalized.png"}
    expected |= {f"Box{kind}_curve.png" for kind in ("F1", "PR", "P", "R")}
    expected |= {"checkpoints/latest", "checkpoints/ended"}
    assert expected <= files
    rest = {
        name
        for name in files - expected
        if not name.startswith(("checkpoints/step", "events.out.tfevents"))
    }
    assert not rest
    assert "warning" not in runs.screen("plain").lower()


def test_any_path_and_any_spelling_of_splits(runs):
    assert "train: 3 images" in runs.screen("läuft 好")
    assert "train: 6 images" in runs.screen("png")
    assert (runs.folder("läuft 好") / "weights" / "best.pt").is_file()


def test_weights_of_a_run_with_other_classes(runs):
    screen = runs.screen("other classes")
    model = runs.model("other classes")
    total = len(model.state_dict())
    assert (
        f"Transferred {total}/{total} tensors from " in screen
    )  # its names are among the new ones
    assert model.names == {0: "colour0", 1: "colour1", 2: "colour2"}


def test_four_levels(runs):
    assert runs.model("four levels").stride.tolist() == [8, 16, 32, 64]


def test_frozen_layers_stay_bit_for_bit(runs):
    before, after = runs.model("plain", "best.pt").state_dict(), runs.model("frozen").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = {
        name for name in before if name.startswith(tuple(f"model.{layer}." for layer in range(10)))
    }
    assert len(frozen) > 100
    assert not changed & frozen
    assert {
        name for name in before if name.startswith("model.10.") and "conv.weight" in name
    } <= changed


def test_a_single_class(runs):
    model = runs.model("four levels")
    assert (model.names, model.nc) == ({0: "item"}, 1)


def test_multi_scale_changes_the_size_by_step(runs):
    sizes = set()
    for line in runs.screen("scales").splitlines():
        words = line.split()
        if words and words[0] in ("1/2", "2/2"):
            sizes.add(int(words[6]))
    assert sizes <= {32, 64, 96}
    assert runs.rows("scales")[0]["train/box_loss"] != runs.rows("plain")[0]["train/box_loss"]


def test_cosine_rates_and_no_evaluation_before_the_end(runs):
    rows = runs.rows("cosine")[:3]
    rates = [1 - 0.99 * (1 - c) / 2 for c in (1.0, 0.5, -0.5)]
    assert [row["lr/pg0"] for row in rows] == pytest.approx(
        [0.01 * rate for rate in rates], rel=1e-3
    )
    metrics = [row["metrics/mAP50(B)"] for row in rows]
    assert metrics[0] != metrics[0] and metrics[1] != metrics[1] and metrics[2] == metrics[2]


def test_a_finished_run_goes_on_for_more_epochs(runs):
    assert [row["epoch"] for row in runs.rows("cosine")] == [1, 2, 3, 4]
    assert "Resuming after step 9, in epoch 4" in runs.screen("more")


def test_sgd_draws_no_warning(runs):
    screen = runs.screen("sgd")
    assert "optimizer: SGD, lr 0.01, momentum 0.937" in screen
    assert "warning" not in screen.lower() + runs.results["sgd"]["err"].lower()


def test_a_hyp_file_and_weights_of_every_epoch(runs):
    assert "optimizer: SGD, lr 0.02, momentum 0.937" in runs.screen("hyp")
    assert [row["lr/pg0"] for row in runs.rows("hyp")] == pytest.approx([0.02, 0.02 * 0.505])
    names = {file.name for file in (runs.folder("hyp") / "weights").iterdir()}
    assert names == {"best.pt", "last.pt", "epoch1.pt", "epoch2.pt"}


def test_images_in_memory_and_sync_bn_change_nothing(runs):
    kept, plain = runs.rows("kept"), runs.rows("plain")
    for key in ("train/box_loss", "train/cls_loss", "train/dfl_loss"):
        assert [row[key] for row in kept] == pytest.approx([row[key] for row in plain], rel=1e-4)


def test_a_set_smaller_than_a_step_has_a_row_an_epoch(runs):
    rows = runs.rows("short")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert "a step accumulates 12: 48 images" in runs.screen("short")
    assert all(row["train/box_loss"] > 0 for row in rows)


LOSSES = [f"{part}/{item}_loss" for part in ("train", "val") for item in ("box", "cls", "dfl")]


@pytest.mark.parametrize("name", [*FP32[1:], "zero3_offload"])
def test_zero_stages_train_alike(runs, name):
    for row, expected in zip(runs.rows(name), runs.rows("zero0_fp32"), strict=True):
        for key in LOSSES:
            assert row[key] == pytest.approx(expected[key], rel=1e-3), key
    ours, theirs = runs.model(name).state_dict(), runs.model("zero0_fp32").state_dict()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key].float(), value.float(), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", LOW)
def test_low_precision_trains_nearly_alike(runs, name):
    """In the first step, before any weight has moved, so that what is left is the rounding.

    It is a step of 16 images: of four, one box that bf16 assigns to another cell is a tenth of the
    loss.
    """
    assert first_losses(runs, name) == pytest.approx(first_losses(runs, "zero0_fp32"), rel=0.02)


def first_losses(runs: Runs, name: str) -> list[float]:
    (line,) = [
        x
        for x in (runs.folder(f"a step of {name}") / "train.log").read_text().splitlines()
        if "step 1: " in x
    ]
    return [float(value) for value in re.findall(r"loss ([\d.]+)", line)]


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_checkpoint_is_the_last_pt(runs, name):
    from ultralytics import YOLO

    assert runs.screen(f"export {name}").startswith(f"{runs.root / name}.pt: moving average of ")
    exported, last = read_pt(runs.root / f"{name}.pt").state_dict(), runs.model(name).state_dict()
    for key, value in last.items():
        if value.is_floating_point():
            assert torch.equal(exported[key], value), key
    assert YOLO(str(runs.root / f"{name}.pt")).names == {0: "colour0", 1: "colour1"}


@pytest.mark.parametrize("name", EXPORTED)
def test_trained_weights_can_be_had_in_fp32(runs, name):
    (line,) = runs.screen(f"live {name}").splitlines()
    assert line.startswith(f"{runs.root / name}-live.pt: trained weights of ")
    assert runs.results[f"live {name}"]["err"] == ""
    live, average = (
        read_pt(runs.root / f"{name}-live.pt").state_dict(),
        runs.model(name).state_dict(),
    )
    moved = {
        key
        for key in average
        if average[key].is_floating_point() and not torch.equal(live[key], average[key])
    }
    assert "model.0.conv.weight" in moved
    weight = live["model.0.conv.weight"]
    assert not torch.equal(weight, weight.half().float())
    torch.testing.assert_close(weight, average["model.0.conv.weight"], rtol=0.1, atol=0.05)


def test_nothing_to_export(runs):
    result = runs.results["demo of nothing"]
    assert result["code"] == 2
    remedy = "name a run's folder, its checkpoints/, or one checkpoint in it"
    assert result["err"] == f"error: {runs.root}/runs: no intact checkpoint in it; {remedy}\n"


def test_val_of_another_split_and_its_boxes(runs):
    screen = runs.screen("val")
    folder = runs.root / "runs" / "val"
    (line,) = [line for line in screen.splitlines() if line.split()[:1] == ["all"]]
    assert line.split()[1:3] == ["12", "24"]
    boxes = json.loads((folder / "predictions.json").read_text())
    assert {"image_id", "category_id", "bbox", "score"} <= set(boxes[0])
    assert len({box["file_name"] for box in boxes}) == 12


def test_nothing_is_written_but_the_runs(runs):
    names = {path.name for path in runs.root.iterdir()}
    sets = {"tiny", "many", "bare", "png", "other", "mit Leerzeichen ü"}
    given = sets | {"hyp.yaml", "offload.json", "runs"}
    driver = {"driver", "row0", "row1"}
    assert {name for name in names if not name.endswith(".pt")} == given | driver
    for folder in ("tiny", "png"):
        assert {path.name for path in (runs.root / folder).iterdir()} == {
            "images",
            "labels",
            "tiny.yaml",
        }
        assert {
            path.suffix for path in (runs.root / folder / "labels").rglob("*") if path.is_file()
        } == {".txt"}


def test_best_pt_has_the_weights_of_last_pt_and_statistics_of_its_own(runs):
    """Under --noval the last epoch alone is judged."""
    screen = runs.screen("cosine")
    kept = "used in best.pt" in screen
    assert kept or "best.pt keeps those of training" in screen
    best, last = (runs.model("cosine", name).state_dict() for name in ("best.pt", "last.pt"))
    differing = {key for key in last if not torch.equal(best[key], last[key])}
    assert all(key.endswith(("running_mean", "running_var")) for key in differing)
    assert bool(differing) == kept


def test_models_are_kept_by_save_period_without_evaluations_too(runs):
    weights = {file.name for file in (runs.folder("unjudged") / "weights").iterdir()}
    assert weights == {"best.pt", "last.pt", "epoch1.pt", "epoch2.pt"}
    first, last = (runs.model("unjudged", name).state_dict() for name in ("epoch1.pt", "epoch2.pt"))
    assert not torch.equal(first["model.0.conv.weight"], last["model.0.conv.weight"])


def test_a_validation_set_without_a_box_is_said_and_no_epoch_is_called_best(runs):
    screen, log = runs.screen("bare"), (runs.folder("bare") / "train.log").read_text()
    said = runs.results["bare"]["out"] + runs.results["bare"]["err"]
    for text in (said, log):
        assert text.count("val: 2 images but no box: every metric is 0") == 1
    assert not [line for line in screen.splitlines() if line.endswith("  best")]
    assert (runs.folder("bare") / "weights" / "best.pt").is_file()


def test_what_is_given_and_not_used_and_what_is_frozen_is_said_once(runs):
    log = (runs.folder("bare") / "train.log").read_text()
    for text in (runs.screen("bare"), log):
        assert text.count("--set lr0 is 0.5, which has no effect: optimizer=auto chooses") == 1
        assert (
            len(
                re.findall(
                    r"freeze model\.0: 3 of \d+ weight tensors are not trained, in 1 of \d+ layers",
                    text,
                )
            )
            == 1
        )
    assert "train: 4 images, 3 boxes" in log  # of class 1 alone


def test_adamw_has_no_curve_of_a_momentum_that_it_does_not_have(runs):
    def tags(name: str) -> set[str]:
        reader = EventAccumulator(str(runs.folder(name)))
        reader.Reload()
        return {tag for kind in ("scalars", "tensors") for tag in reader.Tags().get(kind, ())}

    assert "optimizer/momentum" in tags("sgd") and "optimizer/momentum" not in tags("plain")
