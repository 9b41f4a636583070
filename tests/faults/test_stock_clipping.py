"""What stock DeepSpeed 0.19.8 clips by, and ours: the norm of a pipeline's first stage alone (fault
3), and gradients that a GradScaler has still scaled (4).
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.faults.stock import (
    Measured,
    Reached,
    Report,
    bad_gradient,
    mended,
    own_engine,
    plain_norm,
    refusals,
    stock,
    take,
    told,
    true_norms,
)
from tests.half import allow_fp16
from tests.ranks import on_ranks
from yolods.distributed.world import Ranks

PIPELINES = ("pipeline0", "pipeline1")
ZERO = ("zero1", "zero2", "zero3")
TIGHT = 0.1
"""A largest norm below that of the small network."""
LOOSE = 10.0
"""And one above it."""
MAX_NORM = 10.0
"""Of our engines: what ultralytics clips at."""
SCALER = 2.0**16
"""torch's GradScaler starts from it."""
NEAR = 0.02
"""A small network under fp16 autocast beside the same in fp32, relative."""
FAR_FROM_TRAINED = 0.1
"""The detector under fp16 autocast beside fp32, at random weights, where rounding counts for
more."""
AUTOCAST = {"torch_autocast": {"enabled": True, "dtype": "float16"}}
POWER = 6
"""Of our first loss scale: as high as the detector bears, for each step on the way down from 65536
is an overflow."""
OWN_AUTOCAST = AUTOCAST | {
    "fp16": {"enabled": False, "initial_scale_power": POWER, "hysteresis": 1},
    "yolods": {"overflow": {"attribution": "off"}},
}


def measure(ranks: Ranks, folder: str) -> dict[str, dict[str, Report]]:
    """On a rank: norms before and after clipping, by layout."""
    found = {
        "stock": {layout: _stock_pipeline(ranks, layout) for layout in PIPELINES},
        "own": {layout: _own(ranks, layout, Path(folder)) for layout in PIPELINES},
    }
    # Last: DeepSpeed never forgets that one of its engines had autocast.
    allow_fp16()
    return found | {
        "autocast": {layout: _autocast(ranks, layout) for layout in ZERO},
        "own autocast": {
            layout: _own_autocast(ranks, layout, Path(folder)) for layout in ("zero0", *ZERO)
        },
    }


def _stock_pipeline(ranks: Ranks, layout: str) -> Report:
    with stock(ranks, layout, gradient_clipping=TIGHT) as engine:
        engine.step()
        return {"stages": true_norms(torch.float32, 1), "reached": engine.reached.take()}


def _own(ranks: Ranks, layout: str, folder: Path) -> Report:
    with own_engine(ranks, layout, folder, gradient_clipping=MAX_NORM) as engine:
        reached = Reached(engine.masters.inner, over_ranks=True)
        result = take(engine)
        return {
            "true": plain_norm(torch.float32, engine.share.dp_size),
            "told": result.grad_norm,
            "told after": result.norm_after,
            "reached": reached.take(),
        }


def _autocast(ranks: Ranks, layout: str) -> Report:
    with stock(ranks, layout, gradient_clipping=LOOSE, **AUTOCAST) as engine:
        engine.step()
        told = float(engine.engine.get_global_grad_norm())
        true = float(torch.tensor(true_norms(torch.float32, ranks.size)).norm())
        return {"true": true, "told": told, "reached": engine.reached.take()}


def _own_autocast(ranks: Ranks, layout: str, folder: Path) -> Report:
    """A step, an overflow, and steps after it."""
    with own_engine(ranks, layout, folder, gradient_clipping=MAX_NORM, **OWN_AUTOCAST) as engine:
        reached = Reached(engine.masters.inner, over_ranks=layout != "zero0")
        first, norm = take(engine), reached.take()
        with bad_gradient(engine):
            second, nothing = take(engine), reached.take()
        third, again = take(engine), reached.take()
        return {
            "true": plain_norm(torch.float32, engine.share.dp_size),
            "told": first.grad_norm,
            "scales": (first.loss_scale, third.loss_scale),
            "reached": norm,
            "overflow": (second.verdict.action, second.verdict.cause, nothing),
            "after": (third.verdict.action, again),
        }


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = str(tmp_path_factory.mktemp("clipping"))
    return on_ranks("tests.faults.test_stock_clipping:measure", (2,), timeout=80, folder=folder)[2]


