"""Plain .pt files: what is read is never run, and what is damaged is one line."""

import os
import pickle
import socket
import zipfile
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from yolods.checkpoint.pt_file import write_pt
from yolods.errors import UserError
from yolods.model.architecture.build import architecture, build, parse_name
from yolods.model.weights import (
    PtFile,
    check_file,
    check_whole,
    read_pt,
)

NAMES = ("cat", "dog", "cow")


def make(names=NAMES, seed=0, model="yolov5[0.1,0.1]"):
    torch.manual_seed(seed)
    return build(architecture(parse_name(model), len(names), 3), names)


@pytest.fixture(scope="module")
def net():
    return make()


@pytest.fixture
def written(tmp_path, net) -> Path:
    path = tmp_path / "best.pt"
    write_pt(
        path,
        net,
        net.state_dict().items(),
        {"train_args": {"imgsz": 64, "task": "detect"}, "epoch": 3},
    )
    return path


def one_line(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_pt(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def _zip_of(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return path


def _original(module: str, name: str, protocol: int) -> bytes:
    """The pickle of an object whose class stands in a module that is not installed."""
    words = module.encode(), name.encode()
    if protocol == 2:
        return b"\x80\x02}X\x05\x00\x00\x00modelc%s\n%s\n)\x81s." % words
    texts = [b"\x8c" + bytes([len(word)]) + word for word in words]
    return b"\x80\x04}\x8c\x05model" + texts[0] + texts[1] + b"\x93)\x81s."


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("module", "name"),
    [("models.yolo", "DetectionModel"), ("models.yolo", "Model"), ("models.common", "Conv")],
)
def test_an_original_yolov5_file_is_named_with_the_remedy(tmp_path, module, name, protocol):
    path = _zip_of(tmp_path / "yolov5s.pt", _original(module, name, protocol))
    with pytest.raises(
        ModuleNotFoundError, match="models"
    ):  # so nothing below can have unpickled it
        pickle.loads(zipfile.ZipFile(path).read("archive/data.pkl"))
    line = (
        f"--weights {path}: an original anchor-based yolov5 checkpoint. YOLOv5 here is "
        "ultralytics' anchor-free YOLOv5u: its head differs and these weights do not fit. Use a "
        "YOLOv5u file (for example yolov5nu.pt), or train from scratch without --weights"
    )
    assert one_line(path) == line
    with pytest.raises(UserError) as caught:
        check_file(path)
    assert str(caught.value) == line


class _Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("how", ["torch.save", "zip", "bare pickle"])
def test_nothing_in_a_file_is_run(tmp_path, how):
    trace, path = tmp_path / "was-run", tmp_path / "evil.pt"
    content = {"model": _Evil(trace)}
    if how == "torch.save":
        torch.save(content, path)
    elif how == "zip":
        _zip_of(path, pickle.dumps(content))
    else:
        path.write_bytes(pickle.dumps(content))
    assert one_line(path).startswith(f"--weights {path}: not a loadable ultralytics checkpoint: ")
    assert not trace.exists()
    # the file does what it is said to do, where it is run
    with pytest.raises(Exception):  # noqa: B017
        torch.load(path, weights_only=False)
        pickle.loads(path.read_bytes())
    assert trace.exists() or how == "zip"


def test_an_original_file_with_a_side_effect_is_not_run(tmp_path):
    trace = tmp_path / "was-run"
    content = _original("models.yolo", "DetectionModel", 4)[:-1] + pickle.dumps(_Evil(trace))[2:]
    assert "original anchor-based" in one_line(_zip_of(tmp_path / "a.pt", content))
    assert not trace.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_one_line(written, share):
    whole = written.read_bytes()
    written.write_bytes(whole[: int(len(whole) * share)])
    assert one_line(written).startswith(
        f"--weights {written}: not a loadable ultralytics checkpoint: "
    )
    assert written.is_file()


def test_changed_bytes_are_noticed(written):
    """torch compares no checksums, and such a file trained: its loss was nan in every step."""
    content = bytearray(written.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4] = b"\xff\xff\xff\xff"
    written.write_bytes(content)
    assert one_line(written).endswith(
        "does not have its checksum, so the file is damaged; copy it again"
    )
    with pytest.raises(UserError, match="does not have its checksum"):
        check_whole(written)


@pytest.mark.parametrize(
    ("name", "content"),
    [("notes.pt", b"to do: train"), ("picture.pt", b"\x89PNG\r\n\x1a\n"), ("weights.txt", b"x")],
)
def test_files_that_are_no_checkpoints_are_one_line(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert one_line(path).startswith(f"--weights {path}: not a loadable ultralytics checkpoint: ")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"model": None}, "holds dict, not an ultralytics detection model"),
        ({"model": torch.ones(3)}, "holds Tensor, not an ultralytics detection model"),
        ({"epoch": 1}, "holds dict, not an ultralytics detection model"),
        ([1], "not a loadable ultralytics checkpoint: 'list' object has no attribute 'model'"),
    ],
)
def test_other_torch_files_are_one_line(tmp_path, content, line, capfd):
    path = tmp_path / "a.pt"
    torch.save(content, path)
    assert one_line(path) == f"--weights {path}: {line}"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("task", ["SegmentationModel", "ClassificationModel"])
