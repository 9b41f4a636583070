"""PowerSGD: averages gradients over ranks as products of two thin matrices.

Source: Vogels, Karimireddy and Jaggi 2019, https://arxiv.org/abs/1905.13727, algorithms 1 and 2.
A gradient of shape (n, ...) is a matrix M of n rows and m columns, and r is the rank:

    M       = gradient + memory                   (n, m)  on each rank
    P       = mean over ranks of M Q              (n, r)  sent
    P       = P with orthonormal columns
    Q       = mean over ranks of M^T P            (m, r)  sent
    applied = P Q^T                               the same on every rank
    memory  = M - applied                         what is not sent yet (error feedback)

The next step begins with this Q (warm start). Each step does one round of subspace iteration, so Q
approaches the leading right singular vectors while the gradients change slowly. Gradients without
two dimensions, and those that are too small to gain by it, are averaged exactly.

P and Q are linear in M. So only the mean of the ranks' memories matters for what is applied, not
which rank holds it: a resume on another number of ranks gives each of them the mean. For the same
reason, averaging exactly within a host first would change nothing in the result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from yolods.device.host_copy import fill

DEPENDENT = 1e-6
"""A column of P that loses all but this part of its length when the columns before it are removed
consists of rounding errors. It becomes 0."""
_SEED = 0
"""Of the matrices Q at the start, which have to be the same on all ranks."""


@dataclass
class Stack:
    """Gradients that are matrices of one shape (n, m); k of them, computed together."""

    places: tuple[int, ...]
    """Their indices among all gradients."""
    memory: Tensor
    """(k, n, m): what this rank has not sent yet."""
    pending: Tensor
    """(k, n, m): M, and after the averaging the memory of the next step, if this one is applied."""
    factors: Tensor
    """(k, m, r): Q at the start of the step, with columns of length 1."""
    fresh: Tensor
    """(k, m, r): random columns of length 1 that replace those of Q that become 0."""
    left: Tensor
    """(k, n, r): P; a part of a message."""
    right: Tensor
    """(k, m, r): Q; a part of a message."""

    def commit(self) -> None:
        """Begin the next step with this one's remainders and factors."""
        self.memory, self.pending = self.pending, self.memory
        # Of length 1, so that the squares of small gradients do not underflow from step to step.
        # A column of zeros would stay one for ever.
        lengths = torch.linalg.vector_norm(self.right, dim=1, keepdim=True)
        usable = lengths > torch.finfo(lengths.dtype).tiny
        self.factors = torch.where(usable, self.right / lengths, self.fresh)


