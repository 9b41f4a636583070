"""Finds where numbers became non-finite or far too large: layer, parameter, micro-batch, images.

A reduced gradient does not show which rank it came from, and after a nan in the forward pass every
gradient is nan. Therefore a bad step runs a second time with probes on every layer. Its weights
have not moved and its images are the same, so it goes bad again. This time the probes check each
layer's output, the gradient of that output, and every parameter's own gradient as they are
computed. All flags stay on the device until the step is over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

Phase = Literal["forward", "backward"]
INPUT = "input"
"""Replaces a module's name if the stage's own input was bad."""
LOSS = "loss"
"""Replaces a module's name if the layers were good and the loss was not."""


@dataclass(frozen=True)
class BadValue:
    """The first bad value in one micro-batch on one rank, in one direction."""

    phase: Phase
    """The pass in which it appeared."""
    name: str
    """Module or parameter, by its name in the model, or `INPUT`."""
    kind: str
    """What was found: "inf", "nan" or "inf, nan"; "spike" for finite numbers."""
    micro_batch: int
    """Index of the micro-batch in the step, from 0."""
    images: tuple[int, ...] = ()
    """Forward only: indices in the micro-batch of the images with bad values."""
    in_weights: bool = False
    """Forward only: whether the layer's own weights were bad before it computed anything."""
    order: int = 0
    """Number of checks before this one in the step; all replicas check in the same order."""


@dataclass(frozen=True)
class _Flags:
    phase: Phase
    name: str
    micro_batch: int
    inf: Tensor
    """() or (images,) bool, on the device."""
    nan: Tensor
    weights: Tensor | None = None


