"""Are samples out of packs those of the files, what do packs cost, and does a killed call go on?

    python benchmarks/pack.py --bccd bccd.yaml --record benchmarks/pack.md

Takes BCCD (https://github.com/Shenggan/BCCD_Dataset as a YOLO set of 640x480 photographs) and a
synthetic set of 1280x720. Exit status 1 if any sample, file or name is wrong. Ten minutes on two
cores; needs no accelerator.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SAMPLES, MIDDLE, KILLS, TIMED_KILLS, FLIPS = 500, 240, 20, 10, 100
ROUNDS, TIMED, TURNS = 5, 60, 60
"""Rounds of the measurement of time, samples of each, and turns of two decoders."""

METHOD = f"""\
- *Samples*: the first {SAMPLES} of the training stream with mosaic 0.9, mixup 0.2 and rotation, as
  batches of 20 out of yolods' loader at 1 and 2 ranks (a process each) with 0 and 2 workers per
  rank, from the beginning and from sample {MIDDLE} on. A sample is equal if its pixels, boxes,
  classes, name, original shape, the names of all its images and the list of replaced ones are
  those of the files at 1 rank with 0 workers, bit for bit.
- *Kills*: SIGKILL to `yolods pack` of BCCD (JPEG 320, tar files of 700 kB, 2 processes) just before
  {KILLS} of its changes of files (openings for writing, renamings, removals, new folders), evenly
  spread from the first to the last, and after {TIMED_KILLS} times, evenly spread; each time the
  same call then goes on, and every file has to be that of an undisturbed call.
- *Flips*: one bit of one random byte in each of {FLIPS} stored images. Named: reading it is
  refused, with its tar file and its name.
