"""Where data yamls and images are looked for that are not named by a path: what ultralytics ships and keeps."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from yolods.parsing.json_file import parse_json
from yolods.system.folders import cache_dir, ultralytics_folders


def shipped_yaml(name: Path) -> Path | None:
    """The data yaml of this name that ultralytics ships ("coco8.yaml" or "coco8"), found without importing it."""
    package = importlib.util.find_spec("ultralytics")
    if not (package and package.origin and name.parent == Path(".")):
        return None
    folder = Path(package.origin).parent / "cfg" / "datasets"
    return next((file for file in (folder / name, folder / f"{name}.yaml") if file.is_file()), None)


def stores() -> list[Path]:
    """Folders of data sets, first the one that a download goes to.

    These are the `datasets_dir` of a user's ultralytics settings, and `datasets` in our cache.
    """
    own = cache_dir()
    # Our own process' settings lie in the cache, and name a folder beside the checkout that nobody has chosen.
    theirs = [folder for folder in ultralytics_folders() if not folder.is_relative_to(own)]
    found = [_datasets_dir(folder / "settings.json") for folder in theirs]
    return [*dict.fromkeys(folder for folder in found if folder is not None), own / "datasets"]


def _datasets_dir(settings: Path) -> Path | None:
    try:
        folder = parse_json(settings.read_text(encoding="utf-8")).get("datasets_dir")
    except (OSError, ValueError, AttributeError):
        return None
    return Path(folder) if isinstance(folder, str) and folder else None
