"""The container: its file names what there is, and builds where docker is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_it_copies_what_there_is_and_what_the_build_is_sent():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.+)$", text, re.M) for name in line.split()[:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {f"!{name}" for name in copied} <= set(sent)
    versions = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for package in re.findall(r"s/\^(\w+)==//p", text):
        assert re.search(rf"^{package}==[\d.]+$", versions, re.M)


BUILD_SECONDS = 210
"""Less than the limit at which a test ends the whole run (pyproject.toml)."""
OFFLINE = re.compile(r"no such host|name resolution|failed to resolve|i/o timeout|NewConnection")


@pytest.mark.slow
@pytest.mark.timeout(235)
def test_it_builds_where_docker_is():
    if shutil.which("docker") is None:
        pytest.skip("needs docker")
    if docker("info", timeout=30).returncode:
        pytest.skip("docker is here, but no daemon answers")
    tag = "yolods-test"
    try:
        words = ("build", "--build-arg", "TORCH=cpu", "--tag", tag, str(ROOT))
        built = docker(*words, timeout=BUILD_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.skip(f"the build takes longer than {BUILD_SECONDS} s here; `docker build .` does it")
    if built.returncode and OFFLINE.search(built.stderr):
        pytest.skip("docker is here, but without a network it cannot build")
    assert built.returncode == 0, built.stderr[-3000:]
    done = docker("run", "--rm", tag, "version", timeout=20)
    docker("image", "rm", tag, timeout=20)
    assert done.returncode == 0 and re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)


def docker(*words: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run docker."""
    return subprocess.run(["docker", *words], capture_output=True, text=True, timeout=timeout)
