"""Environment variables that ranks on other hosts receive from the machine that starts a run.

    forwarded by            which
    DeepSpeed's launcher    those with a prefix in EXPORTED
    yolods, by a file       those with a prefix in CARRIED, and the start's settings for all hosts
    the user, by files      ~/.deepspeed_env and ./.deepspeed_env, which override all others

Variables that differ between hosts (interfaces, tools, threads) are not forwarded:
`distributed.rank_env` determines them on each host.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from yolods.errors import Faults

EXPORTED = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")
"""Prefixes that DeepSpeed 0.19.8 forwards to other hosts; NCCL only from a machine with GPUs."""
CARRIED = (
    *(
        "YOLODS_",
        "YOLO_",
        "DS_",
        "DEEPSPEED_",
        "TORCH_",
        "NCCL_",
        "GLOO_",
        "OMP_",
        "MKL_",
        "CUBLAS_",
        "CUDA_HOME",
    ),
    *("MALLOC_", "GLIBC_TUNABLES", "MPLBACKEND"),
)
"""Prefixes that yolods forwards: settings of yolods and of its dependencies, which are meant for
the whole run."""
ENV_FILE = "DS_ENV_FILE"
"""Variable with the name of the users' files; to DeepSpeed, the name of the file that it reads."""

_SAFE = re.compile(r"[\w@%+=:,./-]*", re.ASCII)
"""Text that DeepSpeed passes to a remote shell unchanged; it puts anything else in double
quotes."""


def carried(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that yolods forwards."""
    found = {
        name: value
        for name, value in environ.items()
        if value and name.startswith(CARRIED) and name != ENV_FILE
    }
    if environ.get("PYTHONSAFEPATH"):
        # DeepSpeed puts the working directory on every rank's import path (launcher/runner.py:586),
        # where a folder named utils or models would hide a package. The PYTHONPATH of our file
        # replaces that path.
        found["PYTHONPATH"] = environ.get("PYTHONPATH", "")
    # The file has one line per variable, so names and values must be valid on a single line.
    return {
        name: value for name, value in found.items() if name.isidentifier() and "\n" not in value
    }


def users_lines(environ: Mapping[str, str], folders: Sequence[Path], faults: Faults) -> list[str]:
    """The `NAME=value` lines of the user's own files.

    Args:
        environ: environment, in which DS_ENV_FILE may change the name of the files.
        folders: folders of the files, a later one overriding an earlier one: the home folder, and
            the folder where the launcher starts.
        faults: collects the lines at which DeepSpeed itself would fail.
    """
    found = []
    for folder in folders:
        file = folder / environ.get(ENV_FILE, ".deepspeed_env")
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        for number, line in enumerate(lines, 1):
            name, equals, _ = line.partition("=")
            if equals and name.isidentifier():
                found.append(line)
            else:
                faults.add(
                    f"{file} line {number}: `{line}`: write NAME=value; DeepSpeed fails at any "
                    "other line"
                )
    return found


def travelling(
    environ: Mapping[str, str], folders: Sequence[Path], faults: Faults
) -> dict[str, str]:
    """All variables that ranks on other hosts receive. The arguments are those of `users_lines`."""
    exported = {name: value for name, value in environ.items() if name.startswith(EXPORTED)}
    split = (line.partition("=") for line in users_lines(environ, folders, faults))
    return {**exported, **carried(environ), **{name: value.strip() for name, _, value in split}}


def environment_file(variables: Mapping[str, str], lines: Sequence[str]) -> Path:
    """A file for DeepSpeed, made by `in_memory`: `variables`, then the user's lines unchanged.

    The later of two equal names counts, so the user's lines override.
    """
    text = "".join(f"{name}={_escaped(value)}\n" for name, value in variables.items())
    return in_memory("deepspeed_env", text + "".join(f"{line}\n" for line in lines))


def in_memory(name: str, text: str) -> Path:
    """A file in memory that exists until this process ends, also after it has run `exec`."""
    # Flag 0: without MFD_CLOEXEC the descriptor stays open over exec.
    handle = os.memfd_create(name, 0)
    os.write(handle, text.encode())
    return Path(f"/proc/{os.getpid()}/fd/{handle}")


def shell_word(word: str) -> str:
    """Quote a word for yolods so that DeepSpeed, pdsh and the remote shell pass it on unchanged.

    DeepSpeed puts a word with a space into double quotes and escapes double quotes inside it; it
    quotes nothing else.
    """
    if " " in word:
        return _percent(re.sub(r"([\\$`])", r"\\\1", word))
    if word and re.fullmatch(r"[\w@%+=:,./-]+", word, re.ASCII):
        return _percent(word)
    return _percent("'" + word.replace("'", "'\"'\"'") + "'")


def is_plain(path: str) -> bool:
    """Whether a path needs no quotes in a remote shell and no escape for pdsh."""
    return _SAFE.fullmatch(path) is not None and "%" not in path


def _escaped(value: str) -> str:
    quoted = value if _SAFE.fullmatch(value.strip()) else re.sub(r'([\\"$`])', r"\\\1", value)
    return _percent(quoted)


def _percent(text: str) -> str:
    """Escape %: pdsh replaces %h by the host's name, and other such codes."""
    return text.replace("%", "%%")
