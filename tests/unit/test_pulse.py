"""Where a process says that it is, and when that is late."""

from yolods.cluster.pulse import Pulse


def through(pulse: Pulse, *phases: tuple[str, float]) -> None:
    """Mark phases, each for so many seconds."""
    for phase, seconds in phases:
        pulse.mark(phase)
        pulse.tick(0.0)
        pulse.tick(seconds)


def started() -> Pulse:
    pulse = Pulse()
    pulse.started()
    return pulse


def test_a_phase_is_compared_with_the_longest_that_it_took_but_for_the_first() -> None:
    pulse = started()
    through(pulse, ("forward", 50.0), ("backward", 1.0), ("forward", 2.0), ("backward", 1.0), ("forward", 1.5))
    pulse.mark("forward", 3, step=7)
    standing = pulse.tick(4.0)
    assert standing.seconds == 4.0
    assert standing.usual == 2.0
    assert str(standing.mark) == "step 7, forward 3"


def test_a_new_phase_has_nothing_to_be_compared_with() -> None:
    pulse = started()
    through(pulse, ("data", 1.0), ("data", 1.0))
    assert pulse.tick(1.0).usual is None
    pulse.mark("data")
    assert pulse.tick(0.0).usual == 2.0


def test_a_phase_too_short_to_be_seen_is_known_all_the_same() -> None:
    pulse = started()
    for _ in range(3):
        pulse.mark("data")
        pulse.mark("forward")
    pulse.mark("data")
    assert pulse.tick(9.0).usual == 0.0


def test_what_declares_itself_slow_is_never_late_and_teaches_nothing() -> None:
    pulse = started()
    through(pulse, ("forward", 1.0), ("forward", 1.0), ("forward", 1.0))
    with pulse.slowly("drawing"):
        assert pulse.tick(100.0).usual is None
        pulse.mark("forward")
        assert pulse.tick(100.0).usual is None
        pulse.tick(100.0)
    assert pulse.now.phase == "forward"
    assert pulse.tick(0.0).usual == 1.0


def test_before_it_has_started_everything_may_take_its_time() -> None:
    pulse = Pulse()
    through(pulse, ("scan", 1.0), ("scan", 1.0), ("scan", 1.0), ("scan", 1.0))
    assert pulse.tick(1000.0).usual is None


def test_who_waits_says_so_where_the_wait_is() -> None:
    pulse = started()
    assert not pulse.waits
    with pulse.waiting():
        with pulse.waiting():
            assert pulse.waits
        assert pulse.waits
    assert not pulse.waits
