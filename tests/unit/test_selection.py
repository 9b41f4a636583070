"""Which epoch's weights become best.pt, and when patience has run out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from yolods.checkpoint.progress import Progress
from yolods.training.selection import ModelSelection


class Selected:
    """A selection among epochs of which an evaluator says what they are worth."""

    def __init__(
        self, fitnesses: list[float], *, patience: int = 0, val: bool = True, main: bool = True
    ) -> None:
        self.written: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.pictures: list[bool] = []
        self.gathered = 0
        self.progress, self.judged = Progress(), []
        self._fitnesses = fitnesses
        hyper = SimpleNamespace(plots=True, val=val, patience=patience)
        engine = SimpleNamespace(
            evaluating=nullcontext,
            weights=self._gather,
            ranks=SimpleNamespace(
                is_main=main, from_main=lambda value: self._fitness() if value is None else value
            ),
        )
        writer = SimpleNamespace(
            # It takes one tensor and fails, as on a full disk.
            write_epoch=lambda weights, epoch, evaluation, **more: self.written.append(
                {"epoch": epoch, "first": next(weights), **more}
            )
        )
        telemetry = SimpleNamespace(event=lambda kind, text: self.said.append(f"{kind}: {text}"))
        config = SimpleNamespace(epochs=len(fitnesses), hyper=hyper)
        evaluator = self._evaluate if main else lambda *_, **__: None
        self.selection = ModelSelection(config, engine, evaluator, writer, telemetry)

    def _fitness(self) -> float:
        return self._fitnesses[self.progress.epochs_done]

    def _gather(self) -> Iterator[tuple[str, int]]:
        """Counts the tensors for which this rank was needed."""
        for number in range(3):
            self.gathered += 1
            yield f"weight{number}", number

    def _evaluate(self, engine: Any, *, pictures: bool, telemetry: Any) -> SimpleNamespace:
        self.pictures.append(pictures)
        return SimpleNamespace(fitness=self._fitness())

    def run(self) -> Selected:
        """All epochs, or as many as patience bears."""
        for _ in self._fitnesses:
            judged = self.selection(self.progress)
            self.judged.append(judged)
            self.progress = judged.progress.after_epoch()
            self.selection.check_patience(self.progress)
            if self.selection.exhausted:
                break
        return self

    @property
    def best(self) -> list[int]:
        """Epochs that were written as best.pt."""
        return [each["epoch"] for each in self.written if each["is_best"]]


@pytest.mark.parametrize(
    ("fitnesses", "best", "best_epoch", "called"),
    [
        ([0.1, 0.3, 0.2], [0, 1], 1, [True, True, False]),
        ([0.0, 0.0, 0.0], [0, 1, 2], 2, [False, False, False]),
        ([0.3, 0.3, 0.2, 0.3], [0, 1, 3], 0, [True, False, False, False]),
        ([0.300001, 0.300002, 0.300004], [0, 1, 2], 0, [True, False, False]),
    ],
)
def test_of_epochs_that_are_equally_good_the_last_is_written_as_best(
    fitnesses: list[float], best: list[int], best_epoch: int, called: list[bool]
) -> None:
    """As ultralytics' `save_model` and `EarlyStopping` do, whose fitness has five decimals."""
    selected = Selected(fitnesses).run()
    assert selected.best == best
    assert [each["epoch"] for each in selected.written] == list(range(len(fitnesses))), (
        "last.pt is every epoch's"
    )
    assert selected.progress.best_epoch == best_epoch
    assert [judged.is_best for judged in selected.judged] == called, (
        "nothing is called the best that is worth nothing"
    )


def test_a_pt_knows_the_best_fitness_up_to_its_own_epoch() -> None:
    assert [each["best_fitness"] for each in Selected([0.1, 0.3, 0.2]).run().written] == [
        0.1,
        0.3,
        0.3,
    ]


def test_without_evaluations_the_last_epoch_alone_is_judged() -> None:
    selected = Selected([0.5, 0.4, 0.3], val=False).run()
    assert [judged.evaluation is not None for judged in selected.judged] == [False, False, True]
    assert (selected.best, selected.progress.best_epoch) == ([2], 2)
    assert [each["best_fitness"] for each in selected.written] == [None, None, 0.3]


def test_ranks_without_the_result_come_to_the_same_progress_and_write_nothing() -> None:
    fitnesses = [0.1, 0.3, 0.2, 0.2]
    other, main = (
        Selected(fitnesses, patience=2, main=False).run(),
        Selected(fitnesses, patience=2).run(),
    )
    assert other.written == []
    # All tensors in each epoch that writes weights, also those that a failed write has left.
    assert other.gathered == main.gathered == 3 * len(main.judged)
    assert (
        other.progress == main.progress and other.selection.exhausted and main.selection.exhausted
    )


def test_pictures_are_drawn_five_times_and_at_the_end() -> None:
    drawn = [
        epoch for epoch, pictures in enumerate(Selected([0.1] * 12).run().pictures) if pictures
    ]
    assert drawn == [0, 3, 6, 9, 11]


@pytest.mark.parametrize(
    ("epoch", "patience", "stop"),
    [(12, 3, False), (13, 3, True), (20, 3, True), (10, 3, False), (99, 0, False)],
)
def test_patience_counts_epochs_since_the_best(epoch: int, patience: int, stop: bool) -> None:
    selected = Selected([], patience=patience)
    selected.selection.check_patience(
        Progress(best_epoch=10, best_fitness=0.5, epochs_done=epoch + 1)
    )
    assert selected.selection.exhausted == stop
    line = (
        f"early_stop: No improvement for {epoch - 10} epochs: stopping early (patience {patience})"
    )
    assert selected.said == ([line] if stop else [])


def test_patience_does_not_begin_before_an_epoch_has_been_judged() -> None:
    selected = Selected([], patience=1)
    selected.selection.check_patience(Progress(epochs_done=9))
    assert not selected.selection.exhausted
