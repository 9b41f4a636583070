"""A command that is forked finds what it would have found had it been started anew; so does one
that a fork starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import forks
from tests.as_started import Command, command_of

pytestmark = pytest.mark.process

PROBE = """
import json, logging, os, random, signal, sys, tempfile, threading, warnings
import numpy, torch, yolods.system.interrupt
from deepspeed.utils import logger

blocked = sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())))
handlers = {int(n): getattr(h := signal.getsignal(n), "__name__", str(h)) for n in signal.valid_signals()}
found = {
    "argv": [os.path.basename(sys.argv[0]), *sys.argv[1:]], "name": __name__, "folder": os.getcwd(), "path": sys.path,
    "environment": {name: value for name, value in os.environ.items() if name not in ("LC_CTYPE", "KMP_INIT_AT_FORK")},
    "input": sys.stdin.read(), "buffering": [(s.line_buffering, s.write_through) for s in (sys.stdout, sys.stderr)],
    "session": os.getsid(0) == os.getpid(), "descriptors": sorted(map(int, os.listdir("/proc/self/fd")))[:3],
    "open": len(os.listdir("/proc/self/fd")), "blocked": blocked, "handlers": handlers, "umask": os.umask(0o22),
    "ignores": any(each[:3] == ("ignore", None, Warning) for each in warnings.filters),
    "threads": threading.active_count(),
    "hooks": [sys.excepthook is sys.__excepthook__, threading.excepthook is threading.__excepthook__],
    "levels": [logging.root.level, logger.level, logging.root.manager.disable], "handled": len(logging.root.handlers),
    "interrupt": yolods.system.interrupt.asked(), "temporary": tempfile.gettempdir(),
    "planted": hasattr(yolods.system.interrupt, "planted"),
}
print(json.dumps(found))
print(json.dumps([random.random(), numpy.random.rand(), torch.rand(1).item()]), file=sys.stderr)
"""  # noqa: E501
PARENT = """
import logging, os, random, signal, subprocess, sys, tempfile, threading, warnings
import torch, yolods.system.interrupt
from deepspeed.utils import logger

random.seed(0), torch.manual_seed(7), warnings.simplefilter("ignore"), logger.setLevel("CRITICAL")
logging.disable(30), logging.root.addHandler(logging.NullHandler()), logging.root.setLevel(10)
yolods.system.interrupt.planted = True
yolods.system.interrupt.heed(lambda *_: None)
sys.excepthook = threading.excepthook = lambda *_: None
sys.path.insert(0, "/nowhere")
tempfile.tempdir = "/nowhere"
held = open(os.devnull)
sys.stdout = sys.stderr
words = [sys.executable, "-u", "-m", "probe", *sys.argv[1:]]
if __name__ == "__main__":
    done = subprocess.run(words, preexec_fn=yolods.system.interrupt.hold_ctrl_c, stdin=subprocess.DEVNULL)
    sys.exit(done.returncode)
"""  # noqa: E501
EARLIER = """
import parent
with parent.yolods.system.interrupt.held():
    parent.os.execvpe(parent.sys.executable, parent.words, parent.os.environ)
"""


def started(
    popen: type[subprocess.Popen], folder: Path, *words: str, **env: str
) -> tuple[int, str, str]:
    """Exit status, and both streams."""
    process = popen(
        [sys.executable, *words],
        cwd=folder,
        env={**forks.environment(), **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "earlier.py").write_text(EARLIER)
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / "sitecustomize.py").write_text(
        "import os; os.environ['CUSTOMISED'] = 'yes'\n"
    )
    return tmp_path


@pytest.mark.parametrize("module", ["probe", "parent", "earlier"])
def test_a_fork_finds_what_a_new_python_finds(folder: Path, module: str) -> None:
    """`parent` has changed what a process can change before it starts the probe; `earlier` becomes
    the probe after the same changes."""
    env = {
        "PYTHONPATH": os.pathsep.join([str(folder / "custom"), forks.environment()["PYTHONPATH"]]),
        "MINE": "ä",
    }
    found = []
    for popen in (subprocess.Popen, forks.Popen):
        status, out, err = started(popen, folder, "-m", module, "a word", **env)
        assert status == 0, err
        found.append((json.loads(out), json.loads(err.splitlines()[-1])))
    (new, drawn), (fork, also_drawn) = found
    own = {"CUSTOMISED": "yes", **forks.environment(), **env}
    # The probe leaves it out: Python sets it at its start, in a shell that has no locale.
    own.pop("LC_CTYPE", None)
    assert fork.pop("environment") == own and new.pop("environment").items() >= own.items()
    assert {name: (new[name], fork[name]) for name in new if new[name] != fork[name]} == {}
    assert all(one != other for one, other in zip(drawn, also_drawn, strict=True))


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(7)",
        "import sys; sys.exit('a reason')",
        "import os; os._exit(3)",
        "raise ValueError('a fault')",
        "raise KeyboardInterrupt",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import atexit; atexit.register(print, 'at the end')",
    ],
)
def test_a_fork_ends_as_a_new_python_does(folder: Path, code: str) -> None:
    (folder / "ends.py").write_text(code)
    new, fork = (started(popen, folder, "-m", "ends") for popen in (subprocess.Popen, forks.Popen))
    assert fork[:2] == new[:2]
    assert fork[2].splitlines()[-1:] == new[2].splitlines()[-1:]


def test_a_fork_is_a_child_of_the_tests_and_shows_its_command(folder: Path) -> None:
    (folder / "waits.py").write_text("import time; print('up', flush=True); time.sleep(60)")
    words = [sys.executable, "-u", "-m", "waits", "x" * 50]
    process = forks.Popen(
        words,
        cwd=folder,
        env=forks.environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    assert psutil.Process(process.pid).cmdline() == words
    assert psutil.Process(process.pid).ppid() == os.getpid()
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    process.stdout.close()


def test_what_an_import_has_read_cannot_be_other_in_a_fork(folder: Path) -> None:
    with pytest.raises(ValueError, match="OMP_NUM_THREADS=5 needs a start by exec"):
        started(forks.Popen, folder, "-m", "probe", OMP_NUM_THREADS="5")
    with pytest.raises(ValueError, match="session of its own"):
        forks.Popen([sys.executable, "-m", "probe"])


def test_what_a_fork_stands_in_for() -> None:
    assert command_of([sys.executable, "-u", "-m", "yolods", "train"]) == Command(
        "yolods", ("train",), True
    )
    for other in (
        "python -m yolods",
        ["ls", "-m", "x"],
        [sys.executable, "-I", "-m", "x"],
        [sys.executable, "file.py"],
    ):
        assert command_of(other) is None
