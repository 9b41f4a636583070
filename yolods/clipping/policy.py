"""The base of clipping policies: a name, settings with rules, a function of gradient norms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, dataclass_transform

if TYPE_CHECKING:
    import numpy as np

    from yolods.parsing.rules import Rule


class Norms(Protocol):
    """The measurements of one step that a policy may use: plain numbers, the same on every rank."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the trained parameters of the whole model, in its order."""

    @property
    def norm(self) -> float:
        """Global L2 norm of the gradients."""

    @property
    def norms(self) -> np.ndarray:
        """(parameters,) float64: L2 norm of each parameter's gradient."""

    @property
    def weights(self) -> np.ndarray | None:
        """(parameters,) float64: L2 norm of each parameter's fp32 master weight; None unless the
        policy `reads_weights`."""


@dataclasses.dataclass(frozen=True)
class ClipFactors:
    """How a policy changes the gradients of one step."""

    factor: float = 1.0
    """Factor for every gradient; in (0, 1]."""
    factors: np.ndarray | None = None
    """(parameters,) float64: one factor per parameter, in place of `factor`."""
    limit: float | None = None
    """Largest magnitude of an element."""

    def norm_after(self, measured: Norms) -> float:
        """Global norm of the clipped gradients; an upper bound if `limit` is set."""
        if self.factors is None:
            return measured.norm * self.factor
        import numpy as np

        return float(math.sqrt(np.square(measured.norms * self.factors).sum()))


@dataclasses.dataclass(kw_only=True, eq=False)
class Policy:
    """Base of all policies. `state` is in checkpoints, and survives a resume under any layout."""

    name: ClassVar[str]
    """Its name in a JSON; set by `policy`."""
    reads_weights: ClassVar[bool] = False
    """Whether it needs the norms of the weights, which costs a pass over them."""
    uses_max_norm: ClassVar[bool] = True
    """Whether it uses `max_norm`; if not, a "gradient_clipping" in the JSON is a fault."""

    max_norm: float
    """Largest global norm, 0 for none; the JSON's `gradient_clipping`."""

    def clip(self, measured: Norms) -> ClipFactors:
        """How to clip finite gradients. Called for every step that is applied and for no skipped
        step, so that the history has only norms of applied steps."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """The history to save: plain numbers, the same on every rank."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Restore the result of `state`."""


POLICIES: dict[str, type[Policy]] = {}
"""Name in a JSON -> the policy; filled by `policy`."""

_Kind = TypeVar("_Kind", bound=type[Policy])


@dataclass_transform(kw_only_default=True, eq_default=False)
def policy(name: str) -> Callable[[_Kind], _Kind]:
    """Register a class as a policy; its fields with rules become settings in a JSON.

    Raises:
        ValueError: another policy has the name or one of the settings; all policies share one block
            of keys.
    """

    def register(kind: _Kind) -> _Kind:
        # kw_only: fields with and without defaults may mix. eq=False: a policy has a history, so it
        # is compared by identity.
        made = dataclasses.dataclass(kw_only=True, eq=False)(kind)
        made.name = name
        # "policy" is the block's own key: it names the policy to use.
        taken = {"policy", *(key for other in POLICIES.values() for key in settings_of(other))}
        if name in POLICIES or (shared := taken & settings_of(made).keys()):
            used = name if name in POLICIES else ", ".join(shared)
            raise ValueError(f"clipping policy {name}: {used} is taken")
        POLICIES[name] = made
        return made

    return register


def settings_of(kind: type[Policy]) -> dict[str, tuple[Any, Rule]]:
    """The settings of a policy: key -> (default, rule)."""
    fields = dataclasses.fields(kind)
    return {
        each.name: (each.default, each.metadata["rule"])
        for each in fields
        if "rule" in each.metadata
    }


def build_policy(name: str, settings: Mapping[str, Any], max_norm: float) -> Policy:
    """Build the policy of this name.

    Args:
        settings: values by key; settings of other policies are ignored, and missing ones have their
            defaults.
        max_norm: largest global norm, 0 for none.
    """
    kind = POLICIES[name]
    return kind(
        max_norm=max_norm, **{key: settings[key] for key in settings_of(kind) if key in settings}
    )
