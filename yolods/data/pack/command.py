"""`yolods pack`: a data set into packs, with a report of what was found on the way."""

from __future__ import annotations

import argparse
import errno
import logging
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from yolods.data.demo import ensure_demo
from yolods.data.index.checks import scan_workers
from yolods.data.index.image_files import CheckOptions
from yolods.data.index.labels import Labels
from yolods.data.leaks.look import leaks_between
from yolods.data.pack.encode import QUALITY, Encoding
from yolods.data.pack.manifest import (
    PACK_FILE,
    PackRecord,
    check_sums,
    pack_index,
    pack_size,
    read_record,
    record_line,
)
from yolods.data.pack.packed import PackedImages
from yolods.data.pack.split import Packable, SplitSamples
from yolods.data.pack.writer import SHARD_BYTES, PackWriter
from yolods.data.scan import Scan, in_both, scan, write_problems
from yolods.data.source import VIDEOS, ImageFiles, Unreadable
from yolods.data.spec import SPLITS, DataSpec, fetch, read_spec
from yolods.data.video.packing.frame_set import FrameSet
from yolods.data.video.packing.packer import PackableFrames
from yolods.data.video.packing.survey import survey
from yolods.errors import Faults, UserError
from yolods.parsing.rules import check, whole
from yolods.system.access import check_writable
from yolods.system.files import replace_text
from yolods.system.folders import cache_dir
from yolods.system.humanize import age_text, size_text

log = logging.getLogger(__name__)

DEMO_WORD = "demo"
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
FIRST_LINE = "# Packs of {name}, written by yolods pack."
PROBLEMS_NAME, LEAKS_NAME = "problems.txt", "leaks.jpg"
ANOTHER_OUT = "name another --out"
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk without room."""
IMAGES_NAMED = 20
"""Damaged samples of a tar file that are named."""


@dataclass(frozen=True)
class PackRequest:
    """The checked flags of a command that packs."""

    data: str
    """The data yaml, or demo."""
    out: Path
    splits: tuple[str, ...]
    """Splits to pack; none: all that the yaml has."""
    encoding: Encoding
    shard_bytes: int
    workers: int
    overwrite: bool
    stride: int | None = None
    """Of training videos; None: as the yaml says."""


def run_pack(args: argparse.Namespace) -> list[str]:
    """Pack, or verify packs, as the flags say; returns the lines of the report.

    Raises:
        UserError: one line per fault.
    """
    if args.verify is not None:
        if others := _given_beside_verify(args):
            raise UserError(
                f"--verify only reads packs: omit {' and '.join(others)}, or omit --verify"
            )
        return verify_packs(Path(args.verify))
    request = read_request(args)
    try:
        return pack_data(request)
    except OSError as error:
        if error.errno in FULL:
            raise UserError(
                f"{request.out}: the disk is full; free some of it, and the same command goes on "
                "behind the last finished tar file"
            ) from error
        if _is_below(error.filename, request.out):
            raise UserError(_refused_write(error)) from error
        raise
    except KeyboardInterrupt:
        without = " without --overwrite" if request.overwrite else ""
        log.info("stopped; the same command%s goes on behind the last finished tar file", without)
        raise


def _given_beside_verify(args: argparse.Namespace) -> list[str]:
    """The other flags that were given: the rest are None or False. `faults` is the parser's."""
    names = [name for name, value in vars(args).items() if value is not None and value is not False]
    written = {"uncompressed": "--raw", "shard_size": "--shard-size"}
    return [written.get(name, f"--{name}") for name in names if name not in ("verify", "faults")]


def _is_below(file: object, folder: Path) -> bool:
    """Whether the file that an error names is in a folder."""
    return isinstance(file, str) and Path(file).is_relative_to(folder)


def _refused_write(error: OSError) -> str:
    """What to do about a file of ours that the system refuses to write."""
    granted = "grant access to it, or " if error.errno in (errno.EACCES, errno.EPERM) else ""
    return f"{error.filename}: {error.strerror}; {granted}{ANOTHER_OUT}"


