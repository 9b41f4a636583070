"""`yolods.train` in a notebook's kernel: what a cell shows, and its interrupt. Needs nbclient and
ipykernel."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.forks import environment
from tests.tiny import make_dataset

nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
pytest.importorskip("ipykernel", reason="needs ipykernel")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(230)]

SMALL = 'data="data/tiny.yaml", model="yolov5[0.1,0.1]", imgsz=64, batch_size=4, plots=False'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, for a kernel that has this tree's yolods."""
    make_dataset(tmp_path / "data", train=8, val=4)
    monkeypatch.chdir(tmp_path)
    for name, value in {**environment(), "IPYTHONDIR": str(tmp_path / "ipython")}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def test_cells_show_the_run_its_result_and_a_mistake(place: Path) -> None:
    import nbformat

    cells = [
        f"import yolods\nrun = yolods.train({SMALL}, epochs=1, callbacks="
        "{'on_fit_epoch_end': lambda run: print('epoch', run.epoch)})",
        "print(run)",
        "yolods.train(epoch=1)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.cells[2].metadata["tags"] = ["raises-exception"]
    client = nbclient.NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(place)}}
    )
    client.execute()
    trained, printed, mistake = (cell.outputs for cell in notebook.cells)
    shown = "".join(each["text"] for each in trained if each.get("name") == "stdout")
    assert "Starting training for 1 epochs" in shown and "epoch 0\n" in shown
    assert "Training took" in shown
    assert printed[0]["text"].startswith(f"{place / 'runs' / 'exp'}: 1 epoch in ")
    (error,) = mistake
    assert error["ename"] == "CallError"
    assert error["traceback"] == [
        "error: epoch: unknown word (did you mean 'epochs'?); docs/configuration.md lists them"
    ]


def test_an_interrupt_of_the_kernel_stops_the_ranks_with_a_checkpoint(place: Path) -> None:
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", cwd=str(place))
    try:
        client.execute(f"import yolods\nyolods.train({SMALL}, epochs=100)")
        shown, ends, deadline = "", None, time.monotonic() + 200
        while ends is None and time.monotonic() < deadline:
            message = client.get_iopub_msg(timeout=200)
            content = message["content"]
            before = "2/100" in shown
            shown += content.get("text", "") if message["msg_type"] == "stream" else ""
            if "2/100" in shown and not before:
                manager.interrupt_kernel()
            ends = content.get("ename") if message["msg_type"] == "error" else None
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert ends == "KeyboardInterrupt"
    assert "Ctrl-C: stopped after step" in shown
    assert list((place / "runs" / "exp" / "checkpoints").glob("step*"))
