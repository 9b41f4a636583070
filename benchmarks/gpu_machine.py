"""What a GPU session runs on: the card, the versions, and how fast the card is at its two plainest
tasks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil

import torch

from benchmarks.gpu_clipping import copy_bandwidth
from benchmarks.gpu_job import Item, Job

PACKAGES = ("torch", "torchvision", "deepspeed", "ultralytics", "numpy", "triton")
SIDE = 8192
"""Of the matrices that are multiplied."""


def machine(job: Job) -> None:
    """Names and versions; then copying and multiplying."""
    with job.item("versions") as item:
        item.facts["Python"] = platform.python_version()
        for name in PACKAGES:
            try:
                item.facts[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                item.facts[name] = "not installed"
        from deepspeed.accelerator import get_accelerator

        item.facts |= {
            "CUDA of torch": torch.version.cuda,
            "DeepSpeed's accelerator": get_accelerator().device_name(),
        }
        item.facts |= {
            "CPU cores": len(os.sched_getaffinity(0)),
            "nvcc": shutil.which("nvcc") or "none",
        }
        import torchvision

        item.facts["torchvision's NMS"] = (
            "a stand-in" if "standin" in torchvision.__version__ else "its own"
        )
    with job.item("card") as item:
        _card(item, job.pretend)


def _card(item: Item, pretend: bool) -> None:
    place = torch.device("cpu" if pretend else "cuda")
    if not pretend:
        found = torch.cuda.get_device_properties(0)
        item.facts |= {
            "name": found.name,
            "memory, GiB": found.total_memory / 2**30,
            "GPUs": torch.cuda.device_count(),
        }
        item.facts |= {
            "capability": f"{found.major}.{found.minor}",
            "cuDNN": torch.backends.cudnn.version(),
        }
        item.facts["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    item.facts["copies, GB/s read and written"] = (
        copy_bandwidth(place, 2**24 if pretend else 2**30) / 1e9
    )
    item.facts["bf16 product, TFLOP/s"] = _matrix_speed(place, 64 if pretend else SIDE) / 1e12


def _matrix_speed(place: torch.device, side: int) -> float:
    """FLOPs a second of square bf16 products: the fastest of five."""
    from benchmarks.clipping_run import clock

    one, other = (torch.randn(side, side, device=place).bfloat16() for _ in range(2))
    one @ other
    return 2 * side**3 / min(clock(lambda: one @ other, place).seconds for _ in range(5))
