"""Whose a run's folder is: starts at once, a folder with an earlier run's files, a run that goes
on."""

from __future__ import annotations

import argparse
import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from yolods.config import CONFIG_FILE, RunConfig, add_train_arguments, build_run_config
from yolods.config import run_folder as claiming
from yolods.config.run_folder import LOCK, Claim, make_folder, outputs_in
from yolods.errors import UserError

FORK = multiprocessing.get_context("fork")
OLD = (
    "config.json",
    "results.csv",
    "train.log",
    "train_batch0.jpg",
    "events.out.tfevents.1.a.2.0",
    "stability.jsonl",
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def build(*words: str) -> RunConfig:
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    return build_run_config(
        parser.parse_args(["--data", "demo", *words]), world_size=1, device="cpu"
    )


def finished(run: Path, name: str = "first") -> None:
    """What a run leaves, as far as names go, and a file of its user's."""
    for file in (
        *OLD,
        "weights/best.pt",
        "checkpoints/step00000006/progress.json",
        "checkpoints/latest",
    ):
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_text(name)
    (run / CONFIG_FILE).write_text(build().to_json())
    (run / "notes.txt").write_text("mine")


def claim_at(barrier: object, results: object, words: list[str]) -> None:
    config = build(*words)
    barrier.wait()
    with Claim() as claim:
        try:
            taken = claim.take(config)
            results.put((str(taken.run_dir), taken.run, taken.start))
        except UserError as error:
            results.put(str(error))
        barrier.wait()  # nobody lets go before all have tried


def at_once(count: int, *words: str) -> list[tuple[str, str, str] | str]:
    """What so many processes got that claimed their folders in the same moment."""
    barrier, results = FORK.Barrier(count), FORK.Queue()
    processes = [
        FORK.Process(target=claim_at, args=(barrier, results, list(words))) for _ in range(count)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(30)
    return found


@pytest.mark.parametrize("words", [("--name", "same"), ()], ids=["one name", "the default name"])
def test_starts_at_once_get_a_folder_each(words: tuple[str, ...]) -> None:
    name = words[-1] if words else "exp"
    Path("runs", name).mkdir(parents=True)  # an earlier run's
    found = at_once(24, *words)
    assert {folder for folder, _, _ in found} == {f"runs/{name}{number}" for number in range(2, 26)}
    assert len({run for _, run, _ in found}) == 24
    assert all(run == start for _, run, start in found)


def test_threads_that_make_a_folder_at_once_get_one_each() -> None:
    """`val` has no lock: its folders are told apart by mkdir alone."""
    barrier, found = threading.Barrier(32), []

    def work() -> None:
        barrier.wait()
        found.append(make_folder(Path("runs/val")))

    threads = [threading.Thread(target=work) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 32
    assert make_folder(Path("runs/val"), exist_ok=True) == Path("runs/val")


@pytest.mark.parametrize("there", [False, True], ids=["a new folder", "a finished run's"])
def test_of_two_starts_with_exist_ok_at_once_one_is_refused(there: bool) -> None:
    if there:
        finished(Path("runs/exp"))
    taken, refused = sorted(at_once(2, "--exist-ok"), key=lambda each: isinstance(each, str))
    assert taken[0] == "runs/exp"
    assert refused.startswith("runs/exp: another run is using this folder (process ")
    assert len(refused.splitlines()) == 1
    assert Path("runs/exp/earlier").exists() == there
    assert not Path("runs/exp/earlier2").exists()


def test_exist_ok_puts_aside_what_an_earlier_run_has_left_and_nothing_of_its_user_s() -> None:
    run = Path("runs/exp")
    finished(run)
    with Claim() as claim:
        config = claim.take(build("--exist-ok"))
        assert (config.run_dir, claim.put_aside) == (run, run / "earlier")
        assert outputs_in(run) == []
        assert sorted(path.name for path in run.iterdir()) == [LOCK, "earlier", "notes.txt"]
    finished(run, "second")
    with Claim() as claim:
        claim.take(build("--exist-ok"))
        assert claim.put_aside == run / "earlier2"
    for name, place in (("first", "earlier"), ("second", "earlier2")):
        assert (run / place / "weights/best.pt").read_text() == name
        assert {path.name for path in (run / place).iterdir()} == {*OLD, "weights", "checkpoints"}


def test_what_was_put_aside_is_a_run_that_can_be_resumed() -> None:
    finished(Path("runs/exp"))
    with Claim() as claim:
        claim.take(build("--exist-ok"))
    again = build("--resume", "runs/exp/earlier/weights/best.pt")
    assert again.run_dir == Path("runs/exp/earlier")
    with pytest.raises(UserError, match=r"not a run's folder|no run in|no such folder"):
        build("--resume", "runs/exp")


def test_a_folder_of_its_user_s_alone_is_used_as_it_is() -> None:
    Path("runs/exp").mkdir(parents=True)
    Path("runs/exp/notes.txt").write_text("mine")
    with Claim() as claim:
        assert claim.take(build("--exist-ok")).run_dir == Path("runs/exp")
        assert claim.put_aside is None
    assert Path("runs/exp/notes.txt").read_text() == "mine"


def test_weights_out_of_the_folder_that_exist_ok_empties_are_refused_before_anything_is_moved() -> (
    None
):
    finished(Path("runs/exp"))
    words = ("--weights", "runs/exp/weights/best.pt", "--model", "yolov5n")
    with pytest.raises(
        UserError,
        match=r"^--weights .*best\.pt: --exist-ok moves the contents of runs/exp; copy the ",
    ):
        build(*words, "--exist-ok")
    assert build(*words).run_dir == Path("runs/exp2")


@pytest.mark.parametrize(
    "words", [("--exist-ok",), ("--resume", "runs/exp")], ids=["--exist-ok", "--resume"]
)
def test_a_run_that_goes_on_is_left_alone(words: tuple[str, ...]) -> None:
    with Claim() as first:
        first.take(build())
        finished(Path("runs/exp"))
        with (
            Claim() as second,
            pytest.raises(
                UserError, match=rf"another run is using this folder \(process {os.getpid()} on "
            ),
        ):
            second.take(build(*words))
        assert (Path("runs/exp") / "weights/best.pt").exists()
    assert not Path("runs/exp", LOCK).exists()
    with Claim() as third:
        assert third.take(build(*words)).run_dir == Path("runs/exp")
        assert Path("runs/exp", LOCK).exists()
    assert not Path("runs/exp", LOCK).exists()


def test_as_long_as_a_rank_of_it_lives_a_run_goes_on() -> None:
    """A launcher that was killed leaves ranks that take a last step and save."""
    launcher, rank = Claim(), Claim()
    config = launcher.take(build())
    rank.join(config)
    launcher.__exit__()
    assert config.run_dir.is_dir()
    with Claim() as other, pytest.raises(UserError, match="another run is using this folder"):
        other.take(build("--exist-ok"))
    rank.__exit__()
    with Claim() as other:
        other.take(build("--exist-ok"))


def hold(ready: object) -> None:
    with Claim() as claim:
        claim.take(build("--exist-ok"))
        ready.set()
        signal.pause()


def test_a_process_that_was_killed_has_let_go() -> None:
    ready = FORK.Event()
    process = FORK.Process(target=hold, args=(ready,))
    process.start()
    assert ready.wait(30)
    with Claim() as claim, pytest.raises(UserError, match=f"process {process.pid} on "):
        claim.take(build("--exist-ok"))
    process.kill()
    process.join()
    with Claim() as claim:
        claim.take(build("--exist-ok"))


def test_a_start_that_has_come_to_nothing_leaves_nothing() -> None:
    with pytest.raises(UserError, match="later"), Claim() as claim:
        (claim.take(build("--project", "a/b")).run_dir / "weights").mkdir()
        raise UserError("later")
    assert not Path("a").exists()
    Path("runs").mkdir()
    with Claim() as claim:
        (claim.take(build()).run_dir / "train.log").write_text("why")
    with Claim() as claim:
        assert claim.take(build()).run_dir == Path("runs/exp2")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["exp"]


def begin(claim: Claim) -> Path:
    """What ranks write before the data has been checked."""
    folder = claim.take(build("--project", "a/b")).run_dir
    for name in ("weights", "logs"):
        (folder / name).mkdir()
    for name in ("train.log", "logs/rank1.log"):
        (folder / name).write_text("why")
    return folder


def test_a_start_that_is_refused_leaves_its_name_to_the_next() -> None:
    with pytest.raises(UserError, match="class id"), Claim() as claim:
        begin(claim)
        raise UserError("class id 9")
    assert not Path("a").exists()
    with Claim() as claim:  # a launcher, whose ranks have told why
        assert begin(claim).name == "exp"
        claim.refuse()
    assert not Path("a").exists()


def test_only_what_a_refused_start_wrote_is_removed() -> None:
    with pytest.raises(UserError), Claim() as claim:
        (begin(claim) / "notes.txt").write_text("mine")
        raise UserError("class id 9")
    assert [path.name for path in Path("a/b/exp").iterdir()] == ["notes.txt"]
    with pytest.raises(UserError), Claim() as claim:  # its run had begun
        (begin(claim) / CONFIG_FILE).write_text(build().to_json())
        raise UserError("no image can be read")
    assert Path("a/b/exp2/logs/rank1.log").exists() and Path("a/b/exp2/train.log").exists()
    with pytest.raises(RuntimeError), Claim() as claim:  # the log says where
        begin(claim)
        raise RuntimeError("a fault of ours")
    assert Path("a/b/exp3/train.log").exists()
    finished(Path("runs/exp"))
    with pytest.raises(UserError), Claim() as claim:
        (claim.take(build("--exist-ok")).run_dir / "train.log").write_text("why")
        raise UserError("class id 9")
    assert Path("runs/exp/earlier/config.json").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_will_do(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(claiming.fcntl, "flock", refuse)
    with Claim() as first, Claim() as second:
        assert first.take(build()).run_dir == Path("runs/exp")
        assert second.take(build()).run_dir == Path("runs/exp2")


def test_files_and_dangling_links_keep_their_names() -> None:
    Path("runs").mkdir()
    Path("runs/exp").write_text("a file")
    Path("runs/exp2").symlink_to("nowhere")
    with Claim() as claim:
        assert build().run_dir == claim.take(build()).run_dir == Path("runs/exp3")


@pytest.mark.parametrize("words", [("--name", "file", "--exist-ok"), ("--project", "file/below")])
def test_a_place_that_cannot_be_written_is_one_line(words: tuple[str, ...]) -> None:
    Path("runs").mkdir()
    Path("runs/file").write_text("")
    Path("file").write_text("")
    with (
        Claim() as claim,
        pytest.raises(
            UserError, match=r"^cannot write to .*: .*; choose another folder with --project$"
        ),
    ):
        claim.take(build(*words))


def test_a_run_keeps_its_identity_over_its_starts_and_a_start_has_one_of_its_own() -> None:
    with Claim() as claim:
        first = claim.take(build())
        (first.run_dir / CONFIG_FILE).write_text(first.to_json())
    with Claim() as claim:
        second = claim.take(build("--resume", "runs/exp"))
    assert (first.run, first.start) == (second.run, first.run)
    assert second.start not in ("", first.start)


def test_ranks_are_told_whose_the_folder_is_by_their_launcher() -> None:
    with Claim() as claim:
        launched = claim.take(build())
        words = ("--run-dir", str(launched.run_dir.absolute()), "--start-id", launched.start)
        with Claim() as rank:
            ranked = rank.join(build(*words))
    assert (ranked.run_dir, ranked.run, ranked.start) == (
        launched.run_dir,
        launched.run,
        launched.start,
    )
    assert not {"run_dir", "start_id"} & set(dict(ranked.given))


@pytest.fixture(autouse=True)
def nobody_left() -> Iterator[None]:
    yield
    assert not FORK.active_children()
