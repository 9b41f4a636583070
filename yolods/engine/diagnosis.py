"""Finds where a step went bad: collects what each rank's probe saw."""

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
    """Watches the passes of a step and names the culprits if it was not applied."""

    def __init__(self, net: nn.Module, when: str, ranks: Ranks, *, shared: bool) -> None:
        """
        Args:
            net: the model, or this rank's stage of it.
            when: when to watch a step: "off" (never), "armed" (in a second run of a bad step) or
                "always".
            shared: whether BatchNorm computes its batch statistics over all replicas.
        """
        self.when, self._ranks, self._shared = when, ranks, shared
        self._probe = Probe(net)
        self._losses: list[Tensor] = []
        self._watched = ExitStack()
        if when == "always":
            self._watched.enter_context(self._probe.attached())

    def at(self, phase: Phase, number: int) -> None:
        """Announce the next pass and its micro-batch. Local."""
        mark(phase, number)
        # The first forward pass begins a step, or its second run; discard what the last one left.
        if phase == "forward" and number == 0:
            self._losses.clear()
            self._probe.clear()
        self._probe.at(phase, number)

    def note_loss(self, loss: Tensor) -> None:
        """Store the loss () of the next micro-batch. Local."""
        self._losses.append(loss)

    def watching(self) -> AbstractContextManager[Probe]:
        """Attach the probe for a second run. Local."""
        return self._probe.attached()

    def conclude(
        self,
        verdict: Verdict,
        suspects: Sequence[str],
        feed: ReplayableBatches,
        stage: int,
        replica: int,
    ) -> tuple[Culprit, ...]:
        """The culprits of the last watched step, the same on every rank. A collective.

        Args:
            suspects: parameters that the verdict is based on.
            feed: the step's micro-batches.
            stage: this rank's stage.
            replica: this rank's replica.
        """
        account = Account(
            rank=self._ranks.rank,
            host=self._ranks.host,
            stage=stage,
            replica=replica,
            findings=tuple(self._probe.findings()),
            largest=self._probe.largest(suspects) if verdict.cause == "gradient_spike" else None,
            # This waits for the device, but only after a bad step.
            losses=tuple(torch.stack(self._losses).tolist()) if self._losses else (),
            files=tuple(feed.files),
        )
        told = self._ranks.to_main(account)
        found = (
            tuple(culprits(told, verdict.cause, shared=self._shared)) if self._ranks.is_main else ()
        )
        self._probe.clear()
        return self._ranks.from_main(found)
