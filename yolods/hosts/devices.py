"""What ranks compute on: GPUs or the CPU, and which GPUs, as the environment asks for it. Pure but for `present`.

    DS_ACCELERATOR          cuda, cpu, or what is there
    CUDA_VISIBLE_DEVICES    numbers of GPUs, names (GPU-<uuid>, MIG-<uuid>), or nothing: the CPU

DeepSpeed's launcher knows numbers only, and writes them into CUDA_VISIBLE_DEVICES itself. Where the user has given
names, or a hostfile its own numbers, slots are places in the user's list. It travels as NAMED; each rank puts it back.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, MutableMapping

from yolods.errors import OwnError, nearest
from yolods.hosts.probe import GPU_NODES

ACCELERATOR, VISIBLE, NAMED = "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "YOLODS_VISIBLE_DEVICES"
DEVICE_KINDS = ("cuda", "cpu")
_NONE = ("", "-1", "NoDevFiles")
"""Values that show no GPU; the last one is Slurm's."""


def count_gpus(environ: Mapping[str, str], present: Callable[[], int] | None = None) -> int:
    """How many GPUs a process with these variables sees and is to use; 0: it computes on the CPU.

    Args:
        present: counts those that CUDA shows it; torch is asked by default.

    Raises:
        OwnError: what is asked for is not there, or cannot be told from the variables.
    """
    kind = environ.get(ACCELERATOR, "")
    if kind and kind not in DEVICE_KINDS:
        raise OwnError(
            f"{ACCELERATOR}={kind}{nearest(kind, DEVICE_KINDS)}: ranks compute on cuda or cpu; correct or unset it"
        )
    if kind == "cpu":
        return 0
    names = visible(environ)
    found = 0 if names == () else (present or _present)()
    if names and found != len(names):
        shown = environ[VISIBLE]
        there = f"of {len(names)} GPUs {found} are there" if found else "no such GPU is there"
        raise OwnError(f"{VISIBLE}={shown}: {there} (nvidia-smi -L lists them); correct it, or unset it")
    if kind == "cuda" and not found:
        why = f"{VISIBLE} shows none" if names == () else "there is none"
        raise OwnError(f"{ACCELERATOR}=cuda asks for GPUs, and {why}; unset it, or use cpu")
    return found


def visible(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES lists; (): none of them. None: it is not set.

    Raises:
        OwnError: a list of which CUDA would take a part, or nothing.
    """
    if VISIBLE not in environ:
        return None
    given = environ[VISIBLE]
    listed = given.strip().rstrip(", ")  # a comma at the end CUDA reads over
    if listed in _NONE:
        return ()
    names = [name.strip() for name in listed.split(",")]
    numbers = all(name.isascii() and name.isdigit() for name in names)
    if numbers:
        names = [name.lstrip("0") or "0" for name in names]
    if not numbers and not any(all(name.startswith(kind) for name in names) for kind in ("GPU-", "MIG-")):
        wanted = "write numbers as 0,1, or only names that begin with GPU- or with MIG-"
        raise OwnError(f"{VISIBLE}={given}: {wanted}; CUDA stops reading at anything else")
    if len(set(names)) < len(names):
        raise OwnError(f"{VISIBLE}={given} names a GPU twice, of which CUDA makes none; name each once")
    if names[0].startswith("MIG-") and len(names) > 1:
        raise OwnError(f"{VISIBLE}={given}: CUDA shows a process one part (MIG) of a GPU; name one")
    return tuple(names)


def are_numbers(names: tuple[str, ...]) -> bool:
    """Whether GPUs are listed by number, as DeepSpeed's launcher takes them."""
    return all(name.isdigit() for name in names)


def slots_of(names: tuple[str, ...]) -> tuple[int, ...]:
    """The launcher's slots for listed GPUs: their numbers, or where they have names their places in the list."""
    return tuple(map(int, names)) if are_numbers(names) else tuple(range(len(names)))


def put_back(environ: MutableMapping[str, str]) -> None:
    """In a rank, before CUDA is asked anything: the GPUs of its slots by the names that the user has given."""
    given = environ.pop(NAMED, "")
    if not given:
        return
    names = given.split(",")
    slots = [int(slot) for slot in environ.get(VISIBLE, "").split(",") if slot.isdigit()]
    environ[VISIBLE] = ",".join(names[slot] for slot in slots) if slots and max(slots) < len(names) else given


def device_index(local: int, seen: int, *, task: bool) -> int:
    """Which of the GPUs that a rank sees it takes.

    Args:
        local: its position on its host.
        seen: GPUs that it sees.
        task: whether it is a task of its own of srun or mpirun, which may show each task a GPU of its own.

    Raises:
        OwnError: there are more ranks than GPUs.
    """
    if local < seen:
        return local
    if seen == 1 and task:
        return 0
    few = f"{seen} GPU{'s' * (seen != 1)}"
    raise OwnError(f"this is rank {local} of its host, counted from 0, and it sees {few}; start a rank a GPU")


def _present() -> int:
    if not any(
        glob.glob(pattern) for pattern in GPU_NODES
    ):  # importing torch to be told that there is none takes 1.2 s
        return 0
    import torch

    return torch.cuda.device_count()
