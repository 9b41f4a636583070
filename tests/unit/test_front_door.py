"""launch.sh, the package's metadata and the README: what a newcomer meets before any of our Python
runs.

launch.sh is run for real, with a stand-in for `python3` that notes how it was called, so that
nothing is installed.
"""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]

# All that launch.sh may ask of a machine besides Python.
TOOLS = [
    "bash",
    "cat",
    "cksum",
    "dirname",
    "find",
    "flock",
    "ls",
    "mkdir",
    "mv",
    "readlink",
    "rm",
    "tail",
    "tee",
]

# Notes each call as "directory|arguments" and plays the part of python3, of the environment's
# python, and of pip.
STAND_IN = r"""#!/usr/bin/env bash
words=$(printf '<%s>' "$@")
[[ $1 == -c ]] || printf '%s|%s\n' "$PWD" "${words//$'\n'/ }" >>"$CALLS"
case "$*" in
    -c*) exit "${PROBE_STATUS:-0}" ;;
    "-m venv "*) mkdir -p "$3/bin" && cat -- "$STAND_IN" >"$3/bin/python" && chmod +x "$3/bin/python" ;;
    *"pip install"*)
        echo "last words of pip"
        case ${PIP_DOES:-} in
            fail) exit 1 ;;
            die) : >"$(dirname "$0")/half-written"; kill -KILL 0 ;;
            hang) : >"$CALLS.hangs"; sleep 60 ;;
        esac
        ;;
    *) echo $$ >"$CALLS.pid"; echo "$YOLODS_LAUNCH_SCRIPT" >"$CALLS.script"; exit "${WORD_STATUS:-0}" ;;
esac
"""  # noqa: E501


