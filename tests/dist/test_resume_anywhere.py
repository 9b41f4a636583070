"""One epoch that is handed from layout to layout: no loss changes by it, and no image is lost or
seen twice.

    ranks    2         2         2                 1         2         4
    layout   ZeRO-2 -> ZeRO-3 -> pipeline 2 x 1 -> ZeRO-1 -> ZeRO-1 -> ZeRO-1

Each leg resumes the run as a user would, takes a step or two, saves in the middle of the epoch, and
takes the next step without saving it. The leg after it repeats that step from the checkpoint: its
loss has to be the same.

The first leg begins where the decoded set does not fit the loader's cache, so that mosaic partners
come from blocks. All others could keep the whole set, and have to go on with blocks.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from tests.ranks import on_ranks
from tests.tiny import make_dataset
from yolods.data.augment import partner_choice
from yolods.data.sampler import BLOCK_LENGTH, permutation
from yolods.distributed.world import Ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(235)]

IMAGES, STEP, MICRO, SEED = 64, 8, 2, 3
RUN = "runs/tour"
WORDS = (
    *(
        "--data",
        "data/tiny.yaml",
        "--model",
        "yolov5[0.1,0.1]",
        "--imgsz",
        "64",
        "--epochs",
        "2",
        "--workers",
        "0",
    ),
    *("--seed", str(SEED), "--noplots", "--project", "runs", "--name", "tour"),
    *(
        "--set",
        f"nbs={STEP}",
        "--set",
        "warmup_epochs=0",
        "--set",
        "close_mosaic=0",
        "--set",
        "lr0=0.01",
        "--set",
        "ema_tau=10",
    ),
)
LIMIT_SECONDS = 45.0


class Leg(NamedTuple):
    """A part of the way."""

    name: str
    ranks: int
    stage: int
    """Of ZeRO."""
    stages: int
    """Of the model."""
    steps: int
    """That are taken and saved; 0: to the epoch's end."""
    keeps_all: bool = True
    """Whether the decoded set counts as one that fits the cache."""


LEGS = (
    Leg("ZeRO-2 on 2", 2, 2, 1, 2, keeps_all=False),
    Leg("ZeRO-3 on 2", 2, 3, 1, 1),
    Leg("pipeline 2 x 1", 2, 0, 2, 1),
    Leg("ZeRO-1 on 1", 1, 1, 1, 1),
    Leg("ZeRO-1 on 2", 2, 1, 1, 2),
    Leg("ZeRO-1 on 4", 4, 1, 1, 0),
)
TAKEN = IMAGES // STEP
"""Steps of the epoch."""
WORLDS = ((2, 1), (2, 4))
"""Sizes of worlds whose ranks one Python forks, one after the other. What has had a pipeline is of
no use for ZeRO: in deepspeed 0.19.8 `initialize` goes on asking for the pipeline's groups."""

Report = dict[str, Any]


def travel(ranks: Ranks, folder: str, legs: list[list[Any]]) -> list[Report]:
    """On a rank: the legs that are for a world of this size."""
    os.chdir(folder)
    return [_travel(ranks, leg) for leg in (Leg(*each) for each in legs) if leg.ranks == ranks.size]


class _Enough(Exception):
    """The leg ends here."""


def _travel(ranks: Ranks, leg: Leg) -> Report:
    """The losses of every step, and the files that this rank has read for each."""
    from yolods.config import add_train_arguments, build_run_config
    from yolods.distributed.store import open_store
    from yolods.training.start import start_run
    from yolods.watchdog.watchdog import Watchdog

    layout = ranks.main_first(lambda: _write_layout(leg))
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    words = ["--resume", RUN] if Path(RUN).exists() else list(WORDS)
    args = parser.parse_args([*words, "--deepspeed_config", layout])
    config = ranks.main_first(lambda: build_run_config(args, world_size=ranks.size, device="cpu"))
    kv_store = open_store(ranks)
    limit = partner_choice.KEPT_WHOLE if leg.keeps_all else 0
    with patch.object(partner_choice, "KEPT_WHOLE", limit):
        run = start_run(
            config, ranks, kv_store, Watchdog(kv_store, ranks, config.deepspeed.own.watchdog, None)
        )
    report: Report = {"losses": [], "read": [], "mixed": [], "first": run.progress.step}
    take_step = run.engine.train_step
    last = leg.steps + 1 if leg.steps else TAKEN - run.progress.step

    def step_and_note(step: Any, batches: Iterator[Any], *rest: Any, **named: Any) -> Any:
        read: list[str] = []
        result = take_step(step, _noted(batches, read, report["mixed"]), *rest, **named)
        report["losses"].append(result.loss)
        report["read"].append(read)
        if len(report["losses"]) == last:
            run.store.wait()
            raise _Enough
        return result

    run.engine.train_step = step_and_note
    with run.telemetry, suppress(_Enough):
        run.fit()
    assert len(report["losses"]) == last
    run.engine.deepspeed.destroy()
    ranks.barrier()
    return report


