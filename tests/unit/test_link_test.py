"""`plan --links` before and after the ranks: whom it starts, what it reads, what it refuses."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from yolods.errors import UserError
from yolods.hosts.hostfile import Host, parse_hostfile
from yolods.hosts.remote import Answer
from yolods.launch.args import LaunchFlags
from yolods.plan.step_profile import StepProfile, StepsOf
from yolods.plan.traffic.links import Link
from yolods.planner.links import link_test
from yolods.planner.links.link_rank import MARK
from yolods.planner.links.link_test import MeasuredLinks, described, measure_links, message_of

HOSTS = (Host("alpha", 4, (0, 1)), Host("beta", 4, (0, 1)))
TOLD = '{"pair": [0, 1], "latency": 0.001, "bandwidth": 12500000.0, "copying": 1e-09}'
PROFILE = StepProfile((0.1, 0.2), 0.6, 0.05, 0.02, 0.01, 4, 64, "fp32")


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    file = tmp_path / "hosts"
    file.write_text("alpha slots=4\nbeta slots=4\n")
    return file


def script(monkeypatch: pytest.MonkeyPatch, text: str) -> list[LaunchFlags]:
    """Let the launcher be a script; returns the flags that it would have had."""
    seen: list[LaunchFlags] = []

    def command(words: list[str], flags: LaunchFlags, **_: Any) -> tuple[list[str], dict[str, str]]:
        seen.append(flags)
        return ["sh", "-c", text], {}

    monkeypatch.setattr(link_test, "launcher_command", command)
    monkeypatch.setattr(
        link_test, "ask", lambda hosts, *_, **__: [Answer(host, None) for host in hosts]
    )
    return seen


@pytest.mark.process
def test_one_rank_on_each_host_and_their_link(
    hostfile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = script(monkeypatch, f"echo 'alpha: hello'; echo 'alpha: {MARK}{TOLD}'")
    said: list[str] = []
    flags = LaunchFlags(hostfile=hostfile, include="alpha:0,1@beta:2")
    found = measure_links(flags, gpus=0, say=said.append)
    assert found.links == {("alpha", "beta"): Link(12.5e6, 0.001, "measured", 1e-9)}
    assert not found.profiles
    (started,) = seen
    assert started.hostfile is not None and not started.include
    assert [(host.name, host.slots) for host in parse_hostfile(started.hostfile)] == [
        ("alpha", 1),
        ("beta", 1),
    ]
    assert said[-1] == "alpha - beta: 100 Mbit/s, 1.00 ms"


@pytest.mark.process
def test_all_ranks_take_steps_where_cpus_compute(
    hostfile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.dumps(asdict(PROFILE))
    seen = script(monkeypatch, f"echo 'alpha: {MARK}{TOLD}'; echo 'alpha: {MARK}{told}'")
    flags = LaunchFlags(hostfile=hostfile, include="alpha:0,1@beta:2,3")
    steps = StepsOf("yolov5n", 80, 3, 64, 4, 7, ("fp32",))
    found = measure_links(flags, gpus=0, say=lambda text: None, steps=steps)
    assert found.profiles == {"fp32": PROFILE}
    (started,) = seen
    assert started.hostfile is not None
    assert [host.slots for host in parse_hostfile(started.hostfile)] == [2, 2]


@pytest.mark.process
def test_ranks_that_fail_are_quoted(hostfile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, "echo 'beta: cannot bind'; exit 7")
    with pytest.raises(UserError, match="status 7 and 0 links") as error:
        measure_links(LaunchFlags(hostfile=hostfile), gpus=0, say=lambda text: None)
    assert "beta: cannot bind" in str(error.value)


@pytest.mark.process
def test_a_launcher_that_hangs_is_ended(hostfile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, "trap '' TERM; while :; do sleep 0.1; done")
    monkeypatch.setattr(link_test, "LINK_SECONDS", 0.3)
    monkeypatch.setattr(link_test, "END_SECONDS", 0.2)
    with pytest.raises(UserError, match=r"no result within 0\.3 s; .*doctor"):
        measure_links(LaunchFlags(hostfile=hostfile), gpus=0, say=lambda text: None)


def test_hosts_that_do_not_answer_are_named(
    hostfile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, "exit 1")
    answers = [Answer(HOSTS[0], None), Answer(HOSTS[1], None, "no answer within 12 s")]
    monkeypatch.setattr(link_test, "ask", lambda *_, **__: answers)
    with pytest.raises(UserError, match=r"^beta: no answer within 12 s$"):
        measure_links(LaunchFlags(hostfile=hostfile), gpus=0, say=lambda text: None)


def test_links_need_two_hosts(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("alpha slots=4\n")
    with pytest.raises(UserError, match="there is only one"):
        measure_links(LaunchFlags(hostfile=file), gpus=0, say=lambda text: None)
    with pytest.raises(UserError, match="there is only one"):
        measure_links(LaunchFlags(), gpus=0, say=lambda text: None)


def test_only_marked_lines_are_read() -> None:
    assert message_of(f"alpha: {MARK}{TOLD}\n") == {
        "pair": [0, 1],
        "latency": 0.001,
        "bandwidth": 12.5e6,
        "copying": 1e-9,
    }
    assert message_of("alpha: something") is None and message_of(f"{MARK}broken") is None


def test_a_ring_is_as_fast_as_its_slowest_parts() -> None:
    links = {
        ("a", "b"): Link(2e6, 0.001, "measured", 1e-9),
        ("b", "c"): Link(1e6, 0.0005, "measured", 2e-9),
    }
    assert MeasuredLinks(links).slowest == Link(1e6, 0.001, "measured", 2e-9)


def test_a_link_in_words() -> None:
    assert described(Link(1.25e9, 5e-5)) == "10,000 Mbit/s, 0.05 ms"
