"""best.pt at the end of a run: better statistics where they help, judged as the file holds them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from yolods.checkpoint.progress import Progress
from yolods.errors import UserError
from yolods.training import final as module
from yolods.training.final import FinalValidation

PROGRESS = Progress(best_fitness=0.9, best_epoch=3)
"""What the best epoch was judged to be in fp32: nothing is compared with it here."""


class Ended:
    """The end of a run, and what is done about best.pt in which order."""

    def __init__(
        self, fitnesses: list[float | None], *, restates: bool = True, main: bool = True
    ) -> None:
        self.calls: list[str] = []
        self.said: list[str] = []
        self.written: list[tuple[Any, ...]] = []
        self.excluded: list[str] = []
        self.judged: list[float] = []
        self.buffer, self.error = torch.tensor([0.1]), None
        self._fitnesses = iter(fitnesses)
        engine = SimpleNamespace(
            adopt=lambda weights: self.calls.append("load"),
            deepspeed=SimpleNamespace(eval=lambda: None),
            weights=self._gather,
            statistics=lambda: [self.buffer],
            ranks=SimpleNamespace(
                from_main=lambda value: value if main else True,
                barrier=lambda: self.calls.append("barrier"),
            ),
        )
        best = SimpleNamespace(is_file=lambda: True, __str__=lambda: "best.pt")
        writer = SimpleNamespace(
            best=best, folder=Path("run/weights"), replace_best=self._replace_best
        )
        telemetry = SimpleNamespace(event=lambda kind, text, warn=False: self.said.append(text))

        def statistics(_: Any, excluded: Any) -> None:
            self.calls.append("statistics")
            self.excluded += excluded

        statistics.images = 7
        self.validation = FinalValidation(
            engine, self._evaluate, statistics if restates else None, writer, telemetry, plots=True
        )

    def _gather(self) -> Iterator[tuple[str, int]]:
        self.calls.append("gather")
        yield "weight", 1

    def _evaluate(self, engine: Any, **named: Any) -> SimpleNamespace | None:
        self.calls.append("last judgement" if named.get("final") else "judge")
        self.judged.append(float(self.buffer))
        fitness = next(self._fitnesses)
        return None if fitness is None else SimpleNamespace(fitness=fitness)

    def _replace_best(self, weights: Any, epoch: int, evaluation: Any, fitness: float) -> None:
        list(weights)
        self.calls.append("write")
        if self.error is not None:
            raise self.error
        self.written.append((epoch, evaluation.fitness, fitness))


@pytest.fixture(autouse=True)
def _no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PtWeights", lambda path: {})


def test_better_statistics_are_written_and_the_file_is_read_again() -> None:
    run = Ended([0.5, 0.600001, 0.6])
    result = run.validation(PROGRESS, ["a.jpg"])
    assert result is not None and result.fitness == 0.6
    assert run.calls == [
        *(
            "load",
            "judge",
            "statistics",
            "judge",
            "gather",
            "write",
            "barrier",
            "load",
            "last judgement",
        )
    ]
    assert run.written == [(3, 0.600001, 0.6)]
    assert run.excluded == ["a.jpg"]
    assert run.said[0] == (
        "BatchNorm's statistics over 7 train images without augmentation: mAP50-95 0.50000 -> "
        "0.60000, used in best.pt"
    )


@pytest.mark.parametrize("now", [0.5, 0.500004, 0.4, math.nan])
def test_statistics_that_are_no_better_are_not_even_gathered(now: float) -> None:
    run = Ended([0.5, now, 0.5])
    run.validation(PROGRESS, ())
    assert run.calls == [
        "load",
        "judge",
        "statistics",
        "judge",
        "barrier",
        "load",
        "last judgement",
    ]
    assert len(run.said) == 2 and run.said[0].endswith("best.pt keeps those of training")


def test_both_are_judged_as_the_file_holds_them() -> None:
    """The best epoch's own 0.9 was an fp32 model's, and new statistics are rounded before they are
    judged."""
    run = Ended([0.5, 0.6, 0.6])
    run.validation(PROGRESS, ())
    assert run.written, "0.6 is less than 0.9, and better than what best.pt is worth"
    rounded = float(torch.tensor(0.1).half())
    assert rounded != float(torch.tensor(0.1))
    assert run.judged[1] == rounded


def test_ranks_without_the_result_gather_with_rank_0_and_write_nothing() -> None:
    run = Ended([None, None, None], main=False)
    assert run.validation(PROGRESS, ()) is None
    assert run.calls == [
        *("load", "judge", "statistics", "judge", "gather", "barrier", "load", "last judgement")
    ]
    assert run.written == []


def test_a_full_disk_is_reported_and_the_earlier_best_is_judged() -> None:
    run = Ended([0.5, 0.6, 0.5])
    run.error = OSError(28, "No space left on device")
    run.validation(PROGRESS, ())
    assert "but " in run.said[0] and run.said[0].endswith(
        "could not be written: [Errno 28] No space left on device"
    )
    assert run.calls[-3:] == ["barrier", "load", "last judgement"]


def test_without_precise_bn_best_pt_is_judged_once() -> None:
    run = Ended([0.5], restates=False)
    run.validation(PROGRESS, ())
    assert run.calls == ["load", "last judgement"]


def test_a_best_pt_that_was_never_written_ends_every_rank() -> None:
    run = Ended([])
    run.validation._writer.best.is_file = lambda: False
    with pytest.raises(UserError, match=r"was never written; the log run/train\.log says why"):
        run.validation(PROGRESS, ())
    assert run.calls == []
