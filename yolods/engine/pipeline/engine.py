"""A detector in pipeline stages: 1F1B or zero-bubble over micro-batches.

`plan.one_f_one_b` and `plan.zero_bubble` generate each stage's instructions. Sends never wait, and
receives start one pass ahead, so that data arrives while the stage computes. DeepSpeed owns each
stage's optimizer (ZeRO 0 or 1 over the replicas) and its step. DeepSpeed's own pipeline engine is
not used: it walks a stage's graph once per tensor that crosses the cut
(deepspeed/runtime/pipe/engine.py, `_exec_backward_pass`, 0.19.8) and waits in every send.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from yolods.distributed.mesh import Mesh
from yolods.distributed.p2p import Message
from yolods.distributed.phases import mark
from yolods.distributed.stage_channels import connect
from yolods.distributed.state_transfer import receive_tensors, send_tensors
from yolods.engine.base import Engine, Parts
from yolods.engine.microbatches import ReplayableBatches
from yolods.engine.pipeline.split_backward import (
    SplitPasses,
    WeightsPart,
    divide,
    run_weights,
)
from yolods.engine.pipeline.stage_stats import Gauge, peak_bytes, summarise
from yolods.engine.pipeline.stage_timer import StageTimer, StageTimes
from yolods.model.decode import decode
from yolods.model.graph.graph import IMAGE, OUT
from yolods.model.loss.detection_loss import as_float
from yolods.optim.lr_schedule import Step
from yolods.plan.one_f_one_b import Instruction, instructions
from yolods.plan.zero_bubble import passes
from yolods.stats import LOSS_NAMES, PipeStats

EVALUATED = 4
"""Most batches that an evaluation keeps in flight behind a stage."""


@dataclass
class _Flight:
    """A micro-batch between its forward and its backward pass on this stage."""

    received: dict[str, Tensor]
    sent: list[Tensor]
    parts: list[WeightsPart]
    loss: Tensor | None = None


@dataclass(frozen=True)
class StageBoundaries:
    """The values that cross this stage's boundaries, in the order of sending."""

    before: tuple[str, ...]
    """Values received from the previous stage."""
    after: tuple[str, ...]
    """Values sent to the next stage."""