def test_3_stock_clips_a_pipeline_by_its_first_stage(measured: Measured) -> None:
    """In fp32 without ZeRO: it counts the gradients where the model-parallel rank is 0, which is
    the stage.

    So more is left than the largest norm, by the whole norm over the first stage's.
    """
    found = told(measured, "stock", "pipeline0")
    first, whole = found["stages"][0], math.hypot(*found["stages"])
    assert whole > 1.05 * first > TIGHT, (
        "nothing to be seen: the second stage has next to no gradient, or none is clipped"
    )
    assert found["reached"] == pytest.approx(TIGHT * whole / first, rel=1e-4), mended(3, f"{found}")
    partitioned = told(measured, "stock", "pipeline1")
    assert partitioned["reached"] == pytest.approx(TIGHT, rel=1e-4), (
        "the network is at fault, and not the norm"
    )


@pytest.mark.parametrize("layout", PIPELINES)
def test_3_our_pipeline_is_clipped_by_the_norm_of_all_stages(
    measured: Measured, layout: str
) -> None:
    mine = told(measured, "own", layout)
    assert mine["true"] > 2 * MAX_NORM, "the step was not clipped"
    assert mine["told"] == pytest.approx(mine["true"], rel=1e-4)
    assert mine["reached"] == pytest.approx(MAX_NORM, rel=1e-4)
    assert mine["told after"] == pytest.approx(MAX_NORM, rel=1e-4)


@pytest.mark.parametrize("layout", ZERO)
def test_4_stock_clips_gradients_that_are_still_scaled(measured: Measured, layout: str) -> None:
    """Under `torch_autocast` in fp16. A gradient that is below the largest norm is cut to it, scale
    and all, and then divided by the scale: next to nothing is left."""
    found = told(measured, "autocast", layout)
    assert found["true"] < LOOSE, "the gradient has to be one that needs no clipping"
    assert found["told"] == pytest.approx(SCALER * found["true"], rel=NEAR), mended(4, f"{found}")
    assert found["reached"] == pytest.approx(LOOSE / SCALER, rel=1e-3), mended(4, f"{found}")


@pytest.mark.parametrize("layout", ("zero0", *ZERO))
def test_4_ours_clips_what_has_been_unscaled_and_goes_on_after_an_overflow(
    measured: Measured, layout: str
) -> None:
    """Stock ZeRO never comes to its GradScaler's `update` after an overflow, and skips every later
    step."""
    mine = told(measured, "own autocast", layout)
    assert mine["scales"] == (2.0**POWER, 2.0 ** (POWER - 1)), "it has to fall at the overflow"
    assert mine["told"] == pytest.approx(mine["true"], rel=FAR_FROM_TRAINED)
    assert mine["true"] > 2 * MAX_NORM, "the step was not clipped"
    assert mine["reached"] == pytest.approx(MAX_NORM, rel=1e-4)
    assert mine["overflow"] == ("skip", "overflow", 0.0)
    assert mine["after"] == ("apply", pytest.approx(MAX_NORM, rel=1e-4))


def test_4_stock_handling_of_fp16_autocast_is_refused_by_name(tmp_path: Path) -> None:
    stage = {"zero_optimization": {"stage": 1}, "gradient_clipping": LOOSE}
    (fault,) = refusals(
        tmp_path, AUTOCAST | stage | {"yolods": {"overflow": {"handling": "stock"}}}
    )
    assert "clips gradients that are still scaled" in fault
    assert not refusals(tmp_path, AUTOCAST | stage)
