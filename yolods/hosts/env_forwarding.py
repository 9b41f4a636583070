"""The environment that travels: what ranks on other hosts are given of the variables where a run is started.

    DeepSpeed's launcher   those that begin with EXPORTED
    we, by a file          those that begin with CARRIED, and what the start decides for all hosts
    the user, by files     ~/.deepspeed_env and ./.deepspeed_env, which overrule all the others

What differs between hosts (interfaces, tools, threads) does not travel: `distributed.rank_env` works it out on each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from yolods.errors import Faults

EXPORTED = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")
"""Beginnings of the variables that DeepSpeed 0.19.8 hands on to other hosts; NCCL from a machine with GPUs."""
CARRIED = (
    *("YOLODS_", "YOLO_", "DS_", "DEEPSPEED_", "TORCH_", "NCCL_", "GLOO_", "OMP_", "MKL_", "CUBLAS_", "CUDA_HOME"),
    *("MALLOC_", "GLIBC_TUNABLES", "MPLBACKEND"),
)
"""Beginnings of those that we hand on: settings of yolods and of what it stands on. Whoever sets them means the run."""
ENV_FILE = "DS_ENV_FILE"
"""Names the users' files, and to DeepSpeed the one that it reads."""

_SAFE = re.compile(r"[\w@%+=:,./-]*", re.ASCII)
"""What DeepSpeed hands to a remote shell as it is; anything else it puts between double quotes."""


def carried(environ: Mapping[str, str]) -> dict[str, str]:
    """Those of our variables that we hand on."""
    found = {name: value for name, value in environ.items() if value and name.startswith(CARRIED) and name != ENV_FILE}
    if environ.get("PYTHONSAFEPATH"):
        # DeepSpeed puts the working directory on every rank's import path, where a folder called utils or models
        # would be imported in a package's stead.
        found["PYTHONPATH"] = environ.get("PYTHONPATH", "")
    # The file has a line for each, and in a shell no variable can end another way than it began.
    return {name: value for name, value in found.items() if name.isidentifier() and "\n" not in value}


def users_lines(environ: Mapping[str, str], folders: Sequence[Path], faults: Faults) -> list[str]:
    """The lines `NAME=value` of the user's own files.

    Args:
        environ: ours; DS_ENV_FILE gives the files another name.
        folders: where they may lie, the later one overruling: the home folder, and where the launcher is started.
        faults: gets lines at which DeepSpeed itself would fail.
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
                faults.add(f"{file} line {number}: `{line}`: write NAME=value; DeepSpeed stops at any other line")
    return found


def travelling(environ: Mapping[str, str], folders: Sequence[Path], faults: Faults) -> dict[str, str]:
    """All variables that ranks on other hosts find set. Arguments as `users_lines`."""
    exported = {name: value for name, value in environ.items() if name.startswith(EXPORTED)}
    split = (line.partition("=") for line in users_lines(environ, folders, faults))
    return {**exported, **carried(environ), **{name: value.strip() for name, _, value in split}}


def environment_file(variables: Mapping[str, str], lines: Sequence[str]) -> Path:
    """A file for DeepSpeed to read, as `in_memory`: `variables` and after them the user's lines as they are."""
    text = "".join(f"{name}={_escaped(value)}\n" for name, value in variables.items())
    return in_memory("deepspeed_env", text + "".join(f"{line}\n" for line in lines))


def in_memory(name: str, text: str) -> Path:
    """A file in memory, there until this process has ended, whatever program it then runs."""
    handle = os.memfd_create(name, 0)  # 0: it stays open over exec
    os.write(handle, text.encode())
    return Path(f"/proc/{os.getpid()}/fd/{handle}")


def shell_word(word: str) -> str:
    """A word for yolods so that it arrives whole after DeepSpeed, pdsh and the shell of another host.

    DeepSpeed puts double quotes round a word with a space in it, and escapes such quotes inside; nothing else.
    """
    if " " in word:
        return _percent(re.sub(r"([\\$`])", r"\\\1", word))
    if word and re.fullmatch(r"[\w@%+=:,./-]+", word, re.ASCII):
        return _percent(word)
    return _percent("'" + word.replace("'", "'\"'\"'") + "'")


def is_plain(path: str) -> bool:
    """Whether a path arrives whole although nobody puts quotes round it."""
    return _SAFE.fullmatch(path) is not None and "%" not in path


def _escaped(value: str) -> str:
    quoted = value if _SAFE.fullmatch(value.strip()) else re.sub(r'([\\"$`])', r"\\\1", value)
    return _percent(quoted)


def _percent(text: str) -> str:
    """pdsh puts the host's name in the place of %h, and more of the kind."""
    return text.replace("%", "%%")
