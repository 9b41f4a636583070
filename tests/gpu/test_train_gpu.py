"""Short runs on a real GPU: precisions and offloads that a CPU cannot carry out. Skipped, with the reason, without."""

import csv
import sys
from pathlib import Path

import pytest

from tests.tiny import make_dataset

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(600)]
CONFIGS = Path(__file__).parents[2] / "ds_configs"


@pytest.mark.parametrize(
    "name",
    ["zero1_fp16", "zero2_bf16", "zero3_fp16", "zero0_bf16_autocast", "zero3_offload_fp16"],
)
def test_a_run_ends_with_finite_losses_and_a_model(name: str, tmp_path: Path, run_process) -> None:
    data = make_dataset(tmp_path / "data", train=64, val=8, size=128)
    done = run_process(
        [
            *(sys.executable, "-m", "yolods", "launch", "train", "--data", data, "--model", "yolov5n"),
            *("--imgsz", "128", "--batch-size", "16", "--epochs", "3", "--workers", "2", "--num_gpus", "1"),
            *("--deepspeed_config", CONFIGS / f"{name}.json", "--project", tmp_path / "runs"),
        ],
        timeout=540,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    with (tmp_path / "runs" / "exp" / "results.csv").open() as file:
        rows = list(csv.DictReader(file, skipinitialspace=True))
    assert len(rows) == 3
    assert all(float(row["train/box_loss"]) < 1e3 for row in rows)
    assert (tmp_path / "runs" / "exp" / "weights" / "best.pt").is_file()
