"""Memory over time, from a trace of two nodes that can be worked out by hand."""

from __future__ import annotations

import numpy as np

from yolods.plan.memory.timeline import stage_timeline, whole_timeline
from yolods.plan.memory.trace import Trace

# Node 0 makes a value of 10 bytes an image, which node 1 reads, keeps, and frees in its backward
# pass; node 1 makes and keeps 1 byte an image. A gradient of 10 bytes an image crosses back.
#                value  inner  gradient
TRACE = Trace(
    fixed=np.array([0, 0, 0]),
    each=np.array([10, 1, 10]),
    for_several=np.array([False, True, False]),
    born=np.array([0, 1, 2]),
    dead=np.array([4, 3, 5]),
    turn=2,
    ended=5,
    length=6,
    arrivals=np.array([[3, 7], [5, 5]]),
    forward=(0, 1, 2),
    backward=(6, 4, 2),
)


def test_a_single_image_does_without_what_is_for_several() -> None:
    assert whole_timeline(TRACE, images=1).forward.tolist() == [10, 10, 20]


def test_the_whole_model() -> None:
    found = whole_timeline(TRACE, images=2)
    assert found.forward.tolist() == [20, 22, 42]
    assert found.backward.tolist() == [42, 40, 20, 0, 0]
    assert found.arrived.tolist() == [0, 7, 7, 12, 12]


def test_the_last_stage_keeps_what_it_received_and_the_gradient_of_it() -> None:
    found = stage_timeline(TRACE, range(1, 2), 2, received=20, sent=0)
    # 20 bytes received, 2 of its own; then the gradient of what it received as well.
    assert found.forward[0] == 22
    assert found.backward.max() == 42
    assert found.arrived[-1] == 7


def test_the_first_stage_holds_what_it_sent_until_its_end() -> None:
    found = stage_timeline(TRACE, range(0, 1), 2, received=0, sent=20)
    assert found.kept == 20
    # The value that it sent, and the gradient that it received for it.
    assert found.backward.max() == 40
    assert found.arrived[-1] == 5
