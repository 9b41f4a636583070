"""Verdicts about ranks from what they say of themselves, on a clock of our own."""

from __future__ import annotations

from dataclasses import replace

from yolods.config.deepspeed.yolods_block import WatchdogConfig
from yolods.watchdog.failure_detector import FailureDetector, Heartbeat, Stragglers

POLICY = WatchdogConfig(silence_seconds=8, stall_seconds=8, grace_seconds=60, slow_seconds=100)


def beat(rank: int, number: int = 1, **values: object) -> Heartbeat:
    usual = {
        "host": f"worker-{rank}",
        "pid": 100 + rank,
        "step": 12,
        "marks": 50,
        "doing": "step 12, forward 0",
        "seconds": 0.1,
    }
    return Heartbeat(
        **{"rank": rank, "number": number, "usual": 0.1, "waiting": False, **usual, **values}
    )


def test_a_rank_without_a_sign_of_life_is_lost() -> None:
    detector = FailureDetector(POLICY)
    for second in range(9):
        assert detector.check([beat(0, second), beat(1)], float(second)) is None
    verdict = detector.check([beat(0, 9), beat(1)], 9.0)
    assert verdict is not None
    assert verdict.rank == 1
    assert verdict.ends
    assert verdict.text == (
        "rank 1 on worker-1 (process 101) has sent no heartbeat for 9 s; it was in step 12, "
        "forward 0"
    )


def test_a_lost_connection_makes_silence_tell_earlier() -> None:
    detector = FailureDetector(POLICY)
    detector.check([beat(0), beat(1)], 0.0)
    assert detector.check([beat(0, 2, broken=True), beat(1)], 3.0) is None
    verdict = detector.check([beat(0, 3, broken=True), beat(1)], 3.1)
    assert verdict is not None
    assert verdict.rank == 1


def test_a_rank_that_has_failed_is_told_of_once_the_others_had_time_to_fail_alike() -> None:
    detector = FailureDetector(POLICY)
    gone = beat(1, 2, left="RuntimeError: no")
    assert detector.check([beat(0, 1), gone], 0.0) is None
    assert detector.check([beat(0, 2), gone], 3.0) is None
    verdict = detector.check([beat(0, 3), gone], 3.1)
    assert verdict is not None
    assert verdict.text.endswith("failed in step 12, forward 0: RuntimeError: no")


def test_a_rank_that_has_finished_may_be_silent() -> None:
    detector = FailureDetector(POLICY)
    for second in range(30):
        assert detector.check([beat(0, second), beat(1, left="")], float(second)) is None


def stalled(*values: dict[str, object]) -> list[Heartbeat]:
    """Ranks of which each says the same for ever, under a new number each second."""
    return [beat(rank, **value) for rank, value in enumerate(values)]


def run(
    detector: FailureDetector, beats: list[Heartbeat], seconds: int
) -> list[tuple[int, int, bool]]:
    """(second, rank, ends) of every verdict."""
    found = []
    for second in range(seconds):
        ahead = [replace(each, number=second, seconds=each.seconds + second) for each in beats]
        if (verdict := detector.check(ahead, float(second))) is not None:
            found.append((second, verdict.rank, verdict.ends))
    return found


def test_a_rank_that_moves_no_more_is_named_once_and_the_run_ends_later() -> None:
    beats = stalled({"waiting": True}, {"doing": "step 12, data 0"})
    verdicts = run(FailureDetector(POLICY), beats, 70)
    assert verdicts[:2] == [(8, 1, False), (68, 1, True)]


def test_a_phase_that_is_slow_by_nature_has_ten_times_its_longest() -> None:
    beats = stalled({"waiting": True}, {"usual": 3.0})
    assert run(FailureDetector(POLICY), beats, 40)[0] == (30, 1, False)


def test_of_several_the_one_that_has_come_least_far_is_it() -> None:
    beats = stalled({"step": 13}, {"step": 12}, {"step": 13})
    assert run(FailureDetector(POLICY), beats, 12)[0][1] == 1
    beats = stalled(
        {"marks": 52, "doing": "step 12, gradients"}, {"doing": "step 12, data 0"}, {"marks": 51}
    )
    assert {rank for _, rank, _ in run(FailureDetector(POLICY), beats, 80)} == {1}, (
        "the others wait for their GPUs, say"
    )


def test_while_one_may_take_its_time_the_others_wait_for_it() -> None:
    beats = stalled({"usual": None, "doing": "an epoch's results"}, {})
    assert run(FailureDetector(POLICY), beats, 100) == []
    assert run(FailureDetector(POLICY), beats, 165)[0] == (100, 0, False)


def test_all_that_wait_for_each_other_are_told_of() -> None:
    detector = FailureDetector(POLICY)
    beats = stalled({"waiting": True, "seconds": 1.0}, {"waiting": True})
    verdicts = run(detector, beats, 70)
    assert [(rank, ends) for _, rank, ends in verdicts[:2]] == [(0, False), (0, True)]
    assert verdicts[0][0] == 8
    assert verdicts[1][0] == 68


def windows(stragglers: Stragglers, *seconds: tuple[float, ...]) -> list[str]:
    lines = []
    for number, each in enumerate(seconds):
        line = stragglers.hear([beat(rank, own=(number, own)) for rank, own in enumerate(each)])
        lines += [line] if line else []
    return lines


def test_a_straggler_is_slower_in_every_window_and_is_named_once() -> None:
    stragglers = Stragglers()
    lines = windows(stragglers, *[(1.0, 1.1, 1.5, 0.9)] * 5)
    assert len(lines) == 1
    assert lines[0].startswith("rank 2 on worker-2")
    assert stragglers.seconds() == {0: 1.0, 1: 1.1, 2: 1.5, 3: 0.9}


def test_a_rank_that_was_slow_now_and_then_is_none() -> None:
    assert windows(Stragglers(), *[(1.0, 1.5), (1.5, 1.0)] * 4) == []