def test_a_model_of_another_task_is_one_line(tmp_path, task):
    from ultralytics.nn import tasks

    head = {
        "SegmentationModel": "[[2], 1, Segment, [nc, 8, 16]]",
        "ClassificationModel": "[2, 1, Classify, [nc]]",
    }
    yaml = {
        "nc": 2,
        "backbone": [
            [-1, 1, "Conv", [8, 3, 2]],
            [-1, 1, "Conv", [8, 3, 2]],
            [-1, 1, "Conv", [8, 3, 2]],
        ],
        "head": __import__("yaml").safe_load(f"[{head[task]}]"),
    }
    model = getattr(tasks, task)(deepcopy(yaml), verbose=False)
    path = tmp_path / "other.pt"
    torch.save({"model": model.half(), "ema": None}, path)
    assert one_line(path) == f"--weights {path}: holds {task}, not an ultralytics detection model"


def test_a_missing_file_is_one_line(tmp_path):
    path = tmp_path / "nowhere.pt"
    assert one_line(path) == f"--weights {path}: no such file (weights are never downloaded)"


@pytest.mark.parametrize("name", ["yolov5s.pt", "yolov5n6.pt", "it's mine.pt", " a b ü.pt"])
def test_the_very_file_that_was_named_is_read(written, name, no_network):
    """ultralytics would look for yolov5su.pt, and for names without quotes and spaces, and then ask
    github."""
    path = written.with_name(name)
    written.rename(path)
    assert read_pt(path).nc == 3


def test_a_damaged_file_with_a_published_name_stays(written, monkeypatch, no_network):
    """ultralytics deletes it and downloads another when it is given by its bare name."""
    monkeypatch.chdir(written.parent)
    content = written.read_bytes()[:1000]
    Path("yolov5nu.pt").write_bytes(content)
    assert one_line(Path("yolov5nu.pt")).startswith("--weights yolov5nu.pt: not a loadable")
    assert Path("yolov5nu.pt").read_bytes() == content


# One tensor at a time


def test_tensors_are_read_one_by_one_as_they_would_be_together(written):
    together, file = read_pt(written).state_dict(), PtFile(written)
    assert file.shapes == {name: tensor.shape for name, tensor in together.items()}
    assert file.names == {0: "cat", 1: "dog", 2: "cow"}
    for name, tensor in together.items():
        value = file.read(name)
        assert value.dtype == (torch.float16 if tensor.is_floating_point() else torch.int64)
        assert torch.equal(value.to(tensor.dtype), tensor), name


def test_views_with_gaps_are_read_as_the_view(tmp_path, net):
    """Convolutions of a channels-last model, and a weight that is a part of a larger tensor."""
    odd = deepcopy(net).to(memory_format=torch.channels_last)
    whole = torch.rand(*odd.model[1].conv.weight.shape[:-1], 7)
    odd.model[1].conv.weight = torch.nn.Parameter(whole[..., 2:5])
    odd.model[0].bn.weight = torch.nn.Parameter(torch.tensor(2.0).expand(len(odd.model[0].bn.bias)))
    torch.save({"model": odd, "ema": None}, tmp_path / "odd.pt")
    file = PtFile(tmp_path / "odd.pt")
    for name, tensor in odd.state_dict().items():
        assert torch.equal(file.read(name), tensor), name


def test_opening_reads_no_values(written, monkeypatch):
    monkeypatch.setattr(PtFile, "read", lambda *_: pytest.fail("read"))
    file = PtFile(written)
    assert {tensor.device.type for tensor in file._tensors.values()} == {"meta"}


@pytest.mark.parametrize("damage", ["gone", "shorter"])
def test_a_file_that_is_lost_while_it_is_read_is_one_line(written, damage):
    file = PtFile(written)
    if damage == "gone":
        written.unlink()
    else:
        os.truncate(written, 5000)
    with pytest.raises(UserError) as caught:
        file.read("model.24.cv3.2.2.weight")
    said = {"gone": "No such file or directory", "shorter": "the file has become shorter"}[damage]
    assert str(caught.value).startswith(f"--weights {written}: {said}")


def test_what_cannot_be_opened_is_the_same_line_as_for_a_whole_file(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError) as caught:
        PtFile(path)
    assert str(caught.value) == one_line(path)


def test_an_earlier_torch_reads_the_same_values_from_a_mapped_file(written, net, monkeypatch):
    monkeypatch.setattr("yolods.compat.notes_places", lambda: False)
    file = PtFile(written)
    for name, tensor in net.state_dict().items():
        assert torch.equal(file.read(name), tensor.half() if tensor.is_floating_point() else tensor)