def read_request(args: argparse.Namespace) -> PackRequest:
    """Check the flags of a command that packs.

    Raises:
        UserError: one line per fault.
    """
    faults = Faults()
    for flag in ("data", "out"):
        if getattr(args, flag) is None:
            faults.add(f"--{flag} is missing: yolods pack --data YAML --out DIR")
    stride = None
    if args.stride is not None:
        stride = _number(args.stride, "--stride", 1, None, faults, 1)
    request = PackRequest(
        data=args.data or "",
        out=Path(args.out or ""),
        splits=tuple(args.splits or ()),
        encoding=_encoding(args, faults),
        shard_bytes=_shard_bytes(args.shard_size, faults),
        workers=_number(args.workers, "--workers", 0, 1024, faults, scan_workers(1)),
        stride=stride,
        overwrite=args.overwrite,
    )
    faults.raise_if_any()
    return request


def pack_data(request: PackRequest) -> list[str]:
    """Pack the splits of a data set; returns the lines of the report.

    Raises:
        UserError: one line per fault.
        OSError: the disk is full.
    """
    began = time.monotonic()
    spec = _read_data(request.data)
    check_writable(request.out, ANOTHER_OUT)
    _refuse_own_yaml(request.out / spec.yaml.name)
    _refuse_foreign_folder(request.out, spec)
    samples = _checked(spec, request)
    _check_room(request.out, samples)
    with _writers(request, spec, samples) as writers:
        for split, writer in writers.items():
            _pack_one(split, writer, samples[split], request.workers)
    _write_yaml(request.out, spec)
    problems = [problem for found in samples.values() for problem in found.problems]
    listed = request.out / PROBLEMS_NAME
    if problems or listed.exists():
        write_problems(listed, problems)
    packed = {split: _opened(request.out, split) for split in samples}
    return [
        *(f"{split}: {_told(samples[split], packed[split])}" for split in samples),
        *between_splits(packed),
        *_leaks(packed, request.out),
        *([f"{listed} lists what was skipped"] if problems else []),
        f"packed in {age_text(time.monotonic() - began)}; use it with --data "
        f"{request.out / spec.yaml.name}",
    ]


def between_splits(packed: Mapping[str, Scan]) -> list[str]:
    """Lines about images of another split that are in the training split as well.

    Args:
        packed: the splits; their sources read the packs.
    """
    train = packed.get("train")
    others = [each for split, each in packed.items() if split != "train"]
    return [line for each in others if train and (line := in_both(train, each))]


def verify_packs(folder: Path) -> list[str]:
    """Read every file of the packs in a folder and compare checksums.

    Args:
        folder: what `--out` named, or one pack of it.

    Returns:
        a line for each intact pack.

    Raises:
        UserError: there is no pack, or a line for each damaged file and image.
    """
    packs = [folder] if (folder / PACK_FILE).exists() else sorted(folder.glob("*.pack"))
    if not packs:
        raise UserError(f"{folder}: there is no pack in it")
    faults, lines = Faults(), []
    for pack in packs:
        with faults.caught():
            damaged = _damaged(pack)
            for fault in damaged:
                faults.add(fault)
            lines += [] if damaged else [f"{pack}: intact, {record_line(read_record(pack))}"]
    faults.raise_if_any()
    return lines


def _damaged(pack: Path) -> list[str]:
    """A line for each damaged file of a pack, and for each damaged image in it."""
    record = read_record(pack)
    found = []
    total = pack_size(pack)
    with tqdm(total=total, desc=pack.name, unit="B", unit_scale=True, leave=False) as bar:
        for name in check_sums(pack, bar.update):
            found.append(f"{pack / name} is damaged; copy it again")
            if name.endswith(".tar"):
                found += _damaged_images(pack, record, name)
    return found


def _damaged_images(pack: Path, record: PackRecord, name: str) -> list[str]:
    source = PackedImages(pack, pack_index(pack), record)
    number = [shard.file for shard in record.shards].index(name)
    found = []
    for row in (source.index.columns["shard"] == number).nonzero()[0].tolist():
        try:
            source.stored(row)
        except Unreadable as error:
            found.append(str(error))
    more = (
        [f"{pack / name}: and {len(found) - IMAGES_NAMED} more images"]
        if len(found) > IMAGES_NAMED
        else []
    )
    return found[:IMAGES_NAMED] + more


