"""What a call returns prints well, and what it raises shows one line per fault."""

from pathlib import Path

from yolods.api.outcome import CallError, RunFailed, Trained
from yolods.errors import UserError


def test_a_finished_run_prints_its_folder_scores_and_files():
    metrics = {"metrics/mAP50(B)": 0.5, "metrics/mAP50-95(B)": 0.25, "metrics/recall(B)": 1.0}
    done = Trained(Path("runs/exp"), metrics, epochs=1, seconds=12.3)
    assert str(done).splitlines() == [
        "runs/exp: 1 epoch in 12 s, mAP50 0.500, mAP50-95 0.250",
        "  model    runs/exp/weights/best.pt",
        "  numbers  runs/exp/results.csv",
    ]
    assert done.last == Path("runs/exp/weights/last.pt")
    assert str(Trained(Path("x"))).startswith("x: 0 epochs in 0 s\n")


def test_a_notebook_shows_no_traceback_of_a_wrong_word():
    error = CallError("one\ntwo")
    assert isinstance(error, UserError)
    assert error._render_traceback_() == ["error: one", "error: two"]


def test_a_failed_run_carries_its_status():
    error = RunFailed("text", status=75, folder=Path("x"))
    assert (str(error), error.status, error.folder) == ("text", 75, Path("x"))
