"""What a measurement was taken on and with."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from yolods import __version__

PACKAGES = ("torch", "deepspeed", "ultralytics", "numpy", "opencv-python", "opencv-python-headless")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
"""Instruction sets that decide how fast fp32 and bf16 are."""


def describe(cores: list[int]) -> list[str]:
    """Lines about this machine and the versions installed.

    Args:
        cores: those that are used.
    """
    facts = _cpu_facts()
    clone = f" at {here}" if (here := commit()) else ""
    flags = [flag for flag in FLAGS if flag in facts.get("flags", "").split()]
    return [
        f"- CPU: {facts.get('model name', platform.processor() or platform.machine())} "
        f"(family {facts.get('cpu family', '?')}, model {facts.get('model', '?')}), "
        f"{os.cpu_count()} cores, of which {len(cores)} are used; {' '.join(flags) or 'no AVX'}",
        f"- memory: {_memory():.0f} GiB, transparent huge pages: {_huge_pages()}",
        f"- system: {platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}, "
        f"load {os.getloadavg()[0]:.2f} when it began",
        f"- Python {platform.python_version()}, {', '.join(_versions())}, yolods "
        f"{__version__}{clone}",
    ]


def _cpu_facts() -> dict[str, str]:
    """The first block of /proc/cpuinfo; empty where there is none."""
    facts: dict[str, str] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return facts
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            break
        facts[name.strip()] = value.strip()
    return facts


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _huge_pages() -> str:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    return text[text.find("[") + 1 : text.find("]")]


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of this clone, and whether files differ from it; empty outside a clone."""
    folder = Path(__file__).resolve().parent
    try:
        words = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        done = subprocess.run(
            words, cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
