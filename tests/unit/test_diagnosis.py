"""What a rank saw of a bad step becomes the culprits that all ranks are told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from yolods.engine.diagnosis import Diagnosis
from yolods.stability.guard import Verdict


class Alone:
    """The only rank."""

    rank, host, is_main = 0, "here", True

    def to_main(self, value):
        return [value]

    def from_main(self, value):
        return value


FEED = SimpleNamespace(files=[(("a.jpg",), ("b.jpg",)), (("c.jpg",), ("d.jpg",))])


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


def passes(diagnosis: Diagnosis, model: nn.Module, images: list[torch.Tensor]) -> None:
    for number, batch in enumerate(images):
        diagnosis.at("forward", number)
        loss = model(batch).sum()
        diagnosis.note_loss(loss.detach())
        diagnosis.at("backward", number)
        loss.backward()


BAD = torch.tensor([[1.0, 1.0], [1.0, float("nan")]])


def test_a_second_run_finds_the_image_that_was_bad():
    model = net()
    diagnosis = Diagnosis(model, "armed", Alone(), shared=False)
    with diagnosis.watching():
        passes(diagnosis, model, [torch.ones(2, 2), BAD])
    (found,) = diagnosis.conclude(Verdict("skip", "forward"), (), FEED, 0, 0)
    assert (found.name, found.kind, found.micro_batch, found.files) == (
        "input",
        "nan",
        1,
        ("d.jpg",),
    )


@pytest.mark.parametrize(
    ("when", "name"), [("off", "loss"), ("armed", "loss"), ("always", "input")]
)
def test_a_first_run_is_watched_only_where_that_was_asked_for(when, name):
    """Unwatched, the loss alone tells which micro-batch it was."""
    model = net()
    diagnosis = Diagnosis(model, when, Alone(), shared=False)
    passes(diagnosis, model, [BAD])
    (found,) = diagnosis.conclude(Verdict("skip", "forward"), (), FEED, 0, 0)
    assert found.name == name


def test_the_losses_of_the_step_before_are_forgotten():
    model = net()
    diagnosis = Diagnosis(model, "off", Alone(), shared=False)
    passes(diagnosis, model, [BAD])
    passes(diagnosis, model, [torch.ones(2, 2)])
    assert diagnosis.conclude(Verdict("skip", "forward"), (), FEED, 0, 0) == ()


def test_of_a_spike_the_micro_batch_with_the_largest_gradient_is_named():
    model = net()
    diagnosis = Diagnosis(model, "always", Alone(), shared=False)
    passes(diagnosis, model, [torch.ones(2, 2), 100 * torch.ones(2, 2)])
    verdict = Verdict("skip", "gradient_spike")
    (found,) = diagnosis.conclude(verdict, ["0.weight"], FEED, 0, 0)
    assert (found.name, found.kind, found.micro_batch) == ("0.weight", "spike", 1)
