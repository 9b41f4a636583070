"""ZeRO-3 with a second, wider partition of the weights: whatever changes weights outside of a step,
passes see.

The twin is plain ZeRO-3, which has no second copy that could be of other weights: the same numbers
to the last bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.small import Small, micro_batch, small_engine
from tests.ranks import on_ranks
from yolods.distributed.world import Ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(220)]

TWIN = {"stage": 3, "stage3_max_reuse_distance": 0}
SECONDARY = {**TWIN, "zero_hpz_partition_size": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    "resident": {},
    "partitioned-frozen": {"sub_group_size": 100_000, "stage3_param_persistence_threshold": 0},
}
"""Where small parameters are, by name; `frozen` has two layers without masters."""

Report = dict[str, Any]


def measure(ranks: Ranks, folder: str) -> dict[str, list[Report]]:
    """On a rank: what each layout gives, and what its twin does."""
    found: dict[str, list[Report]] = {}
    # The twins first: DeepSpeed keeps the groups of second partitions for every later engine of the
    # process.
    for zero in (TWIN, SECONDARY):
        for name, more in LAYOUTS.items():
            # One per rank: a rank must not read what another is writing.
            file = Path(folder) / f"{name}-{len(zero)}-rank{ranks.rank}.json"
            file.write_text(json.dumps({"zero_optimization": {**zero, **more}}))
            # A short memory, so that the average is far from the weights.
            hyper = {"optimizer": "SGD", "lr0": 0.01, "ema_decay": 0.5, "ema_tau": 1}
            with small_engine(
                ranks, file, **hyper, **({"freeze": 2} if "frozen" in name else {})
            ) as small:
                found.setdefault(name, []).append(_go_through(small))
    return found


def _go_through(small: Small) -> Report:
    """Steps, with everything between them that changes weights by other ways."""
    engine, steps, predicted = small.engine, [], {}

    def step() -> None:
        result = small.step(len(steps))
        steps.append((result.loss, result.grad_norm))

    step()
    start = engine.ranks.from_main(dict(engine.weights()))
    state = _copied(engine.state())
    state["frozen"] = engine.ranks.from_main(state["frozen"])
    step()
    with engine.evaluating():
        predicted["average"] = _predict(small)
    step()
    engine.load_state(state)  # as a resumed run does, and a run that goes back to its snapshot
    predicted["resumed"] = _predict(small)
    step()
    other = {
        name: value * 0.5 if value.is_floating_point() else value for name, value in start.items()
    }
    engine.adopt(other)
    predicted["adopted"] = _predict(small)
    step()
    return {"steps": steps, "predicted": predicted}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _predict(small: Small) -> Tensor:
    small.engine.deepspeed.eval()
    predicted, _ = small.engine.predict(micro_batch(77)["img"])
    small.engine.training()
    return predicted


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Report]]]:
    folder = tmp_path_factory.mktemp("secondary")
    return on_ranks("tests.parity.test_secondary:measure", (2,), timeout=100, folder=str(folder))[2]


@pytest.mark.parametrize("name", LAYOUTS)
def test_training_goes_on_with_its_own_weights_after_an_evaluation(
    measured: list[dict[str, list[Report]]], name: str
) -> None:
    for rank in measured:
        plain, secondary = rank[name]
        assert secondary["steps"] == plain["steps"]
        assert len({str(loss) for loss, _ in plain["steps"]}) == len(plain["steps"])


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("which", ["average", "resumed", "adopted"])
def test_predictions_are_those_of_the_weights_that_were_put_in(
    measured: list[dict[str, list[Report]]], name: str, which: str
) -> None:
    for rank in measured:
        plain, secondary = (each["predicted"] for each in rank[name])
        assert float((secondary[which] - plain[which]).abs().max()) == 0.0
        others = [plain[key] for key in plain if key != which]
        assert all(not torch.equal(plain[which], other) for other in others)
