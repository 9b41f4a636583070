"""How far gradients are cut back: six policies, each a few lines on a `Reading`.

Another policy is a subclass in `POLICIES` and its name in `config.own.CLIPPING`. What it remembers goes into `state`:
plain numbers, the same on every rank, so they survive a resume under any layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from yolods.config.own import CLIPPING
from yolods.stability.reading import Reading

if TYPE_CHECKING:
    from yolods.config.own import ClippingConfig

EPSILON = 1e-6
"""Added to a norm before dividing by it, as torch.nn.utils.clip_grad_norm_ does."""
WARMUP = 25
"""Norms that a policy with a memory sees before it goes by them; until then it is `global_norm`. ZClip's figure."""


@dataclass(frozen=True)
class Cut:
    """What a policy does to one step's gradients."""

    factor: float = 1.0
    """What all of them are multiplied with, in (0, 1]."""
    factors: np.ndarray | None = None
    """(parameters,) float64: the same apart; `factor` then counts for none."""
    limit: float | None = None
    """Largest magnitude of an element."""

    def norm_after(self, reading: Reading) -> float:
        """Global norm of what the optimizer gets; an upper bound where elements are limited."""
        if self.factors is None:
            return reading.norm * self.factor
        return float(math.sqrt(np.square(reading.norms * self.factors).sum()))


class Policy:
    """No clipping."""

    reads_weights = False
    """Whether it needs the norms of the weights, which costs a pass over them."""

    def __init__(self, config: ClippingConfig, max_norm: float) -> None:
        """
        Args:
            max_norm: largest global norm, 0 for none; the JSON's `gradient_clipping`.
        """
        self._config, self._max_norm = config, max_norm

    def cut(self, reading: Reading) -> Cut:
        """What to do with finite gradients. Called for every step that is applied, and for no other."""
        return Cut()

    def state(self) -> dict[str, Any]:
        """What it remembers from step to step."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""

    def _to(self, norm: float, limit: float) -> float:
        return min(1.0, limit / (norm + EPSILON)) if limit > 0 else 1.0


class GlobalNorm(Policy):
    """All gradients by one factor, so that their global norm is at most max_norm: min(1, max_norm / (norm + 1e-6)).

    Source: Pascanu et al. 2013, https://arxiv.org/abs/1211.5063; the formula is torch.nn.utils.clip_grad_norm_'s.
    """

    def cut(self, reading: Reading) -> Cut:
        return Cut(self._to(reading.norm, self._max_norm))


class Adaptive(Policy):
    """Each weight's gradient to at most `ratio` times the weight's own norm; biases and BatchNorm by the global norm.

    factor = min(1, ratio x max(|w|, 1e-3) / |g|), a layer at a time. Source: Brock et al. 2021 (AGC),
    https://arxiv.org/abs/2102.06171, which takes the norms by unit. A bias that starts at 0 would stay there.
    """

    reads_weights = True
    floor = 1e-3

    def cut(self, reading: Reading) -> Cut:
        assert reading.weights is not None
        allowed = self._config.ratio * np.maximum(reading.weights, self.floor)
        own = np.minimum(1.0, allowed / np.maximum(reading.norms, np.finfo(float).tiny))
        common = self._to(reading.norm, self._max_norm)
        factors = np.where([_is_weight(name) for name in reading.names], own, common)
        return Cut(factors=factors)


def _is_weight(name: str) -> bool:
    return name.endswith("weight") and ".bn." not in name


class Remembering(Policy):
    """A limit learned from the norms of earlier steps; until there are enough of them, `global_norm`."""

    def cut(self, reading: Reading) -> Cut:
        norm, learned = reading.norm, self._seen() >= WARMUP
        factor = self._to(norm, self._limit(norm) if learned else self._max_norm)
        # What max_norm has cut would teach it that every norm is max_norm.
        self._remember(norm, norm * factor if learned else norm)
        return Cut(factor)

    def _seen(self) -> int:
        raise NotImplementedError

    def _limit(self, norm: float) -> float:
        raise NotImplementedError

    def _remember(self, norm: float, after: float) -> None:
        raise NotImplementedError


class Percentile(Remembering):
    """To the p-th percentile of the norms of the last `window` steps.

    Source: Seetharaman et al. 2020 (AutoClip), https://arxiv.org/abs/2007.14469, with all steps for a window.
    """

    def __init__(self, config: ClippingConfig, max_norm: float) -> None:
        super().__init__(config, max_norm)
        self._norms: list[float] = []

    def _seen(self) -> int:
        return len(self._norms)

    def _limit(self, norm: float) -> float:
        # AutoClip counts the present norm among the history.
        return float(np.percentile([*self._norms, norm], self._config.percentile))

    def _remember(self, norm: float, after: float) -> None:
        self._norms = [*self._norms, norm][-self._config.window :]

    def state(self) -> dict[str, Any]:
        return {"norms": list(self._norms)}

    def load(self, state: dict[str, Any]) -> None:
        self._norms = list(state.get("norms", []))


class ZScore(Remembering):
    """Only norms that stand out: with z = (norm - mean) / deviation above `threshold`, to mean + threshold^2 / z x
    deviation. Mean and variance are moving averages with `decay`, of the norms after clipping.

    Source: Kumar et al. 2025 (ZClip), https://arxiv.org/abs/2504.02507, reciprocal clipping.
    """

    def __init__(self, config: ClippingConfig, max_norm: float) -> None:
        super().__init__(config, max_norm)
        self._count, self._mean, self._variance = 0, 0.0, 0.0

    def _seen(self) -> int:
        return self._count

    def _limit(self, norm: float) -> float:
        deviation, threshold = math.sqrt(self._variance), self._config.threshold
        z = (norm - self._mean) / (deviation + EPSILON)
        return self._mean + threshold**2 / z * deviation if z > threshold else norm + EPSILON

    def _remember(self, norm: float, after: float) -> None:
        self._count += 1
        # A plain mean while there are few, so that the first norms do not weigh too much.
        decay = min(self._config.decay, 1 - 1 / self._count)
        self._variance = decay * self._variance + (1 - decay) * (after - self._mean) ** 2 * (self._count > 1)
        self._mean = decay * self._mean + (1 - decay) * after

    def state(self) -> dict[str, Any]:
        return {"count": self._count, "mean": self._mean, "variance": self._variance}

    def load(self, state: dict[str, Any]) -> None:
        self._count = int(state.get("count", 0))
        self._mean, self._variance = float(state.get("mean", 0.0)), float(state.get("variance", 0.0))


class Value(Policy):
    """Every element to [-limit, limit], as torch.nn.utils.clip_grad_value_."""

    def cut(self, reading: Reading) -> Cut:
        return Cut(limit=self._config.limit)


POLICIES: dict[str, type[Policy]] = dict(
    zip(CLIPPING, (GlobalNorm, Adaptive, Percentile, ZScore, Value, Policy), strict=True)
)
"""By the name that a JSON gives them."""
