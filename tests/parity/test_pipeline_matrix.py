"""The long benchmark of parity asks what it says, and shows what is beyond its limit."""

from __future__ import annotations

from benchmarks.parity_pipeline import N6, Group, Outcome, groups, lines_of
from tests.parity.splits import Case


def test_every_group_is_of_one_world_and_under_its_own_name():
    found = groups()
    assert len({group.name for group in found}) == len(found)
    for group in found:
        assert len({case.ranks for case in group.cases}) == 1
        assert len({case.label for case in group.cases}) == len(group.cases)


def test_every_cut_between_layers_is_there_with_and_without_recomputing():
    cases = [case for group in groups() for case in group.cases]
    for recompute in (0, 1, 3):
        found = {case.cuts for case in cases if case == Case(cuts=case.cuts, recompute=recompute)}
        assert {(cut,) for cut in range(1, 25)} <= found
    assert {case.cuts for case in cases if case.model == N6} == {(cut,) for cut in range(1, 34)}


def test_the_record_shows_the_worst_and_names_what_is_wrong():
    group = Group("some cuts", (Case(cuts=(13,)),))
    largest = {
        "loss": (1e-7, "here"),
        "gradient": (2e-3, "model.0 there"),
        "statistic": (3e-7, "here"),
    }
    good = list(lines_of([Outcome(group, largest, [], 4.4)]))
    assert good[2:] == ["| some cuts | 1 | 1.0e-07 | 2.0e-03 | model.0 there | 3.0e-07 | yes | 4 |"]
    bad = list(lines_of([Outcome(group, largest, ["cut 13: too far"], 4.4)]))
    assert "| no: 1 |" in bad[2] and bad[3] == "- beyond its limit: cut 13: too far"
