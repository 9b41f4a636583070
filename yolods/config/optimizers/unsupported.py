"""Optimizers that DeepSpeed, torch or ultralytics know and that are not trained with here, each with the reason."""

from __future__ import annotations

from typing import Any

_ONE_BIT = "it compresses gradients itself, past the check for bad numbers, and knows no ZeRO above stage 1"
_MATRICES = (
    "it works on whole weight matrices, of which ranks of ZeRO stages 1 to 3 hold flat pieces, and a run has to be the "
    "same one under every stage; use SGD or AdamW"
)
_WIDTHS = "its rates follow widths that the mup package gives to a model, and a detector has none; use AdamW or SGD"
_COMPILED = "DeepSpeed has it only as a kernel of its own, which is compiled; use AdamW"
_UNTRIED = "ultralytics does not train with it, so that no learning rate is known for it; use AdamW or SGD"
UNSUPPORTED: dict[str, str] = {
    **dict.fromkeys(("OneBitAdam", "ZeroOneAdam", "OneBitLamb"), _ONE_BIT),
    **dict.fromkeys(("Muon", "MuSGD"), _MATRICES),
    **dict.fromkeys(("MuAdam", "MuAdamW"), _WIDTHS),
    **dict.fromkeys(("Lamb", "FusedLamb", "Lion", "FusedLion", "DeepSpeedCPULion", "CPULion"), _COMPILED),
    **dict.fromkeys(
        ("FusedAdam", "CPUAdam", "DeepSpeedCPUAdam"),
        "it is Adam by one of its kernels, and the fastest is found by itself; use AdamW",
    ),
    **dict.fromkeys(("Adagrad", "Adadelta", "Adafactor", "ASGD", "Rprop"), _UNTRIED),
    "LBFGS": "it evaluates the loss several times per step; use AdamW or SGD",
    "SparseAdam": "gradients of a detector are dense; use AdamW",
}
"""Name -> why not, and what to use."""


def why_untrained(name: Any) -> str | None:
    """The reason, whatever the case of the letters; None: it is trained with, or no one knows it."""
    reasons = {known.lower(): reason for known, reason in UNSUPPORTED.items()}
    return reasons.get(str(name).lower())
