"""Clipping by the global gradient norm where DeepSpeed has no optimizer of its own (fp32, ZeRO-0)."""

from __future__ import annotations

from typing import Any

import torch


def clip_by_global_norm(engine: Any) -> None:
    """Give a ZeRO-0 fp32 engine a clip that also tells the norm.

    Stock `clip_fp32_gradients` (deepspeed/runtime/engine.py, 0.19.8) throws the norm away, so
    `get_global_grad_norm()` stays None. The gradients are already averaged over the ranks: the local norm is global.
    The factor is min(1, max_norm / (norm + 1e-6)), torch.nn.utils.clip_grad_norm_.
    """

    def clip() -> None:
        engine._global_grad_norm = torch.nn.utils.clip_grad_norm_(
            engine.module.parameters(), engine.gradient_clipping(), foreach=True
        )

    engine.clip_fp32_gradients = clip
