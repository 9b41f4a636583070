"""Trainer against trainer: ultralytics' own `DetectionTrainer` and yolods' own run, from the same
weights on the same batches, compared optimizer step by optimizer step.

    python benchmarks/trainer_parity.py --record benchmarks/trainer_parity.md

Batches of the one are handed to the other, through warm-up, the ramp of accumulation, ends of
epochs and the closing of mosaic, to the last evaluation and the files that are left.
tests/parity/test_trainer.py runs a short form of it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.hardware import describe
from tests.forks import forked
from tests.ranks import on_ranks
from tests.tiny import make_dataset

CONFIGS = Path(__file__).resolve().parent.parent / "ds_configs"
CLASSES, PIXELS, BATCH, IMAGES = 2, 64, 4, 24
LIMIT = 600.0
"""Seconds that a run may take."""
MARKS = (1, 10, 30, 60)
"""Steps that are shown."""
AT_ONCE = 1e-6
"""What may be between the trainers after their first step, where both round alike."""
SCATTERED, SCATTER = ("items", "norm"), 1.5
"""What is compared by its mean over all steps, and by how much these means may differ."""
LAYOUTS = {"zero0_fp32": 1, "zero2_fp32": 2, "pipeline2_fp32": 2}
"""Ranks of each."""


@dataclass(frozen=True)
class Case:
    """One comparison."""

    layout: str
    """DeepSpeed JSON of yolods' run."""
    stream: str
    """Whose batches both take: `theirs` or `ours`."""
    hyper: Mapping[str, Any] = field(default_factory=dict)
    """Hyper-parameters that differ from `HYPER`."""
    switched: tuple[str, ...] = ("rounding", "last step")
    """What is switched off of yolods' deliberate differences in the run that rounds as ultralytics
    does."""

    @property
    def name(self) -> str:
        """In the record."""
        ranks = LAYOUTS[self.layout]
        place = f"{self.layout.removesuffix('_fp32')}, {ranks} rank{'s' * (ranks > 1)}"
        settings = ", ".join(
            f"{key}={value}" for key, value in self.hyper.items() if key != "epochs"
        )
        return f"{place}: {settings}; {self.stream} batches"

    @property
    def halves(self) -> bool:
        """Whether every rank takes a part of each batch."""
        return self.layout.startswith("zero") and LAYOUTS[self.layout] > 1


HYPER = {"epochs": 38, "nbs": 16, "warmup_epochs": 3, "close_mosaic": 10, "val": False, "seed": 3}
"""Six batches an epoch, warm-up over 18 of them, in which accumulation rises from 1 to 4; 60 steps
and a few more."""
SGD = {"optimizer": "SGD"}
ADAMW = {"optimizer": "AdamW", "lr0": 0.001, "nbs": 8, "epochs": 21}
AUTO = {"optimizer": "auto", "cos_lr": True, "warmup_epochs": 0, "nbs": 8, "epochs": 21}
CASES = (
    Case("zero0_fp32", "theirs", SGD),
    Case("zero0_fp32", "ours", ADAMW),
    Case("zero0_fp32", "ours", AUTO),
    Case("zero2_fp32", "theirs", SGD),
    Case("zero2_fp32", "ours", ADAMW, ("rounding", "last step", "statistics")),
    Case("pipeline2_fp32", "theirs", SGD),
    Case("pipeline2_fp32", "ours", ADAMW),
)


