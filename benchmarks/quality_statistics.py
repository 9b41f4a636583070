"""How much of a short run's mAP is BatchNorm's running statistics: every model of benchmarks/quality.py judged twice.

    python benchmarks/quality_statistics.py --work runs/quality --record benchmarks/quality_statistics.md

Once as it was left, and once with the statistics of its train set: the mean of the batch statistics over one pass of
the training images, without augmentation and without a step. Weights stay as they are. At a momentum of 0.03 running
statistics remember about 33 batches, so after a few hundred they still hold images with mosaic. Results are appended to
--work/statistics.jsonl: the same command goes on where it was stopped.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.hardware import describe

BATCH = 16


def main() -> int:
    """Judge what has not been judged, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs/quality"),
        metavar="DIR",
        help="default runs/quality",
    )
    parser.add_argument(
        "--imgsz", type=int, default=160, metavar="PX", help="of the runs (default 160)"
    )
    parser.add_argument("--record", type=Path, metavar="MD", help="write the table there")
    options = parser.parse_args()
    file = options.work / "statistics.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    prepare()
    for path in sorted((options.work / "weights").glob("*.pt")):
        if path.stem in {each["run"] for each in done}:
            continue
        case, name, seed = path.stem.rsplit("-", 2)
        data = next((options.work / "data" / name).rglob("*.yaml"))
        found = {
            "run": path.stem,
            "case": case,
            "set": name,
            "seed": int(seed),
            **judge_twice(path, data, options.imgsz),
        }
        done.append(found)
        with file.open("a") as lines:
            lines.write(json.dumps(found) + "\n")
        print(path.stem, found["left"], found["restated"], flush=True)
    text = "\n".join([*render(done), "", *describe([0])]) + "\n"
    print(text)
    if options.record is not None:
        options.record.write_text(text)
    return 0


def prepare() -> None:
    """One thread, and ultralytics as the judges of quality.py have it."""
    import torch

    from yolods import compat

    compat.prepare()
    compat.stand_in_for_torchvision()
    compat.use_local_font()
    torch.set_num_threads(1)
    from ultralytics.utils import nms

    from yolods.evaluation.evaluator import UNLIMITED_SECONDS

    nms.non_max_suppression = partial(nms.non_max_suppression, max_time_img=UNLIMITED_SECONDS)


def judge_twice(path: Path, data: Path, imgsz: int) -> dict[str, float]:
    """mAP50-95 of a .pt as it was left, and with the statistics of the train set."""
    import torch

    kept = torch.load(path, weights_only=False)  # this benchmark's own runs have written it
    with tempfile.TemporaryDirectory() as folder:
        left = judge(path, data, imgsz, folder)
        net = kept["model"].float()
        restate(net, data, imgsz)
        kept["model"] = net.half()
        again = Path(folder, "restated.pt")
        torch.save(kept, again)
        return {"left": left, "restated": judge(again, data, imgsz, folder)}


def restate(net: Any, data: Path, imgsz: int) -> None:
    """Give every BatchNorm the plain mean of its batch statistics over one pass of the training
    images."""
    import torch
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    spec = check_det_dataset(str(data))
    settings = get_cfg(overrides={"imgsz": imgsz, "task": "detect", "data": str(data)})
    images = build_yolo_dataset(
        settings, spec["train"], BATCH, spec, mode="val", rect=False, stride=32
    )
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(
        images, BATCH, shuffle=True, collate_fn=images.collate_fn, drop_last=True
    )
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then takes the plain mean over all batches
    net.train()
    with torch.no_grad():
        for batch in loader:
            net(batch["img"].float() / 255)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.eval()


def judge(path: Path, data: Path, imgsz: int, folder: str) -> float:
    """mAP50-95 by ultralytics' own validator."""
    from ultralytics.models.yolo.detect import DetectionValidator

    quiet = {
        "plots": False,
        "verbose": False,
        "workers": 0,
        "project": folder,
        "name": "val",
        "exist_ok": True,
    }
    settings = {
        "model": str(path),
        "data": str(data),
        "imgsz": imgsz,
        "batch": BATCH,
        "device": "cpu",
        **quiet,
    }
    return round(
        float(DetectionValidator(args=settings)(model=str(path))["metrics/mAP50-95(B)"]), 4
    )


def render(done: list[dict[str, Any]]) -> list[str]:
    """A row per set and case: mean and deviation of both figures over the seeds."""
    rows = defaultdict(list)
    for each in done:
        rows[each["set"], each["case"]].append(each)
    lines = [
        "# What BatchNorm's running statistics cost a short run",
        "",
        *(__doc__.split("\n\n")[2].splitlines()),
        "",
        "| set | case | seeds | mAP50-95 as left | +- | with the train set's statistics | +- |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (name, case), runs in sorted(rows.items()):
        cells = []
        for key in ("left", "restated"):
            values = [run[key] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.4f} | {spread:.4f}")
        lines.append(f"| {name} | {case} | {len(runs)} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
