"""Hostfiles and DeepSpeed's filters over them."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolods.errors import UserError
from yolods.hosts.hostfile import Host, parse_hostfile, select

ROOT = Path(__file__).parents[2]


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "hosts"
    file.write_text(text, encoding="utf-8")
    return file


def pool(**slots: int) -> tuple[Host, ...]:
    return tuple(Host(name, count, tuple(range(count))) for name, count in slots.items())


def chosen(hosts: tuple[Host, ...]) -> dict[str, tuple[int, ...]]:
    return {host.name: host.chosen for host in hosts}


def test_hosts_comments_and_blank_lines(tmp_path):
    file = write(tmp_path, "# ours\n\n  worker-2   slots=4  # big\nworker-1\tslots=2\n")
    assert parse_hostfile(file) == (Host("worker-2", 4, (0, 1, 2, 3)), Host("worker-1", 2, (0, 1)))


def test_all_bad_lines_at_once(tmp_path):
    file = write(
        tmp_path,
        "a slots=2\nb\nc slots=x\nd slots=0\na slots=1\ne slots=1 max=3\nf slots = 2\ng slots=2\n",
    )
    with pytest.raises(UserError) as caught:
        parse_hostfile(file)
    assert [
        line.removeprefix(f"--hostfile {file} ") for line in str(caught.value).splitlines()
    ] == [
        "line 2: `b`: write it as: name slots=N",
        "line 3: slots=x: it must be a whole number of at least 1",
        "line 4: slots=0: it must be a whole number of at least 1",
        "line 5: a is already on line 1; give a host one line with all its slots",
        "line 6: `e slots=1 max=3`: write it as: name slots=N",
        "line 7: `f slots = 2`: write it as: name slots=N",
    ]


@pytest.mark.parametrize("text", ["", "# nobody\n"])
def test_an_empty_hostfile(tmp_path, text):
    with pytest.raises(UserError, match="it has no host; write lines like: worker-1 slots=8"):
        parse_hostfile(write(tmp_path, text))


def test_a_missing_hostfile(tmp_path):
    with pytest.raises(UserError, match=r"--hostfile .*none: no such file"):
        parse_hostfile(tmp_path / "none")
    with pytest.raises(UserError, match="cannot read it"):
        parse_hostfile(tmp_path)


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ("", "", {"a": (0, 1), "b": (0, 1, 2, 3)}),
        ("b", "", {"b": (0, 1, 2, 3)}),
        ("b:0,2@a", "", {"a": (0, 1), "b": (0, 2)}),
        ("b:2,0,2", "", {"b": (0, 2)}),
        ("", "b", {"a": (0, 1)}),
        ("", "b:0@a:1", {"a": (0,), "b": (1, 2, 3)}),
        ("", "a:0,1", {"b": (0, 1, 2, 3)}),
    ],
)
def test_filters(include, exclude, expected):
    assert chosen(select(pool(a=2, b=4), include, exclude)) == expected


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        ("a", "b", "--include and --exclude cannot be combined; keep one"),
        (
            "wroker",
            "",
            r"--include wroker: no host 'wroker' in the hostfile \(did you mean 'worker'\?\)",
        ),
        ("worker:4", "", "--include worker:4: worker has no slot '4'; its slots are 0 to 1"),
        ("worker:", "", "--include worker:: worker has no slot ''; its slots are 0 to 1"),
        ("worker:-1", "", "worker has no slot '-1'"),
        ("", "worker", "--exclude worker: no slot remains to train on"),
    ],
)
def test_bad_filters(include, exclude, message):
    with pytest.raises(UserError, match=message):
        select(pool(worker=2), include, exclude)


def test_all_faults_of_a_filter_at_once():
    with pytest.raises(UserError) as caught:
        select(pool(a=2), "a:7@b@a:x")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("name", ["local", "cluster"])
def test_ready_hostfiles_mean_the_same_to_deepspeed(name):
    from deepspeed.launcher.runner import fetch_hostfile

    file = ROOT / "hostfiles" / name
    assert {host.name: host.slots for host in parse_hostfile(file)} == dict(
        fetch_hostfile(str(file))
    )


@pytest.mark.parametrize(
    ("include", "exclude"),
    [("b:0,2@a", ""), ("b", ""), ("", "b:0@a:1"), ("", "a"), ("b:1", ""), ("", "a:0,1")],
)
def test_filters_mean_the_same_to_deepspeed(include, exclude):
    from deepspeed.launcher.runner import parse_inclusion_exclusion

    theirs = parse_inclusion_exclusion({"a": 2, "b": 4}, include, exclude)
    assert {
        name: list(slots)
        for name, slots in chosen(select(pool(a=2, b=4), include, exclude)).items()
    } == theirs


@pytest.mark.parametrize("slots", ["99999999999", "9" * 5000])
def test_more_slots_than_any_host_has_get_a_line_and_not_the_machines_memory(tmp_path, slots):
    with pytest.raises(UserError, match=r"line 1: slots=9+: it must be at most 4096"):
        parse_hostfile(write(tmp_path, f"a slots={slots}\n"))
    with pytest.raises(UserError, match=f"a has no slot '{slots}'"):
        select(pool(a=2), f"a:{slots}")
