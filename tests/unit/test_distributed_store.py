"""The store within one process; ranks meet over it in tests/dist."""

from yolods.checkpoint.verify import single_process
from yolods.distributed.store import open_store


def test_values_are_read_as_they_were_written_and_missing_ones_are_none() -> None:
    kv_store = open_store(single_process())
    kv_store.put("a", {"step": 3, "phase": "forward"})
    assert kv_store.get(["a", "b"]) == [{"step": 3, "phase": "forward"}, None]
    kv_store.put("a", None)
    kv_store.put("b", [1, "x"])
    assert kv_store.clone().get(["a", "b"]) == [None, [1, "x"]]
    assert kv_store.get([]) == []
