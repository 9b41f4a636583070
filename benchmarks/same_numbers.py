"""Losses, norms and weights of every configuration after six steps, in one tree and in another, \
bit for bit.

    python benchmarks/same_numbers.py --out before.json  # in the earlier checkout
    python benchmarks/same_numbers.py --out after.json --against before.json \
        --record benchmarks/same_numbers.md

Every file of ds_configs is trained with on two ranks, or as many as it has stages, by `yolods
launch train` as a user would start it. Compared are the scalars of TensorBoard that no clock makes,
results.csv without its times, and every tensor of every rank's checkpoint: masters, optimizer
states, the moving average and running statistics.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.cases import ROOT
from benchmarks.hardware import commit, describe
from tests.tiny import make_dataset

IMAGES, STEP, EPOCHS = 8, 4, 3
"""Two steps per epoch, six in all."""
LIMIT_SECONDS = 600.0
TIMED = (
    "time",
    "images_per_second",
    "seconds",
    "data_share",
    "memory",
    "peak_mib",
    "idle",
    "ranks/",
    "events/",
)
"""Parts of the names of what a clock or the machine makes."""

Numbers = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Train with every configuration; returns 1 where a number is another one, or a run failed."""
    words = list(sys.argv[1:] if argv is None else argv)
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument(
        "--out", type=Path, required=True, metavar="JSON", help="write the numbers there"
    )
    made.add_argument(
        "--against", type=Path, metavar="JSON", help="numbers of another checkout to compare with"
    )
    made.add_argument(
        "--configs",
        nargs="+",
        metavar="NAME",
        help="files of ds_configs without .json (default: all)",
    )
    made.add_argument(
        "--at-once", type=int, default=1, metavar="N", help="runs at once (default 1)"
    )
    made.add_argument("--record", type=Path, metavar="MD", help="write the comparison there")
    options = made.parse_args(words)
    names = options.configs or sorted(file.stem for file in (ROOT / "ds_configs").glob("*.json"))
    found: dict[str, Numbers] = {}
    with (
        tempfile.TemporaryDirectory(prefix="yolods-numbers-") as made_folder,
        ThreadPoolExecutor(options.at_once) as pool,
    ):
        work = Path(made_folder)
        data = make_dataset(work / "data", train=IMAGES, val=4)
        for name, numbers in zip(
            names, pool.map(lambda name: numbers_of(name, data, work / name), names), strict=True
        ):
            found[name] = numbers
            print(f"{name}: {numbers.get('failed') or digest(numbers)}", flush=True)
    options.out.write_text(
        json.dumps({"commit": commit(), "numbers": found}, indent=1), encoding="utf-8"
    )
    rows = {name: numbers.get("failed", "ran") for name, numbers in found.items()}
    if options.against is not None:
        before = json.loads(options.against.read_text(encoding="utf-8"))
        rows = {
            name: difference(before["numbers"].get(name, {}), numbers)
            for name, numbers in found.items()
        }
        for name, row in rows.items():
            print(f"{name}: {row}")
        if options.record is not None:
            options.record.write_text(page(rows, before["commit"], words), encoding="utf-8")
    good = ("ran", "the same")
    return int(any(not row.startswith(good) for row in rows.values()))


def numbers_of(name: str, data: Path, folder: Path) -> Numbers:
    """What a run comes to, by name; `failed` where it does not end well."""
    config = ROOT / "ds_configs" / f"{name}.json"
    stages = json.loads(config.read_text(encoding="utf-8")).get("pipeline", {}).get("stages", 1)
    words = [sys.executable, "-m", "yolods", "launch", "train", "--num_gpus", str(max(stages, 2))]
    words += [
        "--deepspeed_config",
        str(config),
        "--data",
        str(data),
        "--model",
        "yolov5[0.1,0.1]",
        "--imgsz",
        "64",
    ]
    words += [
        "--batch-size",
        str(STEP),
        "--epochs",
        str(EPOCHS),
        "--workers",
        "0",
        "--noplots",
        "--set",
        f"nbs={STEP}",
    ]
    words += ["--project", str(folder), "--name", "run"]
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    environ |= {"CUDA_VISIBLE_DEVICES": ""}
    try:
        ended = subprocess.run(
            words,
            env=environ,
            cwd=folder.parent,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"did not end in {LIMIT_SECONDS:.0f} s"}
    if ended.returncode:
        last = (ended.stderr or ended.stdout).strip().splitlines()[-1:]
        return {"failed": f"status {ended.returncode}: {' '.join(last)}"}
    run = folder / "run"
    return {
        **dict(scalars(run)),
        **dict(rows_of(run / "results.csv")),
        **dict(tensors(run / "checkpoints")),
    }


def scalars(run: Path) -> Iterator[tuple[str, str]]:
    """TensorBoard's, exactly, by tag and step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for file in sorted(run.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if not any(part in tag for part in TIMED):
                for event in events.Scalars(tag):
                    yield f"{tag} at step {event.step}", float(event.value).hex()


def rows_of(file: Path) -> Iterator[tuple[str, str]]:
    """The cells of results.csv, but for the times."""
    with file.open(encoding="utf-8", newline="") as opened:
        for number, row in enumerate(csv.DictReader(opened), 1):
            for column, cell in row.items():
                if column.strip() != "time":
                    yield f"results.csv {column.strip()} in row {number}", cell


def tensors(checkpoints: Path) -> Iterator[tuple[str, str]]:
    """A checksum of every tensor of the newest checkpoint, by rank and place."""
    newest = checkpoints / (checkpoints / "latest").read_text(encoding="utf-8").strip()
    for file in sorted(newest.glob("rank*.pt")):
        # The random generators' states are pickled as tuples; the file is one that was written just
        # now.
        state = torch.load(file, map_location="cpu", weights_only=False)
        for place, tensor in leaves(state):
            whole = (
                tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
                if tensor.numel()
                else b""
            )
            yield f"{file.stem} {place}", hashlib.sha256(whole).hexdigest()[:16]


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in nested dictionaries and lists, with where they are."""
    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, f"{place}/{key}")
    elif isinstance(value, (list, tuple)):
        for number, each in enumerate(value):
            yield from leaves(each, f"{place}/{number}")


def digest(numbers: Numbers) -> str:
    """A line about a run's numbers."""
    text = json.dumps(numbers, sort_keys=True)
    return f"{len(numbers)} numbers, {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def difference(before: Numbers, after: Numbers) -> str:
    """What is not the same, in a line."""
    if "failed" in before or "failed" in after:
        same = before.get("failed") == after.get("failed")
        return (
            f"{'the same refusal' if same else 'failed'}: "
            f"{after.get('failed') or before.get('failed')}"
        )
    other = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if not other:
        return f"the same, {len(after)} numbers"
    return f"{len(other)} of {len(after)} differ, the first is {other[0]}"


def page(rows: dict[str, str], before: str, words: Sequence[str]) -> str:
    """The record."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    head = ["# The same numbers as before", "", f"Run of {now}, against {before}:", ""]
    head += [
        f"    {shlex.join(['python', 'benchmarks/same_numbers.py', *words])}",
        "",
        *describe([0, 1]),
        "",
    ]
    table = [
        "| configuration | compared |",
        "| --- | --- |",
        *(f"| {name} | {row} |" for name, row in rows.items()),
    ]
    return "\n".join([*head, *table]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
