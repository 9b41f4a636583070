"""Prints what a GPU session needs and this Python lacks, as pip takes it: `gpu_missing.py
constraints.txt`.

A package of the image stays as it is, whatever its version: it goes with the image's torch, which
is never named.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

NEEDED = {
    "deepspeed": "deepspeed",
    "hjson": "hjson",
    "ninja": "ninja",
    "cpuinfo": "py-cpuinfo",
    "msgpack": "msgpack",
    "einops": "einops",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic_core",
    "annotated_types": "annotated-types",
    "typing_inspection": "typing-inspection",
    "psutil": "psutil",
    "tqdm": "tqdm",
    "yaml": "pyyaml",
    "PIL": "pillow",
    "requests": "requests",
    "urllib3": "urllib3",
    "idna": "idna",
    "certifi": "certifi",
    "charset_normalizer": "charset-normalizer",
    "ultralytics": "ultralytics",
    "thop": "ultralytics-thop",
    "cv2": "opencv-python-headless",
    "matplotlib": "matplotlib",
    "contourpy": "contourpy",
    "cycler": "cycler",
    "fontTools": "fonttools",
    "kiwisolver": "kiwisolver",
    "pyparsing": "pyparsing",
    "dateutil": "python-dateutil",
    "packaging": "packaging",
    "tensorboard": "tensorboard",
    "absl": "absl-py",
    "grpc": "grpcio",
    "google.protobuf": "protobuf",
    "markdown": "markdown",
    "werkzeug": "werkzeug",
    "markupsafe": "markupsafe",
    "tensorboard_data_server": "tensorboard-data-server",
    "pytest": "pytest",
    "pluggy": "pluggy",
    "iniconfig": "iniconfig",
    "pygments": "pygments",
}
"""Modules, and the packages that have them."""


def missing(constraints: str) -> list[str]:
    """Requirements for the modules that cannot be found, with the versions that the constraints
    name."""
    pins = dict(
        line.split(";")[0].split("==")
        for line in constraints.splitlines()
        if "==" in line.split(";")[0]
    )
    pins = {name.strip().lower(): version.strip() for name, version in pins.items()}
    found = []
    for module, package in NEEDED.items():
        if not _is_there(module):
            # Its pin is that of the build with a screen; both have the same releases.
            version = pins.get(package.lower().removesuffix("-headless"))
            found.append(f"{package}=={version}" if version else package)
    return found


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that holds it
        return False


if __name__ == "__main__":
    print("\n".join(missing(Path(sys.argv[1]).read_text(encoding="utf-8"))))