class Probe:
    """Checks every layer of this rank's model while it is attached."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._flags: list[_Flags] = []
        self._norms: dict[tuple[str, int], Tensor] = {}
        self._phase: Phase = "forward"
        self._micro_batch = 0
        self._fresh = False

    def at(self, phase: Phase, micro_batch: int) -> None:
        """Announce the next pass. The engine calls this before every pass."""
        self._phase, self._micro_batch, self._fresh = phase, micro_batch, phase == "forward"

    def clear(self) -> None:
        """Forget the last step."""
        self._flags.clear()
        self._norms.clear()

    @contextmanager
    def attached(self) -> Iterator[Probe]:
        """Attach hooks to every module without children and to every trained parameter, within."""
        hooks = []
        for name, module in self._net.named_modules():
            # The others combine what their children return, and a child names the origin better.
            if not any(True for _ in module.children()):
                hooks.append(module.register_forward_hook(self._on_forward(name)))
        for name, parameter in self._net.named_parameters():
            if parameter.requires_grad:
                hooks.append(parameter.register_hook(self._on_gradient(name)))
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _on_forward(self, name: str) -> Any:
        @torch.no_grad()
        def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            # Activation checkpointing runs the forward pass again during backward; it was checked
            # before.
            if self._phase != "forward":
                return
            # The first module that runs receives the stage's own input.
            if self._fresh:
                self._fresh = False
                for tensor in _tensors(inputs):
                    self._note(INPUT, tensor)
            # Under ZeRO-3 a parameter may be partitioned, and then it is empty.
            weights = [each for each in module.parameters(recurse=False) if each.numel()]
            # No `bool()` here: the flag stays on the device until the step is over.
            bad = (
                torch.stack([~each.isfinite().all() for each in weights]).any() if weights else None
            )
            for tensor in _tensors(output):
                self._note(name, tensor, bad)
                if tensor.requires_grad:
                    # The gradient belongs to this micro-batch, however many follow before its
                    # backward pass.
                    tensor.register_hook(partial(self._note_gradient, name, self._micro_batch))

        return look

    def _on_gradient(self, name: str) -> Any:
        @torch.no_grad()
        def look(gradient: Tensor) -> None:
            self._note_gradient(name, self._micro_batch, gradient)
            # In fp32: the norm itself could overflow in fp16.
            self._norms[name, self._micro_batch] = torch.linalg.vector_norm(
                gradient, dtype=torch.float32
            )

        return look

    def _note(self, name: str, tensor: Tensor, weights: Tensor | None = None) -> None:
        flat = tensor.detach().flatten(1) if tensor.ndim > 1 else tensor.detach().view(1, -1)
        self._flags.append(
            _Flags(
                "forward",
                name,
                self._micro_batch,
                flat.isinf().any(1),
                flat.isnan().any(1),
                weights,
            )
        )

    @torch.no_grad()
    def _note_gradient(self, name: str, micro_batch: int, gradient: Tensor) -> None:
        self._flags.append(
            _Flags("backward", name, micro_batch, gradient.isinf().any(), gradient.isnan().any())
        )

    def findings(self) -> list[BadValue]:
        """The first bad value of every micro-batch in each direction, in order of the checks."""
        found: dict[tuple[Phase, int], BadValue] = {}
        for order, (flags, bad) in enumerate(zip(self._flags, _any(self._flags), strict=True)):
            key = flags.phase, flags.micro_batch
            if bad and key not in found:
                found[key] = _finding(flags, order)
        return list(found.values())

    def largest(self, names: Sequence[str]) -> tuple[float, BadValue] | None:
        """For a spike: the micro-batch with the largest gradient of this rank's last of `names`.

        The last one, because the backward pass meets it first: a gradient that grows out of
        proportion at one layer stays so in all layers before it.
        """
        here = {name for name, _ in self._norms}
        name = next((name for name in reversed(names) if name in here), None)
        if name is None:
            return None
        norms = {
            number: float(norm) for (each, number), norm in self._norms.items() if each == name
        }
        micro_batch = max(norms, key=lambda number: norms[number])
        return norms[micro_batch], BadValue("backward", name, "spike", micro_batch)


def _any(flags: Sequence[_Flags]) -> list[bool]:
    """Whether each of them has any flag set, read with one copy from the device."""
    if not flags:
        return []
    return torch.stack([(each.inf.any() | each.nan.any()) for each in flags]).tolist()


def _finding(flags: _Flags, order: int) -> BadValue:
    kinds = [word for word, flag in (("inf", flags.inf), ("nan", flags.nan)) if bool(flag.any())]
    bad = flags.inf | flags.nan
    images = tuple(torch.nonzero(bad).flatten().tolist()) if flags.phase == "forward" else ()
    in_weights = flags.weights is not None and bool(flags.weights)
    return BadValue(
        flags.phase, flags.name, ", ".join(kinds), flags.micro_batch, images, in_weights, order
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    """Floating-point tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


@dataclass(frozen=True)
class Account:
    """What one rank found in a step."""

    rank: int
    host: str
    stage: int
    replica: int
    findings: tuple[BadValue, ...]
    largest: tuple[float, BadValue] | None
    """For a spike: see `Probe.largest`."""
    losses: tuple[float, ...]
    """Loss of every micro-batch, on ranks that compute the loss."""
    files: tuple[tuple[tuple[str, ...], ...], ...]
    """The files of every image in every micro-batch; empty on ranks that read none.

    A mosaic is made of four files.
    """


@dataclass(frozen=True)
class Culprit:
    """One place where a step went bad."""

    phase: Phase
    name: str
    """Module or parameter, `LOSS`, or `INPUT`."""
    kind: str
    rank: int
    host: str
    stage: int
    replica: int
    micro_batch: int
    files: tuple[str, ...] = ()
    """Files of the images with bad values, or of the whole micro-batch if these are unknown."""
    single_images: bool = False
    """Whether the images with bad values are known."""

    @property
    def layer(self) -> str:
        """The layer of the model, such as `model.13`."""
        return ".".join(self.name.split(".")[:2]) if self.name.startswith("model.") else self.name


