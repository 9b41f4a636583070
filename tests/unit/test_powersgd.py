"""PowerSGD against its paper in numpy, on ranks of one process that exchange by threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from yolods.compression import powersgd
from yolods.compression.powersgd import PowerSgd, orthonormal_columns

SHAPES = {"conv": (8, 4, 3, 3), "bias": (8,), "wide": (8, 36), "tall": (40, 12), "small": (2, 3)}
CPU = torch.device("cpu")


class Together:
    """Ranks as threads of this process; their all-reduce adds up in the order of the ranks."""

    def __init__(self, size: int) -> None:
        self.size, self.sent = size, 0
        self._meet = threading.Barrier(size, timeout=20)
        self._held: list[Tensor | None] = [None] * size
        self._rank = threading.local()

    def all_reduce(self, message: Tensor, group: Any = None) -> None:
        self._held[self._rank.value] = message.clone()
        self._meet.wait()
        total = sum(self._held[1:], self._held[0])
        self._meet.wait()
        message.copy_(total)
        self.sent += message.numel()

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        found: list[Any] = [None] * self.size

        def begin(rank: int) -> None:
            self._rank.value = rank
            try:
                found[rank] = work(rank)
            except BaseException as error:
                found[rank] = error
                self._meet.abort()

        threads = [threading.Thread(target=begin, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return found


@pytest.fixture
def together(monkeypatch) -> Together:
    made = Together(2)
    monkeypatch.setattr(powersgd.dist, "all_reduce", made.all_reduce)
    return made


def compression(rank: int = 2, ranks: int = 2, min_saving: float = 2.0) -> PowerSgd:
    return PowerSgd(SHAPES, rank=rank, min_saving=min_saving, ranks=ranks, group=None, device=CPU)


def gradients(step: int, rank: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES.values()]


class Paper:
    """Algorithms 1 and 2 for one matrix on all ranks, in fp64."""

    def __init__(self, begin: np.ndarray, ranks: int, shape: tuple[int, int]) -> None:
        self.q = begin
        self.errors = [np.zeros(shape) for _ in range(ranks)]

    def step(self, local: list[np.ndarray]) -> np.ndarray:
        wanted = [each + error for each, error in zip(local, self.errors, strict=True)]
        p = np.mean([each @ self.q for each in wanted], axis=0)
        for column in range(p.shape[1]):
            for before in range(column):
                p[:, column] -= (p[:, before] @ p[:, column]) * p[:, before]
            p[:, column] /= np.linalg.norm(p[:, column])
        self.q = np.mean([each.T @ p for each in wanted], axis=0)
        applied = p @ self.q.T
        self.errors = [each - applied for each in wanted]
        return applied


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_several_steps_are_those_of_the_paper(together: Together, rank: int) -> None:
    both = [compression(rank) for _ in range(2)]
    sizes = {"conv": (8, 36), "wide": (8, 36), "tall": (40, 12)}
    wanted = [name for name in sizes if name in both[0].compressed]
    assert wanted, "something is compressed"
    begin = both[0].state()["factors"]
    papers = {name: Paper(begin[name].double().numpy().copy(), 2, sizes[name]) for name in wanted}
    for step in range(6):
        local = [gradients(step, number) for number in range(2)]
        whole = [[each.double().numpy().copy() for each in own] for own in local]
        together.run(lambda number, own=local: both[number].average_(own[number]))
        for place, name in enumerate(SHAPES):
            if name in papers:
                parts = [own[place].reshape(sizes[name]) for own in whole]
                expected = papers[name].step(parts).reshape(SHAPES[name])
            else:
                expected = (whole[0][place] + whole[1][place]) / 2
            for own in local:
                assert np.allclose(own[place].double().numpy(), expected, atol=2e-5), (name, step)
        for each in both:
            each.commit()
    for number, each in enumerate(both):
        for name, paper in papers.items():
            memory = each.state()["memory"][name].double().numpy()
            assert np.allclose(memory, paper.errors[number], atol=5e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_applied_and_what_is_remembered_add_up_to_the_exact_mean(
    together: Together, dtype: torch.dtype
) -> None:
    both, scale = [compression() for _ in range(2)], 64.0
    exact = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES.values()]
    applied = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES.values()]
    for step in range(8):
        local = [[each * scale for each in gradients(step, number, dtype)] for number in range(2)]
        for place in range(len(SHAPES)):
            exact[place] += (local[0][place].double() + local[1][place].double()) / 2 / scale
        together.run(lambda number, own=local, by=scale: both[number].average_(own[number], by))
        assert all(map(torch.equal, *local)), "the same on every rank, bit for bit"
        for place in range(len(SHAPES)):
            applied[place] += local[0][place].double() / scale
        for each in both:
            each.commit()
        if dtype == torch.float32:
            scale *= 2  # the memory does not contain it
    memories = [each.state()["memory"] for each in both]
    for place, name in enumerate(SHAPES):
        rest = torch.zeros(SHAPES[name], dtype=torch.float64)
        if name in memories[0]:
            rest = (memories[0][name].double() + memories[1][name].double()).view(rest.shape) / 2
            # What is rounded to 16 bits on the way is remembered, too.
            assert torch.allclose(applied[place] + rest, exact[place], atol=1e-4), name
            assert rest.abs().max() > 0.1, "something was left"


def test_a_fixed_gradient_is_applied_whole_in_the_course_of_steps(together: Together) -> None:
    both = [compression(1) for _ in range(2)]
    total = [torch.zeros(shape) for shape in SHAPES.values()]
    for _ in range(200):
        local = [gradients(0, number) for number in range(2)]
        together.run(lambda number, own=local: both[number].average_(own[number]))
        for each in both:
            each.commit()
        for place, own in enumerate(local[0]):
            total[place] += own / 200
    fixed = [(one + two) / 2 for one, two in zip(gradients(0, 0), gradients(0, 1), strict=True)]
    for mean, wanted in zip(total, fixed, strict=True):
        assert (mean - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("name", ["conv", "bias", "tall"])
def test_a_bad_number_of_one_rank_reaches_all_and_leaves_nothing_behind(
    together: Together, bad: float, name: str
) -> None:
    both, place = [compression() for _ in range(2)], list(SHAPES).index(name)
    for step in range(2):
        local = [gradients(step, number) for number in range(2)]
        together.run(lambda number, own=local: both[number].average_(own[number]))
        for each in both:
            each.commit()
    before = [
        {key: {name: each.clone() for name, each in part.items()} for key, part in one.items()}
        for one in (each.state() for each in both)
    ]
    local = [gradients(7, number) for number in range(2)]
    local[1][place].view(-1)[3] = bad
    together.run(lambda number: both[number].average_(local[number]))
    for own in local:
        finite = {key: bool(each.isfinite().all()) for key, each in zip(SHAPES, own, strict=True)}
        assert finite == {key: key != name for key in SHAPES}, "and the others can be told apart"
    # Not applied, so not committed.
    again = [gradients(8, number) for number in range(2)]
    together.run(lambda number: both[number].average_(again[number]))
    for each, kept in zip(both, before, strict=True):
        for key, part in each.state().items():
            assert all(torch.equal(part[name], kept[key][name]) for name in part)
    fresh = [compression() for _ in range(2)]
    for each, kept in zip(fresh, before, strict=True):
        each.load(kept)
    other = [gradients(8, number) for number in range(2)]
    together.run(lambda number: fresh[number].average_(other[number]))
    assert all(map(torch.equal, other[0], again[0])), "as if the bad step had not been"


def test_a_column_that_became_zero_lives_again(together: Together) -> None:
    both = [compression() for _ in range(2)]
    for _ in range(2):
        local = [[torch.zeros_like(each) for each in gradients(0, 0)] for _ in range(2)]
        together.run(lambda number, own=local: both[number].average_(own[number]))
        assert all(not each.any() for each in local[0])
        for each in both:
            each.commit()
    local = [gradients(1, number) for number in range(2)]
    together.run(lambda number: both[number].average_(local[number]))
    assert all(each.any() for each in local[0])
    assert all(each.isfinite().all() for each in local[0])


def test_a_loaded_state_goes_on_bit_for_bit_and_the_mean_of_memories_goes_on_alike(
    together: Together,
) -> None:
    both = [compression() for _ in range(2)]
    for step in range(3):
        local = [gradients(step, number) for number in range(2)]
        together.run(lambda number, own=local: both[number].average_(own[number]))
        for each in both:
            each.commit()
    states = [each.state() for each in both]
    names = states[0]["memory"]
    mean = {name: (states[0]["memory"][name] + states[1]["memory"][name]) / 2 for name in names}
    equal, shared = [compression() for _ in range(2)], [compression() for _ in range(2)]
    for number in range(2):
        equal[number].load(states[number])
        shared[number].load({"memory": mean, "factors": states[0]["factors"]})
    found = []
    for three in (both, equal, shared):
        local = [gradients(9, number) for number in range(2)]
        together.run(lambda number, own=local, all_=three: all_[number].average_(own[number]))
        found.append(local[0])
    assert all(map(torch.equal, found[0], found[1]))
    for one, other in zip(found[0], found[2], strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_state_of_another_rank_keeps_its_memory_and_begins_with_new_factors() -> None:
    old, new = compression(2), compression(1)
    old.state()["memory"]["tall"].fill_(3)
    new.load(old.state())
    assert new.state()["memory"]["tall"].eq(3).all()
    assert new.state()["factors"]["tall"].shape == (12, 1)
    new.load({})
    assert not new.state()["memory"]["tall"].any(), "nothing is known of what was not sent"


def test_bytes_are_those_of_the_messages(together: Together) -> None:
    both = [compression() for _ in range(2)]
    local = [gradients(0, number) for number in range(2)]
    together.run(lambda number: both[number].average_(local[number]))
    assert together.sent == 2 * both[0].sent_elements
    conv, wide, tall = 2 * (8 + 36), 2 * (8 + 36), 2 * (40 + 12)
    assert both[0].compressed == ["conv", "wide", "tall"]
    assert both[0].sent_elements == conv + wide + tall + 8 + 6
    assert both[0].elements == 288 + 8 + 288 + 480 + 6


def test_min_saving_decides_what_is_worth_it() -> None:
    # tall: 480 elements, and 104 in two thin matrices.
    assert compression(min_saving=4.5).compressed == ["tall"]
    none = compression(min_saving=10.0)
    assert none.compressed == [] and none.sent_elements == none.elements


def test_columns_are_orthonormal_and_dependent_ones_become_zero() -> None:
    torch.manual_seed(0)
    whole = torch.randn(3, 30, 4)
    found = orthonormal_columns(whole)
    eye = torch.eye(4).expand(3, 4, 4)
    assert torch.allclose(found.transpose(1, 2) @ found, eye, atol=1e-5)
    whole[1, :, 2] = whole[1, :, 0] - 2 * whole[1, :, 1]
    found = orthonormal_columns(whole)
    assert not found[1, :, 2].any() and found[1, :, 3].norm() == pytest.approx(1)
    whole[2, 5, 1] = float("inf")
    assert not orthonormal_columns(whole)[2].isfinite().all()
