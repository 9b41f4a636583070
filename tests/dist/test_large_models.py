"""Under ZeRO-3 no rank ever holds the whole model: not while it is built, and not while weights are
read. The numbers are those of a model that every rank builds whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.large_models import MIB, Case, Memory, blueprint_of
from tests.forks import forked
from tests.ranks import on_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

WIDE = "yolov5[0.33,1.0]"
"""27 M parameters, of which a rank's part in bf16 is 26 MiB; the whole in fp32 is 104."""


def weights_of(model: str, folder: Path) -> str:
    """A .pt of this model, written in another process."""
    path = folder / "given.pt"
    call = {"path": str(path), "model": model}
    screen = folder / "screen"
    code = forked("benchmarks.large_models:write_weights", call, screen=screen, timeout=60)
    assert code == 0, screen.read_text()
    return str(path)


def test_weights_and_losses_are_those_of_a_model_that_was_built_whole(tmp_path):
    weights = weights_of("yolov5n", tmp_path)
    cases = [
        Case(sync_bn=True),
        Case("bf16", weights=weights, offload=True, recompute=True, freeze=2),
    ]
    listed = [vars(case) for case in cases]
    for found in on_ranks(
        "benchmarks.large_models:compare",
        (2,),
        timeout=200,
        model="yolov5n",
        cases=listed,
        folder=str(tmp_path),
    )[2]:
        assert dict(zip((case.title for case in cases), found, strict=True)) == {
            case.title: [] for case in cases
        }


def test_no_rank_ever_holds_the_whole_model(tmp_path):
    """Not even in fp32 for a moment, from which bf16 is made, and not when weights are read."""
    whole = 4 * blueprint_of(WIDE).parameters
    case = Case("bf16", weights=weights_of(WIDE, tmp_path))
    for found in on_ranks(
        "benchmarks.large_models:measure",
        (2,),
        timeout=120,
        model=WIDE,
        case=vars(case),
        way="layers",
        folder=str(tmp_path),
    )[2]:
        memory = Memory(**found)
        assert memory.shard == pytest.approx(whole / 4, rel=0.01)
        assert memory.divided < min(whole, memory.shard + memory.largest + 250 * MIB)
