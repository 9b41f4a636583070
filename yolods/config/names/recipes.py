"""Finds the DeepSpeed configurations that come with yolods by name."""

from __future__ import annotations

from collections.abc import Collection
from importlib.resources import files
from pathlib import Path

from yolods.errors import Faults, nearest

AUTO = "auto"
"""The value of --deepspeed_config that leaves the layout to the plan."""


def find_json(named: str | Path, faults: Faults) -> Path:
    """The file of `--deepspeed_config`: a path, or a name in ds_configs/ (.json optional).

    An existing file wins. If the name is neither, a fault lists the names in ds_configs/.
    """
    path, stem = Path(named), Path(named).name.removesuffix(".json")
    ready = recipes()
    is_name = path.parent == Path(".")
    if is_name and stem in ready and not path.is_file():  # a folder of that name may be a run
        return ready[stem]
    if path.exists() or not ready:
        return path
    names = ready if path.suffix else [*ready, AUTO]
    hint = _nearest(stem, names) if is_name or stem in ready else ""
    if hint or (is_name and not path.suffix):
        faults.add(
            f"--deepspeed_config {named}: no such file{hint}; ds_configs/ has {', '.join(ready)}; "
            f"{AUTO} lets the plan choose"
        )
    return path


def recipes() -> dict[str, Path]:
    """The files of ds_configs/ by name."""
    return {file.stem: file for file in sorted(_folder().glob("*.json"))}


def _folder() -> Path:
    """ds_configs/: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(str(files("yolods")))
    inside = package / "ds_configs"
    return inside if inside.is_dir() else package.parent / "ds_configs"


def _nearest(stem: str, ready: Collection[str]) -> str:
    """A question with the names that begin with `stem`, else with the closest; "" if none is."""
    begun = [f"'{name}'" for name in ready if name.startswith(stem)]
    return f" (did you mean {' or '.join(begun)}?)" if begun else nearest(stem, ready)
