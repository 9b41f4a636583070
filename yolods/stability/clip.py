"""Clipping by the global gradient norm where DeepSpeed has no optimizer of its own (fp32, ZeRO-0)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def clip_by_global_norm(engine: Any, stages: dist.ProcessGroup | None = None) -> None:
    """Give a ZeRO-0 fp32 engine a clip that also tells the norm.

    Stock `clip_fp32_gradients` (deepspeed/runtime/engine.py, 0.19.8) throws the norm away, so
    `get_global_grad_norm()` stays None. The gradients are already averaged over the ranks: the local norm is global.
    The factor is min(1, max_norm / (norm + 1e-6)), as in torch.nn.utils.clip_grad_norm_.

    Stock on a pipeline takes the first stage's norm for all (deepspeed/runtime/utils.py, `clip_grad_norm_`, 0.19.8:
    it counts only where the model-parallel rank, there the stage, is 0): 83.9 for a true 84.7, and 11.6 was left out.

    Args:
        stages: the stages of this replica, whose squares are summed; None: the model is whole.
    """

    def clip() -> None:
        parameters = [p for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters], foreach=True)
        if stages is not None:
            square = norm.square()
            dist.all_reduce(square, group=stages)
            norm = square.sqrt()
        if engine.gradient_clipping() > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, engine.gradient_clipping(), norm, foreach=True)
        engine._global_grad_norm = norm

    engine.clip_fp32_gradients = clip
