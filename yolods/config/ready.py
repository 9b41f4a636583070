"""The DeepSpeed configurations that come with yolods, by name."""

from __future__ import annotations

from pathlib import Path

from yolods.errors import Faults, nearest

FOLDER = Path(__file__).resolve().parents[2] / "ds_configs"
"""In a checkout; an installation from a wheel has none."""


def find_json(named: str | Path, faults: Faults) -> Path:
    """The file of a `--deepspeed_config`: a path, or the name of one in ds_configs/, with its suffix or without.

    A path that exists wins. Of a name that is neither a fault says which there are.
    """
    path = Path(named)
    if path.exists() or path.parent != Path("."):
        return path
    ready = {file.stem: file for file in sorted(FOLDER.glob("*.json"))}
    if file := ready.get(path.name.removesuffix(".json")):
        return file
    if ready and not path.suffix:
        names, begun = ", ".join(ready), [f"'{name}'" for name in ready if name.startswith(path.name)]
        hint = f" (did you mean {' or '.join(begun)}?)" if begun else nearest(path.name, ready)
        faults.add(f"--deepspeed_config {named}: no such file{hint}; ds_configs/ has {names}")
    return path