class PowerSgd:
    """The compressed average of one model's gradients; all numbers in fp32."""

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        *,
        rank: int,
        min_saving: float,
        ranks: int,
        group: dist.ProcessGroup | None,
        device: torch.device,
    ) -> None:
        """
        Args:
            shapes: every gradient's shape by its name, in the order in which `average_` gets them.
            rank: number of columns of P and Q.
            min_saving: a matrix is compressed if P and Q have at most its elements divided by this.
            ranks: number of ranks that average.
            group: these ranks; None: all.
            device: of the gradients.
        """
        self._names, self._ranks, self._group = list(shapes), ranks, group
        sizes = [_matrix(shape) for shape in shapes.values()]
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        self._exact: list[tuple[int, int]] = []
        for place, (rows, columns) in enumerate(sizes):
            if rows * columns >= min_saving * rank * (rows + columns):
                alike[rows, columns].append(place)
            else:
                self._exact.append((place, rows * columns))
        exact = sum(count for _, count in self._exact)
        lefts = [(len(places), rows, rank) for (rows, _), places in alike.items()]
        rights = [(len(places), columns, rank) for (_, columns), places in alike.items()]
        self._first, parts = _message([(exact,), *lefts], device)
        self._second, right = _message(rights, device)
        self._uncompressed, *left = parts
        self._stacks = [
            _stack(tuple(places), shape, left[number], right[number], _SEED + number)
            for number, (shape, places) in enumerate(alike.items())
        ]
        self.elements = sum(rows * columns for rows, columns in sizes)
        """Elements of all gradients."""

    @property
    def compressed(self) -> list[str]:
        """Names of the gradients that are compressed."""
        return [self._names[place] for stack in self._stacks for place in stack.places]

    @property
    def sent_elements(self) -> int:
        """fp32 numbers that are averaged per step."""
        return self._first.numel() + self._second.numel()

    @torch.no_grad()
    def average_(self, gradients: Sequence[Tensor], scale: float = 1.0) -> None:
        """Replace the gradients by their compressed mean over the ranks. A collective.

        The result is the same on every rank. If a gradient is not finite on one rank, it is not on
        any afterwards. The memory stays as it is until `commit`.

        Args:
            gradients: in any floating-point dtype and memory format.
            scale: the loss scale that the gradients contain; the memory does not.
        """
        for stack in self._stacks:
            for place, memory, pending in zip(
                stack.places, stack.memory, stack.pending, strict=True
            ):
                own = gradients[place]
                whole = pending.view(own.shape)
                torch.add(memory.view(own.shape), own, alpha=1 / scale, out=whole)
            torch.bmm(stack.pending, stack.factors, out=stack.left)
        parts = self._uncompressed.split([count for _, count in self._exact])
        for (place, _), part in zip(self._exact, parts, strict=True):
            part.view(gradients[place].shape).copy_(gradients[place])
        self._mean_(self._first)
        for (place, _), part in zip(self._exact, parts, strict=True):
            gradients[place].copy_(part.view(gradients[place].shape))
        lefts = [orthonormal_columns(stack.left) for stack in self._stacks]
        for stack, left in zip(self._stacks, lefts, strict=True):
            torch.bmm(stack.pending.transpose(1, 2), left, out=stack.right)
        self._mean_(self._second)
        for stack, left in zip(self._stacks, lefts, strict=True):
            applied = torch.bmm(left * scale, stack.right.transpose(1, 2))
            for place, matrix, pending in zip(stack.places, applied, stack.pending, strict=True):
                own = gradients[place]
                own.copy_(matrix.view(own.shape))
                # After the rounding to the gradient's dtype, so that the memory gets that as well.
                pending.view(own.shape).add_(own, alpha=-1 / scale)

    def commit(self) -> None:
        """Keep what the last `average_` has not sent, because its result is applied. Local.

        Without this call the next `average_` begins as the last one did, so a step that is skipped,
        perhaps because of infinite gradients, leaves nothing behind.
        """
        for stack in self._stacks:
            stack.commit()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """This rank's memory (n, m) and the factors (m, r), by the gradient's name. Local."""
        held = [
            (self._names[place], stack.memory[index], stack.factors[index])
            for stack in self._stacks
            for index, place in enumerate(stack.places)
        ]
        return {
            "memory": {name: memory for name, memory, _ in held},
            "factors": {name: factors for name, _, factors in held},
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore what `state` returned, in memory or stored. Local.

        What it lacks begins anew, for example after another rank was configured: the memory with
        zeros, the factors with random columns.
        """
        memories, factors = state.get("memory", {}), state.get("factors", {})
        for stack in self._stacks:
            for index, place in enumerate(stack.places):
                name = self._names[place]
                memory, factor = stack.memory[index], stack.factors[index]
                if name in memories:
                    fill([memory], [memories[name]])
                else:
                    memory.zero_()
                if name in factors and factors[name].shape == factor.shape:
                    fill([factor], [factors[name]])
                else:
                    factor.copy_(stack.fresh[index])

    def _mean_(self, message: Tensor) -> None:
        if message.numel():
            dist.all_reduce(message, group=self._group)
            message /= self._ranks


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a gradient; (1, n) for one that is not a matrix."""
    count = torch.Size(shape).numel()
    return (shape[0], count // shape[0]) if len(shape) > 1 and count else (1, count)


def _message(shapes: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """One flat fp32 tensor, and its parts in these shapes."""
    counts = [torch.Size(shape).numel() for shape in shapes]
    flat = torch.zeros(sum(counts), device=device)
    return flat, [
        part.view(tuple(shape)) for part, shape in zip(flat.split(counts), shapes, strict=True)
    ]


def _stack(
    places: tuple[int, ...], shape: tuple[int, int], left: Tensor, right: Tensor, seed: int
) -> Stack:
    memory = torch.zeros(len(places), *shape, device=left.device)
    # On the host, because generators of other devices give other numbers.
    random = torch.randn(right.shape, generator=torch.Generator().manual_seed(seed))
    fresh = (random / torch.linalg.vector_norm(random, dim=1, keepdim=True)).to(left.device)
    pending = torch.zeros_like(memory)
    return Stack(places, memory, pending, fresh.clone(), fresh, left, right)


@torch.no_grad()
def orthonormal_columns(matrices: Tensor) -> Tensor:
    """Matrices whose columns span the same spaces and are orthonormal, by Gram and Schmidt.

    A column that depends on those before it becomes 0. Numbers that are not finite stay so.

    Args:
        matrices: (k, n, r) fp32.
    """
    found = matrices.clone()
    before = torch.linalg.vector_norm(found, dim=1, keepdim=True)
    for place in range(found.shape[2]):
        column = found[:, :, place : place + 1]
        length = torch.linalg.vector_norm(column, dim=1, keepdim=True)
        # With a nan the comparison is false, so that every rank gets to see it.
        dependent = length <= DEPENDENT * before[:, :, place : place + 1]
        column.copy_(torch.where(dependent, 0.0, column / length))
        rest = found[:, :, place + 1 :]
        # Modified: from all later columns at once, which keeps the rounding errors small.
        rest -= column @ (column.transpose(1, 2) @ rest)
    return found
