"""Six clipping policies, each a few lines on the gradient norms of one step.

To add a policy, write a class here under `@policy("its name")`; its fields made by `setting` are
its keys in a JSON.
"""

from __future__ import annotations

import math
from dataclasses import field
from typing import Any

from yolods.clipping.policy import ClipFactors, Norms, Policy, policy
from yolods.parsing.rules import real, setting, whole

EPSILON = 1e-6
"""Added to a norm before dividing by it, as torch.nn.utils.clip_grad_norm_ does."""
WARMUP = 25
"""Norms that a policy with a history collects before it uses them; until then it clips as
`global_norm`. ZClip's value."""


def _factor(norm: float, limit: float) -> float:
    return min(1.0, limit / (norm + EPSILON)) if limit > 0 else 1.0


@policy("global_norm")
class GlobalNorm(Policy):
    """Scales all gradients by min(1, max_norm / (norm + 1e-6)): the global norm is max_norm at
    most.

    Source: Pascanu et al. 2013, https://arxiv.org/abs/1211.5063; the formula is
    torch.nn.utils.clip_grad_norm_'s.
    """

    def clip(self, measured: Norms) -> ClipFactors:
        return ClipFactors(_factor(measured.norm, self.max_norm))


@policy("adaptive")
class Adaptive(Policy):
    """Limits the gradient norm of each weight to `ratio` times the weight's own norm; biases and
    BatchNorm are clipped by the global norm.

    factor = min(1, ratio x max(|w|, 1e-3) / |g|), per layer. Source: Brock et al. 2021 (AGC),
    https://arxiv.org/abs/2102.06171, which uses norms per unit. Biases are excluded because one
    that starts at 0 would hardly move.
    """

    reads_weights = True
    floor = 1e-3

    ratio: float = setting(0.01, real(0, above=True))
    """Largest norm of a weight's gradient, as a multiple of the weight's own norm."""

    def clip(self, measured: Norms) -> ClipFactors:
        import numpy as np

        assert measured.weights is not None
        allowed = self.ratio * np.maximum(measured.weights, self.floor)
        # The smallest positive float instead of 0 keeps a gradient of zeros from dividing by 0.
        own = np.minimum(1.0, allowed / np.maximum(measured.norms, np.finfo(float).tiny))
        common = _factor(measured.norm, self.max_norm)
        return ClipFactors(
            factors=np.where([_is_weight(name) for name in measured.names], own, common)
        )


def _is_weight(name: str) -> bool:
    return name.endswith("weight") and ".bn." not in name


class Remembering(Policy):
    """Base of policies that learn a limit; as `global_norm` until `WARMUP` norms are known."""

    def clip(self, measured: Norms) -> ClipFactors:
        norm, learned = measured.norm, self._seen() >= WARMUP
        factor = _factor(norm, self._limit(norm) if learned else self.max_norm)
        # During warm-up remember the norm before clipping: norms cut to max_norm would teach the
        # policy that every norm is max_norm.
        self._remember(norm, norm * factor if learned else norm)
        return ClipFactors(factor)

    def _seen(self) -> int:
        raise NotImplementedError

    def _limit(self, norm: float) -> float:
        raise NotImplementedError

    def _remember(self, norm: float, after: float) -> None:
        raise NotImplementedError


@policy("percentile")
class Percentile(Remembering):
    """Clips to the p-th percentile of the norms of the last `window` steps.

    Source: Seetharaman et al. 2020 (AutoClip), https://arxiv.org/abs/2007.14469, whose window is
    all steps.
    """

    percentile: float = setting(10.0, real(0, 100, above=True))
    """Percentile of the remembered norms that is the limit."""
    window: int = setting(1000, whole(25))
    """Number of norms to remember."""

    _norms: list[float] = field(default_factory=list, init=False)

    def _seen(self) -> int:
        return len(self._norms)

    def _limit(self, norm: float) -> float:
        import numpy as np

        # AutoClip includes the current norm in the history.
        return float(np.percentile([*self._norms, norm], self.percentile))

    def _remember(self, norm: float, after: float) -> None:
        self._norms = [*self._norms, norm][-self.window :]

    def state(self) -> dict[str, Any]:
        return {"norms": list(self._norms)}

    def load(self, state: dict[str, Any]) -> None:
        self._norms = list(state.get("norms", []))


@policy("zscore")
class ZScore(Remembering):
    """Clips only outliers: if z = (norm - mean) / deviation is above `threshold`, to mean +
    threshold^2 / z x deviation. Mean and variance are moving averages, with `decay`, of the norms
    after clipping.

    Source: Kumar et al. 2025 (ZClip), https://arxiv.org/abs/2504.02507, reciprocal clipping.
    """

    threshold: float = setting(2.5, real(0, above=True))
    """Standard deviations above the mean at which a norm is an outlier."""
    decay: float = setting(0.97, real(0, 1, above=True, below=True))
    """Decay of the moving mean and variance per step."""

    _count: int = field(default=0, init=False)
    _mean: float = field(default=0.0, init=False)
    _variance: float = field(default=0.0, init=False)

    def _seen(self) -> int:
        return self._count

    def _limit(self, norm: float) -> float:
        deviation = math.sqrt(self._variance)
        z = (norm - self._mean) / (deviation + EPSILON)
        # Otherwise a limit just above the norm: the factor is then exactly 1.
        return (
            self._mean + self.threshold**2 / z * deviation if z > self.threshold else norm + EPSILON
        )

    def _remember(self, norm: float, after: float) -> None:
        self._count += 1
        # A plain mean while there are few norms; with the full decay the first ones would weigh too
        # much.
        decay = min(self.decay, 1 - 1 / self._count)
        self._variance = decay * self._variance + (1 - decay) * (after - self._mean) ** 2 * (
            self._count > 1
        )
        self._mean = decay * self._mean + (1 - decay) * after

    def state(self) -> dict[str, Any]:
        return {"count": self._count, "mean": self._mean, "variance": self._variance}

    def load(self, state: dict[str, Any]) -> None:
        self._count = int(state.get("count", 0))
        self._mean, self._variance = (
            float(state.get("mean", 0.0)),
            float(state.get("variance", 0.0)),
        )


@policy("value")
class Value(Policy):
    """Clips every element to [-limit, limit], as torch.nn.utils.clip_grad_value_ does."""

    uses_max_norm = False

    limit: float = setting(1.0, real(0, above=True))
    """Largest magnitude of an element."""

    def clip(self, measured: Norms) -> ClipFactors:
        return ClipFactors(limit=self.limit)


@policy("none")
class Unclipped(Policy):
    """Does not clip."""

    uses_max_norm = False

    def clip(self, measured: Norms) -> ClipFactors:
        return ClipFactors()
