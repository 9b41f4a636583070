"""The lines about a trace."""

from dataclasses import replace

from tests.traced import call, part, record
from yolods.trace.table import trace_lines


def test_a_row_per_rank_and_what_holds_the_run_back() -> None:
    first = record(part(0, 0.3, "forward"), part(0.3, 1.0, "backward"), calls=[call(0.5, 0.6)])
    second = record(part(0, 0.5, "data"), part(0.5, 1.0, "forward", step=5), rank=1)
    first = replace(first, parts=(*first.parts, part(1.0, 2.5, "evaluation")))
    lines = trace_lines([first, second], None)
    assert lines == [
        "traced steps 4 to 4: 666.7 ms each, 500.0 ms between them",
        "rank  forward backward collectives    waits   loader optimizer     rest",
        "   0    30.0%    60.0%       10.0%     0.0%     0.0%      0.0%     0.0%",
        "   1    50.0%     0.0%        0.0%     0.0%    50.0%      0.0%     0.0%",
        "what holds the run back: the loader: rank 1 waits 50% of a step for images (--workers; "
        "docs/data.md)",
    ]
    assert all(len(line) <= 80 for line in lines[:-1])


def test_many_ranks_have_a_mean() -> None:
    phases = ["forward"] * 20 + ["backward"] * 20
    ranks = [record(part(0, 1.0, phase), rank=rank) for rank, phase in enumerate(phases)]
    rows = [line.split() for line in trace_lines(ranks, None)[2:-1]]
    assert [row[0] for row in rows] == [*map(str, range(32)), "mean"]
    assert rows[-1][1:3] == ["50.0%", "50.0%"]