# Wide: most of its methods implement what `Engine` requires of every engine.
class PipelineEngine(Engine):
    """This rank's stage of the detector, on a mesh of stages x replicas."""

    def __init__(
        self,
        parts: Parts,
        mesh: Mesh,
        cut: StageBoundaries,
        autocast: torch.dtype | None = None,
        schedule: str = "1f1b",
    ) -> None:
        """
        Args:
            autocast: data type of autocast; None: off.
            schedule: the order of passes, "1f1b" or "zb".
        """
        super().__init__(parts)
        self.mesh, self._cut, self._autocast, self._schedule = mesh, cut, autocast, schedule
        self.stage = mesh.stage
        self._split = SplitPasses()
        # Nobody waits for stage 0, which divides no pass.
        if schedule == "zb" and not mesh.first:
            divide(self.net, self._split)
        device = parts.ranks.device
        self._channels = connect(mesh, device)
        self._clock = StageTimer(device)
        self._flights: dict[int, _Flight] = {}
        self._divided: frozenset[int] = frozenset()
        self._deferred: dict[int, list[WeightsPart]] = {}
        self._ahead: dict[Instruction, Message] = {}
        self._steps = self._told = 0
        self._micro_batches = 1

    def _accumulate(self, step: Step, feed: ReplayableBatches, size: int | None) -> Tensor:
        """See `Engine._accumulate`."""
        engine = self.deepspeed
        sums = torch.zeros(len(LOSS_NAMES) + 1, device=self.inputs.device)
        self._clock.start()
        ordered = passes if self._schedule == "zb" else instructions
        order = ordered(self.mesh.stages, self.mesh.stage, step.batches)
        self._divided = frozenset(number for kind, number in order if kind == "W")
        for place, (kind, number) in enumerate(order):
            self._start_receiving(order[place : place + 3], size)
            if kind == "F":
                self._forward(number, feed, size, sums)
            elif kind == "B":
                self._backward(number, size)
            else:
                self._weights(number)
        mark("reduction")
        self._drain()
        self._clock.stop()
        self._steps, self._micro_batches = self._steps + 1, step.batches
        engine.set_gradient_accumulation_boundary(True)
        engine.allreduce_gradients()
        return sums

    def _start_receiving(self, coming: tuple[Instruction, ...], size: int | None) -> None:
        """Post the receives of this and the next forward or backward pass, unless they are posted.

        Between two of these is at most one weights' part, which receives nothing.
        """
        for kind, number in [each for each in coming if each[0] != "W"][:2]:
            channel = self._channels.from_before if kind == "F" else self._channels.from_after
            # Its activation must have been sent before: the gradient has the same shapes.
            ready = kind == "F" or number in self._flights
            if channel is not None and ready and (kind, number) not in self._ahead:
                self._ahead[kind, number] = channel.receive((kind, size))

    def _forward(
        self, number: int, feed: ReplayableBatches, size: int | None, sums: Tensor
    ) -> None:
        values, labels, images = self._take_in(number, feed, size)
        self.diagnosis.at("forward", number)
        with self._clock.forward():
            with self._precision(), self._collecting(number) as parts:
                outputs = self.net(values)
            loss = None
            if self.mesh.last:
                # Outside the layers' autocast, because the loss is always computed in fp32.
                assert self._loss is not None
                loss, items = self._loss(outputs[OUT], labels, images * self.share.dp_size)
                self._lost(items, len(labels["cls"]), sums)
                loss = self.stability.scaled(loss)
        sent = [] if self.mesh.last else [outputs[name] for name in self._cut.after]
        received = {} if self.mesh.first else {name: values[name] for name in self._cut.before}
        self._flights[number] = _Flight(received, sent, parts, loss)
        if self._channels.to_after is not None and self._channels.from_after is not None:
            self._channels.to_after.send(sent, ("F", size))
            self._channels.from_after.expect(sent, ("B", size))

    def _take_in(
        self, number: int, feed: ReplayableBatches, size: int | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
        """A micro-batch's inputs, its targets (host; last stage only) and its number of images."""
        if not self.mesh.first:
            mark("boundary", number)
            arrived = self._clock.waiting(self._ahead.pop(("F", number)).wait)
            assert self._channels.to_before is not None
            self._channels.to_before.expect(arrived, ("B", size))
            # Under both schedules the previous stage sends this activation after it has received
            # all gradients that were sent to it, except the newest. All other sends are therefore
            # complete.
            self._channels.to_before.drain(leave=1)
            values = dict(
                zip(self._cut.before, (tensor.requires_grad_() for tensor in arrived), strict=True)
            )
            labels = self._receive_labels() if self.mesh.last else {}
            return values, labels, len(arrived[0])
        batch = feed.take()
        if self._channels.labels is not None:
            columns = (
                batch["batch_idx"].view(-1, 1),
                batch["cls"].view(-1, 1),
                batch["bboxes"].view(-1, 4),
            )
            self._channels.labels.send([torch.cat(columns, 1)])
        return {IMAGE: self.inputs.images(batch["img"], size)}, batch, len(batch["img"])

    def _receive_labels(self) -> dict[str, Tensor]:
        assert self._channels.labels is not None
        (table,) = self._channels.labels.receive().wait()
        return {"batch_idx": table[:, 0], "cls": table[:, 1:2], "bboxes": table[:, 2:6]}

    def _backward(self, number: int, size: int | None) -> None:
        flight = self._flights.pop(number)
        gradients = [] if flight.loss is not None else self._gradients_of(number)
        self.diagnosis.at("backward", number)
        if flight.loss is not None:
            with self._clock.backward():
                flight.loss.backward()
        else:
            # The output of frozen layers has no graph; its gradient ends here.
            pairs = [
                pair for pair in zip(flight.sent, gradients, strict=True) if pair[0].requires_grad
            ]
            with self._clock.backward():
                # One backward pass for all tensors that crossed the cut. One per tensor would walk
                # shared layers several times.
                torch.autograd.backward(
                    [tensor for tensor, _ in pairs], [gradient for _, gradient in pairs]
                )
        if self._channels.to_before is not None:
            self._channels.to_before.send(
                [flight.received[name].grad for name in self._cut.before], ("B", size)
            )
        if number in self._divided:
            self._deferred[number] = flight.parts

    def _weights(self, number: int) -> None:
        self.diagnosis.at("backward", number)
        mark("weights", number)
        with self._clock.weights():
            run_weights(self._deferred.pop(number))

    def _gradients_of(self, number: int) -> list[Tensor]:
        """Wait for the gradients of a micro-batch's outputs.

        The micro-batch must have left `_flights`.
        """
        mark("boundary", number)
        gradients = self._clock.waiting(self._ahead.pop(("B", number)).wait)
        # A gradient has arrived, so its activation and its targets have arrived too; those of
        # micro-batches in flight may not have. Draining the targets, which travel from host to
        # host, also keeps hosts that run ahead of their GPUs within that many micro-batches of each
        # other.
        for channel in (self._channels.to_after, self._channels.labels):
            if channel is not None:
                channel.drain(leave=len(self._flights))
        return gradients

    def _precision(self) -> Any:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self.inputs.device.type, self._autocast)

    def _collecting(self, number: int) -> AbstractContextManager[list[WeightsPart]]:
        """Within, the forward pass of a micro-batch; collects its weights' parts, if they are to
        run apart."""
        return self._split.collecting() if number in self._divided else nullcontext([])

    def _drain(self) -> None:
        for channel in (self._channels.to_after, self._channels.to_before, self._channels.labels):
            if channel is not None:
                channel.drain()

    @torch.no_grad()
    def predict(self, images: Tensor | None) -> tuple[Tensor, dict[str, Any]] | None:
        """See `Engine.predict`.

        Earlier stages return before later ones finish, so batches overlap.
        """
        if self.mesh.first:
            assert images is not None
            values = {IMAGE: self.inputs.images(images)}
        else:
            assert self._channels.from_before is not None
            values = dict(
                zip(self._cut.before, self._channels.from_before.receive().wait(), strict=True)
            )
        with self._precision():
            outputs = self.net(values)
        if not self.mesh.last:
            assert self._channels.to_after is not None
            self._channels.to_after.send([outputs[name] for name in self._cut.after])
            self._channels.to_after.drain(leave=EVALUATED)
            return None
        raw = as_float(outputs[OUT])
        return decode(raw, self._strides, self._reg_max), raw

    def times(self) -> StageTimes:
        """This stage's times in the last step. Local."""
        sent = sum(
            channel.bytes
            for channel in (self._channels.to_after, self._channels.to_before)
            if channel is not None
        )
        return self._clock.times(sent)

    def report(self) -> PipeStats | None:
        """See `Engine.report`."""
        times = self.times()
        sent, self._told = times.sent - self._told, times.sent
        steps, self._steps = max(self._steps, 1), 0
        gauge = Gauge(self.mesh.stage, times, sent / steps, peak_bytes(self.inputs.device))
        gauges = self.ranks.to_main(gauge)
        return (
            summarise(gauges, self._micro_batches, self._schedule) if self.ranks.is_main else None
        )

    def layout(self) -> dict[str, Any]:
        """See `Engine.layout`. A collective, because a stage knows only its own shards."""
        mesh = self.mesh
        told = self.ranks.from_main(self.ranks.to_main((mesh.stage, mesh.replica, self.describe())))
        described = {stage: shards for stage, replica, shards in told if replica == 0}
        return {
            "kind": self.masters.kind,
            "stages": [described[stage] for stage in range(mesh.stages)],
            "places": [[stage, replica] for stage, replica, _ in told],
        }

    def _place(self) -> tuple[int, int]:
        return self.mesh.stage, self.mesh.replica

    def _hands_over(self) -> bool:
        return self.mesh.replica == 0

    def _collect(self, leaves: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Send the first replica's stages to rank 0, one after the other, from host to host."""
        mesh = self.mesh
        if self.ranks.is_main:
            yield from leaves
            for stage in range(1, mesh.stages):
                yield from receive_tensors(mesh.rank_at(stage, mesh.replica), mesh.host_group)
        elif self._hands_over():
            send_tensors(leaves, mesh.rank_at(0, mesh.replica), mesh.host_group)
        else:
            yield from leaves  # none, but its replicas need this rank
