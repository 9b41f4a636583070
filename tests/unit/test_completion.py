"""Completion of a shell: what bash offers after some words, asked of a real bash."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from yolods import cli
from yolods.commands.parsers import train_parser
from yolods.parsing.completion import SHELLS, completion_script


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script of `yolods completion bash`."""
    shown: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.streams, "show", shown.append)
        assert cli.main(["completion", "bash"]) == 0
    file = tmp_path_factory.mktemp("completion") / "script"
    file.write_text(shown[0])
    return file


def offered(script: Path, *words: str) -> set[str]:
    """What bash offers for the last word."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    typed = shlex.join(words)
    asked = (
        f"source {shlex.quote(str(script))}; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; "
        'set -u; _yolods; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", asked], capture_output=True, text=True, timeout=20, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "some", "none"),
    [
        (("yolods", ""), {"train", "val", "plan", "launch", "completion"}, {"--data"}),
        (("yolods", "tr"), {"train"}, {"val"}),
        (("yolods", "train", "--ep"), {"--epochs"}, {"--data"}),
        (("./launch.sh", "train", "--hostf"), {"--hostfile"}, set()),
        (("yolods", "launch", "train", "--batch-"), {"--batch-size"}, set()),
        (("yolods", "train", "--launcher", ""), {"pdsh", "slurm"}, {"--data"}),
        (("yolods", "train", "--loggers", "w"), {"wandb"}, {"mlflow"}),
        (("yolods", "demo", "--deepspeed_config", "zero2_b"), {"zero2_bf16"}, set()),
        (("yolods", "plan", "--precision", ""), {"fp32", "bf16"}, set()),
        (("yolods", "train", "--optimizer", ""), {"auto", "AdamW", "SGD"}, {"--data"}),
        (("yolods", "completion", ""), {"bash", "zsh"}, {"train"}),
        (("yolods", "export", "--"), {"--to", "--live"}, {"--data"}),
        (("yolods", "doctor", "--le"), {"--leaks"}, set()),
        (("yolods", "trace", "--"), {"--steps", "--epoch", "--hostfile"}, {"--data"}),
        (("yolods", "train", "--tr"), {"--trace"}, set()),
        (("yolods", "train", "--data", "x"), set(), {"--data"}),
    ],
)
def test_bash_offers_words_flags_and_values(script, words, some, none):
    found = offered(script, *words)
    assert some <= found and not none & found
    assert not any(word.startswith(("--run-dir", "--tell", "--device")) for word in found)


def test_the_scripts_of_the_shells_differ_by_their_first_line():
    parsers = {"train": train_parser()}
    bash, zsh = (completion_script(shell, parsers, {}, {}) for shell in SHELLS)
    assert zsh.endswith(bash) and zsh.startswith("autoload")


@pytest.mark.parametrize("words", [[], ["fish"], ["bash", "zsh"]])
def test_another_shell_is_refused(words, capsys):
    assert cli.main(["completion", *words]) == 2
    assert capsys.readouterr().err == "error: write yolods completion bash or zsh\n"


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["predict", "source=x.jpg"], ".predict(...)"),
        (["tune"], ".tune(...)"),
        (["benchmark"], ".benchmark(...)"),
        (["export", "model=best.pt", "format=onnx"], ".export(format='onnx')"),
        (["export", "--weights", "best.pt", "--include", "onnx"], ".export(format='onnx')"),
    ],
)
def test_what_ultralytics_does_is_pointed_to(words, call, capsys):
    assert cli.main(words) == 2
    shown = capsys.readouterr().err
    assert "YOLO('best.pt')" in shown or "YOLO('yolov5nu.pt')" in shown
    assert shown.endswith(f"{call}\n") and shown.count("\n") == 1
