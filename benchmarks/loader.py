"""What a training sample costs: yolods' loader with either kind of mosaic partners, an earlier \
yolods, and ultralytics'.

    git worktree add --detach /tmp/old 042a112
    python benchmarks/loader.py --old /tmp/old --record benchmarks/loader.md

CPU time of one process per loader, which take turns, on images of 1280x720 and 640x480 pixels, as
samples of 320 and 640 pixels, out of sets that are larger than every cache. Exit status 1 if a
target is missed. Five minutes on a core of its own; needs no accelerator.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import ROOT
from benchmarks.hardware import describe
from benchmarks.loader_report import CASES, OLD, Case, Costs, described, missed, tables, verdict
from benchmarks.loader_sets import ImageSet, can_pack, cells_set, hd_set, packed
from benchmarks.quality import BCCD

HD_IMAGES = 480
"""More than a loader of ultralytics' keeps (128) and than the samples of all rounds."""
METHOD = """\
Each loader is a process of its own that makes batches of 16 samples with ultralytics' default
augmentation, mosaic on. It is prepared as its own workers are, and sends nothing to other
processes. The loaders take turns, and a round holds one turn of each, so that a ratio compares
neighbours in time. What is counted is the CPU time of the process. Nothing stays in memory but what
the loader is made for: a block's images, or ultralytics' buffer of 128. The files are in the
system's cache. *Default* is what `mosaic_partners: auto` stands for in a set of such images that is
larger than 1 GiB when it is decoded. *All images in memory* is the augmentation alone; ultralytics'
is the floor under its own loader.

The targets beside 042a112 are those of packs at training size, whose prototypes made samples 3.9
(JPEG) and 5.6 times (raw) as fast on HD at 320 px, and 1.7 and 2.5 times at 640. An earlier list
also asked 3.5 of `block` from files at 320 px; that figure belongs to packs, and the prototype of
blocks had 2.6 there."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument(
        "--old", type=Path, metavar="DIR", help="checkout of 042a112 (default: not measured)"
    )
    made.add_argument(
        "--imgsz", type=int, nargs="+", default=[320, 640], metavar="PX", help="default 320 640"
    )
    made.add_argument(
        "--sets", nargs="+", choices=("hd", "bccd"), default=["hd", "bccd"], help="default both"
    )
    made.add_argument(
        "--cases", nargs="+", choices=CASES, default=list(CASES), help="loaders (default all)"
    )
    made.add_argument("--rounds", type=int, default=9, metavar="N", help="default 9")
    made.add_argument("--samples", type=int, default=32, metavar="N", help="of a turn (default 32)")
    made.add_argument("--record", type=Path, metavar="MD", help="write the result to this file")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the command line says. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    if options.samples < 16 or options.samples % 16 or options.rounds < 1:
        parser().error("--samples has to be a multiple of 16, and --rounds at least 1")
    if options.record is not None and not options.record.parent.is_dir():
        parser().error(f"--record {options.record}: there is no folder {options.record.parent}")
    if options.old is not None and not (options.old / "yolods").is_dir():
        parser().error(f"--old {options.old}: not a checkout of yolods")
    began, machine = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), describe([0])
    with tempfile.TemporaryDirectory(prefix="yolods-loader-") as name:
        measured = list(measure(options, Path(name)))
    text = [verdict(measured), "", METHOD, "", *described(measured), "", *tables(measured)]
    print("\n" + "\n".join(text))
    if options.record is not None:
        command = shlex.join(["python", "benchmarks/loader.py", *words])
        head = [f"# A sample's cost, {began}", "", f"    {command}", "", *machine, ""]
        options.record.write_text("\n".join([*head, *text]).rstrip() + "\n", encoding="utf-8")
    return int(bool(missed(measured)))


def measure(options: argparse.Namespace, work: Path) -> Iterator[Costs]:
    """The costs at every size of every set."""
    chosen = [case for case in CASES.values() if case.key in options.cases]
    cases = [case for case in chosen if possible(case, options)]
    with ExitStack() as stack:
        loaders = [stack.enter_context(Loader(case, options.old, work)) for case in cases]
        for images in sets(options.sets, work):
            for imgsz in options.imgsz:
                found: dict[str, list[float]] = {case.key: [] for case in cases}
                read = [as_read(case, images, imgsz, work) for case in cases]
                for number in range(options.rounds):
                    for loader, given in zip(loaders, read, strict=True):
                        cost = loader.cost(given, imgsz, options.samples)
                        found[loader.case.key].append(cost)
                    print(f"{images.title} at {imgsz} px: round {number + 1}", flush=True)
                yield Costs(images, imgsz, found)


def possible(case: Case, options: argparse.Namespace) -> bool:
    """Whether a case can be measured here; says so where it cannot."""
    why = ""
    if case.key == OLD and options.old is None:
        why = "no --old"
    elif case.pack and not can_pack():
        why = "there is no `yolods pack` here"
    elif case.simplejpeg and importlib.util.find_spec("simplejpeg") is None:
        why = "simplejpeg is not installed"
    if why:
        print(f"{case.title}: left out, {why}", flush=True)
    return not why


def sets(chosen: Sequence[str], work: Path) -> Iterator[ImageSet]:
    """The sets, made below `work`; BCCD where this clone has it."""
    if "hd" in chosen:
        yield hd_set(work / "hd", HD_IMAGES)
    found = [(folder / BCCD).parent for folder in ROOT.parents if (folder / BCCD).is_file()]
    if "bccd" in chosen and found:
        yield cells_set(work / "bccd", found[0])


def as_read(case: Case, images: ImageSet, imgsz: int, work: Path) -> ImageSet:
    """The set as a case reads it: the files, or a pack at training size."""
    if not case.pack:
        return images
    out = work / f"{images.title}-{imgsz}{''.join(case.pack)}"
    return packed(images, out, ("--imgsz", str(imgsz), *case.pack))


class Loader:
    """The process of a case. A context manager that ends it."""

    def __init__(self, case: Case, old: Path | None, work: Path) -> None:
        """
        Args:
            old: the checkout that the case `OLD` is measured in.
            work: where it may keep what it knows about a set.
        """
        self.case, self._work = case, work
        root = old if case.key == OLD else ROOT
        path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        way = {key: asdict(case)[key] for key in ("side", "block", "keep", "simplejpeg")}
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "loader_run.py"), json.dumps(way)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            text=True,
        )

    def cost(self, images: ImageSet, imgsz: int, samples: int) -> float:
        """CPU milliseconds per sample of the next samples.

        Raises:
            RuntimeError: the process has ended.
        """
        asked = {"yaml": str(images.yaml), "images": images.images, "imgsz": imgsz}
        asked |= {"samples": samples, "cache": str(self._work / f"scans-{self.case.key}")}
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.case.title}: its process has ended, see above")
        return json.loads(answer)["seconds"] / samples * 1000

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    sys.exit(main())
