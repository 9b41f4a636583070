"""Plain .pt files written tensor by tensor: the same tensors as `torch.save` of the whole model
would hold, for every reader."""

from __future__ import annotations

import io
import os
import struct
import weakref
import zipfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from yolods.checkpoint import pt_file as module
from yolods.checkpoint.pt_file import PtWeights, write_pt
from yolods.errors import UserError
from yolods.model.architecture.build import architecture, build, parse_name
from yolods.model.graph.graph import meta_model
from yolods.model.weights import read_pt

NAMES = ("cat", "dog", "cow")
LAYERS = architecture(parse_name("yolov5[0.1,0.1]"), len(NAMES), 3)
FACTS = {"train_args": {"imgsz": 64, "task": "detect"}, "epoch": 3}


@pytest.fixture(scope="module")
def net() -> Any:
    torch.manual_seed(0)
    made = build(LAYERS, NAMES)
    with torch.no_grad():
        made.state_dict()["model.0.conv.weight"].view(-1)[:2] = torch.tensor([1e30, torch.nan])
        made.state_dict()["model.0.bn.num_batches_tracked"].fill_(7)
    return made


def skeleton() -> Any:
    made = meta_model(LAYERS)
    made.names = dict(enumerate(NAMES))
    return made


@pytest.fixture
def written(tmp_path: Path, net: Any) -> Path:
    write_pt(tmp_path / "best.pt", skeleton(), net.state_dict().items(), FACTS)
    return tmp_path / "best.pt"


def at_once(net: Any, file: Any, *, half: bool = True) -> None:
    """What `torch.save` writes of a whole model that was rounded in memory."""
    model = deepcopy(net).eval()
    model = model.half() if half else model
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            torch.nan_to_num_(tensor)
    model.criterion, model.args = None, dict(FACTS["train_args"])
    torch.save({"model": model}, file)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("backwards", [True, False])
def test_it_holds_what_torch_would_have_saved_at_once(
    tmp_path: Path, net: Any, half: bool, backwards: bool
) -> None:
    tensors = list(net.state_dict().items())
    write_pt(
        tmp_path / "a.pt", skeleton(), tensors[::-1] if backwards else tensors, FACTS, half=half
    )
    at_once(net, tmp_path / "b.pt", half=half)
    mine, other = (
        torch.load(tmp_path / name, weights_only=False)["model"] for name in ("a.pt", "b.pt")
    )
    assert list(mine.state_dict()) == list(other.state_dict())
    for name, tensor in other.state_dict().items():
        found = mine.state_dict()[name]
        assert (found.dtype, found.stride()) == (tensor.dtype, tensor.stride()), name
        assert found.view(-1).view(torch.uint8).equal(tensor.view(-1).view(torch.uint8)), name
    trained = {name: each.requires_grad for name, each in other.named_parameters()}
    assert {name: each.requires_grad for name, each in mine.named_parameters()} == trained
    for one, two in zip(mine.modules(), other.modules(), strict=True):
        assert type(one) is type(two)
        assert set(vars(one)) == set(vars(two))
        for key in vars(two):
            assert repr(vars(one)[key]) == repr(vars(two)[key]), key


def test_tensors_are_taken_one_at_a_time(tmp_path: Path, net: Any) -> None:
    def leaves() -> Iterator[tuple[str, Tensor]]:
        before: weakref.ref[Tensor] | None = None
        for name, tensor in net.state_dict().items():
            assert before is None or before() is None, "the one before is still held"
            value = tensor.clone()
            before = weakref.ref(value)
            yield name, value
            del value

    write_pt(tmp_path / "a.pt", skeleton(), leaves(), FACTS)