def _write_layout(leg: Leg) -> str:
    file = Path(f"{leg.name}.json".replace(" ", "-"))
    content: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": MICRO,
        "gradient_accumulation_steps": "auto",
        "zero_optimization": {"stage": leg.stage},
        "yolods": {"checkpoint": {"every_steps": 1}},
    }
    file.write_text(
        json.dumps(content | ({"pipeline": {"stages": leg.stages}} if leg.stages > 1 else {}))
    )
    return str(file)


def _noted(batches: Iterator[Any], read: list[str], mixed: list[list[str]]) -> Iterator[Any]:
    for batch in batches:
        read += batch["im_file"]
        mixed += map(list, batch["sources"])
        yield batch


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> list[list[Report]]:
    """What each rank of each leg reports."""
    folder = tmp_path_factory.mktemp("tour")
    make_dataset(folder / "data", train=IMAGES, val=2)
    reports: list[list[Report]] = []
    todo = list(LEGS)
    for sizes in WORLDS:
        legs, names = [], list(sizes)
        while todo and todo[0].ranks in names:
            names = names[names.index(todo[0].ranks) :]
            legs.append(todo.pop(0))
        told = {"folder": str(folder), "legs": legs}
        found = on_ranks(
            "tests.dist.test_resume_anywhere:travel", sizes, timeout=LIMIT_SECONDS, **told
        )
        for size in sizes:
            reports += [list(each) for each in zip(*found[size], strict=True)]
    assert not todo and len(reports) == len(LEGS)
    return reports


def test_the_loss_of_the_first_step_is_that_of_the_run_that_went_on(
    tour: list[list[Report]],
) -> None:
    for (before, after), (one, other) in zip(pairwise(LEGS), pairwise(tour), strict=True):
        assert other[0]["first"] == one[0]["first"] + before.steps, "it resumes from another step"
        assert all(rank["losses"] == other[0]["losses"] for rank in other), "ranks disagree"
        went_on, resumed = one[0]["losses"][-1], other[0]["losses"][0]
        for item, loss in went_on.items():
            assert loss > 0
            apart = abs(resumed[item] - loss) / loss
            print(f"{before.name} -> {after.name}: {item} {loss:.6f}, {apart:.1e} apart")
            assert apart < 1e-5, (
                f"{before.name} -> {after.name}: {item} is {resumed[item]}, and was {loss}"
            )
    moved = [one[0]["losses"][0]["cls_loss"] for one in tour]
    assert len(set(moved)) == len(moved), "steps change nothing, so that equal losses say nothing"


def test_an_epoch_over_all_of_them_has_every_image_once_and_in_its_place(
    tour: list[list[Report]],
) -> None:
    tape: list[str] = []
    for leg, ranks in zip(LEGS, tour, strict=True):
        for number in range(leg.steps or TAKEN - ranks[0]["first"]):
            tape += _in_order([rank["read"][number] for rank in ranks])
    names = [Path(file).name for file in tape]
    assert sorted(names) == [f"{number:03}.jpg" for number in range(IMAGES)]
    assert names == [f"{number:03}.jpg" for number in permutation(SEED, 0, IMAGES)]


def test_all_of_them_mix_images_of_a_block_only(tour: list[list[Report]]) -> None:
    places = {image: place for place, image in enumerate(permutation(SEED, 0, IMAGES).tolist())}
    for leg, ranks in zip(LEGS, tour, strict=True):
        mixed = [sources for rank in ranks for sources in rank["mixed"]]
        assert mixed and all(len(sources) == 4 for sources in mixed), "mosaics"
        for sources in mixed:
            blocks = {places[int(Path(file).stem)] // BLOCK_LENGTH for file in sources}
            assert len(blocks) == 1, f"{leg.name}: {sources}"


def _in_order(shares: list[list[str]]) -> list[str]:
    """The samples of a step as the stream has them: of every micro-batch each replica's in turn."""
    reading = [share for share in shares if share]  # later stages of a pipeline read none
    micro_batches = len(reading[0]) // MICRO
    return [
        file
        for k in range(micro_batches)
        for share in reading
        for file in share[MICRO * k : MICRO * (k + 1)]
    ]
