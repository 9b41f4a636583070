"""Partitions: the best of all by brute force, the user's own cuts, refusals with their arithmetic,
and the table."""

from __future__ import annotations

import itertools
import math
import time

import pytest

from yolods.errors import UserError
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.graph.graph import build_graph, live
from yolods.plan.cost import Machine, cost
from yolods.plan.partition import Partition, partition, render, table
from yolods.plan.stage_costs import StageCosts, Terms

MIB = 2**20


def cost_of(name: str, size: int = 320, split: bool = True):
    return cost(build_graph(architecture(parse_name(name), 80, 3), split=split), size)


@pytest.fixture(scope="module")
def whole():
    return cost_of("yolov5n", split=False)


@pytest.fixture(scope="module")
def fine():
    return cost_of("yolov5n")


def names(found: Partition, costs) -> list[str]:
    return [costs.graph.nodes[cut].name for cut in found.cuts]


def every(
    costs, stages: int, terms: Terms, weight: str
) -> list[tuple[float, float, float, tuple[int, ...]]]:
    """(largest weight, peak memory, bytes across, cuts) of all partitions there are, from plain
    sums over nodes."""
    count, all_of = len(costs.nodes), StageCosts(costs, terms)
    matrix = getattr(all_of, weight).tolist()
    memory = [all_of.memory(stages, stage).tolist() for stage in range(stages)]
    found = []
    for cuts in itertools.combinations(range(1, count), stages - 1):
        spans = list(itertools.pairwise((0, *cuts, count)))
        largest = max(matrix[a][b] for a, b in spans)
        peak = max(memory[stage][a][b] for stage, (a, b) in enumerate(spans))
        found.append((largest, peak, sum(costs.crossing[cut] for cut in cuts), cuts))
    return found


@pytest.mark.parametrize("policy", ["flops", "activations", "parameters"])
@pytest.mark.parametrize("stages", [2, 3, 4])
def test_a_single_weight_is_minimised_over_all_cuts(whole, policy, stages):
    terms = Terms(micro_batches=8)
    best = min(every(whole, stages, terms, policy))
    assert partition(whole, stages, policy, terms).cuts == best[3]


@pytest.mark.parametrize("link", [math.inf, 1e11, 1e10])
@pytest.mark.parametrize("slack", [0.0, 0.05, 0.3])
def test_balanced_is_the_best_of_all_by_time_then_memory_then_traffic(whole, link, slack):
    terms = Terms(
        micro_batch=2, micro_batches=8, machine=Machine(link=link), slack=slack, memory_limit=1e15
    )
    found = every(whole, 4, terms, "seconds")
    fastest = min(found)[0]
    best = min(choice[1:] for choice in found if choice[0] <= fastest * (1 + slack))
    assert partition(whole, 4, "balanced", terms).cuts == best[2]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_balanced_is_the_fastest_that_fits_the_limit(whole, share):
    free = Terms(micro_batches=8, slack=0.0)
    found = every(whole, 4, free, "seconds")
    least = min(peak for _, peak, _, _ in found)
    unlimited = min(found)[1]
    limit = least + share * (unlimited - least)
    fitting = min(choice for choice in found if choice[1] <= limit)
    terms = Terms(micro_batches=8, slack=0.0, memory_limit=limit)
    assert partition(whole, 4, "balanced", terms).cuts == fitting[3]


@pytest.mark.parametrize("link", [math.inf, 1e11, 2e9])
@pytest.mark.parametrize("stages", [2, 4, 8])
def test_without_a_limit_balanced_takes_no_more_memory_than_the_cut_by_flops(fine, stages, link):
    terms = Terms(micro_batches=4 * stages, machine=Machine(link=link))
    peaks = {
        policy: max(
            row.peak_bytes for row in table(partition(fine, stages, policy, terms), fine, terms)
        )
        for policy in ("balanced", "flops")
    }
    assert peaks["balanced"] <= peaks["flops"]


def test_a_measured_profile_takes_the_place_of_flops(whole):
    seconds = tuple(1.0 if node.layer in (3, 20) else 0.01 for node in whole.graph.nodes)
    terms = Terms(seconds=seconds, memory_limit=1e15, slack=0.0)
    found = partition(whole, 2, "balanced", terms)
    assert 3 < found.cuts[0] <= 20
    with pytest.raises(ValueError, match="24 measured times for 25 nodes"):
        partition(whole, 2, "balanced", Terms(seconds=seconds[1:]))


def test_a_slow_link_moves_the_cut_to_where_little_crosses(fine):
    cheap, dear = (
        Terms(machine=Machine(link=link), memory_limit=1e15, slack=0.0) for link in (math.inf, 1e8)
    )
    crossing = [
        fine.crossing[partition(fine, 2, "balanced", terms).cuts[0]] for terms in (cheap, dear)
    ]
    assert crossing[1] < crossing[0]


