"""Clipping policies: each is one class in `policies`, with its name, its settings and its formula.

The configuration reads names and settings from here before any process starts. To keep that fast,
numpy is imported only inside the methods that compute. `policy` has the base class, `policies` all
policies.
"""

from yolods.clipping import policies
from yolods.clipping.policy import (
    POLICIES,
    ClipFactors,
    Norms,
    Policy,
    build_policy,
    policy,
    settings_of,
)

__all__ = [
    "POLICIES",
    "ClipFactors",
    "Norms",
    "Policy",
    "build_policy",
    "policies",
    "policy",
    "settings_of",
]
