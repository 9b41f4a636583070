"""What is started after a run has died; hosts and configurations are stand-ins."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pytest

from yolods.checkpoint.read import PROGRESS
from yolods.checkpoint.store import CheckpointStore, Progress
from yolods.checkpoint.verify import single_process
from yolods.errors import UserError
from yolods.hosts.hostfile import Host
from yolods.launch.args import LaunchFlags
from yolods.training import restart
from yolods.training.restart import EXCEPTION, Restarts
from yolods.watchdog.failures import Failure, noted_in

LOST = 75


def restarts(
    folder: Path, words: Sequence[str] = ("train", "--data", "x.yaml"), **options: object
) -> Restarts:
    values = {
        "flags": LaunchFlags(num_gpus=2),
        "gpus": 0,
        "check": lambda words, ranks: None,
        **options,
    }
    return Restarts(words, values.pop("flags"), folder, **values)


def saved(run: Path, step: int) -> None:
    """A run that has got as far as a checkpoint, as names go."""
    (run / "checkpoints" / f"step{step:08d}").mkdir(parents=True)
    (run / "config.json").write_text("{}")


def tail(start: object) -> list[str]:
    """The words for yolods."""
    words = list(start.command)
    return words[words.index("yolods") + 1 :]


def test_the_first_start_is_told_its_folder_so_that_a_second_one_takes_the_same(
    tmp_path: Path,
) -> None:
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
    """They may ask for more epochs, which nobody has written down before the start has got that
    far."""
    saved(tmp_path, 5)
    typed = ["train", "--resume", "--epochs", "9"]
    made, words = restarts(tmp_path, typed), [*typed, "--run-dir", str(tmp_path)]
    assert tail(made.first()) == words
    assert tail(made.again(LOST)) == words


def ended(run: Path, step: int, status: int, *, of: str = "r1", start: str = "s1") -> None:
    """As rank 0 notes it."""
    store = CheckpointStore(
        run / "checkpoints", single_process(), keep=1, model={}, run=of, start=start
    )
    store.note_end(Progress(step=step), status)


@pytest.mark.parametrize("status", [143, 0])
def test_what_was_stopped_on_request_or_has_come_to_its_end_is_not_started_again(
    tmp_path: Path, status: int
) -> None:
    saved(tmp_path, 5)
    ended(tmp_path, 5, status)
    assert restarts(tmp_path, run="r1", start="s1").again(EXCEPTION) == status
    (tmp_path / "checkpoints" / "step00000007").mkdir()  # a later start has gone on
    assert not isinstance(restarts(tmp_path, run="r1", start="s1").again(EXCEPTION), int)


@pytest.mark.parametrize("status", [143, 0])
@pytest.mark.parametrize(
    "whose", [("r1", "s0"), ("r0", "s0"), ("", "")], ids=["resumed", "another", "without a name"]
)
def test_a_failed_run_does_not_end_with_the_status_of_the_run_before_it(
    tmp_path: Path, status: int, whose: tuple[str, str]
) -> None:
    """Neither with that of an earlier run in its folder, nor, resumed, with that of its own earlier
    start."""
    saved(tmp_path, 5)
    ended(tmp_path, 5, status, of=whose[0], start=whose[1])
    made = restarts(tmp_path, run="r1", start="s1")
    assert not isinstance(made.again(EXCEPTION), int)
    assert made.again(EXCEPTION) == EXCEPTION


def test_a_restart_does_not_go_on_from_another_run_s_checkpoints(tmp_path: Path) -> None:
    for step, run in ((2, "mine"), (6, "other")):
        saved(tmp_path, step)
        (tmp_path / "checkpoints" / f"step{step:08d}" / PROGRESS).write_text(
            json.dumps({"run": run})
        )
    assert (
        restarts(tmp_path, run="mine", start="mine").again(LOST).about == "from step 2 on 2 ranks"
    )
    again = restarts(tmp_path, run="third", start="third").again(LOST)
    assert again.about == "from the beginning on 2 ranks"
    assert "--resume" not in tail(again)


def test_ranks_are_told_whose_the_folder_is_at_every_start(tmp_path: Path) -> None:
    made = restarts(tmp_path, run="r1", start="s1")
    place = ["--run-dir", str(tmp_path), "--start-id", "s1"]
    assert tail(made.first())[-4:] == tail(made.again(LOST))[-4:] == place
    saved(tmp_path, 5)
    assert tail(made.again(LOST)) == ["train", "--resume", *place]


def test_a_host_that_starts_its_own_ranks_hears_from_them_which_run_it_is(tmp_path: Path) -> None:
    """The first host's launcher has claimed the folder, under a name that this one can only
    guess."""
    run, tell = tmp_path / "exp7", tmp_path / "tell"
    saved(run, 5)
    made = restarts(tmp_path / "exp", tell=tell)
    assert tail(made.first())[-2:] == ["--tell", str(tell)]
    assert made.again(LOST).about == "from the beginning on 2 ranks"
    tell.write_text(json.dumps([str(run), "r1", "s1"]))
    again = made.again(LOST)
    assert (again.about, tail(again)) == (
        "from step 5 on 2 ranks",
        ["train", "--resume", str(run), "--tell", str(tell)],
    )
    ended(run, 5, 143)
    assert made.again(LOST) == 143


def test_an_exception_that_comes_twice_from_one_checkpoint_ends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = restarts(tmp_path)
    assert not isinstance(made.again(EXCEPTION), int)
    saved(tmp_path, 5)
    assert not isinstance(made.again(EXCEPTION), int)
    assert not isinstance(made.again(LOST), int)
    assert made.again(EXCEPTION) == EXCEPTION
    assert (
        "two starts from step 5 failed before the next checkpoint: giving up"
        in capsys.readouterr().err
    )


def fail(run: Path, error: Exception, *, start: str = "s1", rank: int = 0) -> None:
    """As a rank does that an exception ends."""
    with mock.patch("os.getpid", lambda: rank), pytest.raises(type(error)), noted_in(run, start):
        raise error


def test_two_different_exceptions_do_not_end_it_and_the_same_one_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = restarts(tmp_path, run="r1", start="s1")
    for error in (ValueError("a"), ValueError("b"), TypeError("a")):
        fail(tmp_path, error)
        assert not isinstance(made.again(EXCEPTION), int)
    fail(tmp_path, ValueError("a"))
    fail(tmp_path, RuntimeError("Connection closed by peer"), rank=1)
    assert made.again(EXCEPTION) == EXCEPTION
    said = (
        "two starts from the beginning failed before the next checkpoint with the same ValueError: "
        "giving up"
    )
    assert said in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


def test_the_same_text_from_another_place_is_another_exception_and_addresses_in_memory_do_not_count(
    tmp_path: Path,
) -> None:
    made = restarts(tmp_path, run="r1", start="s1")
    for raised in range(2):
        with pytest.raises(ValueError, match="a"), noted_in(tmp_path, "s1"):
            if raised:
                raise ValueError("a <object at 0x7f01>")
            raise ValueError("a <object at 0x7f02>")
        assert not isinstance(made.again(EXCEPTION), int)
    with pytest.raises(ValueError, match="a"), noted_in(tmp_path, "s1"):
        int("a <object>")
    made.again(EXCEPTION)
    for _ in range(2):
        fail(tmp_path, ValueError(f"at {hex(id(object()))}"))
        status = made.again(EXCEPTION)
    assert status == EXCEPTION


def test_a_rank_that_has_only_lost_another_does_not_make_two_failures_one(tmp_path: Path) -> None:
    made = restarts(tmp_path, run="r1", start="s1")
    for error in (ValueError("a"), ValueError("b")):
        fail(tmp_path, error)
        fail(tmp_path, RuntimeError("Connection closed by peer"), rank=1)
        assert not isinstance(made.again(EXCEPTION), int)


def test_an_exception_is_one_whichever_rank_s_status_the_launcher_gives(tmp_path: Path) -> None:
    made = restarts(tmp_path, run="r1", start="s1")
    for status in (LOST, EXCEPTION):
        fail(tmp_path, ValueError("a"))
        fail(tmp_path, RuntimeError("Connection closed by peer"), rank=1)
        last = made.again(status)
    assert last == EXCEPTION
    for _ in range(3):
        fail(tmp_path, RuntimeError("Connection closed by peer"), rank=1)
        assert not isinstance(made.again(LOST), int)


def test_another_start_s_failure_is_not_this_one_s(tmp_path: Path) -> None:
    made = restarts(tmp_path, run="r1", start="s1")
    fail(tmp_path, ValueError("a"))
    assert not isinstance(made.again(EXCEPTION), int)
    fail(tmp_path, ValueError("a"), start="s0")
    fail(tmp_path, TypeError("b"), rank=1)
    assert not isinstance(made.again(EXCEPTION), int)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (LaunchFlags(num_gpus=2), "the rendezvous port was taken meanwhile; using another one"),
        (LaunchFlags(num_gpus=2, master_port=29511), "rendezvous port 29511 is taken; using "),
    ],
    ids=["a free one", "one that was asked for"],
)
def test_a_port_that_was_taken_is_tried_again_with_another_however_often(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: LaunchFlags, line: str
) -> None:
    def port(start: object) -> str:
        words = list(start.command)
        return words[words.index("--master_port") + 1]

    made = restarts(tmp_path, flags=flags, run="r1", start="s1")
    before = port(made.first())
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(OSError) as taken:
        socket.create_server(server.getsockname())
    for _ in range(3):
        fail(tmp_path, taken.value)
        again = made.again(EXCEPTION)
        assert port(again) != before
        before = port(again)
    assert f"yolods: {line}" in capsys.readouterr().err
    fail(tmp_path, ValueError("a"))
    assert not isinstance(made.again(EXCEPTION), int)


def test_torch_s_own_words_for_a_port_that_is_taken_are_known() -> None:
    """In a process of its own there would be no second one at the port."""
    import torch.distributed as dist

    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(RuntimeError) as taken:
        dist.TCPStore("127.0.0.1", server.getsockname()[1], is_master=True, wait_for_workers=False)
    assert Failure(type(taken.value).__name__, str(taken.value), "").port_taken


def test_hosts_that_start_their_own_ranks_cannot_change_the_port_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "hosts"
    file.write_text("a slots=2\nb slots=2\n")
    flags = LaunchFlags(hostfile=file, no_ssh=True, node_rank=0, master_addr="a")
    made = restarts(tmp_path, flags=flags, run="r1", start="s1")
    fail(tmp_path, OSError(98, "Address already in use"))
    assert made.again(EXCEPTION) == EXCEPTION
    told = (
        "the run cannot be restarted: port 29500 of the first host is taken; give every host "
        "another --master_port"
    )
    assert told in capsys.readouterr().err


def test_hosts_that_are_reached_by_ssh_meet_at_another_port_than_the_default(
    tmp_path: Path, hostfile: Path
) -> None:
    made = restarts(tmp_path, flags=LaunchFlags(hostfile=hostfile), run="r1", start="s1")
    fail(tmp_path, OSError(98, "Address already in use"))
    (flags,) = made.again(EXCEPTION).command
    assert flags.master_port not in (None, 29500)
    (later,) = made.again(LOST).command
    assert later.master_port == flags.master_port


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


def test_hosts_are_asked_where_their_sshd_listens(
    tmp_path: Path, hostfile: Path, asked: list[int | None]
) -> None:
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
    assert capsys.readouterr().err == "yolods: the run cannot be restarted: batch 6 != 4 x 6\n"
