"""Sends each part of the gradients only to the rank that updates it (ZeRO-1 and 2).

DeepSpeed all-reduces every bucket, although a rank reads only the part that it owns: with P bytes
of gradients and N ranks, each rank sends 2 P (N-1)/N for them. A part needs to reach one rank, for
which each rank sends P (N-1)/N. DeepSpeed's own way to that, "use_multi_rank_bucket_allreduce":
false, calls `reduce` for every owner. gloo's `reduce` is a ring over the whole tensor, as its
all-reduce is, and then gathers the result at the owner; and DeepSpeed waits for the whole device
before each of these calls (deepspeed/runtime/zero/stage_1_and_2.py, `allreduce_and_copy`, 0.19.8).

    gloo    an exchange of unequal parts; the owner adds them in the order of the ranks
    NCCL    `reduce` to every owner: a chain, in which a rank sends a part at most once. Over
            several hosts an all-to-all would cross the network once per rank of a host

The buckets of a backward pass hold consecutive layers, and an owner's part is consecutive, too.
Therefore a reduce-scatter, whose parts are equal, would send mostly padding.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from yolods.distributed.exchange import exchange

UNDER_WAY = 2
"""Most buckets under way at a time: enough for a link that is never idle in one direction, and a
bound of the memory. On gloo ZeRO-1, which has the memory for all gradients, has no such bound:
consecutive buckets belong to one owner, to which all data flows, and only when others are under
way as well do the links carry data in both directions."""


@dataclass(frozen=True)
class _Piece:
    """A part of one parameter's gradient that one rank owns."""

    owner: int
    """Data-parallel rank."""
    start: int
    """Index of its first element in the flattened gradient."""
    count: int
    """Number of elements."""


@dataclass(frozen=True)
class _Place:
    """Where a reduced part of this rank belongs."""

    group: int
    """Index of DeepSpeed's parameter group."""
    parameter: nn.Parameter
    number: int
    """DeepSpeed's number of the parameter."""
    piece: _Piece


@dataclass(frozen=True)
class _UnderWay:
    """A bucket whose exchange has begun."""

    works: Sequence[dist.Work]
    result: Tensor
    """(N, mine) what the ranks send to this one, or (1, mine) what is reduced."""
    places: Sequence[_Place]
    sent: Tensor
    """Held until the exchange is over."""


