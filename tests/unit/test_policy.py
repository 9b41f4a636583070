"""What every clipping policy is made of: its name, its settings, and the norm that its factors
leave."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from yolods.clipping.policy import ClipFactors, Policy, build_policy, policy, settings_of
from yolods.parsing.rules import real, setting, whole

module = importlib.import_module("yolods.clipping.policy")  # its room has a function of that name
MEASURED = SimpleNamespace(norm=5.0, norms=np.array([3.0, 4.0]), names=("a", "b"), weights=None)


@pytest.fixture(autouse=True)
def registry(monkeypatch) -> Iterator[dict[str, type[Policy]]]:
    """Policies of this test alone."""
    monkeypatch.setattr(module, "POLICIES", {})
    yield module.POLICIES


def made(name: str = "mine", key: str = "window") -> type[Policy]:
    kind = type("Kind", (Policy,), {"__annotations__": {key: float}, key: setting(1.0, real(0))})
    return policy(name)(kind)


def test_factors_by_parameter_stand_in_for_the_one_of_all():
    assert ClipFactors().norm_after(MEASURED) == 5.0
    assert ClipFactors(0.5).norm_after(MEASURED) == 2.5
    assert ClipFactors(0.5, np.array([1.0, 0.0])).norm_after(MEASURED) == 3.0
    assert ClipFactors(factors=np.array([1.0, 0.5])).norm_after(MEASURED) == pytest.approx(
        math.sqrt(13)
    )


def test_fields_with_rules_are_the_settings_and_others_are_not():
    @policy("toy")
    class Toy(Policy):
        window: int = setting(100, whole(2))
        seen: int = 0

    assert {"toy": Toy} == module.POLICIES and Toy.name == "toy"
    assert {key: default for key, (default, _) in settings_of(Toy).items()} == {"window": 100}


def test_a_name_and_a_key_belong_to_one_policy():
    """All policies' keys stand in one block of the JSON: two meanings of one would contradict each
    other."""
    made("first", "window")
    for name, key, taken in (
        ("first", "other", "first"),
        ("second", "window", "window"),
        ("third", "policy", "policy"),
    ):
        with pytest.raises(ValueError, match=rf"^clipping policy {name}: {taken} is taken$"):
            made(name, key)
    assert list(module.POLICIES) == ["first"], "what was refused is not known afterwards"


def test_a_policy_gets_its_own_settings_and_defaults_for_the_rest():
    made("first", "window")
    made("second", "share")
    found = build_policy("second", {"window": 7.0}, 10.0)
    assert (type(found).name, found.share, found.max_norm) == ("second", 1.0, 10.0)
    assert build_policy("first", {"window": 7.0, "share": 0.1}, 0.0).window == 7.0


def test_two_policies_of_one_kind_do_not_share_what_they_remember():
    made()
    first, second = (build_policy("mine", {}, 1.0) for _ in range(2))
    assert first != second and first.state() == {} and first.load({"of": "another"}) is None
    with pytest.raises(NotImplementedError):
        first.clip(MEASURED)
