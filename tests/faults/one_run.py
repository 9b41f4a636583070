"""Starts that come at once, and starts that fail where an earlier run has been, through the real
command.

The suite plays a few of them (test_one_run.py), `benchmarks/one_run.py` all.
"""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.launched import launched
from tests.forks import end_family
from yolods.checkpoint.verify import end_of, names_in, run_of
from yolods.config.run_folder import EARLIER_FOLDER, LOCK, outputs_in

LIMIT = 400.0
"""Seconds for a command with its restarts, on a busy machine."""
SMALL = (
    "--model",
    "yolov5[0.1,0.1]",
    "--imgsz",
    "64",
    "--batch-size",
    "4",
    "--workers",
    "0",
    "--epochs",
    "2",
)
QUICK = (*SMALL, "--noplots", "--set", "nbs=4", "--num_gpus", "1")
"""Flags of a run of 2 epochs of 2 steps on 8 images, on one rank."""
PLACES = ("a fresh folder", "--exist-ok", "--resume")


@dataclass(frozen=True)
class Ended:
    """What came of a command."""

    status: int
    screen: str


def command(
    folder: Path, data: Path, words: Sequence[str], hurt: dict[str, object] | None = None
) -> subprocess.Popen:
    """Start `yolods launch train` in `folder`, and do not wait for it."""
    given = [] if "--resume" in words else ["--data", str(data), *SMALL]
    plan = None if hurt is None else {"rank": 0, "times": 1, "flag": "", **hurt}
    return launched([*given, *QUICK[len(SMALL) :], *words], folder, plan)


def ended(process: subprocess.Popen) -> Ended:
    """Wait for a command, which is ended where it takes too long."""
    try:
        screen, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        end_family(process.pid)
        screen, _ = process.communicate()
        screen += f"\nstill running after {LIMIT:g} s"
    return Ended(process.returncode, screen)


def pair(folder: Path, data: Path, words: Sequence[str]) -> tuple[list[str], str]:
    """Start two runs in the same moment; what is wrong with what they have left, and what both
    showed."""
    folder.mkdir(parents=True)
    both = [ended(process) for process in [command(folder, data, words) for _ in range(2)]]
    found = [f"status {each.status}" for each in both if each.status != 0]
    runs = sorted((folder / "runs").iterdir())
    found += [] if len(runs) == 2 else [f"{len(runs)} folders: {[run.name for run in runs]}"]
    for run in runs:
        found += mixed(run)
    if (
        not found
        and len({json.loads((run / "config.json").read_text())["run"] for run in runs}) != 2
    ):
        found.append("both runs have one identity")
    return found, "\n".join(each.screen for each in both)


def mixed(run: Path, epochs: int = 2) -> list[str]:
    """What there is in a run's folder that is not of one run that has ended well."""
    found = []
    lines = (run / "results.csv").read_text().splitlines() if (run / "results.csv").exists() else []
    if [line.split(",")[0] for line in lines] != ["epoch", *map(str, range(1, epochs + 1))]:
        found.append(f"{run.name}/results.csv has the lines {[line[:9] for line in lines]}")
    identity = json.loads((run / "config.json").read_text())["run"]
    checkpoints, end = run / "checkpoints", end_of(run / "checkpoints")
    steps = names_in(checkpoints)
    found += [] if len(steps) == epochs else [f"{run.name} has the checkpoints {steps}"]
    found += [
        f"{run.name}/{step} is of another run"
        for step in steps
        if run_of(checkpoints / step) != identity
    ]
    if end is None or (end.run, end.status) != (identity, 0):
        found.append(f"{run.name} ended as {end}")
    if not all((run / "weights" / name).exists() for name in ("best.pt", "last.pt")):
        found.append(f"{run.name} has no weights")
    known = {path.name for path in outputs_in(run)} | {LOCK, EARLIER_FOLDER}
    found += [
        f"{run.name}/{path.name} would not be put aside"
        for path in run.iterdir()
        if path.name not in known
    ]
    return found


@dataclass(frozen=True)
class Kind:
    """A way in which a start fails."""

    name: str
    words: tuple[str, ...] = ()
    hurt: dict[str, object] | None = field(default=None, hash=False)
    restarts: int = 0


def _hurt(what: str, phase: str) -> dict[str, object]:
    return {"what": what, "phase": phase, "always": True}


