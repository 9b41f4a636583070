"""Seconds and bytes of every possible stage, on a graph of three nodes that can be worked out by
hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from yolods.plan.cost import Machine
from yolods.plan.stage_costs import StageCosts, Terms


class Fake(SimpleNamespace):
    """Costs are kept by the graph and the terms that they are of, so these have to be hashable."""

    __hash__ = object.__hash__


NODES = (
    SimpleNamespace(flops=1, parameters=100, inner_bytes=1, keeps=("image",)),
    SimpleNamespace(flops=2, parameters=200, inner_bytes=2, keeps=("a",)),
    SimpleNamespace(flops=4, parameters=400, inner_bytes=4, keeps=("a", "b")),
)
# Value -> its writer and its last reader: node 0 writes a, which skips node 1 as well as feeding
# it.
LIFETIMES = {"image": (-1, 0), "a": (0, 2), "b": (1, 2), "out": (2, 3)}
COST = Fake(
    graph=Fake(nodes=NODES, lifetimes=LIFETIMES),
    nodes=NODES,
    values={"image": 10, "a": 20, "b": 30, "out": 40},
    crossing=(0, 20, 50, 0),
)


def stages(**terms) -> StageCosts:
    return StageCosts(COST, Terms(seconds=(1.0, 2.0, 4.0), **terms))


def test_sums_are_those_of_the_nodes_from_row_to_column():
    made = stages()
    assert (made.flops[0, 3], made.flops[1, 2], made.flops[2, 2]) == (7, 2, 0)
    assert (made.parameters[0, 2], made.compute[1, 3]) == (300, 6)


@pytest.mark.parametrize(
    ("ends", "held"),
    [
        ((0, 1), 1 + 10 + 20),  # keeps the image, sends a
        ((1, 2), 2 + 20 + 30),  # keeps a, and sends it on beside b
        ((0, 3), 7 + 10 + 20 + 30 + 40),  # a counts once
    ],
)
def test_a_stage_holds_what_it_keeps_receives_and_sends_each_once(ends, held):
    assert stages().activations[ends] == held


@pytest.mark.parametrize(
    ("ends", "held", "again"),
    [
        ((0, 1), 10 + 20, 1),
        ((0, 2), 10 + 20 + 30, 3 + 20),
        ((0, 3), 10 + 20 + 30 + 40, 3 + 20),
        ((1, 2), 20 + 30, 2),
    ],
)
def test_recomputing_holds_what_crosses_into_segments_and_brings_the_largest_back(
    ends, held, again
):
    made = stages(recompute=2)
    assert made.activations[ends] == held
    assert made.passing[ends] - (COST.crossing[ends[0]] + COST.crossing[ends[1]]) == again


def test_memory_is_states_activations_in_flight_and_what_passes():
    made = stages(micro_batch=2, micro_batches=3, state_bytes=16.0)
    passing = 2 * 20
    assert (
        made.memory(2, 0)[0, 1] == 100 * 16 + 2 * 2 * 31 + passing
    )  # of two stages the first holds two
    assert made.memory(2, 1)[0, 1] == 100 * 16 + 1 * 2 * 31 + passing
    assert (
        made.memory(9, 0)[0, 1] == 100 * 16 + 3 * 2 * 31 + passing
    )  # there are no more than three


def test_where_zero_bubble_divides_all_every_stage_holds_what_the_first_one_does_under_1f1b():
    plain, split = (stages(micro_batches=3, schedule=schedule) for schedule in ("1f1b", "zb"))
    for stage in range(3):
        assert (split.memory(3, stage) == plain.memory(3, 0)).all()
    assert plain.memory(3, 2)[0, 1] < split.memory(3, 2)[0, 1]
    plain, split = (stages(micro_batches=9, schedule=schedule) for schedule in ("1f1b", "zb"))
    for stage in range(3):
        assert (split.memory(3, stage) == plain.memory(3, stage)).all()


def test_both_ends_are_crossed_there_and_back():
    made = stages(micro_batch=2, machine=Machine(link=10.0))
    assert made.transfer[1, 2] == 2 * 2 * (20 + 50) / 10
    assert made.seconds[1, 2] == 2.0 + made.transfer[1, 2]
    assert made.transfer[0, 3] == 0


def test_measured_times_are_one_per_node():
    with pytest.raises(ValueError, match="2 measured times for 3 nodes"):
        StageCosts(COST, Terms(seconds=(1.0, 2.0)))
