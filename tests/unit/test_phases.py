"""Where a process says that it is, and when that is late."""

from yolods.distributed.phases import PhaseTracker


def through(tracker: PhaseTracker, *phases: tuple[str, float]) -> None:
    """Mark phases, each for so many seconds."""
    for phase, seconds in phases:
        tracker.mark(phase)
        tracker.tick(0.0)
        tracker.tick(seconds)


def started() -> PhaseTracker:
    tracker = PhaseTracker()
    tracker.started()
    return tracker


def test_a_phase_is_compared_with_the_longest_that_it_took_but_for_the_first() -> None:
    tracker = started()
    through(
        tracker,
        ("forward", 50.0),
        ("backward", 1.0),
        ("forward", 2.0),
        ("backward", 1.0),
        ("forward", 1.5),
    )
    tracker.mark("forward", 3, step=7)
    standing = tracker.tick(4.0)
    assert standing.seconds == 4.0
    assert standing.usual == 2.0
    assert str(standing.mark) == "step 7, forward 3"


def test_a_new_phase_has_nothing_to_be_compared_with() -> None:
    tracker = started()
    through(tracker, ("data", 1.0), ("data", 1.0))
    assert tracker.tick(1.0).usual is None
    tracker.mark("data")
    assert tracker.tick(0.0).usual == 2.0


def test_a_phase_too_short_to_be_seen_is_known_all_the_same() -> None:
    tracker = started()
    for _ in range(3):
        tracker.mark("data")
        tracker.mark("forward")
    tracker.mark("data")
    assert tracker.tick(9.0).usual == 0.0


def test_what_declares_itself_slow_is_never_late_and_teaches_nothing() -> None:
    tracker = started()
    through(tracker, ("forward", 1.0), ("forward", 1.0), ("forward", 1.0))
    with tracker.slowly("drawing"):
        assert tracker.tick(100.0).usual is None
        tracker.mark("forward")
        assert tracker.tick(100.0).usual is None
        tracker.tick(100.0)
    assert tracker.now.phase == "forward"
    assert tracker.tick(0.0).usual == 1.0


def test_before_it_has_started_everything_may_take_its_time() -> None:
    tracker = PhaseTracker()
    through(tracker, ("scan", 1.0), ("scan", 1.0), ("scan", 1.0), ("scan", 1.0))
    assert tracker.tick(1000.0).usual is None


def test_who_waits_says_so_where_the_wait_is() -> None:
    tracker = started()
    assert not tracker.waits
    with tracker.waiting():
        with tracker.waiting():
            assert tracker.waits
        assert tracker.waits
    assert not tracker.waits


def test_a_listener_hears_every_mark_until_it_leaves() -> None:
    tracker, heard = started(), []
    tracker.mark("before")
    tracker.hear(heard.append)
    tracker.mark("forward", 3, step=7)
    with tracker.slowly("drawing"):
        pass
    tracker.hear(None)
    tracker.mark("behind")
    assert [str(mark) for mark in heard] == [
        "step 7, forward 3",
        "step 7, drawing",
        "step 7, forward 3",
    ]