def culprits(accounts: Sequence[Account], cause: str, *, shared: bool = False) -> list[Culprit]:
    """Where each bad micro-batch of a step went bad first. Pure.

    A non-finite value spreads: forward through the later stages, then into the loss and back
    through every gradient. The origin of a replica's micro-batch is therefore in the forward pass
    before the backward pass; forward in the earliest stage, backward in the latest.

    Args:
        shared: whether BatchNorm computes its batch statistics over all replicas. A bad value then
            spreads between replicas too, and the origin is the first bad value of them all.
    """
    if cause == "gradient_spike":
        return _largest_gradient(accounts)
    if cause == "loss_spike":
        return _largest_loss(accounts)
    found: list[Culprit] = []
    batches = _bad_batches(accounts)
    # With shared statistics, all replicas' parts of a micro-batch are one case.
    joint = {(-1, micro_batch) for _, micro_batch in batches} if shared else batches
    for replica, micro_batch in sorted(joint):
        mine = [each for each in accounts if shared or each.replica == replica]
        origin = _origin(mine, micro_batch)
        if origin is not None:
            found.append(_culprit(*origin, _files(accounts, origin[0].replica, micro_batch)))
    return found


def _bad_batches(accounts: Sequence[Account]) -> set[tuple[int, int]]:
    """Replica and number of each bad micro-batch."""
    found = {(each.replica, finding.micro_batch) for each in accounts for finding in each.findings}
    # The loss may be the first non-finite number; then no layer reports a bad value.
    return found | {
        (each.replica, i)
        for each in accounts
        for i, loss in enumerate(each.losses)
        if not math.isfinite(loss)
    }


def _origin(accounts: Sequence[Account], micro_batch: int) -> tuple[Account, BadValue] | None:
    met = [(each, f) for each in accounts for f in each.findings if f.micro_batch == micro_batch]
    forward = [pair for pair in met if pair[1].phase == "forward"]
    if forward:
        return min(forward, key=lambda pair: (pair[0].stage, pair[1].order))
    # Every layer's output was good, so a non-finite loss is the origin.
    for each in accounts:
        if micro_batch < len(each.losses) and not math.isfinite(each.losses[micro_batch]):
            kind = "nan" if math.isnan(each.losses[micro_batch]) else "inf"
            return each, BadValue("forward", LOSS, kind, micro_batch)
    backward = [pair for pair in met if pair[1].phase == "backward"]
    return min(backward, key=lambda pair: (-pair[0].stage, pair[1].order)) if backward else None


def _culprit(account: Account, finding: BadValue, files: tuple[tuple[str, ...], ...]) -> Culprit:
    # If all of several images are bad, no image stands out as the cause.
    single = (
        bool(finding.images) and not finding.in_weights and len(finding.images) < max(len(files), 2)
    )
    images = [files[i] for i in finding.images if i < len(files)] if single else files
    chosen = tuple(dict.fromkeys(file for sources in images for file in sources))
    name = f"{finding.name} (its weights)" if finding.in_weights else finding.name
    return Culprit(
        finding.phase,
        name,
        finding.kind,
        account.rank,
        account.host,
        account.stage,
        account.replica,
        finding.micro_batch,
        chosen,
        single,
    )


def _files(
    accounts: Sequence[Account], replica: int, micro_batch: int
) -> tuple[tuple[str, ...], ...]:
    told = (each.files for each in accounts if each.replica == replica)
    return next((files[micro_batch] for files in told if micro_batch < len(files)), ())


def _largest_gradient(accounts: Sequence[Account]) -> list[Culprit]:
    told = [(each, *each.largest) for each in accounts if each.largest is not None]
    if not told:
        return []
    # The stage nearest to the loss, which the backward pass reaches first.
    latest = max(each.stage for each, _, _ in told)
    account, _, finding = max(
        (row for row in told if row[0].stage == latest), key=lambda row: row[1]
    )
    return [_culprit(account, finding, _files(accounts, account.replica, finding.micro_batch))]


def _largest_loss(accounts: Sequence[Account]) -> list[Culprit]:
    told = [(loss, i, each) for each in accounts for i, loss in enumerate(each.losses)]
    if not told:
        return []
    _, micro_batch, account = max(told, key=lambda row: row[0])
    finding = BadValue("forward", LOSS, "spike", micro_batch)
    return [_culprit(account, finding, _files(accounts, account.replica, micro_batch))]
