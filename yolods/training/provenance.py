"""The command, versions and devices of a run, for the screen and its files."""

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
    """Facts about a start, for the record only: nothing depends on them."""

    command: str
    """The command as typed, quoted for a shell."""
    folder: str
    """The working directory of the command."""
    versions: Mapping[str, str]
    """Versions of yolods, Python and their dependencies."""
    devices: tuple[tuple[str, str, int], ...]
    """(host, device name, number of ranks on such devices there), in the order of the ranks."""

    def lines(self) -> list[str]:
        """The lines for the screen."""
        named = ", ".join(
            f"{'Python' if name == 'python' else name} {number}"
            for name, number in self.versions.items()
        )
        places = "; ".join(f"{host}: {count} x {device}" for host, device, count in self.devices)
        return [named, f"Ranks on {places}", f"Command: {self.command}"]

    def as_dict(self) -> dict[str, Any]:
        """The entry for config.json."""
        return asdict(self)


def provenance(ranks: Ranks) -> Provenance:
    """Gather hosts and devices of all ranks; complete on rank 0 only. A collective."""
    counts: dict[tuple[str, str], int] = {}
    for place in ranks.to_main((ranks.host, _device_name(ranks))):
        counts[place] = counts.get(place, 0) + 1
    return Provenance(
        # The launcher passes on what the user typed; it adds flags to the ranks' own arguments.
        command=os.environ.get(COMMAND) or _typed(),
        folder=os.getcwd(),
        versions=_built(),
        devices=tuple((host, device, count) for (host, device), count in counts.items()),
    )


def _typed() -> str:
    return shlex.join(["yolods", *sys.argv[1:]])


def _built() -> dict[str, str]:
    """The versions, with torch's build, CUDA and the driver."""
    import torch

    found = versions()
    found["torch"] = torch.__version__  # this one names the build as well: +cpu, +cu130
    if torch.version.cuda and torch.cuda.is_available():
        found["CUDA"] = torch.version.cuda
        found["driver"] = _driver()
    return found


def _driver() -> str:
    """The NVIDIA driver's version, from its kernel module."""
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