def _encoding(args: argparse.Namespace, faults: Faults) -> Encoding:
    if args.uncompressed and args.quality is not None:
        faults.add("--raw and --quality exclude each other: what is not compressed has no quality")
    if args.imgsz is None:
        for flag, value in {"--raw": args.uncompressed, "--quality": args.quality}.items():
            if value:
                faults.add(f"{flag} needs --imgsz, the long side in pixels that training uses")
    side = None
    if args.imgsz is not None:
        side = _number(args.imgsz, "--imgsz", 32, 65500, faults, 0)
    return Encoding(
        side, _number(args.quality, "--quality", 1, 100, faults, QUALITY), args.uncompressed
    )


def _number(
    value: int | None, flag: str, low: int, high: int | None, faults: Faults, default: int
) -> int:
    if value is None:
        return default
    good, number = check(whole(low, high), value, flag, faults)
    return number if good else default


def _shard_bytes(text: str | None, faults: Faults) -> int:
    if text is None:
        return SHARD_BYTES
    match = re.fullmatch(r"(\d+)([KMGT]?)", text.upper().removesuffix("B").removesuffix("I"))
    if match and int(match[1]):
        return int(match[1]) * UNITS[match[2]]
    faults.add(f"--shard-size is {text!r}: it must be a length such as 512M or 2G")
    return SHARD_BYTES


def _read_data(data: str) -> DataSpec:
    """The data yaml, after the demo was made or images were downloaded."""
    if data == DEMO_WORD:
        return read_spec(ensure_demo(cache_dir()))
    spec = read_spec(Path(data))
    for line in spec.warnings:
        log.warning("%s", line)
    return fetch(spec) if spec.needs_download else spec


def _leaks(packed: Mapping[str, Scan], out: Path) -> list[str]:
    """Lines about validation images that nearly repeat training images."""
    if not {"train", "val"} <= packed.keys():
        return []
    return leaks_between(packed["train"], packed["val"], out / LEAKS_NAME, progress=True)


def _checked(spec: DataSpec, request: PackRequest) -> dict[str, Packable]:
    """The checked splits."""
    splits = request.splits or _present(spec)
    faults, found = Faults(), {}
    if request.stride is not None and VIDEOS not in map(spec.kinds.get, splits):
        faults.add(
            f"--stride {request.stride}: it thins videos, and {spec.yaml} names none; omit it"
        )
    for split in splits:
        if not spec.sources(split):
            faults.add(f"--splits {split}: {spec.yaml} has no {split}")
            continue
        with faults.caught():
            found[split] = _checked_split(spec, split, request)
    faults.raise_if_any()
    return found


def _checked_split(spec: DataSpec, split: str, request: PackRequest) -> Packable:
    workers = max(request.workers, 1)
    if spec.kinds.get(split) == VIDEOS:
        frames = FrameSet.of(spec, split, request.stride)
        facts = survey(frames, request.encoding, any_class=False, workers=workers)
        return PackableFrames(frames, facts)
    options = CheckOptions(workers, every=True, progress=True)
    found = scan(spec, split, cache=cache_dir() / "index", options=options)
    for line in found.warnings:
        log.warning("%s", line)
    _refuse_unfit(spec, found, request.encoding)
    return SplitSamples.of(found, request.encoding, spec.channels)


def _present(spec: DataSpec) -> list[str]:
    """The splits of a data set; without a test split whose images are missing."""
    named = [split for split in SPLITS if spec.sources(split)]
    if "test" in named and not all(path.exists() for path in spec.test):
        log.info("test: its images are missing, so it is not packed")
        named.remove("test")
    return named


def _refuse_unfit(spec: DataSpec, found: Scan, encoding: Encoding) -> None:
    """Refuse what cannot be stored in this way."""
    if encoding.imgsz is None and not isinstance(found.source, ImageFiles):
        raise UserError(
            f"{found.split}: its images are not files, which could be stored as they are; give "
            "--imgsz"
        )
    if encoding.imgsz is not None and spec.channels not in (1, 3):
        raise UserError(
            f"{spec.yaml}: images of {spec.channels} channels can only be stored as they are; omit "
            "--imgsz"
        )