class Lab:
    """Runs trainers in a folder, each run once."""

    def __init__(self, folder: Path, *, images: int = IMAGES) -> None:
        self.folder = folder
        self.data = make_dataset(folder / "data", train=images, val=4, nc=CLASSES)
        self._start = folder / "start.pt"
        self._done: dict[str, Any] = {}
        self._call("benchmarks.trainer_parity:make_start", {"file": str(self._start)})

    def theirs(
        self,
        hyper: Mapping[str, Any],
        way: str = "plain",
        batches: str = "",
        marks: Sequence[int] | None = MARKS,
    ) -> Any:
        """The trace of ultralytics' trainer.

        Args:
            way: one of `trainer_theirs.WAYS`.
            batches: what `keep` has returned; empty: its own.
        """
        settings = {
            **{
                "data": str(self.data),
                "model": "yolov5n.yaml",
                "pretrained": False,
                "imgsz": PIXELS,
                "batch": BATCH,
            },
            **{"device": "cpu", "amp": False, "plots": False, "start": str(self._start)},
            **{"project": str(self.folder / "runs"), **hyper},
        }
        call = {
            "settings": json.dumps(settings),
            "way": way,
            "batches": batches,
            "marks": marks and list(marks),
        }
        key = json.dumps(["theirs", call], sort_keys=True)
        if key not in self._done:
            import torch

            out = self.folder / f"{len(self._done)}.trace"
            self._call("benchmarks.trainer_theirs:train", {**call, "out": str(out)})
            self._done[key] = torch.load(
                out, weights_only=False
            )  # written by our own process a moment ago
        return self._done[key]

    def ours(
        self,
        layout: str,
        hyper: Mapping[str, Any],
        batches: str = "",
        switched: Sequence[str] = (),
        marks: Sequence[int] | None = MARKS,
    ) -> list[Any]:
        """The trace of each rank of yolods' run.

        Args:
            switched: names of `trainer_ours.SWITCHES`.
        """
        # best.pt is compared as training left it.
        given = {
            **hyper,
            "precise_bn": 0,
            **({"channels_last": False} if "rounding" in switched else {}),
        }
        flags = {
            **{
                "data": self.data,
                "model": "yolov5n",
                "imgsz": PIXELS,
                "batch-size": BATCH,
                "workers": 0,
            },
            **{"epochs": given.pop("epochs"), "deepspeed_config": self._config(layout, switched)},
            **{"project": self.folder / "runs"},
        }
        words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
        words += [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
        call = {"words": [*words, "--noplots"], "batches": batches, "switched": list(switched)}
        call |= {"marks": marks and list(marks), "start": str(self._start)}
        key = json.dumps(["ours", call], sort_keys=True)
        if key not in self._done:
            size = LAYOUTS[layout]
            self._done[key] = on_ranks(
                "benchmarks.trainer_ours:train", (size,), timeout=LIMIT, **call
            )[size]
        return self._done[key]

    def _config(self, layout: str, switched: Collection[str]) -> Path:
        """The layout's JSON. A rank adds up the micro-batches of a step before they are sent; where
        both have to round alike, each is sent, as ultralytics' loss joins the ranks' halves."""
        usual = CONFIGS / f"{layout}.json"
        if "rounding" not in switched or not layout.startswith("zero2"):
            return usual
        content = json.loads(usual.read_text("utf-8"))
        content.setdefault("yolods", {})["accumulation"] = {"reduce": "micro_batch"}
        file = self.folder / usual.name
        file.write_text(json.dumps(content), "utf-8")
        return file

    def keep(self, trace: Any) -> str:
        """A file of a trace's batches, to be handed in."""
        import torch

        assert trace.batches, "these batches were handed in themselves"
        file = self.folder / f"batches-{id(trace)}.pt"
        torch.save(trace.batches, file)
        return str(file)

    def _call(self, function: str, arguments: dict[str, Any]) -> None:
        screen = self.folder / "screen"
        code = forked(function, arguments, screen=screen, timeout=LIMIT)
        assert code == 0, (
            f"{function} ended with {code}:\n{screen.read_text('utf-8', 'replace')[-6000:]}"
        )


def make_start(file: str) -> None:
    """Write the weights that all trainers begin with: ultralytics' own initial ones."""
    import torch
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    torch.save(DetectionModel("yolov5n.yaml", nc=CLASSES, verbose=False).state_dict(), file)


@dataclass(frozen=True)
class Compared:
    """A case's runs."""

    case: Case
    """Which."""
    first: Any
    """ultralytics' trace."""
    second: Any
    """Of another ultralytics run, which rounds otherwise."""
    alike: list[Any]
    """yolods' traces by rank, where it rounds as ultralytics does."""
    shipped: list[Any]
    """And as it comes."""


def compare(
    lab: Lab, case: Case, marks: Sequence[int] | None = MARKS, *, quick: bool = False
) -> Compared:
    """Carry a case out.

    Args:
        marks: steps that are noted whole; None: all.
        quick: the first run of each side stands in for its second, too. Then nothing may be apart.
    """
    hyper = {**HYPER, **case.hyper}
    if case.stream == "theirs":
        batches = lab.keep(lab.theirs(hyper, marks=marks))
    else:
        batches = lab.keep(lab.ours("zero0_fp32", hyper, marks=marks)[0])
    way = "halves" if case.halves else "plain"
    # Their own run on its own batches is the run on these, once more.
    taken = not case.halves and case.stream == "theirs"
    first = lab.theirs(hyper, marks=marks) if taken else lab.theirs(hyper, way, batches, marks)
    alike = lab.ours(case.layout, hyper, batches, case.switched, marks)
    if quick:
        return Compared(case, first, first, alike, alike)
    second = lab.theirs(hyper, f"{way}, channels-last".removeprefix("plain, "), batches, marks)
    return Compared(case, first, second, alike, lab.ours(case.layout, hyper, batches, (), marks))


def faults_of(compared: Compared) -> list[str]:
    """What keeps a case from being as it has to be; empty where all is well.

    Schedules are equal at every step; after the first all that is compared; and later nothing is
    further apart than it is between two runs of ultralytics' trainer that round differently. A loss
    or a norm of one step scatters, so of those it is the mean over the steps that counts.
    """
    from benchmarks.trainer_trace import EXACT, apart, differences, first_fault

    first, second, alike = compared.first, compared.second, compared.alike[0]
    faults = []
    for name, trace in (("alike", alike), ("shipped", compared.shipped[0])):
        if not len(first.steps) <= len(trace.steps) <= len(first.steps) + 1:
            faults.append(f"{name}: {len(trace.steps)} steps, ultralytics {len(first.steps)}")
        faults.append(first_fault(trace, first, AT_ONCE, (*EXACT, "lr", "momentum", "decay")))
        if trace.closed != first.closed:
            faults.append(
                f"{name}: mosaic closed in epoch {trace.closed}, ultralytics {first.closed}"
            )
    steps = range(min(len(first.steps), len(alike.steps)))
    found, noise = (
        [differences(trace, first, step) for step in steps] for trace in (alike, second)
    )
    for step, (mine, theirs) in enumerate(zip(found, noise, strict=True)):
        for key, value in mine.items():
            if value > AT_ONCE and (step == 0 or (key not in SCATTERED and value > theirs[key])):
                faults.append(
                    f"step {step + 1}: {key} is apart by {value:.1e}, two ultralytics by "
                    f"{theirs[key]:.1e}"
                )
    for key in SCATTERED:
        mine, theirs = (sum(each[key] for each in row) / len(row) for row in (found, noise))
        if mine > max(SCATTER * theirs, AT_ONCE):
            faults.append(
                f"{key}: apart by {mine:.1e} in the mean of all steps, two ultralytics by "
                f"{theirs:.1e}"
            )
    faults += _faults_of_second_rank(compared)
    left = {"judged": (alike.judged, first.judged, second.judged)}
    left |= {
        name: (alike.files[name], state, second.files[name]) for name, state in first.files.items()
    }
    for name, (mine, theirs, other) in left.items():
        if compared.case.halves and "statistics" not in compared.case.switched:
            mine, theirs, other = (_parameters(each) for each in (mine, theirs, other))
        if (value := apart(mine, theirs)) > max(apart(other, theirs), AT_ONCE):
            faults.append(f"{name}: apart by {value:.1e}")
    return [fault for fault in faults if fault]


def _faults_of_second_rank(compared: Compared) -> list[str]:
    """Its running statistics are its own, as in ultralytics' DDP."""
    from benchmarks.trainer_trace import apart

    if not compared.case.halves:
        return []
    pairs = zip(compared.alike[1].steps, compared.first.steps, compared.second.steps, strict=False)
    faults = []
    for step, (mine, theirs, other) in enumerate(pairs, 1):
        if theirs.states:
            own, expected = mine.states["own statistics"], theirs.states["statistics 1"]
            if (value := apart(own, expected)) > max(
                apart(other.states["statistics 1"], expected), AT_ONCE
            ):
                faults.append(
                    f"step {step}: statistics of the second rank are apart by {value:.1e}"
                )
    return faults


def _parameters(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in state.items() if "running_" not in name}


KEYS = ("items", "norm", "weights", "moved", "average", "statistics")
"""Columns of the record."""


def table(compared: Compared) -> list[str]:
    """How far a case's runs are from ultralytics' at the steps that are marked."""
    from benchmarks.trainer_trace import differences

    first = compared.first
    rows = [f"| step | run | {' | '.join(KEYS)} |", f"| ---: | --- |{' ---: |' * len(KEYS)}"]
    runs = {"yolods, rounding alike": compared.alike[0], "yolods": compared.shipped[0]}
    runs["ultralytics, channels-last"] = compared.second
    for step in (mark for mark in MARKS if mark <= len(first.steps)):
        for name, trace in runs.items():
            found = differences(trace, first, step - 1)
            cells = ["0" if found[key] == 0 else f"{found[key]:.1e}" for key in KEYS]
            rows.append(f"| {step} | {name} | {' | '.join(cells)} |")
    return rows


def section(compared: Compared, seconds: float) -> list[str]:
    """A case in the record."""
    from benchmarks.trainer_trace import STATES, apart, differences

    first, alike = compared.first, compared.alike[0]
    faults = faults_of(compared)
    marked = [step for step, each in enumerate(first.steps) if each.states]
    equal = all(differences(alike, first, step)[key] == 0 for step in marked for key in STATES)
    files = ", ".join(
        f"{name} by {apart(alike.files[name], first.files[name]):.1e}"
        for name in sorted(first.files)
    )
    return [
        f"### {compared.case.name}",
        "",
        f"{len(first.steps)} steps ({len(compared.shipped[0].steps)} as shipped), mosaic closed in "
        f"epoch {first.closed + 1}; switched off: {', '.join(compared.case.switched)}. Weights, "
        f"averages and statistics are {'equal bit for bit' if equal else 'not equal bit for bit'} "
        f"where rounding is alike; files left: {files}. "
        f"{'All as it has to be' if not faults else f'{len(faults)} FAULTS'} ({seconds:.0f} s).",
        "",
        *table(compared),
        "",
        *(f"- {fault}" for fault in faults),
        *([""] if faults else []),
    ]


def deliberate(folder: Path, lab: Lab) -> list[str]:
    """What the differences that stay come to."""
    from benchmarks.trainer_trace import apart

    hyper = {**HYPER, **SGD}
    theirs = lab.theirs(hyper)
    batches = lab.keep(theirs)
    completed = lab.ours("zero0_fp32", hyper, batches, ("rounding",))[0]
    halves = lab.theirs(hyper, "halves", batches)
    averaged = lab.ours("zero2_fp32", hyper, batches, ("rounding", "last step"))[0]
    muon = lab.theirs({**hyper, "optimizer": "MuSGD"}, "plain", batches)
    statistics = [
        {n: e for n, e in trace.judged.items() if "running_" in n} for trace in (averaged, halves)
    ]
    loss = [sum(sum(step.items) for step in trace.steps[-10:]) / 10 for trace in (theirs, muon)]
    rows = [
        "| difference | measured |",
        "| --- | --- |",
        f"| the last step is completed | {len(completed.steps)} steps instead of "
        f"{len(theirs.steps)}; the average that is judged moves by "
        f"{apart(_parameters(completed.judged), _parameters(theirs.judged)):.1e} of itself |",
        f"| statistics are averaged over ranks | {apart(*statistics):.1e} between the statistics "
        "that are judged on two ranks and the first rank's; the weights are equal |",
        f"| SGD in the place of MuSGD | mean loss of the last ten steps {loss[0]:.3f}, with MuSGD "
        f"at the same rates {loss[1]:.3f} |",
    ]
    for images, epochs in ((22, 8), (3, 16)):
        rows.append(_counted(folder, images, epochs))
    return rows


def _counted(folder: Path, images: int, epochs: int) -> str:
    """Both trainers on a set that is no whole number of batches."""
    lab = Lab(folder / f"of {images}", images=images)
    hyper = {**HYPER, **SGD, "epochs": epochs, "close_mosaic": 2}
    theirs, ours = lab.theirs(hyper, marks=()), lab.ours("zero0_fp32", hyper, marks=())[0]
    seen = [sum(step.images for step in trace.steps) for trace in (theirs, ours)]
    last = [trace.steps[-1].images for trace in (theirs, ours)]
    return (
        f"| batches cross epochs, and none is short: {images} images in batches of {BATCH}, "
        f"{epochs} epochs, nbs {HYPER['nbs']} | {len(ours.steps)} steps over {seen[1]} images, "
        f"ultralytics {len(theirs.steps)} over {seen[0]}; the last step has {last[1]} and "
        f"{last[0]} |"
    )


METHOD = f"""\
YOLOv5n from ultralytics' initial weights, {PIXELS} pixels, {IMAGES} images of {CLASSES} classes, batches of {BATCH},
fp32, one thread. ultralytics' `DetectionTrainer` runs its own loop, optimizer, scheduler, moving average and
evaluation; yolods' `Run` its own, on DeepSpeed. The batches of one are recorded and handed to the other. On two ranks
ultralytics' DDP is stood for by two copies of the model over the same parameters, each with running statistics of its
own, which take a half of every batch; the sum of their losses is what DDP's mean of twice each loss gives, and the
moving average follows the first, as there.

- *rounding alike*: yolods without channels-last images and products for 1x1 convolutions (`channels_last=False`), with
  torch's plain optimizer loop in the place of its fused one, and clipped by the norm that torch adds up in fp32.
- *last step* switched off: the step that yolods completes with batches past the run's end is taken back. *statistics*
  switched off: they are not averaged over ranks before an evaluation.
- *ultralytics, channels-last*: a second run of ultralytics' trainer that differs by the order of sums alone.
- Figures: |a - b| / |b| against ultralytics' run, in fp64: of the largest of three loss items, the gradient's norm
  before clipping, all parameters, how far they have moved from the start, their moving average, BatchNorm's running
  statistics. 0 is equal bit for bit. Norms are added up in fp64 on ultralytics' side.
- At *every* step, not only those shown, number of batches and images, epoch, learning rates, weight decays, momentum
  and updates of the moving average are equal to {AT_ONCE:g}, shipped and alike. A skipped step would be seen in them.
- Limits: after the first step {AT_ONCE:g} for everything. Later nothing may be further apart than the two runs of
  ultralytics; of losses and norms, which scatter from step to step, that is the mean over all steps, within a factor
  of {SCATTER:g}.
"""  # noqa: E501


def main() -> int:
    """Run all cases, or those whose name holds a word; 1 where anything is not as it has to be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose name holds it")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    head = describe(sorted(os.sched_getaffinity(0)))
    lines, failed = [], False
    with tempfile.TemporaryDirectory(prefix="yolods-trainers-") as name:
        folder = Path(name)
        os.environ |= {"YOLO_CONFIG_DIR": name, "YOLODS_CACHE": str(folder / "cache")}
        lab = Lab(folder)
        for case in (case for case in CASES if args.only in case.name):
            began = time.perf_counter()
            compared = compare(lab, case)
            failed |= bool(faults_of(compared))
            lines += section(compared, time.perf_counter() - began)
            print("\n".join(lines[-30:]), flush=True)
        effects = [] if args.only else deliberate(folder, lab)
    record = "\n".join(
        [
            "# yolods' trainer beside ultralytics'",
            "",
            f"`python benchmarks/trainer_parity.py --record benchmarks/trainer_parity.md`, "
            f"{datetime.now(timezone.utc):%Y-%m-%d}.",
            "",
            *head,
            "",
            METHOD,
            "## Differences that stay",
            "",
            "Reasons are in [docs/training.md](../docs/training.md).",
            "",
            *effects,
            "",
            "## Step by step",
            "",
            *lines,
        ]
    )
    print(record)
    if args.record:
        args.record.write_text(record.rstrip() + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
