"""Optimizers of DeepSpeed, torch or ultralytics that are not supported, each with the reason."""

from __future__ import annotations

from typing import Any

_ONE_BIT = (
    "it compresses gradients itself, bypassing the check for bad numbers, and supports no ZeRO "
    "stage above 1"
)
_MATRICES = (
    "it needs whole weight matrices, but ranks under ZeRO 1 to 3 hold flat slices, and a run must "
    "be the same under every stage; use SGD or AdamW"
)
_WIDTHS = (
    "its learning rates need widths that the mup package assigns, and a detector has none; use "
    "AdamW or SGD"
)
_COMPILED = "DeepSpeed has it only as a kernel that must be compiled; use AdamW"
_UNTRIED = "ultralytics does not support it, so no learning rate is known for it; use AdamW or SGD"
UNSUPPORTED: dict[str, str] = {
    **dict.fromkeys(("OneBitAdam", "ZeroOneAdam", "OneBitLamb"), _ONE_BIT),
    **dict.fromkeys(("Muon", "MuSGD"), _MATRICES),
    **dict.fromkeys(("MuAdam", "MuAdamW"), _WIDTHS),
    **dict.fromkeys(
        ("Lamb", "FusedLamb", "Lion", "FusedLion", "DeepSpeedCPULion", "CPULion"), _COMPILED
    ),
    **dict.fromkeys(
        ("FusedAdam", "CPUAdam", "DeepSpeedCPUAdam"),
        "it is one kernel of Adam, and yolods chooses the fastest; use AdamW",
    ),
    **dict.fromkeys(("Adagrad", "Adadelta", "Adafactor", "ASGD", "Rprop"), _UNTRIED),
    "LBFGS": "it evaluates the loss several times per step; use AdamW or SGD",
    "SparseAdam": "gradients of a detector are dense; use AdamW",
}
"""Name -> the reason, and a replacement."""


def why_untrained(name: Any) -> str | None:
    """Why an optimizer, in any case, is not supported; None: it is supported or unknown."""
    reasons = {known.lower(): reason for known, reason in UNSUPPORTED.items()}
    return reasons.get(str(name).lower())
