"""The sharded moving average: against ultralytics' ModelEMA, in exchange with the weights, in
checkpoints and exports.

All of it on two ranks, for every place where DeepSpeed keeps fp32 masters.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.small import (
    NAMES,
    Small,
    distances,
    floating_buffers,
    micro_batch,
    plain_model,
    seasoned_weights,
    small_engine,
    worst,
)
from tests.ranks import on_ranks
from yolods.checkpoint.convert import export, find_checkpoint, merge_shards
from yolods.checkpoint.read import Checkpoint
from yolods.checkpoint.store import CheckpointStore, Progress
from yolods.distributed.world import Ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(220)]

BF16 = {"bf16": {"enabled": True}}
QUICK_START = {"stage3_max_reuse_distance": 0}
"""Spares a search through all modules for each, which takes a second before the second
micro-batch."""
VARIANTS: dict[str, dict[str, Any]] = {
    "zero0": {"zero_optimization": {"stage": 0}},
    "zero1-frozen": {"zero_optimization": {"stage": 1}},
    "zero2": {"zero_optimization": {"stage": 2, "round_robin_gradients": True}},
    "zero3": {
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, **QUICK_START}
    },
    "zero3-frozen": {"zero_optimization": {"stage": 3, "sub_group_size": 100_000, **QUICK_START}},
    "zero0-bf16": {"zero_optimization": {"stage": 0}, **BF16},
    "zero1-bf16-fp32-gradients": {
        "zero_optimization": {"stage": 1},
        "data_types": {"grad_accum_dtype": "fp32"},
        **BF16,
    },
    "zero2-bf16": {"zero_optimization": {"stage": 2, "round_robin_gradients": True}, **BF16},
}
"""DeepSpeed JSON by name: every class of `yolods.zero.master_weights`, and what changes a shard's
layout."""
RESUMED = ("zero0", "zero2", "zero3", "zero1-bf16-fp32-gradients")

STEPS = 3
DECAY, TAU = 0.9, 2
"""At ultralytics' 0.9999 and 2000 the average of three steps would be the last weights to 0.2%."""

PROGRESS = Progress(step=STEPS, position=STEPS, loss_sums=(1.5, 0.25), best_fitness=0.125)

Report = dict[str, Any]


def measure(ranks: Ranks, folder: str, names: list[str]) -> dict[str, Report]:
    """On a rank: these variants; each has its JSON, and leaves its checkpoints, in a folder of its
    name."""
    return {name: _measure(ranks, name, Path(folder) / name) for name in names}


def _measure(ranks: Ranks, name: str, folder: Path) -> Report:
    settings = {
        "weights": seasoned_weights(),
        "optimizer": "AdamW",
        "lr0": 0.001,
        "ema_decay": DECAY,
        "ema_tau": TAU,
        **({"freeze": 2} if name.endswith("frozen") else {}),
    }
    with small_engine(ranks, folder / "ds.json", **settings) as small:
        report = {"follows": _follow(small), "exchange": _exchange(small)}
        small.engine.average_statistics()
        store = _store(small, folder)
        store.save(small.engine, PROGRESS)
        report |= _compare_merged(small, folder)
        if name not in RESUMED:
            return report
        small.step(STEPS)
        uninterrupted = _bits(small)
    with small_engine(ranks, folder / "ds.json", **settings) as small:
        report["progress"] = _store(small, folder).load(small.engine) == PROGRESS
        small.step(STEPS)
        report["resumed"] = _differing(_bits(small), uninterrupted)
    return report


def _store(small: Small, folder: Path) -> CheckpointStore:
    model = {"architecture": small.layers, "names": NAMES, "train_args": {}}
    return CheckpointStore(folder / "checkpoints", small.engine.ranks, keep=1, model=model)


def _follow(small: Small) -> Report | None:
    """Train, and let ultralytics' ModelEMA watch the same weights on rank 0; how far the averages
    are apart."""
    from ultralytics.utils.torch_utils import ModelEMA

    engine = small.engine
    weights = dict(engine.weights())
    net = weights and plain_model(weights)
    theirs = net and ModelEMA(net, decay=DECAY, tau=TAU)
    for number in range(STEPS):
        small.step(number)
        weights = dict(engine.weights())
        if weights:
            net.load_state_dict(weights)
            theirs.update(net)
    with engine.ema.exchange():
        mine = dict(engine.weights())
    if not mine:
        return None
    floating = [name for name, value in mine.items() if value.is_floating_point()]
    state = theirs.ema.state_dict()
    return {
        "names": (set(mine), set(state)),
        "apart": distances(
            {name: mine[name] for name in floating}, {name: state[name] for name in floating}
        ),
        "from the weights": len(_differing(mine, weights)),
    }


def _exchange(small: Small) -> Report:
    """What the model is within an exchange, and what is left of it after."""
    engine = small.engine
    before = _bits(small)
    with engine.ema.exchange():
        within = dict(engine.weights())
        seen = _seen(small)
        predicted = _predict(small)
    after = _bits(small)
    report = {"left": _differing(before, after)}
    if not within:
        return report
    plain = plain_model(within).eval()
    images = micro_batch(77)["img"].float() / 255
    with torch.no_grad():
        expected = plain(images)[0]
        with torch.autocast("cpu", torch.bfloat16):
            rough = plain(images)[0].float()
    rounded = {name: within[name].to(value.dtype) for name, value in seen.items()}
    apart = {"predicted": predicted - expected, "rounding": rough - expected}
    return {
        **report,
        "seen": _differing(seen, rounded),
        **{key: float(each.abs().max()) for key, each in apart.items()},
    }


