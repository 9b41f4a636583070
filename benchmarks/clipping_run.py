"""The counting and the timing of `clipping.py`."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.clipping_count import BLOCKS, CHUNK, DEVICE, counted, lone_rank
from benchmarks.clipping_report import ROOFLINE, STOCK, TORCH, Case, Part, Row, Sample, Tally
from benchmarks.clipping_ways import KINDS, LIMIT, SCALE, Held, Way, groups_of, on_device, ways

METHOD = f"""\
Gradients of one rank alone, reduced, a slice a parameter, as ZeRO-1, 2 and 3 hold them in fp16, bf16, and in fp32 where
the model is fp32; models for 80 classes, in the optimizer's three groups. In fp16 they carry a loss scale of {SCALE:g}
and are unscaled; in the others they are clipped, to a norm of {LIMIT:g}.

- *measuring*: from there to the verdict. Ours: `Stability.before_step` and what DeepSpeed's step then asks its replaced
  methods. *{STOCK}*: the overflow check (fp16 only), the norm, the check of the norm, by the methods of DeepSpeed's own
  optimizers. *{TORCH}*: `get_total_norm`, in the gradients' dtype, without a check and
  without a look from the host.
- *applying*: unscaling and clipping of the fp32 copies, by the methods that the step calls; ours leaves it to the
  kernel that steps where that is a *fused optimizer*, as SGD, Adam and AdamW are in a run. *{TORCH}*:
  `clip_grads_with_norm_`, on the gradients. Between the two parts DeepSpeed lays the gradients end to end and casts
  them to fp32, in all ways alike; that is in no number here.
- *{ROOFLINE}*: one sum over the gradients, laid end to end.
- *Counted*, operator by operator, on the meta device over the functions that are timed: what an operator is given is
  read, what it returns or changes is written, each tensor once an operator, from and to memory. Views cost nothing;
  isinf is its two operators. A foreach operator starts a kernel for every {BLOCKS} blocks of {CHUNK} elements (CUDA 12;
  a seventh of that for CUDA 13). *a + b* syncs: the host waits a times for a value of the device, and b times until a
  number of its own has got there (`torch.tensor` with a device). All-reduces are stubs, counted as with several ranks.
- *Timed*: medians (min..max) of rounds in which all ways take turns, each round another one first; ratios are taken
  round by round. With one thread on a CPU they are the seconds that the process had its core, else of the wall clock.
  What is allocated above the tensors that operators return, they have for themselves; it is written and read on top of
  what is counted. A CPU's norm makes an fp32 copy of a tensor of fewer bits first, which no GPU does; ours multiplies
  such tensors there without one (`stability.gradients`)."""  # noqa: E501


def place(device: torch.device, threads: int) -> str:
    """Where times are taken, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return (
        f"the CPU, with {threads} thread{'s' if threads > 1 else ''}; on a GPU they are not "
        "measured"
    )


def case(model: str, dtype: str, rounds: int, device: torch.device) -> Case:
    """Count, and time, all ways on the gradients of one model.

    Raises:
        UserError: there is no such model.
    """
    groups = groups_of(model)
    tallies = count(groups, KINDS[dtype])
    held = Held(groups, KINDS[dtype], device)
    print(f"{model}, {dtype}: {held.parameters} parameters, counted", flush=True)
    compared = ways(held)
    timed = Timed(held, compared, rounds, f"{model}, {dtype}")
    if rounds:
        with lone_rank():
            timed.take()
    rows = []
    for way, (first, second) in zip(compared, tallies, strict=True):
        applying = None if second is None else Part(second, tuple(timed.applying[way]))
        measuring = Part(first, tuple(timed.measuring[way]), timed.allocated.get(way))
        rows.append(Row(way.name, measuring, applying, way.norm() if rounds else None))
    tensors = sum(map(len, groups))
    return Case(model, dtype, held.parameters, tensors, KINDS[dtype].itemsize, tuple(rows))


def count(
    groups: Sequence[Sequence[tuple[str, torch.Size]]], dtype: torch.dtype
) -> list[tuple[Tally, Tally | None]]:
    """What every way does in measuring and in applying."""
    with on_device(DEVICE):
        held = Held(groups, dtype, DEVICE)
        compared = ways(held)
        held.hold_gradients()
        held.hold_masters()
        return [
            (counted(way.measure), counted(way.apply) if way.applies_to else None)
            for way in compared
        ]


class Timed:
    """Times of all ways on one model's gradients."""

    def __init__(self, held: Held, compared: Sequence[Way], rounds: int, title: str) -> None:
        self._held, self._ways, self._rounds, self._title = held, compared, rounds, title
        self.measuring: dict[Way, list[Sample]] = {way: [] for way in compared}
        """Round by round."""
        self.applying: dict[Way, list[Sample]] = {way: [] for way in compared}
        """Likewise; empty where a way applies nothing."""
        self.allocated: dict[Way, int] = {}
        """Bytes that measuring allocates."""

    def take(self) -> None:
        """Take all times; gradients and their fp32 copies are never held at once."""
        self._held.hold_gradients()
        for way in self._ways:
            self.allocated[way] = allocated(way.measure, self._held.device)
        self._alternate("measuring", self._ways, self._measure)
        self._held.drop_gradients()
        gc.collect()
        later = [way for way in self._ways if way.applies_to == "masters"]
        # Anew for every round: a thousandth of a thousandth and so on ends in numbers that take a
        # CPU longer.
        self._alternate("applying", later, self._apply, before=self._held.hold_masters)
        self._held.drop_masters()
        gc.collect()

    def _alternate(
        self,
        what: str,
        compared: Sequence[Way],
        take: Callable[[Way, bool], None],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Every way once a round, each round beginning with another one; a round that does not
        count comes first."""
        for number in range(-1, self._rounds):
            before()
            began = time.perf_counter()
            shift = number % len(compared)
            for way in [*compared[shift:], *compared[:shift]]:
                take(way, number >= 0)
            seconds = time.perf_counter() - began
            print(
                f"{self._title}: {what}, round {number + 1} of {self._rounds}, {seconds:.1f} s",
                flush=True,
            )

    def _measure(self, way: Way, counts: bool) -> None:
        samples = [clock(way.measure, self._held.device)]
        if counts:
            self.measuring[way] += samples
        if way.applies_to == "gradients":
            self._apply(way, counts)

    def _apply(self, way: Way, counts: bool) -> None:
        samples = [clock(way.apply, self._held.device)]
        if counts:
            self.applying[way] += samples


def clock(function: Callable[[], object], device: torch.device) -> Sample:
    """How long a function takes, on a GPU until all that it started there is done.

    With one thread on a CPU nothing overlaps, and the seconds that the process had its core leave
    out those that the core was another's.
    """
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        return Sample(begin.elapsed_time(end) / 1e3, 1.0)
    threads, cpu, wall = torch.get_num_threads(), time.process_time(), time.perf_counter()
    function()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Sample(cpu if threads == 1 else wall, min(1.0, cpu / wall / threads))


def allocated(function: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors that a function allocates, of those too that an operator has for itself."""
    if device.type == "cuda":
        key = "allocated_bytes.all.allocated"
        before = torch.cuda.memory_stats()[key]
        function()
        return torch.cuda.memory_stats()[key] - before
    with torch.autograd.profiler.profile(profile_memory=True) as seen:
        function()
    events = seen.kineto_results.events()
    return sum(max(event.nbytes(), 0) for event in events if event.name() == "[memory]")