class OwnedReduction:
    """Replaces DeepSpeed's reduction of buckets on one optimizer."""

    needs = (
        *("average_tensor", "reduce_ipg_grads", "ipg_buckets", "bit16_groups"),
        *("param_to_partition_ids", "grad_start_offset", "get_gradient_for_reduction"),
        *("buffered_reduce_fallback", "_buffered_reduce_fallback_preserving_fp32"),
        *("_get_compact_grad_partition_slice", "_add_to_grad_partition_buffer"),
        *("process_gradients", "reduce_gradients", "reduce_ready_partitions_and_remove_grads"),
        *("setup_buckets", "overlapping_partition_gradients_reduce_epilogue"),
        *("use_separate_grad_accum", "use_grad_accum_attribute", "gradient_accumulation_dtype"),
    )
    """Attributes of DeepSpeed's optimizer that this class reads or replaces."""

    @staticmethod
    def fits(optimizer: Any) -> bool:
        """Whether this kind of optimizer reduces buckets.

        Raises:
            RuntimeError: it does, but this DeepSpeed does so in an unknown way.
        """
        if type(optimizer).__name__ != "DeepSpeedZeroOptimizer":
            return False
        missing = [name for name in OwnedReduction.needs if not hasattr(optimizer, name)]
        if missing:
            import deepspeed

            raise RuntimeError(
                f"deepspeed {deepspeed.__version__}: DeepSpeedZeroOptimizer lacks "
                f"{', '.join(missing)}; yolods' reduction fits deepspeed 0.19.8. Install the "
                'versions of constraints.txt, or set "zero_optimization": '
                '{"use_multi_rank_bucket_allreduce": true}'
            )
        return True

    def __init__(self, optimizer: Any, *, overlapped: bool, once: bool) -> None:
        """
        Args:
            optimizer: a `DeepSpeedZeroOptimizer`.
            overlapped: whether a bucket is sent as soon as it is full, under ZeRO-1 as well.
            once: whether a step's gradients are sent in its last backward pass only, under ZeRO-2
                as well; until then every rank adds up whole ones.
        """
        self._optimizer = optimizer
        self._group = optimizer.dp_process_group
        self._rank, self._ranks = dist.get_rank(self._group), dist.get_world_size(self._group)
        self._to_all = dist.get_backend(self._group) == "gloo"
        bound = optimizer.partition_gradients or not self._to_all
        self._most = UNDER_WAY if bound else sys.maxsize
        # Offloading copies each reduced bucket to the host at once.
        if optimizer.cpu_offload or not overlapped:
            self._most = 0
        self._pieces: dict[tuple[int, int], list[_Piece]] = {}
        self._under_way: deque[_UnderWay] = deque()
        self._reduce_buckets = optimizer.reduce_ipg_grads
        optimizer.average_tensor = self._average
        optimizer.reduce_ipg_grads = self._reduce
        optimizer.buffered_reduce_fallback = self._average_apart
        optimizer._buffered_reduce_fallback_preserving_fp32 = self._average_named
        self._seen: set[int] = set()
        self._end_pass = optimizer.overlapping_partition_gradients_reduce_epilogue
        if optimizer.partition_gradients and once:
            # DeepSpeed adds up in "grad_accum_dtype" only in a rank's own part; the sums of a
            # parameter's whole gradients would keep the parameter's type.
            optimizer.use_grad_accum_attribute = optimizer.use_separate_grad_accum
            optimizer.process_gradients = self._take
            optimizer.overlapping_partition_gradients_reduce_epilogue = self._finish_last
        elif overlapped and optimizer.contiguous_gradients and not optimizer.partition_gradients:
            optimizer.process_gradients = self._take
            optimizer.reduce_gradients = self._finish

    def _take(self, parameter: nn.Parameter, group: int) -> None:
        """DeepSpeed's `process_gradients`, called when a gradient is known."""
        optimizer = self._optimizer
        if optimizer.use_grad_accum_attribute:
            optimizer._fill_param_grad_accum_attribute(parameter)
        if optimizer.is_gradient_accumulation_boundary():
            optimizer.setup_buckets()
            self._seen.add(id(parameter))
            optimizer.reduce_ready_partitions_and_remove_grads(parameter, group)

    def _finish(self, pipeline_parallel: bool = False) -> None:
        """DeepSpeed's `reduce_gradients`, called after the last backward pass of a step."""
        optimizer = self._optimizer
        for group, parameters in enumerate(optimizer.bit16_groups):
            for parameter in parameters:
                # Known since an earlier backward pass, and not reached by the last one.
                if id(parameter) not in self._seen and (
                    optimizer.get_gradient_for_reduction(parameter) is not None
                ):
                    optimizer.reduce_ready_partitions_and_remove_grads(parameter, group)
        self._seen.clear()
        self._end_pass()

    def _finish_last(self) -> None:
        """DeepSpeed's epilogue of each backward pass under ZeRO-2: only the last one has one."""
        if self._optimizer.is_gradient_accumulation_boundary():
            self._finish()

    def _reduce(self, comm_dtype: torch.dtype | None = None) -> None:
        """DeepSpeed's `reduce_ipg_grads`: with a data type to make room in the bucket, without one
        at the end of a backward pass."""
        self._reduce_buckets(comm_dtype=comm_dtype)
        if comm_dtype is None:
            self._settle(0)

    def _average(self, tensor: Tensor, communication_data_type: torch.dtype) -> None:
        """DeepSpeed's `average_tensor`: the mean of a bucket over the ranks, at its owners.

        Args:
            tensor: (elements,) the gradients of `ipg_buckets[communication_data_type]`, in order.
        """
        self._settle(max(self._most - 1, 0))
        self._begin(tensor, communication_data_type)
        if not self._most:
            self._settle(0)

    def _average_apart(
        self, rank: int | None, grads: list[Tensor], dtype: torch.dtype, **_: Any
    ) -> None:
        """The same without "contiguous_gradients", where a bucket is a list of tensors."""
        self._begin(torch.cat([each.reshape(-1) for each in grads]), dtype)
        self._settle(0)

    def _average_named(
        self, grads: list[Tensor], params: Any, dtype: torch.dtype, **_: Any
    ) -> None:
        """The same with gradients that are accumulated in fp32."""
        self._average_apart(None, grads, dtype)

    def _begin(self, tensor: Tensor, dtype: torch.dtype) -> None:
        """Start the exchange of a bucket."""
        parts: list[list[Tensor]] = [[] for _ in range(self._ranks)]
        places: list[_Place] = []
        first = 0
        for group, place, number in self._optimizer.ipg_buckets[dtype].params:
            parameter = self._optimizer.bit16_groups[group][place]
            for piece in self._pieces_of(group, number, parameter.numel()):
                parts[piece.owner].append(tensor.narrow(0, first + piece.start, piece.count))
                if piece.owner == self._rank:
                    places.append(_Place(group, parameter, number, piece))
            first += parameter.numel()
        counts = [sum(each.numel() for each in part) for part in parts]
        if not first:
            return
        # A copy, so that DeepSpeed may use its bucket again at once.
        sent = torch.cat([each for part in parts for each in part])
        if self._optimizer.gradient_average:
            sent.div_(self._ranks)
        sent = sent.to(dtype)
        works, result = (self._exchange if self._to_all else self._chains)(sent, counts)
        self._under_way.append(_UnderWay(works, result, places, sent))

    def _exchange(self, sent: Tensor, counts: list[int]) -> tuple[list[dist.Work], Tensor]:
        """Send every rank its part, and get this rank's from all."""
        mine = counts[self._rank]
        received = sent.new_empty(self._ranks * mine)
        work = exchange(received, sent, [mine] * self._ranks, counts, self._group)
        return [work], received.view(self._ranks, mine)

    def _chains(self, sent: Tensor, counts: list[int]) -> tuple[list[dist.Work], Tensor]:
        """Add up every rank's part at that rank."""
        from deepspeed import comm

        works, parts = [], sent.split(counts)
        for owner, part in enumerate(parts):
            if part.numel():
                place = dist.get_global_rank(self._group, owner)
                works.append(comm.reduce(part, place, group=self._group, async_op=True))
        return works, parts[self._rank].view(1, -1)

    def _settle(self, most: int) -> None:
        """Store the oldest buckets, until at most `most` are under way."""
        while len(self._under_way) > most:
            bucket = self._under_way.popleft()
            for work in bucket.works:
                work.wait()
            self._store(_sum(bucket.result), bucket.places)

    def _store(self, mean: Tensor, places: Sequence[_Place]) -> None:
        """Copy this rank's parts (mine,) to where DeepSpeed reads them."""
        optimizer, first = self._optimizer, 0
        for place in places:
            start, count = place.piece.start, place.piece.count
            part = mean.narrow(0, first, count)
            first += count
            output = optimizer._get_compact_grad_partition_slice(
                place.group, self._rank, place.number, count
            )
            if output is not None:
                optimizer._add_to_grad_partition_buffer(output, part)
                continue
            gradient = optimizer.get_gradient_for_reduction(place.parameter)
            flat = gradient.reshape(-1)
            flat.narrow(0, start, count).copy_(part)
            if flat.data_ptr() != gradient.data_ptr():
                # A gradient in another memory format, of which `reshape` has made a copy.
                gradient.copy_(flat.view_as(gradient))

    def _pieces_of(self, group: int, number: int, size: int) -> list[_Piece]:
        """Who owns what of a parameter, in order."""
        key = (group, number)
        if key not in self._pieces:
            owners = self._optimizer.param_to_partition_ids[group][number]
            starts = sorted(
                (self._optimizer.grad_start_offset[group][owner][number], owner) for owner in owners
            )
            ends = [start for start, _ in starts[1:]] + [size]
            self._pieces[key] = [
                _Piece(owner, start, end - start)
                for (start, owner), end in zip(starts, ends, strict=True)
            ]
        return self._pieces[key]


def _sum(rows: Tensor) -> Tensor:
    """The sum of (N, n) over N: (n,), in fp32 and in the order of the rows, rounded once. Rows of
    fp32 are added up in the first one."""
    if len(rows) == 1:
        return rows[0]
    total = rows[0].float()
    for row in rows[1:]:
        total.add_(row)
    return total.to(rows.dtype)