def _seen(small: Small) -> dict[str, Tensor]:
    """The parameters that a forward pass computes with."""
    from deepspeed.runtime.zero import GatheredParameters

    seen = {}
    for name, each in small.engine.net.named_parameters():
        with GatheredParameters([each], enabled=hasattr(each, "ds_id")):
            seen[name] = each.detach().clone()
    return seen


def _predict(small: Small) -> Tensor:
    small.engine.deepspeed.eval()
    predicted, _ = small.engine.predict(micro_batch(77)["img"])
    small.engine.training()
    return predicted


def _compare_merged(small: Small, folder: Path) -> Report:
    """The parameters and statistics that differ between a merged checkpoint and the weights of the
    engine."""
    engine = small.engine
    live = dict(engine.weights())
    with engine.ema.exchange():
        average = dict(engine.weights())
    if not live:
        return {}
    checkpoint = Checkpoint(find_checkpoint(folder))
    report = {}
    for name, expected in (("live", live), ("average", average)):
        merged = dict(merge_shards(checkpoint, live=name == "live"))
        floating = {key: value for key, value in expected.items() if value.is_floating_point()}
        report[name] = _differing(merged, floating)
    export(folder, folder / "exported.pt", live=False, fp32=True)
    torch.save(average, folder / "expected.pt")
    return report


def _bits(small: Small) -> dict[str, Tensor]:
    """Everything on this rank that training changes: masters, average, parameters as stored,
    moments, statistics."""
    engine = small.engine
    bits = {f"master {place}": each for place, each in enumerate(engine.masters.shards())}
    bits |= {
        f"average {place}": each for place, each in enumerate(engine.ema.state_dict()["shards"])
    }
    bits |= {
        f"average statistics {place}": each for place, each in enumerate(engine.ema.mean_buffers)
    }
    for name, each in engine.net.named_parameters():
        bits[f"parameter {name}"] = getattr(each, "ds_tensor", each)
    inner = getattr(engine.deepspeed.optimizer, "optimizer", engine.deepspeed.optimizer)
    for place, state in enumerate(inner.state.values()):
        bits |= {
            f"{key} {place}": value for key, value in state.items() if isinstance(value, Tensor)
        }
    bits |= floating_buffers(engine.net)
    return {name: each.detach().clone() for name, each in bits.items()}


def _differing(mine: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names that only one of them has, or under which not every bit is the same."""
    missing = sorted(mine.keys() ^ other.keys())
    return missing + [
        name for name in mine.keys() & other.keys() if not torch.equal(mine[name], other[name])
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ema")
    for name, settings in VARIANTS.items():
        (folder / name).mkdir()
        (folder / name / "ds.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def measured(folder: Path, seasoned: None) -> list[dict[str, Report]]:
    return on_ranks(
        "tests.parity.test_ema:measure", (2,), timeout=170, folder=str(folder), names=list(VARIANTS)
    )[2]


every_variant = pytest.mark.parametrize("name", VARIANTS)


@every_variant
def test_the_average_is_that_of_model_ema(measured: list[dict[str, Report]], name: str) -> None:
    report = measured[0][name]["follows"]
    mine, theirs = report["names"]
    assert mine == theirs
    largest, where = worst(report["apart"])
    assert largest < 1e-6, where
    assert report["from the weights"] > 200, (
        "the average is the weights themselves, so that this shows nothing"
    )


@every_variant
def test_within_an_exchange_the_model_is_the_average(
    measured: list[dict[str, Report]], name: str
) -> None:
    report = measured[0][name]["exchange"]
    assert report["seen"] == []
    # In pixels of a 64-pixel image. How far bf16 is from fp32 depends on the CPU's kernels: plain
    # torch tells it.
    assert report["predicted"] < (2 * report["rounding"] if "bf16" in name else 1e-3)


@every_variant
def test_an_exchange_leaves_every_bit_as_it_was(
    measured: list[dict[str, Report]], name: str
) -> None:
    assert [rank[name]["exchange"]["left"] for rank in measured] == [[], []]


@every_variant
@pytest.mark.parametrize("which", ["live", "average"])
def test_a_merged_checkpoint_is_the_engines_weights(
    measured: list[dict[str, Report]], name: str, which: str
) -> None:
    assert measured[0][name][which] == []


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_step_has_every_bit_of_one_that_was_not_interrupted(
    measured: list[dict[str, Report]], name: str
) -> None:
    assert [rank[name]["progress"] for rank in measured] == [True, True]
    assert [rank[name]["resumed"] for rank in measured] == [[], []]


READ_BY_YOLO = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("yolods", "deepspeed"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Blocked())
import torch
from ultralytics import YOLO
for folder in sys.argv[1:]:
    net = YOLO(f"{folder}/exported.pt").model
    state = {name: value.clone() for name, value in net.state_dict().items()}
    torch.save((state, net.names), f"{folder}/read.pt")
"""


def test_exports_load_in_ultralytics_alone(
    measured: list[dict[str, Report]],
    folder: Path,
    tmp_path: Path,
    run_process: Callable[..., Any],
) -> None:
    exported = [folder / name for name in ("zero1-frozen", "zero3")]
    words = [sys.executable, "-c", READ_BY_YOLO, *exported]
    done = run_process(words, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    for place in exported:
        read, names = torch.load(place / "read.pt")
        expected = torch.load(place / "expected.pt")
        # Counts of batches are not kept: with a momentum of its own BatchNorm does not read them.
        counts = {name for name, value in expected.items() if not value.is_floating_point()}
        assert set(_differing(read, expected)) <= counts
        assert names == dict(enumerate(NAMES))
