"""Where a step went bad: what this rank's probe saw of it, put together over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack

import torch
from torch import Tensor, nn

from yolods.distributed.phases import mark
from yolods.distributed.world import Ranks
from yolods.engine.microbatches import ReplayableBatches
from yolods.stability.attribution import Account, Culprit, Phase, Probe, culprits
from yolods.stability.guard import Verdict


class Diagnosis:
    """Follows every pass of a step, and names the culprits of one that was not applied."""

    def __init__(self, net: nn.Module, when: str, ranks: Ranks, *, shared: bool) -> None:
        """
        Args:
            net: the model, or this rank's stage of it.
            when: a step is watched: never ("off"), in a second run of it ("armed"), or "always".
            shared: whether BatchNorm's statistics of a step span the replicas.
        """
        self.when, self._ranks, self._shared = when, ranks, shared
        self._probe = Probe(net)
        self._losses: list[Tensor] = []
        self._watched = ExitStack()
        if when == "always":
            self._watched.enter_context(self._probe.attached())

    def at(self, phase: Phase, number: int) -> None:
        """Say which pass of which micro-batch begins. Local."""
        mark(phase, number)
        if phase == "forward" and number == 0:
            self._losses.clear()
            self._probe.clear()
        self._probe.at(phase, number)

    def note_loss(self, loss: Tensor) -> None:
        """() of one micro-batch, in their order. Local."""
        self._losses.append(loss)

    def watching(self) -> AbstractContextManager[Probe]:
        """Within: the probe is attached, for a second run. Local."""
        return self._probe.attached()

    def conclude(
        self, verdict: Verdict, suspects: Sequence[str], feed: ReplayableBatches, stage: int, replica: int
    ) -> tuple[Culprit, ...]:
        """The culprits of the step that was watched last, the same on every rank. A collective.

        Args:
            suspects: parameters that the verdict rests on.
            feed: the step's micro-batches.
            stage: this rank's.
            replica: this rank's.
        """
        account = Account(
            rank=self._ranks.rank,
            host=self._ranks.host,
            stage=stage,
            replica=replica,
            findings=tuple(self._probe.findings()),
            largest=self._probe.largest(suspects) if verdict.cause == "gradient_spike" else None,
            losses=tuple(torch.stack(self._losses).tolist()) if self._losses else (),
            files=tuple(feed.files),
        )
        told = self._ranks.to_main(account)
        found = tuple(culprits(told, verdict.cause, shared=self._shared)) if self._ranks.is_main else ()
        self._probe.clear()
        return self._ranks.from_main(found)
