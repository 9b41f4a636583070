"""What a host says about itself: the probe run for real on this machine, with faults planted where
it looks."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from yolods import __version__
from yolods.hosts import probe
from yolods.hosts.probe import (
    Count,
    Gpu,
    Lock,
    ProbeRequest,
    Report,
    decode_report,
    encode_report,
    probe_host,
)

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
SOURCE = Path(probe.__file__).read_text(encoding="utf-8")


def probed(run_env: dict[str, str] | None = None, cwd: Path = ROOT, **request: object) -> Report:
    """Send the probe to a Python on its standard input, as to another host."""
    command = [sys.executable, "-", json.dumps(asdict(ProbeRequest(**request)))]
    environ = {**os.environ, **(run_env or {})}
    done = subprocess.run(
        command, input=SOURCE, cwd=cwd, env=environ, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return decode_report(done.stdout)


def fake(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    tool = folder / name
    tool.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    tool.chmod(0o755)
    return tool


def test_this_machine():
    began = time.monotonic()
    report = probed()
    assert time.monotonic() - began < 10  # 0.2 s on a quiet machine
    assert report.versions["yolods"] == __version__
    assert (
        report.versions["torch"] and report.versions["deepspeed"] and report.versions["ultralytics"]
    )
    assert (report.package, len(report.digest)) == (str(ROOT / "yolods"), 12)
    assert (report.directory, report.executable) == (str(ROOT), sys.executable)
    assert report.python == sys.version.split()[0]
    assert report.cores == len(os.sched_getaffinity(0))
    assert ("lo", "127.0.0.1/8") in report.addresses
    assert all(free > 0 for free in report.disk.values()) and str(ROOT) in report.disk
    assert abs(report.time - time.time()) < 10
    assert report.machine == probe.machine_id()


def test_it_imports_nothing_slow():
    script = (
        f"import sys\nsys.argv = ['-']\ntry:\n  exec({SOURCE!r})\nfinally:\n  print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert not {"torch", "numpy", "deepspeed", "ultralytics"} & set(
        done.stdout.splitlines()[-1].split()
    )


def test_a_report_survives_json():
    report = probe_host(ProbeRequest())
    assert decode_report(encode_report(report)) == report


@pytest.mark.parametrize("text", ["", "hello", "[]", "{}", '{"name": "x"}', "null"])
def test_what_is_no_report(text):
    with pytest.raises(ValueError):
        decode_report(text)


def test_a_host_without_yolods(tmp_path):
    """The environment of the tests may have yolods installed, so its folders are hidden from the
    probe."""
    script = (
        "import sys\nsys.path = [p for p in sys.path if 'python3' in p and 'site' not in p]\n"
        f"exec({SOURCE!r})"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    report = decode_report(done.stdout)
    assert report.package is None
    assert set(report.versions.values()) == {None}
    assert list(report.disk) == [str(tmp_path)]


def test_a_changed_file_changes_the_digest(tmp_path):
    shutil.copytree(
        ROOT / "yolods", tmp_path / "yolods", ignore=shutil.ignore_patterns("__pycache__")
    )
    before = probed(cwd=tmp_path)
    assert (before.package, before.digest) == (str(tmp_path / "yolods"), probed().digest)
    with (tmp_path / "yolods" / "stats.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert probed(cwd=tmp_path).digest != before.digest


def test_gpus_as_nvidia_smi_lists_them(tmp_path, monkeypatch):
    fake(tmp_path, "nvidia-smi", "echo '0, 80000, 81559'\necho '1, [N/A], [N/A]'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert probe_host(ProbeRequest()).gpus == [Gpu(0, 80000, 81559), Gpu(1, None, None)]


def test_gpus_that_nobody_can_list(tmp_path, monkeypatch):
    fake(tmp_path, "nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(probe, "GPU_NODES", (str(tmp_path / "nvidia-*"),))
    monkeypatch.setattr(probe, "_TORCH", "raise SystemExit(1)")
    report = probe_host(ProbeRequest())
    assert report.gpus == [] and "neither nvidia-smi nor torch" in report.gpu_error
    monkeypatch.setattr(probe, "_TORCH", "print('[[0, 900, 1000]]')")
    assert probe_host(ProbeRequest()).gpus == [Gpu(0, 900, 1000)]


def test_a_tool_that_hangs_is_given_up(tmp_path, monkeypatch):
    tool = fake(tmp_path, "slow", "exec sleep 60")
    monkeypatch.setattr(probe, "COMMAND_SECONDS", 0.2)
    assert probe._output([str(tool)], probe.COMMAND_SECONDS) == ""


def test_a_port():
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        port = taken.getsockname()[1]
        taken.listen()
        assert probe_host(ProbeRequest(master_port=port)).port_error == "Address already in use"
    assert probe_host(ProbeRequest(master_port=port)).port_error == ""
    assert probe_host(ProbeRequest()).port_error == ""


def test_a_lock_nobody_holds_and_one_that_is_held(tmp_path, monkeypatch):
    stale, held, nested = (
        tmp_path / name / "lock" for name in ("cpu_adam", "fused_adam", "py311_cpu/shm")
    )
    for lock in (stale, held, nested):
        lock.parent.mkdir(parents=True)
        lock.touch()
    os.utime(stale, (time.time() - 3600,) * 2)
    (tmp_path / "cpu_adam" / "build.ninja").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    builder = subprocess.Popen(
        ["sleep", "60"], cwd=nested.parent
    )  # as ninja, which works in the folder
    try:
        with held.open():  # as torch, which keeps it open
            locks = {lock.path: lock for lock in probe_host(ProbeRequest()).locks}
    finally:
        builder.kill()
        builder.wait()
    assert {path: lock.held for path, lock in locks.items()} == {
        str(stale): False,
        str(held): True,
        str(nested): True,
    }
    assert locks[str(stale)].age == pytest.approx(3600, abs=30)
    assert isinstance(locks[str(stale)], Lock) and stale.exists()


def test_data_is_counted(tmp_path):
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    for name, size in (("a.jpg", 10), ("deep/b.jpg", 5), ("deep.cache", 99)):
        (images / name).write_bytes(b"x" * size)
    listed = tmp_path / "val.txt"
    listed.write_text(
        "./images/a.jpg\n\n" + str(images / "deep/b.jpg") + "\n./images/gone.jpg\n",
        encoding="utf-8",
    )
    report = probed(
        trees=(str(images), str(listed), str(tmp_path / "none")),
        lists=(str(listed),),
        ignored=(".cache",),
    )
    size = listed.stat().st_size
    assert report.data == [
        Count(str(images), True, 2, 15),
        Count(str(listed), True, 1, size),
        Count(str(tmp_path / "none"), False),
        Count(str(listed), True, 3, size + 15),
    ]


def test_counting_ends_in_time(tmp_path):
    (tmp_path / "a").touch()
    assert probe_host(ProbeRequest(trees=(str(tmp_path),), walk_seconds=-1.0)).data == [
        Count(str(tmp_path), True, 0, 0, whole=False)
    ]


def test_it_ends_by_itself_and_with_it_what_it_started(tmp_path):
    fake(tmp_path, "hostname", "exec sleep 60")
    command = [sys.executable, "-", json.dumps({"limit_seconds": 1})]
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, input=SOURCE, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "something hangs there: not finished after 1 s"


def test_a_pack_that_is_not_complete(tmp_path):
    def fault() -> str:
        (count,) = probed(trees=(str(pack),)).data
        assert count.present and count.whole
        return count.fault

    pack = tmp_path / "train.pack"
    pack.mkdir()
    assert fault() == "is not a finished pack: pack.json is missing"
    (pack / "pack.json").write_text('{"shards": [{"file": "00000.tar", "bytes": 5, "sha256": ""}]}')
    assert fault() == "lacks its 00000.tar"
    (pack / "00000.tar").write_bytes(b"1234")
    assert fault() == "has 4 bytes in 00000.tar instead of 5"
    (pack / "00000.tar").write_bytes(b"12345")
    assert fault() == ""
    (pack / "pack.json").write_text('{"shards": 5}')
    assert fault() == "has a damaged pack.json (TypeError)"
