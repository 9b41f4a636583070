"""Reads a data yaml: the places of each split's images and the names of the classes. All faults are
reported together.

Needs only the standard library and yaml, so that it can run before any process starts.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from yolods.config.names.data_name import shipped_yaml, stores
from yolods.data.classes import read_names
from yolods.data.images.listing import IMAGE_SUFFIXES, images_in
from yolods.data.source import SOURCES, VIDEOS
from yolods.data.video.entries import VIDEO_SUFFIXES, is_video, videos_below
from yolods.data.video.keys import ALL_VIDEOS, VIDEO_KEYS, VideoKeys, read_video_keys
from yolods.data.video.labels.label_files import label_places
from yolods.data.video.split import refuse_shared
from yolods.errors import Faults, UserError, nearest
from yolods.parsing.rules import is_count
from yolods.parsing.yaml_file import NotYaml, parse_yaml

SPLITS = ("train", "val", "test")
KEYS = ("path", *SPLITS, "validation", "names", "nc", "channels", "kpt_shape", "download")
"""The keys of a data yaml, beside those of videos. Any others are its user's own."""
MISSPELT = 0.82
"""How similar a key is to the one that is meant, from 0 to 1: about a wrong letter in six."""


# Wide: one field per key of the yaml.
@dataclass(frozen=True)
class DataSpec:
    """A data yaml with its paths resolved."""

    yaml: Path
    """The yaml file."""
    root: Path
    """The folder to which paths in the yaml are relative."""
    train: tuple[Path, ...]
    """Folders, image files or .txt lists of the training images; or a pack; or videos and folders
    of them."""
    val: tuple[Path, ...]
    """The same for validation."""
    test: tuple[Path, ...]
    """The same for the optional test split; may be empty."""
    names: tuple[str, ...]
    """Class names; a class id is an index into this tuple."""
    channels: int = 3
    """Image channels: 3 colour, 1 grey, other numbers for multi-band images."""
    download: str | None = None
    """URL or script in the yaml that downloads the images, if any."""
    needs_download: bool = False
    """Whether images are missing and `download` can get them; call `fetch` then."""
    keypoints: tuple[int, int] | None = None
    """(points, numbers per point) of pose labels, whose key points a detector ignores."""
    video: VideoKeys = field(default_factory=VideoKeys)
    """How videos are used."""
    kinds: dict[str, str] = field(default_factory=dict)
    """For each split that is not made of image files, the key of its source in `SOURCES`."""
    misspelt: tuple[str, ...] = ()
    """Lines about keys that are nearly one that is read here."""

    @property
    def warnings(self) -> list[str]:
        """Lines about what the user probably did not intend."""
        twice = [
            f"{name} ({count} times)" for name, count in Counter(self.names).items() if count > 1
        ]
        found = [f"{self.yaml}: {line}" for line in self.misspelt]
        if twice:
            found.append(f"{self.yaml}: several classes have the same name: {', '.join(twice[:5])}")
        if self.video.named and VIDEOS not in self.kinds.values():
            keys = ", ".join(self.video.named)
            found.append(f"{self.yaml}: {keys}: no effect, because no split is made of videos")
        return found

    def videos(self, split: str) -> list[Path]:
        """The videos of a split, sorted; none if it is made of something else.

        Raises:
            UserError: they have been removed since the yaml was read.
        """
        if self.kinds.get(split) != VIDEOS:
            return []
        return self.video.videos_of(split, self.sources(split), self.root)

    def sources(self, split: str) -> tuple[Path, ...]:
        """Folders, files and lists of one split ('train', 'val' or 'test')."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]


def read_spec(path: Path) -> DataSpec:
    """Read and check a data yaml.

    Sources keep the user's spelling, symbolic links included, because it determines where labels
    are. Missing images are no fault if the yaml says how to download them: `needs_download` is set
    then.

    Args:
        path: a yaml file, or the name of one that ultralytics ships ("coco8.yaml").

    Raises:
        UserError: one line per fault.
    """
    return _read(Path(path), root=None, may_download=True)


def fetch(spec: DataSpec) -> DataSpec:
    """Download the images as the yaml's `download:` says, and read the yaml again.

    This is the only place in the project that uses the network.

    Raises:
        UserError: the download failed.
    """
    from ultralytics.data.utils import check_det_dataset

    from yolods.compat import downloads_to, use_local_font

    use_local_font()  # else check_det_dataset downloads a missing font at its end
    store = stores()[0]
    try:
        with downloads_to(store):
            data = check_det_dataset(str(spec.yaml), autodownload=True)
    except Exception as error:  # a yaml's script may raise anything
        line = next(iter(str(error).strip().splitlines()), type(error).__name__).strip("❌ .")
        raise UserError(
            f"{spec.yaml}: download failed: {line}; download the images into {store} yourself, or "
            "try again"
        ) from error
    return _read(spec.yaml, root=Path(data["path"]), may_download=False)


def as_ultralytics(spec: DataSpec, *, single_cls: bool = False) -> dict[str, Any]:
    """The `data` dictionary that ultralytics' data set and validator expect."""
    names = {0: "item"} if single_cls else dict(enumerate(spec.names))
    return {
        "yaml_file": str(spec.yaml),
        "path": spec.root,
        "train": [str(p) for p in spec.train],
        "val": [str(p) for p in spec.val],
        "test": [str(p) for p in spec.test],
        "names": names,
        "nc": len(names),
        "channels": spec.channels,
    }


