"""Where to find data yamls and images that have no path: the files and folders of ultralytics."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from yolods.parsing.json_file import parse_json
from yolods.system.folders import cache_dir, ultralytics_folders


def shipped_yaml(name: Path) -> Path | None:
    """The data yaml of this name in ultralytics' package ("coco8.yaml" or "coco8").

    Found without importing ultralytics, which takes seconds.
    """
    package = importlib.util.find_spec("ultralytics")
    if not (package and package.origin and name.parent == Path(".")):
        return None
    folder = Path(package.origin).parent / "cfg" / "datasets"
    return next((file for file in (folder / name, folder / f"{name}.yaml") if file.is_file()), None)


def stores() -> list[Path]:
    """Folders of data sets; downloads go to the first.

    These are `datasets_dir` of the user's ultralytics settings, and `datasets` in our cache.
    """
    own = cache_dir()
    # yolods runs ultralytics with settings of its own, in the cache. Their datasets_dir is
    # ultralytics' guess, a folder beside the checkout, which no user has chosen.
    theirs = [folder for folder in ultralytics_folders() if not folder.is_relative_to(own)]
    found = [_datasets_dir(folder / "settings.json") for folder in theirs]
    return [*dict.fromkeys(folder for folder in found if folder is not None), own / "datasets"]


def _datasets_dir(settings: Path) -> Path | None:
    try:
        folder = parse_json(settings.read_text(encoding="utf-8")).get("datasets_dir")
    except (OSError, ValueError, AttributeError):
        return None
    return Path(folder) if isinstance(folder, str) and folder else None