- *Time*: CPU time of one process for a sample with mosaic 1, no decoded image kept, median of
  {ROUNDS} rounds of {TIMED} samples; the kinds take turns within a round. Files are in the page
  cache. The load of the machine is in the head of this page."""


@dataclass
class Found:
    """What has been measured, and what was wrong."""

    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def check(self, good: bool, text: str) -> str:
        """The text, and a fault unless it is good."""
        if not good:
            self.faults.append(text)
        return text if good else f"**{text}**"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument("--bccd", type=Path, required=True, metavar="YAML", help="yaml of BCCD")
    made.add_argument("--record", type=Path, metavar="MD", help="write the result to this file")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the command line says. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    from benchmarks.hardware import describe
    from yolods import compat

    began = describe(sorted(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(prefix="yolods-pack-") as scratch:
        os.environ["YOLODS_CACHE"] = f"{scratch}/cache"
        compat.prepare()
        import torch

        torch.set_num_threads(1)
        found = _measured(options.bccd, Path(scratch))
    print("\n".join([*found.lines, "", *found.faults]))
    if options.record:
        options.record.write_text(_render(found, words, began), encoding="utf-8")
    return int(bool(found.faults))


def _measured(bccd: Path, scratch: Path) -> Found:
    from benchmarks import pack_runs as runs
    from yolods.data.pack.encode import Encoding

    found = Found()
    sets = {"BCCD": (bccd, 320), "1280x720": (runs.make_hd_set(scratch / "hd"), 640)}
    kinds: dict[str, Callable[[int], Any]] = {
        "as is": lambda _: Encoding(),
        "JPEG": Encoding,
        "raw": lambda side: Encoding(side, uncompressed=True),
    }
    packs: dict[tuple[str, str, int], Path] = {}
    found.lines += ["## What is stored", "", *SIZES]
    for name, (yaml, _) in sets.items():
        found.lines.append(_size_row(name, "files", yaml.parent, 0))
        for kind, side in (("as is", 0), *itertools.product(("JPEG", "raw"), (320, 640))):
            out = scratch / f"{name} {kind} {side}"
            packs[name, kind, side], seconds = runs.pack(yaml, out, kinds[kind](side))
            told = f"pack, {kind}{f' {side}' if side else ''}"
            found.lines.append(_size_row(name, told, out, seconds))
    _identity(found, sets, packs, scratch / "cache/index")
    _damage(found, packs, bccd, scratch)
    _times(found, sets, packs, scratch / "cache/index")
    return found


SIZES = [
    "| set | kind | MB | kB an image | packed in, s |",
    "| --- | --- | ---: | ---: | ---: |",
]


def _size_row(name: str, kind: str, folder: Path, seconds: float) -> str:
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    # A pack may hold a picture of leaks beside its tar files.
    packed = any(folder.rglob("pack.json"))
    images = _packed_images(folder) if packed else len(list(folder.rglob("*.jpg")))
    time = f"{seconds:.1f}" if seconds else ""
    return f"| {name} | {kind} | {total / 1e6:.1f} | {total / images / 1e3:.0f} | {time} |"


def _packed_images(folder: Path) -> int:
    from yolods.data.pack.manifest import read_record

    return sum(read_record(pack).images for pack in folder.glob("*.pack"))


def _identity(found: Found, sets: Any, packs: Any, cache: Path) -> None:
    from benchmarks import pack_runs as runs

    ways = [runs.Way(*each) for each in itertools.product((1, 2), (0, 2), (0, MIDDLE))]
    found.lines += [
        *("", "## Samples", ""),
        *("| set, imgsz | run | files | as is | raw |", "| --- | --- | --- | --- | --- |"),
    ]
    for name, (yaml, side) in sets.items():
        yamls = [yaml, packs[name, "as is", 0], packs[name, "raw", side]]
        opened = [runs.opened(each, side, cache) for each in yamls]
        whole = runs.samples(opened[0], ways[0], SAMPLES)
        for way in ways:
            cells = []
            for dataset in opened:
                got = runs.samples(dataset, way, SAMPLES)
                equal = sum(whole[place] == checksum for place, checksum in got.items())
                wanted = SAMPLES - way.first
                cells.append(found.check(equal == len(got) == wanted, f"{equal} of {wanted}"))
            found.lines.append(f"| {name}, {side} | {way} | {' | '.join(cells)} |")
            print(found.lines[-1], flush=True)
    found.lines += ["", f"JPEGs of packs were decoded by {_decoder()}, those of files by cv2."]


def _damage(found: Found, packs: Any, bccd: Path, scratch: Path) -> None:
    from benchmarks import pack_runs as runs

    found.lines += ["", "## Kills and flips", ""]
    for kills, points, what in (
        (runs.kills_by_step, KILLS, "changes of files"),
        (runs.kills_by_time, TIMED_KILLS, "times"),
    ):
        wrong = kills(bccd, scratch, points)
        text = f"killed at {points} {what}, {points - len(wrong)} ended with equal files"
        found.lines.append(f"- {found.check(not wrong, '; '.join([text, *wrong]))}")
    for kind, side in (("as is", 0), ("JPEG", 320), ("raw", 320)):
        named, others = runs.flipped(packs["BCCD", kind, side], FLIPS, scratch / "cache/index")
        text = f"{kind}: {named} of {FLIPS} flips named, {others} intact images refused"
        found.lines.append(f"- {found.check(named == FLIPS and not others, text)}")


def _times(found: Found, sets: Any, packs: Any, cache: Path) -> None:
    found.lines += [
        *("", "## CPU time of a sample", ""),
        *("| set, imgsz | kind | ms | x files |", "| --- | --- | ---: | ---: |"),
    ]
    for (name, (yaml, _)), side in itertools.product(sets.items(), (320, 640)):
        yamls = {"files": yaml, "as is": packs[name, "as is", 0]}
        yamls |= {kind: packs[name, kind, side] for kind in ("JPEG", "raw")}
        rows = _timed(yamls, side, cache)
        for kind, (middle, low, high) in rows.items():
            found.lines.append(
                f"| {name}, {side} | {kind} | {middle:.1f} ({low:.1f}..{high:.1f}) | "
                f"{rows['files'][0] / middle:.2f} |"
            )
    found.lines += ["", _decoders(packs, cache)]


def _timed(yamls: dict[str, Path], side: int, cache: Path) -> dict[str, tuple[float, float, float]]:
    """Median, least and most milliseconds by kind."""
    from benchmarks import pack_runs as runs

    hyper = {"epochs": 100, "mosaic": 1.0}
    sets = {kind: runs.opened(yaml, side, cache, hyper) for kind, yaml in yamls.items()}
    took: dict[str, list[float]] = {kind: [] for kind in sets}
    for number in range(ROUNDS + 1):
        for kind, dataset in sets.items():
            with runs.without_simplejpeg():
                took[kind].append(runs.cpu_ms(dataset, TIMED, number))
    # The first round warms up.
    return {
        kind: (statistics.median(each[1:]), min(each[1:]), max(each[1:]))
        for kind, each in took.items()
    }


def _decoder() -> str:
    """What decodes JPEGs of packs here."""
    from yolods.data.images.jpeg import simplejpeg

    return "cv2" if simplejpeg() is None else f"simplejpeg {version('simplejpeg')}"


def _decoders(packs: Any, cache: Path) -> str:
    """The line about simplejpeg."""
    from benchmarks import pack_runs as runs
    from yolods.data.images.jpeg import simplejpeg
    from yolods.data.scan import scan
    from yolods.data.spec import read_spec

    if simplejpeg() is None:
        return "simplejpeg was not installed; the times are those of cv2."
    parts = []
    for name in ("BCCD", "1280x720"):
        source = scan(read_spec(packs[name, "as is", 0]), "train", cache=cache).source
        own, theirs = [], []
        for number in range(TURNS):
            rows = range(number * 10 % 100, number * 10 % 100 + 10)
            own.append(runs.decode_ms(source, rows))
            with runs.without_simplejpeg():
                theirs.append(runs.decode_ms(source, rows))
        ratio = statistics.median(b / a for a, b in zip(own, theirs, strict=True))
        middle = [statistics.median(each) for each in (own, theirs)]
        parts.append(f"{name} {middle[0]:.2f} and {middle[1]:.2f} ({ratio:.2f} x)")
    return (
        "Times above are those of cv2. Reading and decoding one image as it is, in ms with "
        f"simplejpeg and with cv2, median of {TURNS} turns: {', '.join(parts)}."
    )


def _render(found: Found, words: Sequence[str], machine: Sequence[str]) -> str:
    shown = [word if "/" not in word else Path(word).name for word in words]
    lines = [
        *(f"# Packs, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC", ""),
        *(f"    {shlex.join(['python', 'benchmarks/pack.py', *shown])}", ""),
        *machine,
        *("", METHOD, "", *found.lines, ""),
        "Everything was right." if not found.faults else f"{len(found.faults)} things were wrong.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
