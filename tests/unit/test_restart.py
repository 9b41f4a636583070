"""What is started after a run has died; hosts and configurations are stand-ins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from yolods import restart
from yolods.checkpoint.verify import ENDED
from yolods.cluster.flags import LaunchFlags
from yolods.cluster.hosts import Host
from yolods.errors import UserError
from yolods.restart import EXCEPTION, Restarts

LOST = 75


def restarts(run: Path, words: Sequence[str] = ("train", "--data", "x.yaml"), **options: object) -> Restarts:
    values = {"flags": LaunchFlags(num_gpus=2), "gpus": 0, "check": lambda words, ranks: None, **options}
    return Restarts(words, values.pop("flags"), run, **values)


def saved(run: Path, step: int) -> None:
    """A run that has got as far as a checkpoint, as names go."""
    (run / "checkpoints" / f"step{step:08d}").mkdir(parents=True)
    (run / "config.json").write_text("{}")


def tail(start: object) -> list[str]:
    """The words for yolods."""
    words = list(start.command)
    return words[words.index("yolods") + 1 :]


def test_the_first_start_is_told_its_folder_so_that_a_second_one_takes_the_same(tmp_path: Path) -> None:
    run = tmp_path / "exp"
    words = ["train", "--data", "x.yaml", "--run-dir", str(run)]
    made = restarts(run)
    assert tail(made.first()) == words
    again = made.again(LOST)
    assert tail(again) == words
    assert again.about == "from the beginning on 2 ranks"


def test_it_goes_on_from_the_newest_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    saved_later = tmp_path / "checkpoints" / "step00000120"
    saved_later.mkdir()
    again = restarts(tmp_path).again(LOST)
    assert tail(again) == ["train", "--resume", "--run-dir", str(tmp_path)]
    assert again.about == "from step 120 on 2 ranks"


def test_a_run_that_was_resumed_keeps_its_own_words(tmp_path: Path) -> None:
    """They may ask for more epochs, which nobody has written down before the start has got that far."""
    saved(tmp_path, 5)
    typed = ["train", "--resume", "--epochs", "9"]
    made, words = restarts(tmp_path, typed), [*typed, "--run-dir", str(tmp_path)]
    assert tail(made.first()) == words
    assert tail(made.again(LOST)) == words


@pytest.mark.parametrize("status", [143, 0])
def test_what_was_stopped_on_request_or_has_come_to_its_end_is_not_started_again(tmp_path: Path, status: int) -> None:
    saved(tmp_path, 5)
    (tmp_path / "checkpoints" / ENDED).write_text(f"5 {status}")
    assert restarts(tmp_path).again(EXCEPTION) == status
    (tmp_path / "checkpoints" / "step00000007").mkdir()  # a later start has gone on
    assert not isinstance(restarts(tmp_path).again(EXCEPTION), int)


def test_an_exception_that_comes_twice_from_one_checkpoint_ends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = restarts(tmp_path)
    assert not isinstance(made.again(EXCEPTION), int)
    saved(tmp_path, 5)
    assert not isinstance(made.again(EXCEPTION), int)
    assert not isinstance(made.again(LOST), int)
    assert made.again(EXCEPTION) == EXCEPTION
    assert "two starts from step 5 have failed before the next checkpoint: giving up" in capsys.readouterr().err


@pytest.fixture
def asked() -> list[int | None]:
    """The ports at which hosts were asked whether they answer."""
    return []


@pytest.fixture
def hostfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int | None]) -> Path:
    """Three hosts, of which the second does not answer."""
    file = tmp_path / "hosts"
    file.write_text("a slots=2\nb slots=2\nc slots=2\n")

    def answering(hosts: Sequence[Host], run_dir: Path, port: int | None) -> list[Host]:
        asked.append(port)
        return [host for host in hosts if host.name != "b"]

    monkeypatch.setattr(restart, "_answering", answering)
    monkeypatch.setattr(restart, "launcher_command", lambda words, flags, **_: ([flags], {}))
    return file


def test_hosts_are_asked_where_their_sshd_listens(tmp_path: Path, hostfile: Path, asked: list[int | None]) -> None:
    restarts(tmp_path, flags=LaunchFlags(hostfile=hostfile, ssh_port=2222)).again(LOST)
    assert asked == [2222]


def test_a_host_that_is_gone_is_left_out(tmp_path: Path, hostfile: Path) -> None:
    again = restarts(tmp_path, flags=LaunchFlags(hostfile=hostfile, num_gpus=2)).again(LOST)
    (flags,) = again.command
    assert (flags.include, flags.exclude, flags.num_gpus) == ("a:0,1@c:0,1", "", None)
    assert again.about == "from the beginning on 4 ranks"


def test_as_many_slots_are_used_as_the_configuration_allows(tmp_path: Path, hostfile: Path) -> None:
    def check(words: Sequence[str], ranks: int) -> None:
        if 6 % ranks:
            raise UserError(f"6 does not divide by {ranks}")

    again = restarts(tmp_path, flags=LaunchFlags(hostfile=hostfile), check=check).again(LOST)
    assert again.command[0].include == "a:0,1@c:0"
    assert again.about.endswith("on 3 ranks")


def test_where_no_number_of_ranks_will_do_it_says_why(
    tmp_path: Path, hostfile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(words: Sequence[str], ranks: int) -> None:
        raise UserError(f"batch 6 != {ranks} x 6")

    assert restarts(tmp_path, flags=LaunchFlags(hostfile=hostfile), check=check).again(LOST) == LOST
    assert capsys.readouterr().err == "yolods: it cannot be started again: batch 6 != 4 x 6\n"
