"""Progress in few columns."""

from __future__ import annotations

import io

from yolods.telemetry.screen.short_bar import ShortBar


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def states(stream: io.StringIO) -> list[str]:
    return stream.getvalue().rstrip("\n").split("\r\033[K")[1:]


def test_it_counts_and_tells_the_time_left_and_then_the_time_taken() -> None:
    stream, clock = io.StringIO(), Clock()
    bar = ShortBar("text", 4, stream, columns=80, clock=clock)
    clock.now += 30
    bar.desc = "more"
    bar.update(1)
    clock.now += 90
    bar.update(3)
    bar.close()
    assert states(stream) == ["text 0/4", "more 1/4 <1:30", "more 4/4 2:00", "more 4/4 2:00"]
    assert stream.getvalue().endswith("\n")


def test_it_is_not_drawn_more_often_than_a_reader_sees() -> None:
    stream, clock = io.StringIO(), Clock()
    bar = ShortBar("text", 1000, stream, columns=80, clock=clock)
    for _ in range(100):
        clock.now += 0.01
        bar.update(1)
    assert len(states(stream)) < 15


def test_it_stays_in_one_line() -> None:
    stream = io.StringIO()
    ShortBar("x" * 100, 4, stream, columns=40).close()
    assert all(len(state) < 40 for state in states(stream))


def test_a_screen_that_is_gone_ends_nothing() -> None:
    stream = io.StringIO()
    bar = ShortBar("text", 4, stream, columns=80)
    stream.close()
    bar.update(4)
    bar.close()
