"""What a clipping policy is: a name, settings with rules, and what it makes of one step's gradient norms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, dataclass_transform

if TYPE_CHECKING:
    import numpy as np

    from yolods.parsing.rules import Rule


class Norms(Protocol):
    """What a policy may know of one step: plain numbers, the same on every rank."""

    @property
    def names(self) -> tuple[str, ...]:
        """Trained parameters of the whole model, in its order."""

    @property
    def norm(self) -> float:
        """Global L2 norm of the gradients."""

    @property
    def norms(self) -> np.ndarray:
        """(parameters,) float64: L2 norm of each parameter's gradient."""

    @property
    def weights(self) -> np.ndarray | None:
        """(parameters,) float64: L2 norm of each parameter's fp32 master; None unless the policy `reads_weights`."""


@dataclasses.dataclass(frozen=True)
class ClipFactors:
    """What a policy does to one step's gradients."""

    factor: float = 1.0
    """Multiplies every gradient; in (0, 1]."""
    factors: np.ndarray | None = None
    """(parameters,) float64: one factor per parameter; `factor` then counts for nothing."""
    limit: float | None = None
    """Largest magnitude of an element."""

    def norm_after(self, measured: Norms) -> float:
        """Global norm of what the optimizer gets; an upper bound where elements are limited."""
        if self.factors is None:
            return measured.norm * self.factor
        import numpy as np

        return float(math.sqrt(np.square(measured.norms * self.factors).sum()))


@dataclasses.dataclass(kw_only=True, eq=False)
class Policy:
    """Base of all policies. What one remembers goes into `state`, and so survives a resume under any layout."""

    name: ClassVar[str]
    """What a JSON calls it; given by `policy`."""
    reads_weights: ClassVar[bool] = False
    """Whether it needs the norms of the weights, which costs a pass over them."""
    uses_max_norm: ClassVar[bool] = True
    """Whether `max_norm` means anything to it; a JSON that gives one to a policy without is refused."""

    max_norm: float
    """Largest global norm, 0 for none; the JSON's `gradient_clipping`."""

    def clip(self, measured: Norms) -> ClipFactors:
        """What to do with finite gradients. Called for every step that is applied, and for no other."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What it remembers from step to step: plain numbers, the same on every rank."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""


POLICIES: dict[str, type[Policy]] = {}
"""By the name that a JSON gives them; `policy` adds to it."""

_Kind = TypeVar("_Kind", bound=type[Policy])


@dataclass_transform(kw_only_default=True, eq_default=False)
def policy(name: str) -> Callable[[_Kind], _Kind]:
    """Make a class the policy of this name. Its fields with rules become the policy's settings in a JSON.

    Raises:
        ValueError: the name, or one of the settings, is another policy's; the keys of all policies share one block.
    """

    def register(kind: _Kind) -> _Kind:
        made = dataclasses.dataclass(kw_only=True, eq=False)(kind)
        made.name = name
        taken = {"policy", *(key for other in POLICIES.values() for key in settings_of(other))}
        if name in POLICIES or (twice := taken & settings_of(made).keys()):
            raise ValueError(f"clipping policy {name}: {name if name in POLICIES else ', '.join(twice)} is taken")
        POLICIES[name] = made
        return made

    return register


def settings_of(kind: type[Policy]) -> dict[str, tuple[Any, Rule]]:
    """Each setting of a policy: its key -> its default and its rule."""
    fields = dataclasses.fields(kind)
    return {each.name: (each.default, each.metadata["rule"]) for each in fields if "rule" in each.metadata}


def build_policy(name: str, settings: Mapping[str, Any], max_norm: float) -> Policy:
    """The policy of this name.

    Args:
        settings: values by key; those of other policies are passed over, and those left out have their defaults.
        max_norm: largest global norm, 0 for none.
    """
    kind = POLICIES[name]
    return kind(max_norm=max_norm, **{key: settings[key] for key in settings_of(kind) if key in settings})