KINDS = (
    Kind("a JSON that the optimizer refuses", ("--deepspeed_config", "refused.json"), restarts=3),
    Kind("an exception in the first step", hurt=_hurt("exception", "forward"), restarts=3),
    Kind("SIGKILL in the first step", hurt=_hurt("SIGKILL", "forward"), restarts=1),
    Kind("an exit in the evaluation", hurt=_hurt("exit", "evaluation")),
    Kind("an exception in a checkpoint", hurt=_hurt("exception", "a checkpoint"), restarts=3),
    Kind("the host's launcher killed", hurt=_hurt("launcher", "forward")),
    Kind("SIGTERM in the first step", hurt=_hurt("SIGTERM", "forward")),
    Kind(
        "a port that is taken", ("--num_gpus", "2", "--master_port", "PORT")
    ),  # a single rank needs none
    Kind("weights that are none", ("--weights", "none.pt")),
    Kind("no such data", ("--data", "nowhere.yaml")),
)


@dataclass(frozen=True)
class Case:
    """A start that fails, in one of `PLACES`."""

    kind: Kind
    place: str


def cases() -> list[Case]:
    """All of them."""
    return [Case(kind, place) for kind, place in itertools.product(KINDS, PLACES)]


def finished(folder: Path, data: Path) -> Path:
    """A folder in which a run has come to its end.

    Raises:
        AssertionError: it has not; with what it showed.
    """
    folder.mkdir(parents=True)
    first = ended(command(folder, data, ()))
    assert first.status == 0, first.screen
    assert mixed(folder / "runs" / "exp") == []
    return folder


def fail(case: Case, data: Path, before: Path, folder: Path) -> tuple[list[str], Ended]:
    """Start a run that fails; what is wrong with how it ended and what it has left.

    Args:
        before: what `finished` gave; it is copied.
        folder: to work in; it must not exist.
    """
    folder.mkdir(parents=True)
    run = folder / "runs" / "exp"
    if case.place != PLACES[0]:
        shutil.copytree(before / "runs", folder / "runs")
    old = contents(run)
    refused = {
        "optimizer": {"type": "SGD", "params": {"lr": 0.01, "nesterov": True, "dampening": 0.5}}
    }
    (folder / "refused.json").write_text(json.dumps(refused))
    (folder / "none.pt").write_text("no weights")
    words = {
        "--exist-ok": ["--exist-ok"],
        "--resume": ["--resume", "runs/exp", "--epochs", "4"],
    }.get(case.place, [])
    with ExitStack() as stack:
        # Both kinds of address: ranks would meet at the other one.
        server = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        port = stack.enter_context(server).getsockname()[1]
        given = [word.replace("PORT", str(port)) for word in case.kind.words]
        restarts = ["--max-restarts", str(case.kind.restarts)]
        result = ended(command(folder, data, [*words, *given, *restarts], case.kind.hurt))
    found = [] if result.status != 0 else ["status 0"]
    new = contents(run)
    end = end_of(run / "checkpoints")
    if case.place == "--resume":
        # What it had reached stays reached, and is not said of this start.
        newest = (  # earlier ones go as new ones come
            f"checkpoints/{old['checkpoints/latest'][1].decode()}/"
        )
        lost = [name for name in old if name.startswith(newest) and name not in new]
        found += [f"lost: {name}" for name in lost[:3]]
        if end is not None and end.status == 0 and end.start != end.run:
            found.append(f"ended as {end}")
    elif new != old or not old:  # a start that is refused leaves all as it was
        aside = {
            name.removeprefix(f"{EARLIER_FOLDER}/"): each
            for name, each in new.items()
            if name.startswith(f"{EARLIER_FOLDER}/")
        }
        found += [
            f"{name} is not put aside as it was"
            for name, each in old.items()
            if aside.get(name) != each
        ][:3]
        here = {each for name, each in new.items() if not name.startswith(f"{EARLIER_FOLDER}/")}
        found += [f"{name} is the earlier run's" for name, each in old.items() if each in here][:3]
        if end is not None and end.status == 0:
            found.append(f"ended as {end}")
    elif result.status != 2:
        found.append(f"status {result.status}, and all is as it was")
    return found, result


def contents(run: Path) -> dict[str, tuple[int, bytes]]:
    """The files in a run's folder: which each is (two runs of one seed write the same bytes), and
    what is in it."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    return {str(path.relative_to(run)): (path.stat().st_ino, path.read_bytes()) for path in files}