def places(spec: DataSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All paths of a data set: (files and folders, .txt lists), without duplicates.

    Folders of labels follow ultralytics' rule: `labels` replaces the last `images` in a folder's
    path. Those of videos are where `label_places` finds them.
    """
    trees, lists = _places(spec, SPLITS)
    return tuple(dict.fromkeys((str(spec.yaml), *trees))), lists


def spare_places(spec: DataSpec) -> frozenset[str]:
    """Those of `places` that only the test split uses, so that no training reads them."""
    needed = {
        str(spec.yaml),
        *(place for group in _places(spec, ("train", "val")) for place in group),
    }
    return frozenset(place for group in places(spec) for place in group if place not in needed)


def _places(spec: DataSpec, splits: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    trees: list[Path] = []
    lists: list[Path] = []
    labels: list[Path] = []
    for split in splits:
        kind, sources = spec.kinds.get(split, ""), spec.sources(split)
        if kind:
            trees += sources
            if kind == VIDEOS:
                labels += (place for source in sources for place in label_places(source))
            continue
        lists += (source for source in sources if source.suffix == ".txt")
        trees += (source for source in sources if source.suffix != ".txt")
        folders = [source for source in sources if source.is_dir() and "images" in source.parts]
        labels += (Path(*_last_replaced(folder.parts)) for folder in folders)
    return tuple(dict.fromkeys(map(str, (*trees, *labels)))), tuple(dict.fromkeys(map(str, lists)))


def _last_replaced(parts: tuple[str, ...]) -> list[str]:
    place = len(parts) - 1 - parts[::-1].index("images")
    return [*parts[:place], "labels", *parts[place + 1 :]]


def _read(path: Path, *, root: Path | None, may_download: bool) -> DataSpec:
    file = _find_yaml(path)
    data = _load(file)
    faults = Faults()
    misspelt = _misspelt(data)
    names = read_names(data, faults)
    root = root or _root(data, file, faults)
    # ultralytics accepts `validation` as well.
    if "val" not in data and "validation" in data:
        data["val"] = data["validation"]
    download = data.get("download") if isinstance(data.get("download"), str) else None
    video = read_video_keys(data, faults)
    found: dict[str, _Entry] = {}
    needs_download = False
    for split in SPLITS:
        entry = found[split] = _split(split, data, root, video, faults)
        # Training needs no test images.
        if split == "test" or not entry.missing:
            continue
        if download and may_download:
            needs_download = True
        else:
            for text in entry.missing:
                faults.add(text)
    channels = data.get("channels", 3)
    if not is_count(channels):
        faults.add(f"channels: {channels!r} is not a number of image channels (3 colour, 1 grey)")
    kinds = {split: entry.kind for split, entry in found.items() if entry.kind}
    spec = DataSpec(
        yaml=file,
        root=root,
        names=names,
        channels=channels,
        download=download,
        needs_download=needs_download,
        keypoints=_keypoints(data),
        video=video,
        kinds=kinds,
        misspelt=misspelt,
        **{split: entry.paths for split, entry in found.items()},
    )
    if not (faults or needs_download):
        with faults.caught():
            refuse_shared({split: spec.videos(split) for split in SPLITS})
    if faults:
        raise UserError("\n".join(f"{file}: {fault}" for fault in (*faults, *misspelt)))
    return spec


def _find_yaml(path: Path) -> Path:
    if path.is_file():
        return path.absolute()
    if path.is_dir():
        found = sorted((*path.glob("*.yaml"), *path.glob("*.yml")))
        if len(found) == 1:
            return found[0].absolute()
        raise UserError(
            f"{path} is a folder with {len(found)} yaml files; name one of them with --data"
        )
    if found := shipped_yaml(path):
        return found
    raise UserError(
        f"data yaml {path} does not exist; --data takes a yaml with train, val and names, or the "
        "word demo"
    )


def _load(file: Path) -> dict[str, Any]:
    try:
        data = parse_yaml(file.read_text(encoding="utf-8-sig"))
    except NotYaml as error:
        line = f":{error.line}" if error.line else ""
        raise UserError(f"{file}{line}: not valid yaml: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise UserError(
            f"{file}: not a data yaml: expected keys train, val and names, found "
            f"{type(data).__name__}"
        )
    return data


def _misspelt(data: dict[Any, Any]) -> tuple[str, ...]:
    """A line for each unknown key that is nearly a known one which the yaml lacks.

    Unknown keys are no fault: other tools have theirs in a data yaml.
    """
    known = (*KEYS, *VIDEO_KEYS)
    there = {*data, "val", "validation"} if data.keys() & {"val", "validation"} else {*data}
    absent = [key for key in known if key not in there]
    unknown = [key for key in data if isinstance(key, str) and key not in known]
    meant = {key: nearest(key, absent, cutoff=MISSPELT) for key in unknown}
    return tuple(f"{key}: unknown key, ignored{text}" for key, text in meant.items() if text)


def _root(data: dict[str, Any], file: Path, faults: Faults) -> Path:
    """The folder of `path:`: as it is, below the yaml's folder, or below ultralytics' data sets.

    The first one that exists is used. Without `path:` it is the yaml's folder.
    """
    value = data.get("path")
    if value is None or value == "":
        return file.parent
    if not isinstance(value, str):
        faults.add(f"path: must be a folder name, not {type(value).__name__}")
        return file.parent
    path = Path(os.path.expanduser(value))  # an unknown ~user stays as it is
    choices = [path, file.parent / path, *(store / path for store in stores())]
    return next((choice for choice in choices if choice.exists()), choices[1]).absolute()


class _Entry(NamedTuple):
    """What a yaml names for a split."""

    paths: tuple[Path, ...] = ()
    """Resolved."""
    kind: str = ""
    """As in `DataSpec.kinds`; "": image files."""
    missing: tuple[str, ...] = ()
    """A line for each path that is missing or has nothing to use."""


def _split(
    split: str, data: dict[str, Any], root: Path, video: VideoKeys, faults: Faults
) -> _Entry:
    divided = split in video.divided
    key = ("train" if data.get(ALL_VIDEOS) is None else ALL_VIDEOS) if divided else split
    value = data.get(key)
    if value is None or value == "" or value == []:
        if split != "test" and data.get(ALL_VIDEOS) is None:
            faults.add(
                f"{key}: missing; name the folder of its images, as in `{key}: images/{key}`"
            )
        return _Entry()
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in entries):
        faults.add(f"{key}: must be a path or a list of paths, not {value!r}")
        return _Entry()
    entry = _resolved(key, entries, root, faults)
    if divided and not entry.missing and entry.kind != VIDEOS:
        faults.add(f"split: {key} is not made of videos, which alone are divided by video")
    return entry


def _resolved(key: str, entries: Sequence[str], root: Path, faults: Faults) -> _Entry:
    paths, missing, kinds = [], [], {}
    for entry in entries:
        path = _spelled(root / entry)
        if not path.exists() and entry.startswith("../"):
            # yamls written for yolov5 name folders beside its repository.
            path = _spelled(root / entry[3:])
        paths.append(path)
        if not path.exists():
            missing.append(f"{key}: {path} does not exist ({entry!r} below {root})")
        elif (kind := _kind(path)) is None:
            known = " ".join(sorted(IMAGE_SUFFIXES))
            missing.append(
                f"{key}: no images in {path}, and no videos; known types: {known}, and "
                f"{' '.join(sorted(VIDEO_SUFFIXES))}"
            )
        else:
            kinds.setdefault(kind, path)
    if len(kinds) > 1:
        one, other = list(kinds.values())[:2]
        faults.add(
            f"{key}: {one} and {other} are of several kinds; a split takes images, or videos, or "
            "a pack"
        )
    return _Entry(tuple(paths), next(iter(kinds), ""), tuple(missing))


def _kind(path: Path) -> str | None:
    """The key in `SOURCES` of an existing path; "": it has images, None: it has nothing to use.

    Images that lie beside videos are what other trainers would use.
    """
    if path.suffix in SOURCES:
        return path.suffix
    if is_video(path) and not path.is_dir():
        return VIDEOS
    if next(images_in(path), None) is not None:
        return ""
    if path.is_dir() and next(videos_below(path), None) is not None:
        return VIDEOS
    return None


def _spelled(path: Path) -> Path:
    """The absolute path in the user's spelling, without `..` unless it follows a link.

    Links are kept, because labels are expected beside the images as they are named, and not beside
    the files that links lead to.
    """
    kept: list[str] = []
    for part in path.absolute().parts:
        if part == ".." and len(kept) > 1 and kept[-1] != ".." and not Path(*kept).is_symlink():
            kept.pop()
        else:
            kept.append(part)
    return Path(*kept)


def _keypoints(data: dict[str, Any]) -> tuple[int, int] | None:
    shape = data.get("kpt_shape")
    if isinstance(shape, list) and len(shape) == 2 and all(map(is_count, shape)):
        return shape[0], shape[1]
    return None
