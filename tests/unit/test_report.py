"""The report: terms that add up, what each number is, and a line per loser."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from tests import plans
from yolods.planner.choices import Choice, families
from yolods.planner.report import (
    MEMORY_TERMS,
    TIME_TERMS,
    losers,
    memory_kinds,
    need,
    plan_json,
    render_plan,
    time_kinds,
)
from yolods.planner.search import Found, Limits, search_layouts

CHOICE = Choice(plans.IMGSZ, 4, 16, ("fp32", "fp16"))
KNOWN = {"exact", "measured", "given", "assumed"}


def found(limit: float = 1e12) -> Found:
    return search_layouts(CHOICE, plans.clock(), plans.memory_of, Limits(limit))


def test_every_number_of_a_row_adds_up() -> None:
    result = found()
    lines = render_plan(result, plans.clock(), plans.subject(), plans.machines(), top=3)
    head = next(place for place, line in enumerate(lines) if line.lstrip().startswith("layout"))
    assert "exact" in lines[head + 1] and "assumed" in lines[head + 1]
    for place, option in enumerate(result.ranked[:3]):
        row = lines[head + 2 + place]
        assert option.family.label in row and row.split()[0] == str(place + 1)
        assert option.step is not None
        parts = sum(getattr(option.step, each) for each in TIME_TERMS)
        assert parts == pytest.approx(option.seconds)
        assert f"{option.seconds * 1e3:.1f}" in row


def test_every_term_says_what_it_is() -> None:
    best = found().best
    assert best is not None
    assert set(time_kinds(plans.clock(), best.layout)) == set(TIME_TERMS)
    assert set(memory_kinds("cuda")) == set(MEMORY_TERMS)
    kinds = {*time_kinds(plans.clock(), best.layout).values(), *memory_kinds("cuda").values()}
    assert kinds <= KNOWN
    assert time_kinds(plans.clock(), best.layout)["compute"] == "assumed"


def test_idle_time_is_as_good_as_the_links_it_waits_for() -> None:
    clock = plans.clock()
    measured = {each: replace(times, source="measured") for each, times in clock.times.items()}
    layout = next(each.layout for each in found().options if each.layout.stages == 2)
    kinds = time_kinds(replace(clock, times=measured), layout)
    assert (kinds["compute"], kinds["idle"]) == ("measured", clock.network.within.source)
    assert kinds["idle"] != "measured"


def test_a_row_names_zero_bubble() -> None:
    result = found()
    rows = render_plan(result, plans.clock(), plans.subject(), plans.machines(), top=99)
    split = [each for each in result.ranked if each.layout.schedule == "zb"]
    assert split
    for option in split:
        row = next(each for each in rows if f"  {option.family.label}" in each)
        assert f"{option.family.label}, zb" in row


def test_every_family_is_in_the_table_or_has_a_line() -> None:
    result = found(70 * plans.MIB)
    lines = losers(result, top=2)
    shown = {each.family for each in result.ranked[:2]}
    for family in families(CHOICE, len(plans.graph().nodes)):
        said = sum(line.startswith(f"{family.label}: ") for line in lines)
        assert said == (family not in shown), family


def test_what_is_too_large_is_shown_as_a_sum() -> None:
    result = found(1 * plans.MIB)
    nearest = result.nearest
    assert nearest is not None
    line = need(nearest, result)
    assert "> 1 MiB: " in line and " + " in line


def test_a_slower_family_names_the_column_that_is_to_blame() -> None:
    clock = plans.clock(slots=1)  # one rank per host: what is sent takes long
    result = search_layouts(CHOICE, clock, plans.memory_of, Limits(1e12))
    lines = render_plan(result, clock, plans.subject(), plans.machines(), top=1)
    head = next(line for line in lines if line.lstrip().startswith("layout")).split()
    blamed = set(re.findall(r"slower: (\w+) [\d.]+ ms instead", "\n".join(lines)))
    assert "exposed" in blamed and blamed <= set(head)


def test_slower_settings_say_by_how_much_at_least() -> None:
    lines = losers(found(), top=6)
    assert any(line.startswith("recompute on: at least") for line in lines)
    assert any(line.startswith("autocast: ") for line in lines)


def test_the_json_has_bytes_and_seconds() -> None:
    made = plan_json(found(), plans.clock(), plans.subject(), plans.machines(), top=4)
    told = json.loads(json.dumps(made))
    assert told["images_per_step"] == 16 and told["examined"] > 0
    assert len(told["layouts"]) == 4
    for each in told["layouts"]:
        terms = [each["seconds"][name] for name in TIME_TERMS]
        assert each["seconds"]["total"] == pytest.approx(sum(terms))
        assert len(each["stages_bytes"]) == len(each["layout"]["cuts"]) + 1


def test_what_hosts_have_measured_is_called_so() -> None:
    times = {each: replace(one, source="measured") for each, one in plans.clock().times.items()}
    clock = replace(plans.clock(), times=times, profile=plans.PROFILE)
    best = found().best
    assert best is not None
    assert time_kinds(clock, best.layout)["optimizer"] == "measured"
    machines = replace(plans.machines(), device="cpu")
    lines = render_plan(found(), clock, plans.subject(), machines, top=1)
    assert any("compute measured on these hosts" in line for line in lines)
