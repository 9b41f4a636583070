"""PowerSGD in every kind of DeepSpeed's optimizer of ZeRO 0 and 1, on two ranks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.half import allow_fp16
from tests.parity.small import CONFIGS, Small, small_engine
from tests.ranks import on_ranks
from yolods.checkpoint.store import CheckpointStore, Progress
from yolods.device.host_copy import host_copy
from yolods.distributed.world import Ranks

MODEL = "yolov5[0.33,0.1]"
BF16, FP16 = {"bf16": {"enabled": True}}, {"fp16": {"enabled": True, "initial_scale_power": 6}}
KINDS: dict[str, dict[str, Any]] = {
    "zero0 fp32": {"zero_optimization": {"stage": 0}},
    "zero1 fp32": {},
    "zero0 bf16": {**BF16, "zero_optimization": {"stage": 0}},
    "zero1 bf16 wide": {**BF16, "data_types": {"grad_accum_dtype": "fp32"}},
    "zero1 fp16": FP16,
}
"""wide: bf16 that adds up in fp32, which is another optimizer of DeepSpeed's."""
LIMITS = {"fp32": 1e-6, "bf16": 0.01, "fp16": 0.002}
"""Of the relative difference of a parameter's gradient: roundings to the type that travels."""
STEPS, SAVED = 6, 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


def measure(ranks: Ranks, folder: str) -> dict[str, dict[str, Any]]:
    """On a rank: every kind without compression, with nothing to compress, and compressed."""
    allow_fp16()
    found = {}
    for name, blocks in KINDS.items():
        plain = _gradients(ranks, Path(folder), blocks, None)
        same = _gradients(ranks, Path(folder), blocks, {"min_saving": 1e6})
        found[name] = {
            "apart": max(_apart(*pair) for pair in zip(plain, same, strict=True)),
            **_trained(ranks, Path(folder), blocks),
        }
    return found


def _file(ranks: Ranks, folder: Path, blocks: dict[str, Any], compression: Any) -> Path:
    settings = json.loads((CONFIGS / "zero1_fp32.json").read_text(encoding="utf-8")) | blocks
    if compression is not None:
        settings["yolods"] = {"compression": {"kind": "powersgd", **compression}}
    file = folder / f"{'fp16' if 'fp16' in blocks else 'other'}-{ranks.rank}.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    return file


def _gradients(
    ranks: Ranks, folder: Path, blocks: dict[str, Any], compression: Any
) -> list[Tensor]:
    """This rank's, of one step, where the verdict reads them."""
    file, found = _file(ranks, folder, blocks, compression), list[Tensor]()
    with small_engine(ranks, file, model=MODEL, optimizer="SGD") as small:
        stability = small.engine.stability
        judge = stability.before_step

        def noted(*arguments: Any, **named: Any) -> Any:
            found.extend(each.float().clone() for each in stability._gradients.slices())
            return judge(*arguments, **named)

        stability.before_step = noted
        small.step()
    return found


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / one.norm().clamp(min=1e-6))


def _trained(ranks: Ranks, folder: Path, blocks: dict[str, Any]) -> dict[str, Any]:
    file = _file(ranks, folder, blocks, {"rank": 1})
    settings = {"model": MODEL, "optimizer": "AdamW", "lr0": 0.002}
    with small_engine(ranks, file, **settings) as small:
        losses = [_loss(small, 0) for _ in range(STEPS)]
        return {"losses": losses, "weights": _digest(small.engine.net.state_dict())}


def _loss(small: Small, number: int) -> float:
    record = small.step(number)
    assert record.verdict.applied
    return sum(record.loss.values())


def _digest(weights: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, each in weights.items():
        if "running" not in name:  # averaged before they are used
            found.update(each.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    folder = str(tmp_path_factory.mktemp("compression"))
    return on_ranks("tests.dist.test_compression:measure", (2,), timeout=150, folder=folder)[2]


@pytest.mark.parametrize("kind", KINDS)
def test_with_nothing_to_compress_the_gradients_are_deepspeeds(
    measured: list[dict[str, dict[str, Any]]], kind: str
) -> None:
    limit = next(value for word, value in LIMITS.items() if word in kind.split())
    assert all(rank[kind]["apart"] <= limit for rank in measured)


@pytest.mark.parametrize("kind", KINDS)
def test_compressed_training_brings_the_loss_down_alike_on_all_ranks(
    measured: list[dict[str, dict[str, Any]]], kind: str
) -> None:
    first, second = (rank[kind] for rank in measured)
    assert min(first["losses"][1:]) < 0.95 * first["losses"][0], first["losses"]
    assert first["losses"] == second["losses"] and first["weights"] == second["weights"]


def resume(ranks: Ranks, folder: str, last: int) -> dict[str, str]:
    """On a rank: the digests of a run's memory and weights.

    Two ranks save after `SAVED` steps and go on, whole and from the checkpoint. One rank goes on
    from that.
    """
    work, found = Path(folder), {}
    file = _file(ranks, work, KINDS["zero1 fp32"], {"rank": 2})
    if ranks.size == 2:
        with small_engine(ranks, file, model=MODEL, optimizer="SGD") as small:
            for number in range(STEPS):
                _loss(small, number)
                if number + 1 == SAVED:
                    _store(ranks, work).save(small.engine, Progress(step=SAVED))
                    found["memory"] = host_copy(small.engine.compression.state()["memory"])
            found["whole"] = _held(small)
    with small_engine(ranks, file, model=MODEL, optimizer="SGD") as small:
        _store(ranks, work).load(small.engine)
        if ranks.size > 2:
            found["memory"] = host_copy(small.engine.compression.state()["memory"])
        for number in range(SAVED, last):
            _loss(small, number)
        found["resumed"] = _held(small)
    return found


def _store(ranks: Ranks, folder: Path) -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints", ranks, keep=9, model={"architecture": MODEL})


def _held(small: Small) -> str:
    held = small.engine.compression.state()
    return _digest({**small.engine.net.state_dict(), **held["memory"]}) + _digest(held["factors"])


def test_a_resume_is_bit_for_bit_and_other_ranks_get_the_mean_of_the_memories(
    tmp_path: Path,
) -> None:
    function, told = "tests.dist.test_compression:resume", {"folder": str(tmp_path)}
    both = on_ranks(function, (2,), timeout=80, last=STEPS, **told)[2]
    for rank in both:
        assert rank["resumed"] == rank["whole"]
    three = on_ranks(function, (3,), timeout=80, last=SAVED, **told)[3]
    first, second = (rank["memory"] for rank in both)
    assert first.keys() == three[0]["memory"].keys() and len(first) > 20
    for rank in three:
        for name, memory in rank["memory"].items():
            assert torch.allclose(memory, (first[name] + second[name]) / 2, atol=1e-7), name
