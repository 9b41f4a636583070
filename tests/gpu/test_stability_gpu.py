"""Gradient handling on a real GPU: fp16 training beside fp32, how often the host waits in a step, and the benchmark's
times. Skipped, with the reason, without.

`python -m tests.gpu.test_stability_gpu NAME`, from the repository, takes a few steps under ds_configs/NAME.json and
says how often the host waited in the last one; the test below runs it, because a rank needs a process of its own.
"""

from __future__ import annotations

import csv
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.clipping import SIZES

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(3600)]
ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "ds_configs"
BCCD = ROOT.parent / "shared" / "data" / "bccd" / "bccd.yaml"
EPOCHS = 60
APART = 0.1
"""mAP50 that fp16 may lie below fp32; seeds of one recipe from scratch lie up to half of that apart."""
LARGEST_SCALE = 2.0**24
"""`max_loss_scale`, by default."""
STEPS = 3
"""Optimizer steps before the one that is looked at, in which allocators and libraries settle."""
RANGE = "stability"
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Calls of CUDA's runtime in which the host waits."""
ASKED = ("check_overflow", "scaled_global_norm", "_get_norm_groups", "unscale_and_clip_grads")
"""Methods by which DeepSpeed's step looks at gradients."""


@pytest.mark.skipif(
    not BCCD.is_file(), reason="the BCCD data set does not lie beside the repository (shared/data/bccd)"
)
def test_fp16_trains_to_the_map_of_fp32(tmp_path: Path, run_process, record_property) -> None:
    reached: dict[str, float] = {}
    for name in ("zero1_fp32", "zero1_fp16", "zero2_fp16"):
        done = run_process(
            [
                *(sys.executable, "-m", "yolods", "launch", "train", "--data", BCCD, "--model", "yolov5n"),
                *("--imgsz", "320", "--batch-size", "16", "--epochs", str(EPOCHS), "--workers", "4", "--noplots"),
                *("--num_gpus", "1", "--deepspeed_config", CONFIGS / f"{name}.json"),
                *("--project", tmp_path / "runs", "--name", name),
            ],
            timeout=1100,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        run = tmp_path / "runs" / name
        with (run / "results.csv").open() as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
        assert len(rows) == EPOCHS
        reached[name] = max(float(row["metrics/mAP50(B)"]) for row in rows)
        if name.endswith("fp16"):
            scales = _curve(run, "optim/loss_scale")
            assert scales and all(1 <= scale <= LARGEST_SCALE for scale in scales)
            events = [json.loads(line) for line in _lines(run / "stability.jsonl")]
            assert {event["action"] for event in events} <= {"skip", "report"}, events
            assert {event["cause"] for event in events} <= {"overflow", "vanishing"}, events
            record_property(f"{name}: loss scale, first, least, last", f"{scales[0]:g} {min(scales):g} {scales[-1]:g}")
            record_property(f"{name}: overflows", len(events))
        record_property(f"{name}: mAP50", reached[name])
        print(f"{name}: mAP50 {reached[name]:.3f}")
    assert reached["zero1_fp32"] > 0.3
    for name in ("zero1_fp16", "zero2_fp16"):
        assert reached[name] > reached["zero1_fp32"] - APART, reached


def _curve(run: Path, tag: str) -> list[float]:
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    reader = EventAccumulator(str(run))
    reader.Reload()
    return [float(tensor_util.make_ndarray(each.tensor_proto)) for each in reader.Tensors(tag)]


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


@pytest.mark.parametrize("name", ["zero1_fp16", "zero2_fp16", "zero3_fp16"])
def test_the_host_waits_once_in_a_step(name: str, run_process) -> None:
    done = run_process([sys.executable, "-m", "tests.gpu.test_stability_gpu", name], timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["ranges"] >= 3, told  # the verdict, the overflow, the norm: DeepSpeed still asks by these methods
    assert told["profiler"] == 1, told
    assert told["torch"] == 1, told


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_the_benchmark_reaches_its_targets(dtype: str, tmp_path: Path, run_process) -> None:
    record = tmp_path / "clipping.md"
    words = ["--dtype", dtype, "--rounds", "20", "--device", "cuda", "--record", record]
    done = run_process([sys.executable, ROOT / "benchmarks" / "clipping.py", *words], timeout=900)
    assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-3000:]
    text = record.read_text(encoding="utf-8")
    print(text)
    lines = [line for line in text.splitlines() if "**missed**" in line and "| both parts: " not in line]
    # Applying is 8 bytes a parameter in both ways: of both parts together no way saves more than two thirds. In fp32
    # stock has no overflow check. And a GPU reads a yolov5x's gradients in a tenth of a millisecond, in which a host
    # gets little done: times are held to the targets for the larger model.
    counted = [line for line in lines if "measuring moves" in line or "host syncs" in line]
    timed = [line for line in lines if dtype == "fp16" and line.startswith(f"| {SIZES[1]},")]
    assert not counted + timed, "\n".join(counted + timed)


class Watch:
    """Marks the parts of a step that look at gradients, and counts what torch warns of in them."""

    def __init__(self, engine: Any) -> None:
        self.warned = 0
        self._mark(engine.stability, "judge")
        for method in ASKED:
            if hasattr(engine.deepspeed.optimizer, method):
                self._mark(engine.deepspeed.optimizer, method)

    def _mark(self, owner: Any, name: str) -> None:
        import torch

        function: Callable[..., Any] = getattr(owner, name)

        def marked(*arguments: Any, **named: Any) -> Any:
            with warnings.catch_warnings(record=True) as caught, torch.profiler.record_function(RANGE):
                warnings.simplefilter("always")
                if torch.cuda.is_available():
                    torch.cuda.set_sync_debug_mode("warn")
                try:
                    return function(*arguments, **named)
                finally:
                    if torch.cuda.is_available():
                        torch.cuda.set_sync_debug_mode("default")
                    self.warned += sum("synchronizing CUDA operation" in str(each.message) for each in caught)

        setattr(owner, name, marked)


def waits(name: str) -> dict[str, int]:
    """How often the host waits for the device in the parts of one step that look at gradients."""
    import torch

    from tests.parity.small import small_engine
    from yolods.cluster.ranks import join, leave

    with small_engine(join(), name) as small:
        for number in range(STEPS):
            small.step(number)
        watch = Watch(small.engine)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profile:
            small.step(STEPS)
        on_host = [each for each in profile.events() if each.device_type == torch.autograd.DeviceType.CPU]
        ranges = [each.time_range for each in on_host if each.name == RANGE]
        met = [each.time_range for each in on_host if each.name in WAITS]
        inside = [one for one in met if any(part.start <= one.start and one.end <= part.end for part in ranges)]
    leave()
    return {"ranges": len(ranges), "profiler": len(inside), "torch": watch.warned}


if __name__ == "__main__":
    from yolods import compat

    compat.prepare()
    compat.skip_needless_builds()
    compat.stand_in_for_torchvision()
    print(json.dumps(waits(sys.argv[1])))
