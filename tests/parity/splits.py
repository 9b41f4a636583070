"""A way to split a model, and the micro-batches that are compared on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.small import MICRO, SIZE, micro_batch

FIRST = 100
"""Number of the first micro-batch."""
SCALE_POWER = 6
"""fp16's first loss scale, as a power of 2."""
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": SCALE_POWER}},
    "autocast": {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
}
"""What the DeepSpeed JSON says for each."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to split a model, and the step that is taken."""

    cuts: tuple[int | str, ...]
    """What each stage but the first begins with."""
    replicas: int = 1
    """Of the whole pipeline."""
    micro_batches: int = 2
    """Of the step, on each replica."""
    recompute: int = 0
    """activation_checkpoint_interval."""
    schedule: str = "1f1b"
    """Order of the passes: 1f1b or zb."""
    model: str = "yolov5n"
    """Architecture."""
    sizes: tuple[int, ...] = (SIZE,)
    """Image sizes of the steps that are taken one after the other, each from the same weights."""
    zero: int = 0
    """ZeRO stage."""
    precision: str = "fp32"
    """fp32, bf16, fp16 or autocast: bf16 over fp32 weights."""
    freeze: int | None = None
    """Layers, from the first on, that are not trained."""
    sync_bn: bool = False
    """BatchNorm's statistics over the replicas."""
    optimizer: str = "SGD"
    """What steps."""
    channels_last: bool = True
    """As a run has it; without it the split model rounds as plain ultralytics does."""
    slots: int | None = None
    """Ranks a host, as the launcher would tell; None: all are on one."""
    empty: tuple[int, ...] = ()
    """Places of micro-batches that hold no box."""
    blocks: dict[str, Any] = field(default_factory=dict)
    """Further blocks of the JSON; they replace those that the case would have."""

    @property
    def stages(self) -> int:
        """Parts of the model."""
        return len(self.cuts) + 1

    @property
    def ranks(self) -> int:
        """Of the mesh."""
        return self.stages * self.replicas

    @property
    def scale(self) -> float:
        """What losses are multiplied by before they are backpropagated."""
        return 2.0**SCALE_POWER if self.precision == "fp16" else 1.0

    @property
    def label(self) -> str:
        """For people."""
        default = Case(cuts=())
        changed = {
            key: value for key, value in asdict(self).items() if value != getattr(default, key)
        }
        cuts = ",".join(map(str, self.cuts))
        rest = [
            f"{key}={value}"
            for key, value in changed.items()
            if key not in ("cuts", "sizes", "empty")
        ]
        rest += [
            f"{key}={'/'.join(map(str, changed[key]))}"
            for key in ("sizes", "empty")
            if key in changed
        ]
        return " ".join([f"cut {cuts}", *rest])

    def as_json(self) -> str:
        """The DeepSpeed JSON of a run that is split like this."""
        pipeline = {
            "stages": self.stages,
            "partition": list(self.cuts) or "balanced",
            "activation_checkpoint_interval": self.recompute,
            "schedule": self.schedule,
        }
        return json.dumps(
            {
                "train_micro_batch_size_per_gpu": MICRO,
                "gradient_accumulation_steps": self.micro_batches,
                "zero_optimization": {
                    "stage": self.zero,
                    "reduce_bucket_size": 10**7,
                    "allgather_bucket_size": 10**7,
                },
                "pipeline": pipeline,
                **PRECISIONS[self.precision],
                **self.blocks,
            }
        )


def case_of(fields: dict[str, Any]) -> Case:
    """From JSON, where tuples have become lists."""
    return Case(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    )


def batch_of(case: Case, place: int, replica: int) -> dict[str, Tensor]:
    """Micro-batch `place` of a replica; its images are those of 64 pixels, stretched where the
    model needs more."""
    batch = micro_batch(FIRST + place * case.replicas + replica)
    side = case.sizes[0]
    if side != SIZE:
        batch["img"] = F.interpolate(batch["img"].float(), size=(side, side), mode="bilinear").to(
            torch.uint8
        )
    if place in case.empty:
        batch |= {
            "batch_idx": torch.zeros(0),
            "cls": torch.zeros(0, 1),
            "bboxes": torch.zeros(0, 4),
        }
    return batch