def test_uniform_shares_out_whole_layers_as_deepspeed_does(fine):
    layers = [
        [int(name.split(".")[0]) for name in names(partition(fine, p, "uniform"), fine)]
        for p in (2, 3, 4, 8)
    ]
    assert layers == [[13], [9, 17], [7, 13, 19], [4, 7, 10, 13, 16, 19, 22]]
    assert all(
        cut in [fine.graph.nodes_of(k)[0] for k in range(25)]
        for cut in partition(fine, 25, "uniform").cuts
    )
    with pytest.raises(UserError, match="26 stages > 25 layers"):
        partition(fine, 26, "uniform")


def test_cuts_are_written_as_layers_or_as_parts_of_layers(fine):
    cuts = [4, "4.2", "6", "6.m.1", "13.close", "24", "24.1", "24.2.cls1", "24.detect"]
    found = partition(fine, 10, cuts)
    assert names(found, fine) == [
        "4.open",
        "4.m.1",
        "6.open",
        "6.m.1",
        "13.close",
        "24.0.box",
        "24.1.box",
        "24.2.cls1",
        "24.detect",
    ]
    assert found.bounds == (0, *found.cuts, len(fine.nodes))
    assert [len(found.nodes_of(stage)) for stage in range(2)] == [found.cuts[0], 2]


@pytest.mark.parametrize(
    ("cuts", "said"),
    [
        ([25], "cut 25 names nothing; layers are 1 to 24"),
        ([-1], "cut -1 names nothing; layers are 1 to 24"),
        (["4.9"], "cut '4.9' names nothing; layer 4 consists of 4.open, 4.m.0, 4.m.1, 4.close"),
        (["24.3"], "cut '24.3' names nothing; layer 24 consists of 24.0.box"),
        ([4.1], 'cut 4.1 names nothing; write it as a string, "4.1"'),
        ([True], "cut True names nothing"),
        (["four"], "cut 'four' names nothing; layers are 1 to 24"),
        ([0], "cut 0 leaves the first stage empty"),
        ([13, 20], r"2 cuts make 3 stages, not 2: \[13, 20\]"),
        ([], "0 cuts make 1 stages, not 2"),
    ],
)
def test_wrong_cuts_are_refused(fine, cuts, said):
    with pytest.raises(UserError, match=said):
        partition(fine, 2, cuts)


def test_all_wrong_cuts_are_named_at_once(fine):
    with pytest.raises(UserError) as caught:
        partition(fine, 5, [20, 13, 99, 13, 0])
    assert str(caught.value).splitlines() == [
        "pipeline: 5 cuts make 6 stages, not 5: [20, 13, 99, 13, 0]",
        "pipeline: cuts must ascend, but 13.open does not come after 20.open: [20, 13, 99, 13, 0]",
        "pipeline: cut 99 names nothing; layers are 1 to 24",
        "pipeline: cuts must ascend, but 13.open does not come after 13.open: [20, 13, 99, 13, 0]",
        "pipeline: cut 0 leaves the first stage empty",
    ]


def test_a_layer_that_is_one_node_has_no_parts(whole):
    assert partition(whole, 2, [24]).cuts == (24,)
    assert partition(whole, 2, ["4.0"]).cuts == (4,)
    with pytest.raises(UserError, match=r"cut '4\.1' names nothing; layer 4 consists of 4$"):
        partition(whole, 2, ["4.1"])


def test_numbers_of_stages_and_policies_are_checked(whole):
    assert partition(whole, 1).cuts == ()
    assert partition(whole, 25).cuts == tuple(range(1, 25))
    for stages in (0, 26):
        with pytest.raises(UserError, match=f"{stages} stages, but there are 25 nodes"):
            partition(whole, stages)
    with pytest.raises(
        UserError, match=r'unknown partition "ballanced" \(did you mean \'balanced\'\?\)'
    ):
        partition(whole, 2, "ballanced")


def test_a_limit_that_nothing_fits_is_refused_with_the_arithmetic(whole):
    terms = Terms(micro_batch=4, micro_batches=8, memory_limit=40 * MIB, slack=0.0)
    least = min(peak for _, peak, _, _ in every(whole, 3, terms, "seconds"))
    with pytest.raises(UserError) as caught:
        partition(whole, 3, "balanced", terms)
    *stages, last = str(caught.value).splitlines()
    assert last.startswith(
        f"pipeline: the smallest peak with 3 stages is {least / MIB:.1f} MiB; use more stages"
    )
    assert stages[0].startswith("pipeline: stage 0 (0..")
    assert "> 40.0 MiB: " in stages[0]
    assert " parameters x 16 B + 3 micro-batches in flight x 4 images x " in stages[0]


