"""Commands that train or evaluate in this process: what is checked before, and by whom."""

import pytest

from yolods import cli
from yolods.commands import running
from yolods.commands.parsers import train_parser


def test_the_demo_is_training_with_flags_that_can_be_overruled(monkeypatch):
    typed = []
    monkeypatch.setattr(running, "train_command", lambda words: typed.append(words) or 0)
    assert cli.main(["demo", "--epochs", "1"]) == 0
    args = train_parser().parse_args(typed[0])
    assert (args.data, args.epochs, args.name) == ("demo", 1, "demo")


MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}
SRUN = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize("variables", [MPIRUN, SRUN], ids=["mpirun", "srun"])
def test_a_rank_of_another_launcher_is_not_checked_as_if_it_were_alone(
    monkeypatch, capsys, variables
):
    for name, value in {**variables, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(running, "_train_rank", lambda args, claim: 0)
    words = ["train", "--data", "demo", "--imgsz", "64", "--deepspeed_config", "pipeline2_fp32"]
    assert cli.main(words) == 0
    assert cli.main([*words, "--epoch", "3"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown flag --epoch")
    monkeypatch.setenv(next(iter(variables)), "1")
    assert cli.main([*words, "--epoch", "3"]) == 2
    assert capsys.readouterr().err == ""
