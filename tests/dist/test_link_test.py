"""`plan --links` between two hosts of two ranks, whose cables have a known speed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.dist.commands import ROOT
from tests.two_hosts import TwoHosts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

BITS = 100e6
PATIENCE_SECONDS = 400.0
MODEL, KINDS = "yolov5[0.33,0.1]", ("fp32", "bf16")


def main() -> None:
    """On the first host: measure, and print what was found."""
    from yolods import compat
    from yolods.launch.args import LaunchFlags
    from yolods.plan.step_profile import StepsOf
    from yolods.planner.links.link_test import measure_links

    compat.prepare()
    flags, steps = LaunchFlags(hostfile=Path(sys.argv[1])), StepsOf(MODEL, 2, 3, 64, 2, 3, KINDS)
    found = measure_links(flags, gpus=0, say=print, steps=steps)
    links = {" ".join(pair): asdict(link) for pair, link in found.links.items()}
    profiles = {name: asdict(profile) for name, profile in found.profiles.items()}
    print(json.dumps({"links": links, "profiles": profiles}))


@contextmanager
def slow_cables(hosts: TwoHosts) -> Iterator[None]:
    """Limit what both hosts send; other tests use the same hosts."""
    limit = ["rate", f"{BITS:.0f}", "burst", "64kb", "latency", "500ms"]
    both = (hosts.first, hosts.second)
    for host in both:
        host.run("tc", "qdisc", "add", "dev", host.interface, "root", "tbf", *limit)
    try:
        yield
    finally:
        for host in both:
            host.run("tc", "qdisc", "del", "dev", host.interface, "root")


def test_the_speed_of_a_cable(two_hosts: TwoHosts, run_process: Callable, tmp_path: Path) -> None:
    """By one rank on each host, which the launcher starts through pdsh as it starts a run's."""
    words = ["env", "-u", "DS_ACCELERATOR", f"PYTHONPATH={ROOT}", sys.executable, "-c"]
    script = "from tests.dist.test_link_test import main; main()"
    command = two_hosts.first.words([*words, script, two_hosts.hostfile(slots=2)], tmp_path)
    with slow_cables(two_hosts):
        done = run_process(command, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    ((pair, link),) = told["links"].items()
    assert pair == "alpha beta" and link["source"] == "measured"
    # Of a frame of 1514 bytes 1448 are data, 0.956. The rest is what busy cores cost.
    assert 0.75 * BITS / 8 < link["bandwidth"] < BITS / 8
    assert 0 < link["latency"] < 0.1
    assert 0 < link["copying"] < 1e-6
    assert set(told["profiles"]) == set(KINDS)
    for name, profile in told["profiles"].items():
        assert profile["precision"] == name
        assert min(*profile["forward"], profile["backward"], profile["optimizer"]) > 0