def test_own_cuts_that_do_not_fit_are_sent_to_balanced(whole):
    terms = Terms(micro_batches=8)
    rows = table(partition(whole, 2, "balanced", terms), whole, terms)
    tight = Terms(micro_batches=8, memory_limit=max(row.peak_bytes for row in rows))
    assert partition(whole, 2, "balanced", tight)
    with pytest.raises(UserError, match='use "balanced"'):
        partition(whole, 2, [23], tight)


def test_the_table_adds_up(fine):
    terms = Terms(micro_batch=2, micro_batches=3, state_bytes=10)
    found = partition(fine, 4, "balanced", terms)
    rows = table(found, fine, terms)
    assert [row.stage for row in rows] == [0, 1, 2, 3]
    assert (rows[0].first, rows[-1].last) == ("0", "24.detect")
    assert sum(row.flops_share for row in rows) == pytest.approx(1)
    assert sum(row.parameters for row in rows) == fine.parameters
    assert sum(row.compute for row in rows) == pytest.approx(
        2 * 3 * fine.flops / terms.machine.flops
    )
    assert [row.sent for row in rows] == [*(live(fine.graph, cut) for cut in found.cuts), ()]
    assert [row.sent_bytes for row in rows] == [*(2 * fine.crossing[cut] for cut in found.cuts), 0]
    assert rows[1].transfer == pytest.approx(
        2 * (rows[0].sent_bytes + rows[1].sent_bytes) / terms.machine.link
    )
    for row in rows:
        ends = row.peak_bytes - row.state_bytes - row.activation_bytes
        assert row.state_bytes == 10 * row.parameters
        assert ends == (rows[row.stage - 1].sent_bytes if row.stage else 0) + row.sent_bytes
    held = StageCosts(fine, terms).activations
    flying = [3, 3, 2, 1]  # min(stages - stage, micro-batches)
    assert [row.activation_bytes for row in rows] == [
        2 * count * held[found.bounds[stage], found.bounds[stage + 1]]
        for stage, count in enumerate(flying)
    ]


def test_the_table_as_text(whole):
    terms = Terms(micro_batches=2)
    text = render(table(partition(whole, 2, [13], terms), whole, terms))
    header, first, second = text.splitlines()
    assert (
        header
        == "stage  nodes         ms   +link  FLOPs  states MiB  acts MiB  peak MiB  across MiB"
    )
    assert first.split()[:2] == ["0", "0..12"]
    assert first.endswith("4 10 12")
    assert second.split()[:2] == ["1", "13..24"]
    assert second.endswith("-")


def test_recomputing_node_by_node_keeps_what_crosses_into_each(fine):
    plain, again = (StageCosts(fine, Terms(recompute=recompute)) for recompute in (0, 1))
    count = len(fine.nodes)
    read = {value for node in fine.graph.nodes for value in node.reads}
    assert again.activations[0, count] == sum(fine.values[value] for value in read)
    assert again.activations[0, count] < 0.5 * plain.activations[0, count]
    assert again.passing[0, count] == max(node.inner_bytes for node in fine.nodes)
    assert plain.passing[0, count] == 0
    assert again.compute[0, count] == pytest.approx(plain.compute[0, count] * 4 / 3)


def test_recomputing_longer_segments_keeps_less_and_brings_back_more(fine):
    start, stop = 2, 12
    longer = StageCosts(fine, Terms(recompute=4))
    live_at = [set(live(fine.graph, cut)) for cut in (2, 6, 10, 12)]
    assert longer.activations[start, stop] == sum(
        fine.values[value] for value in set.union(*live_at)
    )
    brought = []
    for first, last in ((2, 6), (6, 10), (10, 12)):
        part = fine.nodes[first:last]
        kept = {value for node in part for value in node.keeps} - set(live(fine.graph, first))
        brought.append(
            sum(node.inner_bytes for node in part) + sum(fine.values[value] for value in kept)
        )
    ends = fine.crossing[start] + fine.crossing[stop]
    assert longer.passing[start, stop] == ends + max(brought)
    whole_stage = StageCosts(fine, Terms(recompute=100))
    assert whole_stage.activations[start, stop] == fine.crossing[start] + fine.crossing[stop]


@pytest.mark.slow
def test_sixteen_stages_of_a_very_deep_model_take_no_time():
    costs = cost_of("yolov5[4,0.25]6")
    assert len(costs.nodes) > 150
    start = time.process_time()
    found = partition(costs, 16, "balanced", Terms(micro_batches=64))
    assert time.process_time() - start < 3
    assert found.stages == 16
