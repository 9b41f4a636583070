"""A run that is saved in the middle of trouble and goes on in new processes ends with the bits of
one that was not.

A tape of faults: overflows spread over the hysteresis, bad steps in a row up to a roll-back, more
after it. The run saves after several of them; every save is then taken up by a new world of ranks
and played to the end.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.faults.tape import MODEL, Fault, Injector, convolutions, engine_of, step_on
from tests.ranks import on_ranks
from yolods.checkpoint.names import LATEST
from yolods.checkpoint.store import CheckpointStore, Progress
from yolods.distributed.world import Ranks
from yolods.engine.base import Engine

STEPS = 13
FORWARD, OVERFLOW = "activation", "parameter gradient"
FAULTS = {3: OVERFLOW, 5: OVERFLOW, 7: FORWARD, 8: FORWARD, 9: FORWARD, 12: OVERFLOW}
"""By step. With a patience of 3 the ninth leads back."""
SAVES = {
    4: "within the hysteresis",
    8: "between skips and the roll-back",
    10: "after the roll-back",
}
"""After so many steps."""
OVERFLOW_RULES = {"patience": 3, "snapshot_steps": 4, "warmup_steps": 50, "quarantine": 0}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def play_from(ranks: Ranks, layout: str, folder: str, firsts: list[int]) -> list[dict[str, Any]]:
    """On a rank: the run from each of `firsts` steps on, with what it held in the end and did on
    the way."""
    return [_play(ranks, layout, Path(folder), first) for first in firsts]


def _play(ranks: Ranks, layout: str, folder: Path, first: int) -> dict[str, Any]:
    blocks: dict[str, Any] = {"yolods": {"overflow": OVERFLOW_RULES}}
    if layout.endswith("fp16"):
        blocks["fp16"] = {
            "enabled": True,
            "initial_scale_power": 6,
            "hysteresis": 3,
            "loss_scale_window": 4,
        }
    with engine_of(ranks, layout, folder, blocks) as engine:
        store = CheckpointStore(
            folder / "checkpoints", ranks, keep=99, model={"architecture": MODEL}
        )
        if first:
            ranks.main_first(
                lambda: (folder / "checkpoints" / LATEST).write_text(f"step{first:08d}")
            )
            assert store.load(engine).step == first
        injector = Injector(engine)
        module = ranks.from_main(convolutions(engine)[3])
        actions, scales = [], []
        for number in range(first, STEPS):
            kind = FAULTS.get(number + 1)
            fault = None if kind is None else Fault(kind, module, "inf", 0, 1, 0)
            result = step_on(engine, injector, fault, number)
            actions.append(result.verdict.action)
            scales.append(result.next_scale)
            # A run that went on saves again where the first one did: a save decides what may be
            # gone back to.
            if number + 1 in SAVES:
                store.save(engine, Progress(step=number + 1))
        injector.close()
        return {"digest": _digest(engine), "actions": actions, "scales": scales}


def _digest(engine: Engine) -> str:
    """Of everything that this rank would save, but DeepSpeed's counts of steps."""
    state = engine.state()
    found = hashlib.sha256()
    for key in ("masters", "optimizer", "ema", "statistics", "stability", "compression"):
        _feed(found, state[key])
    return found.hexdigest()


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value):
            found.update(str(key).encode())
            _feed(found, value[key])
    elif isinstance(value, list | tuple):
        for each in value:
            _feed(found, each)
    else:
        found.update(json.dumps(value).encode())


@pytest.mark.parametrize("layout", ["zero1_powersgd_fp16", "zero2_fp16", "pipeline"])
def test_a_save_in_the_middle_of_trouble_is_taken_up_bit_for_bit(
    layout: str, tmp_path: Path
) -> None:
    def play(firsts: list[int]) -> list[list[dict[str, Any]]]:
        told = {"layout": layout, "folder": str(tmp_path), "firsts": firsts}
        return on_ranks("tests.dist.test_stability_resume:play_from", (2,), timeout=100, **told)[2]

    whole = [rank[0] for rank in play([0])]
    assert whole[0]["actions"][8] == "rollback", (
        "the tape has not led back, so that it shows nothing about it"
    )
    assert [
        place for place, action in enumerate(whole[0]["actions"], 1) if action != "apply"
    ] == sorted(FAULTS)
    if layout.endswith("fp16"):
        assert len(set(whole[0]["scales"])) > 1, "the loss scale has not moved"
    resumed = play(sorted(SAVES))
    for place, first in enumerate(sorted(SAVES)):
        for rank, other in enumerate(whole):
            mine = resumed[rank][place]
            assert mine["actions"] == other["actions"][first:], SAVES[first]
            assert mine["scales"] == other["scales"][first:], SAVES[first]
            assert mine["digest"] == other["digest"], SAVES[first]
