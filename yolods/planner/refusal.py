"""What would fit where nothing does: more memory, more ranks, or smaller images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from yolods.plan.stage_plan import GIB
from yolods.planner.choices import Choice, micro_batches, obstacle
from yolods.planner.report import need
from yolods.planner.request import Machines
from yolods.planner.search import Found, Option
from yolods.system.humanize import plural, size_text

MOST_DOUBLINGS = 6
"""How often the ranks are doubled in search of enough."""

Search = Callable[[Choice, Machines], Found]
"""Searches layouts for another choice and other machines."""


@dataclass(frozen=True)
class Refused:
    """A request that nothing fits."""

    found: Found
    machines: Machines
    again: Search
    grid: int
    """Pixels; image sizes are multiples of it."""

    def lines(self) -> list[str]:
        """Why nothing fits, and what would, each with its arithmetic."""
        if not self.found.options:
            return [*self._undivided()]
        nearest = self.found.nearest
        assert nearest is not None
        best = f"{nearest.family.label}, {nearest.layout.precision}, {_batch(nearest)}"
        return [
            f"no layout fits; the nearest is {best}, which needs {need(nearest, self.found)}",
            *self._memory(nearest),
            *self._images(),
            *self._ranks(_like(self.found.choice, nearest)),
            *self._sizes(_like(self.found.choice, nearest)),
        ]

    def _undivided(self) -> Iterator[str]:
        """No family has a layout."""
        choice, empty = self.found.choice, self.found.undivided
        divided = [each for each in empty if choice.images % (choice.ranks // each.stages) == 0]
        yield from dict.fromkeys(obstacle(choice, each) for each in divided)
        shares = {choice.ranks // each.stages for each in empty}
        replicas = sorted(each for each in shares if choice.images % each)
        if not replicas:
            return
        few = replicas[0]
        below, above = choice.images // few * few, (choice.images // few + 1) * few
        yield (
            f"{choice.images} images per step do not divide among "
            f"{' or '.join(map(str, replicas))} replicas, which is what {choice.ranks} ranks "
            f"allow; use --images-per-step {f'{below} or ' if below else ''}{above}"
        )

    def _memory(self, nearest: Option) -> Iterator[str]:
        """The memory of a device, and of a host, that would do for the nearest layout."""
        limits, used = self.found.limits, self.machines.limits.device / self.machines.memory
        device = max(map(limits.taken, nearest.memory))
        host = max(each.host for each in nearest.memory)
        if device > limits.device and self.machines.device == "cpu":
            # What ranks on CPUs compute with is their host's memory.
            yield self._of_a_host(max(device, host))
            return
        if device > limits.device:
            gib = device / used / GIB
            yield (
                f"it would fit with --gpu-memory {_up(gib)}: {size_text(device)} / {used:.2g} = "
                f"{size_text(device / used)}"
            )
        if host > limits.host:
            yield self._of_a_host(host)

    def _of_a_host(self, rank: float) -> str:
        """The memory of a host that would do for ranks which take so many bytes of it each."""
        slots = self.machines.slots
        return (
            f"it would fit with --host-memory {_up(rank * slots / GIB)}: {size_text(rank)} x "
            f"{plural(slots, 'rank')} = {size_text(rank * slots)}"
        )

    def _images(self) -> Iterator[str]:
        """The images of a forward pass that would do, where they are given."""
        choice = self.found.choice
        if choice.forward_images is None:
            replicas = {choice.ranks // each.family.stages for each in self.found.options}
            least = min(micro_batches(choice, each)[-1] for each in replicas)
            yield (
                "fewer images per step would not help: micro-batches were searched down to "
                f"{plural(least, 'image')}"
            )
            return
        found = self.again(replace(choice, forward_images=None), self.machines)
        if found.best:
            layout = found.best.layout
            images = layout.micro_batch * layout.replicas
            yield f"--batch-size {images} would fit: {_said(found.best)}"

    def _ranks(self, choice: Choice) -> Iterator[str]:
        """The number of ranks that would do, on more hosts of the same kind."""
        machines = self.machines
        for doubling in range(1, MOST_DOUBLINGS + 1):
            more = 2**doubling
            ranks = choice.ranks * more
            wider = replace(choice, ranks=ranks)
            found = self.again(wider, replace(machines, ranks=ranks, hosts=machines.hosts * more))
            if found.best:
                yield (
                    f"{ranks} ranks on {plural(machines.hosts * more, 'host')} would do: "
                    f"{_said(found.best)}"
                )
                return

    def _sizes(self, choice: Choice) -> Iterator[str]:
        """The largest image size that would do, by bisection over the multiples of the grid."""
        machines = self.machines
        fits, fails, best = 0, choice.imgsz // self.grid, None
        while fails - fits > 1:
            middle = (fits + fails) // 2
            found = self.again(replace(choice, imgsz=middle * self.grid), machines)
            if found.best:
                fits, best = middle, found.best
            else:
                fails = middle
        if best is not None:
            yield f"--imgsz {fits * self.grid} would fit: {_said(best)}"


def _like(choice: Choice, nearest: Option) -> Choice:
    """The choice among layouts like the nearest one.

    Every other data type and way of recomputing would have to be traced anew at every size.
    """
    layout = nearest.layout
    return replace(choice, precisions=(layout.precision,), recompute=layout.recompute != 0)


def _said(option: Option) -> str:
    return (
        f"{option.family.label}, {option.layout.precision}, {_batch(option)}, "
        f"{option.fullest.device / GIB:.2f} GiB"
    )


def _batch(option: Option) -> str:
    layout = option.layout
    recompute = ", recompute" if layout.recompute else ""
    return f"micro-batch {layout.micro_batch}{recompute}"


def _up(gib: float) -> str:
    """A number of GiB rounded up to a tenth."""
    return f"{int(gib * 10) / 10 + 0.1:.1f}"