class Checkout:
    """A copy of the files that launch.sh needs, with a PATH on which `python3` is the stand-in."""

    def __init__(self, folder: Path, run_process: Run) -> None:
        self.root = folder / "a clone of yolods"
        self.bin = folder / "bin"
        self.calls_file = folder / "calls"
        self._run_process = run_process
        self.root.mkdir(parents=True)
        self.bin.mkdir()
        for name in ("launch.sh", "setup.py", "constraints.txt"):
            shutil.copy(ROOT / name, self.root)
        for tool in (*TOOLS, "chmod", "sleep"):  # the last two are the stand-in's own
            (self.bin / tool).symlink_to(shutil.which(tool) or f"/missing/{tool}")
        self.add_python("python3")

    def add_python(self, name: str, text: str = STAND_IN) -> None:
        path = self.bin / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "PATH": str(self.bin),
            "CALLS": str(self.calls_file),
            "STAND_IN": str(self.bin / "python3"),
            **more,
        }

    def start(
        self, *words: str, cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        self.calls_file.unlink(missing_ok=True)
        argv = [self.root / "launch.sh", *words]
        return self._run_process(
            argv, cwd=cwd or self.root, env=self.environment(**env), timeout=20
        )

    def calls(self) -> list[str]:
        """How the stand-in was called in the latest start, arguments in angle brackets."""
        return [call for _, call in self._lines()]

    def last_folder(self) -> str:
        """Where its latest call was made from."""
        return self._lines()[-1][0]

    def _lines(self) -> list[list[str]]:
        text = self.calls_file.read_text(encoding="utf-8") if self.calls_file.exists() else ""
        return [line.split("|", 1) for line in text.splitlines()]


PIP = "<-I><-m><pip><install><--no-input><--disable-pip-version-check><-c><constraints.txt><-e>"


@pytest.fixture
def checkout(tmp_path: Path, run_process: Run) -> Checkout:
    return Checkout(tmp_path, run_process)


@pytest.fixture
def installed(checkout: Checkout) -> Checkout:
    assert checkout.start("val").returncode == 0
    return checkout


@pytest.mark.parametrize("script", ["launch.sh", ".ci/run"])
def test_script_parses_and_is_executable(script: str, run_process: Run) -> None:
    result = run_process(["bash", "-n", ROOT / script])
    assert (result.returncode, result.stderr) == (0, "")
    assert os.access(ROOT / script, os.X_OK)


@pytest.mark.parametrize("word", ["help", "-h", "--help"])
def test_help_shows_usage_and_installs_nothing(checkout: Checkout, word: str) -> None:
    result = checkout.start(word)
    assert result.returncode == 0
    assert result.stdout.startswith("usage: ./launch.sh")
    assert checkout.calls() == []
    assert not checkout.venv.exists()


def test_first_start_installs_and_trains_the_demo(checkout: Checkout) -> None:
    assert checkout.start().returncode == 0
    assert checkout.calls() == [
        f"<-m><venv><{checkout.venv}>",
        f"{PIP}<.>",
        "<-m><yolods><launch><demo>",
    ]


def test_later_start_only_runs_the_word(installed: Checkout) -> None:
    result = installed.start("val")
    assert installed.calls() == ["<-m><yolods><launch><val>"]
    assert result.stderr == ""


def test_arguments_and_working_directory_arrive_as_typed(
    installed: Checkout, tmp_path: Path
) -> None:
    installed.start("train", "--data", "../my set.yaml", "--name", "", cwd=tmp_path)
    assert installed.calls() == ["<-m><yolods><launch><train><--data><../my set.yaml><--name><>"]
    assert installed.last_folder() == str(tmp_path)


def test_works_through_a_link(installed: Checkout, tmp_path: Path, run_process: Run) -> None:
    link = tmp_path / "elsewhere"
    link.symlink_to(installed.root / "launch.sh")
    assert run_process([link, "val"], env=installed.environment()).returncode == 0
    assert installed.calls()[-1] == "<-m><yolods><launch><val>"


@pytest.mark.parametrize(
    ("typed", "told"),
    [(["./launch.sh"], "./launch.sh"), (["bash", "launch.sh"], "./launch.sh"), (["{}"], "{}")],
)
def test_python_is_told_how_the_script_was_typed(
    installed: Checkout, run_process: Run, typed: list[str], told: str
) -> None:
    path = str(installed.root / "launch.sh")
    words = [word.format(path) for word in typed]
    assert (
        run_process([*words, "val"], cwd=installed.root, env=installed.environment()).returncode
        == 0
    )
    assert Path(f"{installed.calls_file}.script").read_text(
        encoding="utf-8"
    ).strip() == told.format(path)


def test_exit_status_is_the_words_own(installed: Checkout) -> None:
    assert installed.start("train", WORD_STATUS="130").returncode == 130


def test_word_takes_the_place_of_launch_so_that_signals_reach_it(installed: Checkout) -> None:
    process = subprocess.Popen([installed.root / "launch.sh", "val"], env=installed.environment())
    assert process.wait(timeout=10) == 0
    assert Path(f"{installed.calls_file}.pid").read_text(encoding="utf-8") == f"{process.pid}\n"


@pytest.mark.parametrize(
    ("typed", "arrives"),
    [
        (["train"], "<train><--hostfile><h/cluster>"),
        ([], "<demo><--hostfile><h/cluster>"),
        (["train", "--hostfile", "other"], "<train><--hostfile><other>"),
        (["train", "--hostfile=other"], "<train><--hostfile=other>"),
    ],
)
def test_hostfile_variable_yields_to_the_flag(
    installed: Checkout, typed: list[str], arrives: str
) -> None:
    installed.start(*typed, HOSTFILE="h/cluster")
    assert installed.calls() == [f"<-m><yolods><launch>{arrives}"]


def test_test_word_installs_the_extras_and_hands_its_arguments_to_pytest_in_the_repository(
    installed: Checkout, tmp_path: Path
) -> None:
    assert installed.start("test", "-k", "a or b", cwd=tmp_path).returncode == 0
    assert installed.calls() == [f"{PIP}<.[test]>", "<-m><pytest><-k><a or b>"]
    assert installed.last_folder() == str(installed.root)
    installed.start("test", "--version")
    assert installed.calls() == ["<-m><pytest><--version>"]
    installed.start("val")
    assert installed.calls() == ["<-m><yolods><launch><val>"]


@pytest.mark.parametrize("words", [[], ["--fast"], ["--fast", "-k", "a or b"]])
def test_the_whole_suite_and_its_quick_part_run_in_lanes(
    installed: Checkout, words: list[str]
) -> None:
    installed.start("test")
    assert installed.start("test", *words, WORD_STATUS="1").returncode == 1
    assert installed.calls() == ["".join(f"<{word}>" for word in ("-m", "tests.lanes", *words))]


@pytest.mark.parametrize("name", ["setup.py", "constraints.txt"])
def test_changed_requirements_are_installed_into_the_same_environment(
    installed: Checkout, name: str
) -> None:
    with (installed.root / name).open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    installed.start("val")
    assert installed.calls() == [f"{PIP}<.>", "<-m><yolods><launch><val>"]


def pins(relation: str, suffix: str) -> str:
    """What pip is told of torch and torchvision beside constraints.txt."""
    named = re.findall(
        r"^(torch|torchvision)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M
    )
    assert len(named) == 2
    return "".join(f"{name}{relation}{version}+{suffix}\n" for name, version in named)


def options_of(checkout: Checkout) -> tuple[str, str]:
    """The options that pip got for torch, and the file that the first of them names."""
    (call,) = [call for call in checkout.calls() if "<install>" in call]
    file = checkout.venv / "yolods.torch.txt"
    given = (
        call.removeprefix(PIP.removesuffix("<-e>"))
        .removesuffix("<-e><.>")
        .replace(f"<-c><{file}>", "FILE ")
    )
    return given, file.read_text()


def test_a_driver_brings_a_torch_for_cuda_whatever_else_is_offered(checkout: Checkout) -> None:
    checkout.add_python("nvidia-smi")
    result = checkout.start("val")
    assert options_of(checkout) == ("FILE ", pins("!=", "cpu"))
    assert (
        "so this installs a torch for CUDA; YOLODS_TORCH=cpu asks for one without" in result.stderr
    )
    assert "<-I><-c>" in "".join(checkout.calls()), "nobody has asked whether torch sees the GPU"


@pytest.mark.parametrize("build", ["cpu", "cu126"])
def test_a_build_that_is_asked_for_comes_from_its_own_index(checkout: Checkout, build: str) -> None:
    checkout.add_python("nvidia-smi")
    assert checkout.start("val", YOLODS_TORCH=build).returncode == 0
    index = f"<--extra-index-url><https://download.pytorch.org/whl/{build}>"
    assert options_of(checkout) == (f"FILE {index}", pins("==", build))


def test_another_build_is_installed_once_and_kept(installed: Checkout) -> None:
    assert installed.start("val", YOLODS_TORCH="cpu").returncode == 0
    assert "+cpu" in options_of(installed)[1]
    for same in ({"YOLODS_TORCH": "cpu"}, {}):
        installed.start("val", **same)
        assert installed.calls() == ["<-m><yolods><launch><val>"]
    with (installed.root / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    installed.start("val")
    assert "+cpu" in options_of(installed)[1]


def test_an_unknown_build_is_refused_with_those_that_there_are(checkout: Checkout) -> None:
    result = checkout.start("val", YOLODS_TORCH="cu13")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "yolods: YOLODS_TORCH=cu13: there are cpu, cuda, and cu with three digits, such as cu126\n"
    )
    assert not checkout.venv.exists()


def test_killed_install_is_begun_anew(checkout: Checkout) -> None:
    assert checkout.start("val", PIP_DOES="die").returncode == -signal.SIGKILL
    half_written = checkout.venv / "bin" / "half-written"
    assert half_written.exists()
    assert checkout.start("val").returncode == 0
    assert checkout.calls()[0] == f"<-m><venv><{checkout.venv}>"
    assert not half_written.exists()


def test_killed_update_is_not_taken_for_the_install_before_it(installed: Checkout) -> None:
    assert installed.start("test", PIP_DOES="die").returncode == -signal.SIGKILL
    installed.start("val")
    assert installed.calls() == [
        f"<-m><venv><{installed.venv}>",
        f"{PIP}<.>",
        "<-m><yolods><launch><val>",
    ]


def test_failed_install_shows_the_end_of_its_log_and_runs_nothing(checkout: Checkout) -> None:
    result = checkout.start("val", PIP_DOES="fail")
    assert result.returncode == 1
    assert result.stderr.endswith("last words of pip\n")
    assert str(checkout.venv / "install.log") in result.stderr
    assert checkout.calls()[-1] == f"{PIP}<.>"


def test_ctrl_c_while_installing_ends_with_130(checkout: Checkout) -> None:
    argv, env = [checkout.root / "launch.sh", "val"], checkout.environment(PIP_DOES="hang")
    process = subprocess.Popen(
        argv, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 10
    while not Path(f"{checkout.calls_file}.hangs").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "interrupted while installing" in stderr
    assert not (checkout.venv / "yolods.stamp").exists()


def test_moved_checkout_is_installed_anew(installed: Checkout) -> None:
    moved = installed.root.with_name("moved")
    installed.root.rename(moved)
    installed.root = moved
    installed.start("val")
    assert installed.calls()[:2] == [f"<-m><venv><{moved}/.venv>", f"{PIP}<.>"]


def test_environment_made_by_someone_else_is_refused_and_kept(checkout: Checkout) -> None:
    theirs = checkout.venv / "bin" / "precious"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    result = checkout.start("val")
    assert result.returncode == 2
    assert (
        result.stderr
        == f"yolods: {checkout.venv} was not made by this launch.sh; move it away and start again\n"
    )
    assert theirs.exists()
    assert checkout.calls() == []


def test_a_linked_environment_of_another_checkout_is_refused_and_kept(
    installed: Checkout, tmp_path: Path, run_process: Run
) -> None:
    """Its launch.sh emptied it, because that of the other checkout had made it."""
    before = sorted(installed.venv.iterdir())
    other = Checkout(tmp_path / "other", run_process)
    other.venv.symlink_to(installed.venv)
    result = other.start("val")
    assert result.returncode == 2
    assert f"{other.venv} was not made by this launch.sh; move it away" in result.stderr
    assert sorted(installed.venv.iterdir()) == before
    assert installed.start("val").returncode == 0 and len(installed.calls()) == 1


def test_an_environment_behind_a_link_to_a_bigger_disk(checkout: Checkout, tmp_path: Path) -> None:
    disk = tmp_path / "bigger disk" / "venv"
    checkout.venv.symlink_to(disk)
    assert checkout.start("val").returncode == 0
    # Python's venv refuses to make an environment where a link is.
    assert checkout.calls()[:2] == [f"<-m><venv><{disk}>", f"{PIP}<.>"]
    (checkout.root / "constraints.txt").write_text("", encoding="utf-8")
    (disk / "bin" / "python").unlink()
    assert checkout.start("val").returncode == 0
    assert checkout.calls()[:2] == [f"<-m><venv><{disk}>", f"{PIP}<.>"]


@pytest.mark.parametrize(("probe", "reason"), [(3, "is older"), (1, "has no venv module")])
def test_unfit_python_is_named_with_its_fault(checkout: Checkout, probe: int, reason: str) -> None:
    result = checkout.start("val", PROBE_STATUS=str(probe))
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "needs Python 3.10 or newer" in result.stderr
    assert f"{checkout.bin / 'python3'} {reason}" in result.stderr
    assert not checkout.venv.exists()


def test_a_fit_python_further_down_the_path_is_found(checkout: Checkout) -> None:
    (checkout.bin / "python3").rename(checkout.bin / "python3.12")
    checkout.add_python("python3", "#!/usr/bin/env bash\nexit 3\n")
    result = checkout.start("val", STAND_IN=str(checkout.bin / "python3.12"))
    assert result.returncode == 0, result.stderr
    assert checkout.calls()[-1] == "<-m><yolods><launch><val>"


def test_folder_that_cannot_be_written_gets_one_line(run_process: Run) -> None:
    # Nothing is read-only to root, who so becomes someone else; that someone cannot enter pytest's
    # own folders.
    setpriv = shutil.which("setpriv")
    if os.geteuid() == 0 and setpriv is None:
        pytest.skip("running as root without setpriv (util-linux) to become someone else")
    nobody = (
        [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    )
    with tempfile.TemporaryDirectory(prefix="yolods-front-door-") as folder:
        os.chmod(folder, 0o755)
        checkout = Checkout(Path(folder), run_process)
        checkout.root.chmod(0o555)
        result = run_process(
            [*nobody, checkout.root / "launch.sh", "val"], env=checkout.environment()
        )
        checkout.root.chmod(0o755)
    assert result.returncode == 2
    assert result.stderr.startswith(f"yolods: cannot install: {checkout.root} is not writable")
    assert result.stderr.count("\n") == 1


def test_unknown_word_gets_one_line(run_process: Run) -> None:
    result = run_process([sys.executable, "-m", "yolods", "launch", "frobnicate"], cwd=ROOT)
    assert result.returncode == 2
    assert "frobnicate" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What setup.py hands to setuptools."""
    given: dict = {}
    monkeypatch.setattr("setuptools.setup", lambda **words: given.update(words))
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def test_metadata_names_the_package_and_its_licence(metadata: dict) -> None:
    import yolods

    assert metadata["name"] == "yolods"
    assert metadata["version"] == yolods.__version__
    assert metadata["license"] == "AGPL-3.0"
    assert "GNU AFFERO GENERAL PUBLIC LICENSE" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert metadata["entry_points"] == {"console_scripts": ["yolods=yolods.__main__:run"]}


def test_python_range_is_the_one_that_launch_checks(metadata: dict) -> None:
    text = (ROOT / "launch.sh").read_text(encoding="utf-8")
    ((major, minor),) = re.findall(r"version_info >= \((\d+), (\d+)\)", text)
    assert metadata["python_requires"] == f">={major}.{minor}"


def test_every_dependency_is_pinned_inside_its_range(metadata: dict) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {
        pin.name: pin.specifier
        for pin in map(Requirement, (line for line in lines if line and line[0] != "#"))
    }
    outside = []
    for requirement in map(
        Requirement, metadata["install_requires"] + metadata["extras_require"]["test"]
    ):
        (pin,) = pins[requirement.name]
        if pin.operator != "==" or not requirement.specifier.contains(pin.version):
            outside.append(f"{requirement} against {requirement.name}{pin}")
    assert outside == []


def test_torch_pin_fits_every_build() -> None:
    """A pin such as 2.13.0+cpu would keep GPU machines from the CUDA build."""
    (pin,) = re.findall(
        r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M
    )
    assert re.fullmatch(r"[\d.]+", pin)


# Not the change log, which may name what has gone since.
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(page.relative_to(ROOT).as_posix() for page in ROOT.glob("docs/*.md")),
]


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_only_files_that_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    linked = [
        (ROOT / page).parent / link for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    ]
    named = [
        ROOT / name
        for name in re.findall(r"\b(?:ds_configs|hostfiles|docs|benchmarks|tests)/[\w./-]*\w", text)
    ]
    assert sorted({str(path) for path in (*linked, *named) if not path.exists()}) == []


def test_readme_lists_every_ready_configuration() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    configurations = sorted((ROOT / "ds_configs").glob("*.json"))
    assert configurations
    assert all(
        isinstance(json.loads(path.read_text(encoding="utf-8")), dict) for path in configurations
    )
    assert [path.name for path in configurations if path.stem not in text] == []
