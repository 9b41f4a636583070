"""What ranks find in their environment under DeepSpeed's real launcher, and what comes of it.
Nothing is trained."""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from tests.forks import ROOT, environment, forked
from tests.ranks import on_ranks
from yolods.config import RunConfig, add_train_arguments, build_run_config
from yolods.distributed.mesh import rank_at
from yolods.distributed.rank_env import read_launched_rank
from yolods.distributed.world import Ranks, _count_here
from yolods.engine.build_pipeline import order_of, plan_stages
from yolods.hosts.devices import NAMED, put_back
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.plan.stage_plan import StagePlan

DUMP = (
    "import json, os, sys\n"
    "json.dump(dict(os.environ), open(f'{sys.argv[1]}/{os.environ[\"RANK\"]}.json', 'w'))\n"
)
LEFT_OVER = {
    **{
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gone",
    },
    **{"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
"""Of a torchrun, in a shell that mpirun has started."""


def launch(folder: str, world: dict[str, list[int]], node: int, gpus: bool) -> None:
    """DeepSpeed's launcher of one host, as `yolods launch` lets it start; in a fork."""
    from deepspeed import accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
    from deepspeed.launcher import launch as theirs

    from yolods.distributed.rank_env import forget_ranks

    forget_ranks(os.environ)
    accelerator.set_accelerator(CUDA_Accelerator() if gpus else CPU_Accelerator())
    script = Path(folder) / "dump.py"
    script.write_text(DUMP)
    told = base64.urlsafe_b64encode(json.dumps(world).encode()).decode()
    place = [
        f"--world_info={told}",
        f"--node_rank={node}",
        "--master_addr=10.0.0.1",
        "--master_port=29500",
    ]
    sys.argv = ["launch", *place, "--no_local_rank", "--log_level=error", str(script), folder]
    theirs.main()


def environments(
    folder: Path, world: dict[str, list[int]], *, gpus: bool = False, **more: str
) -> list[dict[str, str]]:
    """Of all ranks, in their order; each host's launcher runs here."""
    for node in range(len(world)):
        call = {"folder": str(folder), "world": world, "node": node, "gpus": gpus}
        screen, env = folder / "screen", {**environment(), **more}
        code = forked(
            "tests.dist.test_real_launcher:launch", call, screen=screen, timeout=60, env=env
        )
        assert code == 0, screen.read_text()
    count = sum(map(len, world.values()))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


@pytest.fixture(scope="module")
def two_hosts_of_eight(tmp_path_factory: pytest.TempPathFactory) -> list[Ranks]:
    """The ranks of two hosts with eight slots each, by what the launcher has set; the shell was not
    clean."""
    slots = list(range(8))
    found = environments(tmp_path_factory.mktemp("ranks"), {"a": slots, "b": slots}, **LEFT_OVER)
    seats = [read_launched_rank(environ) for environ in found]
    return [
        Ranks(s.rank, s.size, s.local, "ab"[s.rank // 8], torch.device("cpu"), s.local_size or 0)
        for s in seats
    ]


def test_a_rank_knows_how_many_ranks_its_host_has(two_hosts_of_eight: list[Ranks]) -> None:
    assert [rank.rank for rank in two_hosts_of_eight] == list(range(16))
    assert [rank.local for rank in two_hosts_of_eight] == [*range(8), *range(8)]
    assert {(rank.size, rank.local_size) for rank in two_hosts_of_eight} == {(16, 8)}


@pytest.mark.parametrize(
    ("model", "imgsz", "order"),
    [("yolov5l", 64, "replicas"), ("yolov5n", 640, "stages")],
    ids=["weights", "images"],
)
def test_heavy_traffic_stays_inside_a_host(
    tmp_path: Path, two_hosts_of_eight: list[Ranks], model: str, imgsz: int, order: str
) -> None:
    """A large model on small images moves gradients, a small one on large images what crosses the
    cuts."""
    plan, config = _planned(tmp_path, model, imgsz)
    assert {order_of(plan, config, rank) for rank in two_hosts_of_eight} == {order}
    host = [rank.host for rank in two_hosts_of_eight]
    at = [
        [host[rank_at(stage, replica, 4, 4, order)] for replica in range(4)] for stage in range(4)
    ]
    if order == "replicas":
        assert all(len(set(replicas)) == 1 for replicas in at)
    else:
        assert all(len(set(stages)) == 1 for stages in zip(*at, strict=True))


def _planned(folder: Path, model: str, imgsz: int) -> tuple[StagePlan, RunConfig]:
    (folder / "ds.json").write_text(json.dumps({"pipeline": {"stages": 4}}))
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    words = ["--data", "demo", "--model", model, "--imgsz", str(imgsz), "--batch-size", "16"]
    args = parser.parse_args([*words, "--deepspeed_config", str(folder / "ds.json")])
    config = build_run_config(args, world_size=16, device="cpu", environ={})
    blueprint = Blueprint(architecture(parse_name(config.model), 3, 3), ("a", "b", "c"), seed=0)
    return plan_stages(blueprint, config, Ranks(0, 1, 0, "a", torch.device("cpu"))), config


def test_ranks_see_the_gpus_that_were_named_though_the_launcher_writes_numbers(
    tmp_path: Path,
) -> None:
    names = "GPU-a,GPU-b,GPU-c"
    found = environments(tmp_path, {"localhost": [0, 2]}, gpus=True, **{NAMED: names})
    assert {environ["CUDA_VISIBLE_DEVICES"] for environ in found} == {"0,2"}
    for environ in found:
        put_back(environ)
        assert environ["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-c"


def ask(ranks: Ranks) -> tuple[int, int]:
    """What the launcher has said of this host's ranks, and what asking all of them gives."""
    return ranks.local_size, _count_here(ranks)


def test_where_no_launcher_says_how_many_ranks_a_host_has_they_ask_each_other() -> None:
    assert on_ranks("tests.dist.test_real_launcher:ask", (2,), timeout=60) == {2: [(2, 2), (2, 2)]}


def test_how_many_ranks_a_host_has_is_known_in_one_place() -> None:
    texts = (file.read_text(encoding="utf-8") for file in (ROOT / "yolods").rglob("*.py"))
    assert sum(len(re.findall(r"LOCAL_WORLD_SIZE", text)) for text in texts) == 1
