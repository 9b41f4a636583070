"""What a run runs on, and how it was started: told on the screen, in train.log, config.json and TensorBoard."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yolods.distributed.world import Ranks
from yolods.launch.args import COMMAND
from yolods.system.versions import versions


@dataclass(frozen=True)
class Provenance:
    """Facts about a start. They decide nothing."""

    command: str
    """As typed, ready to be pasted into a shell."""
    folder: str
    """Where it was typed."""
    versions: Mapping[str, str]
    """Of yolods, python and what they stand on."""
    devices: tuple[tuple[str, str, int], ...]
    """(host, name of the device, ranks on such a device there), in the order of the ranks."""

    def lines(self) -> list[str]:
        """For the screen."""
        named = ", ".join(
            f"{'Python' if name == 'python' else name} {number}" for name, number in self.versions.items()
        )
        places = "; ".join(f"{host}: {count} x {device}" for host, device, count in self.devices)
        return [named, f"Ranks on {places}", f"Command: {self.command}"]

    def as_dict(self) -> dict[str, Any]:
        """For config.json."""
        return asdict(self)


def provenance(ranks: Ranks) -> Provenance:
    """Gather what ranks know of their hosts; whole on rank 0. A collective."""
    counts: dict[tuple[str, str], int] = {}
    for place in ranks.to_main((ranks.host, _device_name(ranks))):
        counts[place] = counts.get(place, 0) + 1
    return Provenance(
        command=os.environ.get(COMMAND) or _typed(),
        folder=os.getcwd(),
        versions=_built(),
        devices=tuple((host, device, count) for (host, device), count in counts.items()),
    )


def _typed() -> str:
    return shlex.join(["yolods", *sys.argv[1:]])


def _built() -> dict[str, str]:
    """Versions, with the build of torch and what it drives."""
    import torch

    found = versions()
    found["torch"] = torch.__version__  # which names the build, too: +cpu, +cu130
    if torch.version.cuda and torch.cuda.is_available():
        found["CUDA"] = torch.version.cuda
        found["driver"] = _driver()
    return found


def _driver() -> str:
    """The NVIDIA driver's version, as the kernel module tells it."""
    try:
        return Path("/sys/module/nvidia/version").read_text(encoding="utf-8").strip()
    except OSError:
        return "unknown"


def _device_name(ranks: Ranks) -> str:
    import torch

    if ranks.device.type == "cuda":
        memory = torch.cuda.get_device_properties(ranks.device).total_memory / 2**30
        return f"{torch.cuda.get_device_name(ranks.device)} ({memory:.0f} GiB)"
    return f"{_cpu_name()} ({torch.get_num_threads()} threads)"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