@contextmanager
def _writers(
    request: PackRequest, spec: DataSpec, samples: Mapping[str, Packable]
) -> Iterator[dict[str, PackWriter]]:
    """A writer for each split."""
    faults, found = Faults(), {}
    with ExitStack() as stack:
        for split in samples:
            with faults.caught():
                found[split] = stack.enter_context(
                    PackWriter(
                        request.out / f"{split}.pack",
                        split,
                        request.encoding,
                        channels=spec.channels,
                        shard_bytes=request.shard_bytes,
                        further=samples[split].further,
                        overwrite=request.overwrite,
                    )
                )
        faults.raise_if_any()
        yield found


def _check_room(out: Path, samples: Mapping[str, Packable]) -> None:
    """Refuse a disk without room for what is not packed yet."""
    needed = {split: each.estimated_bytes() for split, each in samples.items()}
    done = sum(
        file.stat().st_size for split in samples for file in out.glob(f"{split}.pack/[0-9]*.tar")
    )
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if sum(needed.values()) > free + done:
        parts = " + ".join(f"{split} {size_text(size)}" for split, size in needed.items())
        there = f", {size_text(done)} of it are there" if done else ""
        raise UserError(
            f"{out}: about {size_text(sum(needed.values()))} are needed ({parts}){there}, and "
            f"{size_text(free)} are free; free some, or choose another --out, a smaller --imgsz or "
            "no --raw"
        )


def _pack_one(split: str, writer: PackWriter, samples: Packable, workers: int) -> None:
    if writer.bytes_done:
        state = "is packed already" if writer.complete else "goes on"
        log.info("%s: %s, %s are on disk", split, state, size_text(writer.bytes_done))
    with tqdm(total=len(samples), desc=f"packing {split}", unit=" images", leave=False) as bar:
        samples.pack(writer, workers, bar.update)


def _refuse_foreign_folder(out: Path, spec: DataSpec) -> None:
    """Refuse a folder of the data, whose pictures would become images of the set, and one with
    files of others, which would be replaced."""
    real = out.resolve()
    for source in (*spec.train, *spec.val, *spec.test):
        if source.is_dir() and real.is_relative_to(source.resolve()):
            raise UserError(f"{out} is in {source}, which {spec.yaml} names; name another --out")
    if out.is_dir() and any(out.iterdir()) and not any(out.glob("*.pack")):
        raise UserError(f"{out} is not empty and has no packs; name another --out, or a new one")


def _refuse_own_yaml(file: Path) -> None:
    """Refuse to replace a yaml that is not a pack's."""
    if not file.exists():
        return
    first = FIRST_LINE.format(name=file.name)
    if file.is_dir() or not file.read_text("utf-8", "replace").startswith(first):
        raise UserError(f"{file} exists and is not the yaml of a pack; name another --out")


def _write_yaml(out: Path, spec: DataSpec) -> None:
    """Write the data yaml of all packs in a folder.

    It has no `path`, so that the packs may be moved with it.
    """
    packs = {
        split: f"{split}.pack" for split in SPLITS if (out / f"{split}.pack" / PACK_FILE).exists()
    }
    content: dict[str, Any] = {**packs, "names": list(spec.names)}
    if spec.channels != 3:
        content["channels"] = spec.channels
    if spec.keypoints:
        content["kpt_shape"] = list(spec.keypoints)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
    name = spec.yaml.name
    replace_text(out / name, f"{FIRST_LINE.format(name=name)}\n{text}")


def _opened(out: Path, split: str) -> Scan:
    """A split as it can be read from its pack."""
    source = PackedImages.opened(out / f"{split}.pack", cache_dir() / "index" / "packs")
    return Scan(split, Labels(source.index, source.index.kept_rows()), source)


def _told(before: Packable, packed: Scan) -> str:
    """A split in the report."""
    assert isinstance(packed.source, PackedImages)
    return "; ".join(filter(None, (record_line(packed.source.record), before.left_out)))
