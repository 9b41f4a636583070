"""The moments of a run as every rank calls them: the writing telemetry has all of them, the null
one does nothing."""

from __future__ import annotations

import inspect

import pytest

from yolods.telemetry.interface import NullTelemetry, Telemetry
from yolods.telemetry.run import RunTelemetry

MOMENTS = [
    name
    for name, value in vars(Telemetry).items()
    if inspect.isfunction(value) and not name.startswith("_")
]


@pytest.mark.parametrize("name", MOMENTS)
def test_the_writing_telemetry_has_every_moment_with_the_same_signature(name: str) -> None:
    assert name in vars(RunTelemetry)
    assert inspect.signature(getattr(RunTelemetry, name)) == inspect.signature(
        getattr(Telemetry, name)
    )


@pytest.mark.parametrize("name", MOMENTS)
def test_a_rank_that_writes_nothing_may_call_every_moment_and_looks_at_nothing(name: str) -> None:
    """Whatever it is given: what a rank computes for others need not exist on it."""
    required = [
        each
        for each in list(inspect.signature(getattr(Telemetry, name)).parameters.values())[1:]
        if each.default is each.empty
    ]
    assert not getattr(NullTelemetry(), name)(*(None for _ in required))


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_it_is_closed_however_the_run_ends_and_hides_no_error(
    error: type[BaseException] | None,
) -> None:
    class Closing(Telemetry):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    telemetry = Closing()
    try:
        with telemetry as given:
            assert given is telemetry
            if error is not None:
                raise error
    except BaseException as caught:
        assert type(caught) is error
    else:
        assert error is None
    assert telemetry.closed == 1