def test_torch_maps_it_without_a_copy_and_aligned(written: Path) -> None:
    model = torch.load(written, weights_only=False, mmap=True)["model"]
    assert {each.data_ptr() % module.ALIGNED for each in model.state_dict().values()} == {0}
    with torch.utils.serialization.config.patch("load.calculate_storage_offsets", True):
        again = torch.load(written, weights_only=False, mmap=True)["model"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_it_is_an_archive_with_checksums(written: Path) -> None:
    with zipfile.ZipFile(written) as archive:
        assert archive.testzip() is None
        assert all(record.CRC for record in archive.infolist() if record.file_size)
        pickled = archive.read("archive/data.pkl")
    assert b"yolods" not in pickled and b"ultralytics.nn.tasks" in pickled


def test_it_is_read_again_in_half_precision(written: Path, net: Any) -> None:
    read, mapped = read_pt(written).state_dict(), PtWeights(written)
    assert list(mapped) == list(read) and len(mapped) == len(read)
    for name, tensor in net.state_dict().items():
        expected = tensor
        if tensor.is_floating_point():
            expected = torch.nan_to_num(tensor.half())
        assert torch.equal(mapped[name], expected), name
        assert torch.equal(read[name], expected.to(read[name].dtype)), name


def test_ultralytics_loads_it_and_finds_names_and_arguments(written: Path) -> None:
    from ultralytics import YOLO

    model = YOLO(str(written))
    assert model.names == {0: "cat", 1: "dog", 2: "cow"}
    assert model.ckpt["epoch"] == 3
    assert model.overrides["imgsz"] == 64
    assert model.model.stride.tolist() == [8, 16, 32]


def test_numbers_beyond_fp16_stay_finite(written: Path) -> None:
    read = PtWeights(written)
    assert all(torch.isfinite(tensor).all() for tensor in read.values())
    assert read["model.0.conv.weight"].view(-1)[0] == torch.finfo(torch.float16).max


class Foreign:
    """Runs code where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._mark),)


def test_only_a_whole_file_of_ultralytics_classes_is_read(written: Path) -> None:
    mark = written.parent / "executed"
    torch.save({"model": Foreign(mark)}, written)
    with pytest.raises(UserError) as caught:
        PtWeights(written)
    assert str(caught.value).startswith(f"{written}: not a loadable ultralytics checkpoint")
    assert not mark.exists()
    os.truncate(written, 100)
    with pytest.raises(UserError, match="it is damaged"):
        PtWeights(written)


def test_writing_leaves_the_skeleton_and_the_weights_alone(tmp_path: Path, net: Any) -> None:
    given = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    made = skeleton()
    write_pt(tmp_path / "a.pt", made, given.items(), {}, half=False)
    assert {tensor.dtype for tensor in made.state_dict().values()} == {torch.float32, torch.int64}
    for name, tensor in net.state_dict().items():
        assert torch.equal(given[name].nan_to_num(1), tensor.nan_to_num(1))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda state: state.pop("model.0.conv.weight"), r"model\.0\.conv\.weight: missing"),
        (lambda state: state.update(more=torch.ones(2)), r"more \(2,\) does not belong"),
        (
            lambda state: state.update({"model.0.bn.bias": torch.ones(3)}),
            r"model\.0\.bn\.bias \(3,\) does not belong",
        ),
    ],
)
def test_weights_of_another_model_are_refused(
    tmp_path: Path, net: Any, change: Any, line: str
) -> None:
    state = dict(net.state_dict())
    change(state)
    with pytest.raises(RuntimeError, match=line):
        write_pt(tmp_path / "a.pt", skeleton(), state.items(), {})
    assert not list(tmp_path.iterdir())


def test_a_large_record_is_written_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record's header has to be chosen before its bytes are written."""
    monkeypatch.setattr(module, "LARGE_BYTES", 4)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        module._add(archive, "small", b"abc")
        module._add(archive, "large", b"defg")
        headers = {each.filename: each.header_offset for each in archive.infolist()}
    content = (tmp_path / "a.zip").read_bytes()
    for data in (b"abc", b"defg"):
        assert content.index(data) % module.ALIGNED == 0
    begin = headers["archive/large"]
    extra = content[begin + module.LOCAL_HEADER : content.index(b"defg")]
    # The field's name, its length and both sizes. Whether the plain header has the sizes as well
    # depends on Python.
    assert struct.pack("<HHQQ", 1, 16, 4, 4) in extra, "its sizes are in the extra field"
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.read("archive/large") == b"defg"


def test_a_failed_write_leaves_the_earlier_file_and_no_litter(written: Path, net: Any) -> None:
    before = written.read_bytes()

    def leaves() -> Iterator[tuple[str, Tensor]]:
        yield from list(net.state_dict().items())[:20]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_pt(written, skeleton(), leaves(), {})
    assert written.read_bytes() == before
    assert os.listdir(written.parent) == [written.name]


def test_a_full_disk_leaves_the_earlier_file(
    written: Path, net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = written.read_bytes()

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() > len(before) // 2:
                raise OSError(28, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(os, "fdopen", lambda handle, mode, closefd: Full(handle, mode, closefd))
    with pytest.raises(OSError, match="No space left"):
        write_pt(written, skeleton(), net.state_dict().items(), {})
    assert written.read_bytes() == before
    assert os.listdir(written.parent) == [written.name]


def test_bytes_are_on_the_disk_before_the_file_gets_its_name(
    tmp_path: Path, net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("flush"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *where: (done.append("rename"), replace(*where)))
    write_pt(tmp_path / "folder" / "a.pt", skeleton(), net.state_dict().items(), {})
    assert done == ["flush", "rename", "flush"]  # the last is the folder's, with its new name
