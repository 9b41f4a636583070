"""Devices for the ranks, GPUs or the CPU, as the environment selects them.

Only `_present` looks at the machine, and only `put_back` changes an environment.

    DS_ACCELERATOR          cuda, cpu, or unset: whatever exists
    CUDA_VISIBLE_DEVICES    GPU numbers, names (GPU-<uuid>, MIG-<uuid>), or empty: the CPU

DeepSpeed's launcher supports only numbers, and overwrites CUDA_VISIBLE_DEVICES with them. If the
user has given names, or a hostfile has its own numbers, slots are indices into the user's list. The
launcher passes that list as NAMED, and each rank restores its part of it.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, MutableMapping

from yolods.errors import OwnError, nearest
from yolods.hosts.probe import GPU_NODES

ACCELERATOR, VISIBLE, NAMED = "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "YOLODS_VISIBLE_DEVICES"
DEVICE_KINDS = ("cuda", "cpu")
_NONE = ("", "-1", "NoDevFiles")
"""Values that hide all GPUs; the last one is Slurm's."""


def count_gpus(environ: Mapping[str, str], present: Callable[[], int] | None = None) -> int:
    """Number of GPUs that a process with these variables should use; 0: it computes on the CPU.

    Args:
        present: counts the GPUs that CUDA shows to the process; default: ask torch.

    Raises:
        OwnError: a variable has a wrong value, or a requested GPU does not exist.
    """
    kind = environ.get(ACCELERATOR, "")
    if kind and kind not in DEVICE_KINDS:
        raise OwnError(
            f"{ACCELERATOR}={kind}{nearest(kind, DEVICE_KINDS)}: ranks compute on cuda or cpu; "
            "correct or unset it"
        )
    if kind == "cpu":
        return 0
    # None: the variable is not set, and all GPUs count; (): it hides them all.
    names = visible(environ)
    found = 0 if names == () else (present or _present)()
    if names and found != len(names):
        shown = environ[VISIBLE]
        fault = f"of {len(names)} GPUs CUDA shows {found}" if found else "no such GPU exists"
        raise OwnError(
            f"{VISIBLE}={shown}: {fault} (nvidia-smi -L lists them); correct it, or unset it"
        )
    if kind == "cuda" and not found:
        why = f"{VISIBLE} shows none" if names == () else "there is none"
        raise OwnError(f"{ACCELERATOR}=cuda asks for GPUs, but {why}; unset it, or use cpu")
    return found


def visible(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    """The GPUs listed in CUDA_VISIBLE_DEVICES; (): none. None: the variable is not set.

    Raises:
        OwnError: CUDA would use only part of the list, or nothing.
    """
    if VISIBLE not in environ:
        return None
    given = environ[VISIBLE]
    listed = given.strip().rstrip(", ")  # CUDA ignores a trailing comma
    if listed in _NONE:
        return ()
    names = [name.strip() for name in listed.split(",")]
    numbers = all(name.isascii() and name.isdigit() for name in names)
    if numbers:
        # CUDA reads 01 as 1, so both name one GPU twice.
        names = [name.lstrip("0") or "0" for name in names]
    alike = any(all(name.startswith(kind) for name in names) for kind in ("GPU-", "MIG-"))
    if not numbers and not alike:
        wanted = "write numbers as 0,1, or only names that begin with GPU- or with MIG-"
        raise OwnError(f"{VISIBLE}={given}: {wanted}; CUDA stops reading at anything else")
    if len(set(names)) < len(names):
        raise OwnError(
            f"{VISIBLE}={given} names a GPU twice, for which CUDA shows none; name each once"
        )
    if names[0].startswith("MIG-") and len(names) > 1:
        raise OwnError(
            f"{VISIBLE}={given}: CUDA shows a process only one part (MIG) of a GPU; name one"
        )
    return tuple(names)


def are_numbers(names: tuple[str, ...]) -> bool:
    """Whether all GPUs are listed by number, as DeepSpeed's launcher needs them."""
    return all(name.isdigit() for name in names)


def slots_of(names: tuple[str, ...]) -> tuple[int, ...]:
    """The launcher's slots for listed GPUs: their numbers, or the list indices of named ones."""
    return tuple(map(int, names)) if are_numbers(names) else tuple(range(len(names)))


def put_back(environ: MutableMapping[str, str]) -> None:
    """Restore the user's GPU names for this rank's slots. Call it before the first use of CUDA."""
    given = environ.pop(NAMED, "")
    if not given:
        return
    names = given.split(",")
    # DeepSpeed's launcher has put the slots here. If they do not fit the list, show all of it.
    slots = [int(slot) for slot in environ.get(VISIBLE, "").split(",") if slot.isdigit()]
    environ[VISIBLE] = (
        ",".join(names[slot] for slot in slots) if slots and max(slots) < len(names) else given
    )


def device_index(local: int, seen: int, *, task: bool) -> int:
    """Index of the GPU that a rank uses, among those that it sees.

    Args:
        local: its rank on its host.
        seen: number of GPUs that it sees.
        task: whether it is a task of its own of srun or mpirun, which may show each task only one
            GPU.

    Raises:
        OwnError: there are more ranks than GPUs.
    """
    if local < seen:
        return local
    if seen == 1 and task:
        return 0
    few = f"{seen} GPU{'s' * (seen != 1)}"
    raise OwnError(
        f"this is rank {local} of its host, counted from 0, and it sees {few}; start one rank per "
        "GPU"
    )


def _present() -> int:
    # Without device nodes there is no GPU; importing torch to learn that takes 1.2 s.
    if not any(glob.glob(pattern) for pattern in GPU_NODES):
        return 0
    import torch

    return torch.cuda.device_count()
