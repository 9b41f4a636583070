"""Clipping policies: each is one class in `policies`, with its name, its settings and its formula.

Configuration takes names and settings from here before any process starts, so numpy is imported only where a policy
computes. `policy` says what a policy is; `policies` has them all.
"""

from yolods.clipping import policies
from yolods.clipping.policy import POLICIES, ClipFactors, Norms, Policy, build_policy, policy, settings_of

__all__ = ["POLICIES", "ClipFactors", "Norms", "Policy", "build_policy", "policies", "policy", "settings_of"]
