"""fp16's loss scale in stock DeepSpeed 0.19.8, and ours: gradients that were never scaled (fault
1), the step on which the scale grows (2), and a scale at its minimum (7).

Gradients are looked at when the inner optimizer is handed them, and their norm is compared with
that of plain torch, and of plain ultralytics.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.faults.stock import (
    LAYOUTS,
    Measured,
    Reached,
    Report,
    bad_gradient,
    low_precision,
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

pytestmark = pytest.mark.slow

UNSCALED = ("zero0", "pipeline0")
POWER, SCALE = 8, 256.0
"""The scale that every engine starts from, which is its least one as well."""
DOUBLED = {
    "initial_scale_power": POWER,
    "min_loss_scale": SCALE,
    "loss_scale_window": 1,
    "hysteresis": 1,
}
"""A scale that grows on the second good step, and falls at the first overflow."""
NEAR = 0.02
"""A small network in fp16 beside the same in fp32, relative."""
EXACT = 1e-3
"""A detector in fp16 beside the same in fp16: gradients of two ranks are averaged in fp16."""


def measure(ranks: Ranks, folder: str) -> dict[str, dict[str, Report]]:
    """On a rank: what stock engines and ours make of the same gradients, by layout."""
    allow_fp16()
    return {
        "unscaled": {layout: _unscaled(ranks, layout) for layout in UNSCALED},
        "stock": {layout: _stock(ranks, layout) for layout in LAYOUTS},
        "own": {layout: _own(ranks, layout, Path(folder)) for layout in LAYOUTS},
    }


def _unscaled(ranks: Ranks, layout: str) -> Report:
    with stock(ranks, layout, **low_precision("fp16", loss_scale=SCALE)) as engine:
        engine.step()
        return {"true": _true(ranks, engine.piped), "reached": engine.reached.take()}


def _true(ranks: Ranks, piped: bool) -> float:
    return float(torch.tensor(true_norms(torch.float16, 1 if piped else ranks.size)).norm())


def _stock(ranks: Ranks, layout: str) -> Report:
    """Good steps until the scale has grown, and overflows until the engine gives up."""
    with stock(ranks, layout, **low_precision("fp16", **DOUBLED)) as engine:
        steps: list[Report] = []
        while engine.scale == SCALE and len(steps) < 5:
            engine.step()
            told = engine.engine.get_global_grad_norm()
            steps.append(
                {"told": float(told), "reached": engine.reached.take(), "next": engine.scale}
            )
        losses, raised = [], ""
        while not raised and len(losses) < 4:
            try:
                losses.append(engine.step(far=True))
            except Exception as error:  # DeepSpeed's is of no class of its own
                raised = str(error)
        return {
            "true": _true(ranks, engine.piped),
            "steps": steps,
            "losses": losses,
            "raised": raised,
        }


def _own(ranks: Ranks, layout: str, folder: Path) -> Report:
    """An overflow at the minimum, and good steps until the scale has grown."""
    own = {"overflow": {"attribution": "off"}}
    blocks = {"fp16": {"enabled": True, **DOUBLED}, "gradient_clipping": 0, "yolods": own}
    with own_engine(ranks, layout, folder, **blocks) as engine:
        reached = Reached(engine.masters.inner, over_ranks=True)
        with bad_gradient(engine):
            results = [take(engine)]
        given = [reached.take()]
        while results[-1].next_scale == SCALE and len(results) < 6:
            results.append(take(engine))
            given.append(reached.take())
        return {
            "true": plain_norm(torch.float16, engine.share.dp_size, SCALE),
            "steps": [
                {
                    "action": result.verdict.action,
                    "cause": result.verdict.cause,
                    "told": result.grad_norm,
                    "reached": norm,
                    "scale": result.loss_scale,
                    "next": result.next_scale,
                }
                for result, norm in zip(results, given, strict=True)
            ],
        }


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = str(tmp_path_factory.mktemp("scale"))
    return on_ranks("tests.faults.test_stock_scale:measure", (2,), timeout=110, folder=folder)[2]


@pytest.mark.parametrize("layout", UNSCALED)
def test_1_stock_divides_by_a_scale_that_was_never_applied(
    measured: Measured, layout: str, tmp_path: Path
) -> None:
    """fp16 without ZeRO. Adam hides it, for it divides by the gradient's own size; SGD hardly
    moves."""
    found = told(measured, "unscaled", layout)
    assert found["reached"] * SCALE == pytest.approx(found["true"], rel=NEAR), mended(1, f"{found}")
    fp16, pipeline = (
        {"fp16": {"enabled": True}},
        {"pipeline": {"stages": 2}} if layout == "pipeline0" else {},
    )
    (fault,) = refusals(tmp_path, fp16 | pipeline)
    assert (
        '"fp16" with ZeRO stage 0 divides gradients by a loss scale that was never applied' in fault
    )
    assert not refusals(tmp_path, fp16 | pipeline | {"zero_optimization": {"stage": 1}})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_2_stock_halves_the_gradients_of_the_step_on_which_the_scale_grows(
    measured: Measured, layout: str
) -> None:
    """It moves its scale before it unscales. ZeRO-3 reports the halved norm, too."""
    found = told(measured, "stock", layout)
    *before, grown = found["steps"]
    assert before and grown["next"] == 2 * SCALE, (
        "the scale has not grown, so that nothing is shown"
    )
    for step in before:
        assert step["reached"] == pytest.approx(found["true"], rel=NEAR)
    assert grown["reached"] == pytest.approx(found["true"] / 2, rel=NEAR), mended(
        2, f"{grown}, true {found['true']}"
    )
    reported = found["true"] / (2 if layout == "zero3" else 1)
    assert grown["told"] == pytest.approx(reported, rel=NEAR), mended(
        2, f"{grown}, true {found['true']}"
    )

    mine = told(measured, "own", layout)
    *_, before, grown = mine["steps"]
    assert (before["scale"], before["next"]) == (SCALE, SCALE)
    assert (grown["scale"], grown["next"]) == (SCALE, 2 * SCALE), (
        "the scale has not grown, so that nothing is shown"
    )
    for step in (before, grown):
        assert step["reached"] == pytest.approx(mine["true"], rel=EXACT)
        assert step["told"] == pytest.approx(mine["true"], rel=EXACT)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_7_stock_ends_the_run_at_the_smallest_scale(measured: Measured, layout: str) -> None:
    found = told(measured, "stock", layout)
    assert "scale already at minimum" in found["raised"], mended(
        7, f"after {len(found['losses'])} overflows"
    )
    # The first of them was at twice the minimum.
    assert len(found["losses"]) == 1 and math.isfinite(found["losses"][0])

    first, second, *_ = told(measured, "own", layout)["steps"]
    assert (first["action"], first["cause"]) == ("skip", "backward")
    assert math.isinf(first["told"]) and first["reached"] == 0, "a weight has moved"
    assert (first["scale"], first["next"]) == (SCALE, SCALE)
    assert second["action"] == "apply" and second["reached"] > 0
