"""The board within one process; ranks meet over it in tests/dist."""

from yolods.checkpoint.verify import alone
from yolods.cluster.board import open_board


def test_values_are_read_as_they_were_written_and_missing_ones_are_none() -> None:
    board = open_board(alone())
    board.put("a", {"step": 3, "phase": "forward"})
    assert board.get(["a", "b"]) == [{"step": 3, "phase": "forward"}, None]
    board.put("a", None)
    board.put("b", [1, "x"])
    assert board.clone().get(["a", "b"]) == [None, [1, "x"]]
    assert board.get([]) == []
