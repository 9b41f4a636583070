"""Workarounds for dependencies: each does what it says, and tells when it is no longer needed."""

import importlib.util
import inspect
import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from yolods import compat
from yolods.errors import UserError

SIDE_FILES = ("YOLO_CONFIG_DIR", "MPLCONFIGDIR", "TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR")


@pytest.fixture
def bare(monkeypatch, tmp_path):
    for name in (*SIDE_FILES, "YOLO_OFFLINE", "YOLO_AUTOINSTALL", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("YOLODS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_side_files_go_to_the_cache(bare):
    compat.prepare()
    assert all(os.environ[name].startswith(str(bare / "cache")) for name in SIDE_FILES)
    assert os.environ["YOLO_OFFLINE"] == "true"
    assert os.environ["YOLO_AUTOINSTALL"] == "false"
    assert os.environ["MPLBACKEND"] == "Agg"


def test_what_the_user_has_set_stays(bare, monkeypatch):
    monkeypatch.setenv("YOLO_OFFLINE", "false")
    monkeypatch.setenv("MPLCONFIGDIR", str(bare / "mine"))
    compat.prepare()
    assert os.environ["YOLO_OFFLINE"] == "false"
    assert os.environ["MPLCONFIGDIR"] == str(bare / "mine")


def test_the_backend_of_a_notebook_does_not_end_a_run_that_draws_to_files(bare, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    compat.prepare()
    assert os.environ["MPLBACKEND"] == "Agg"


def test_an_empty_variable_is_not_taken_for_the_folder_where_the_user_stands(bare, monkeypatch):
    for name in SIDE_FILES:
        monkeypatch.setenv(name, "")
    compat.prepare()
    assert all(os.environ[name].startswith(str(bare / "cache")) for name in SIDE_FILES)


def test_mpis_word_on_a_rank_is_not_compared_with_the_launchers():
    """DeepSpeed asserts that both are the same; the first may be that of a shell that mpirun has
    started."""
    environ = {
        "OMPI_COMM_WORLD_LOCAL_RANK": "0",
        "OMPI_COMM_WORLD_SIZE": "1",
        "OMPI_MCA_btl": "tcp",
        "LOCAL_RANK": "1",
    }
    compat.forget_mpi(environ)
    assert environ == {"OMPI_MCA_btl": "tcp", "LOCAL_RANK": "1"}


def test_a_folder_on_the_path_that_may_not_be_entered_is_left_off(monkeypatch):
    """DeepSpeed takes numactl's absence, but not its "Permission denied"."""

    def stat(path):
        if path.startswith("/root/"):
            raise PermissionError(13, "Permission denied", path)
        raise FileNotFoundError(2, "No such file", path)

    monkeypatch.setattr(compat.os, "stat", stat)
    for path, expected in (
        ("/root/bin:/bin::/gone", "/bin::/gone"),
        ("/bin:/usr/bin", "/bin:/usr/bin"),
        ("", ""),
    ):
        environ = {"PATH": path}
        compat.leave_closed_folders_off_the_path(environ)
        assert environ == {"PATH": expected}


def test_deepspeed_still_compares_mpis_word_on_a_rank():
    found = importlib.util.find_spec("deepspeed")  # importing it would take seconds
    source = Path(found.origin).parent.joinpath("runtime", "engine.py").read_text(encoding="utf-8")
    assert "assert ompi_local_rank == local_rank" in source


@pytest.mark.parametrize(
    ("shown", "asks"), [("0,1", True), ("", True), (None, True), ("GPU-a,GPU-b", False)]
)
def test_gpus_with_names_are_not_asked_for_by_number(monkeypatch, shown, asks):
    cuda_accelerator = SimpleNamespace(pynvml=object())
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace())
    monkeypatch.setitem(
        sys.modules, "deepspeed.accelerator", SimpleNamespace(cuda_accelerator=cuda_accelerator)
    )
    compat.take_gpus_by_name({} if shown is None else {"CUDA_VISIBLE_DEVICES": shown})
    assert (cuda_accelerator.pynvml is not None) == asks


def test_a_cache_that_cannot_be_made(bare, monkeypatch):
    (bare / "cache").write_text("a file")
    with pytest.raises(UserError) as caught:
        compat.prepare()
    assert str(caught.value) == (
        f"cannot create {bare / 'cache'}: File exists; set YOLODS_CACHE to a writable folder"
    )


QUIET = """
import socket, sys
def refuse(*a, **k): raise AssertionError(f"reached for the network: {a}")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from yolods import compat
from yolods.commands.running import prepare_libraries
compat.prepare()
prepare_libraries()
import deepspeed, matplotlib.pyplot, ultralytics
from ultralytics.models.yolo.detect import DetectionValidator
from yolods.compat import use_local_font
use_local_font()
from ultralytics.utils.checks import check_font
from ultralytics.utils import plotting
assert check_font("Arial.ttf").is_file() and check_font("Arial.Unicode.ttf").is_file()
assert plotting.check_font is compat.local_font
"""


@pytest.mark.process
def test_importing_everything_is_quiet_offline_and_leaves_the_home_alone(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    names = (*SIDE_FILES, "YOLO_OFFLINE", "YOLO_AUTOINSTALL", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    variables = {name: value for name, value in os.environ.items() if name not in names}
    variables |= {
        "HOME": str(home),
        "YOLODS_CACHE": str(tmp_path / "cache"),
        "DS_ACCELERATOR": "cpu",
    }
    script = [sys.executable, "-c", QUIET]
    done = subprocess.run(
        script,
        env=variables,
        capture_output=True,
        text=True,
        timeout=90,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    # torch and DeepSpeed look for a home for compiled code; nothing may be put there.
    assert [str(path) for path in home.rglob("*") if path.is_file()] == []


def test_torchvision_or_its_stand_in_suppresses_boxes():
    compat.stand_in_for_torchvision()
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
    assert kept.tolist() == [0, 2]
    assert compat.stand_in_for_torchvision() in (False, torchvision.__version__.endswith("standin"))


def test_the_file_that_is_there_is_not_searched_for(monkeypatch):
    from ultralytics.utils import LOGGER, downloads

    def fail(*_, **__):
        raise AssertionError("searched")

    monkeypatch.setattr(downloads, "attempt_download_asset", fail)
    with compat.local_checkpoints():
        assert downloads.attempt_download_asset("it's/yolov5s.pt") == "it's/yolov5s.pt"
        assert LOGGER.disabled
    assert downloads.attempt_download_asset is fail
    assert not LOGGER.disabled


def test_ultralytics_still_renames_files():
    """Once this fails, `local_checkpoints` may go."""
    from ultralytics.utils import downloads

    source = downloads.attempt_download_asset.__code__.co_names
    assert "check_yolov5u_filename" in source


def test_values_stay_in_the_file_and_are_found_there(tmp_path):
    import torch
    from ultralytics.nn import tasks

    theirs, path = tasks.torch_load, tmp_path / "a.pt"
    values = torch.arange(100.0)
    torch.save({"weights": values}, path)
    with compat.values_left_in_file():
        found = tasks.torch_load(str(path), map_location="cpu", weights_only=True)["weights"]
    assert tasks.torch_load is theirs
    assert found.is_meta and found.shape == (100,)
    start = compat.place_in_file(found)
    assert path.read_bytes()[start : start + 400] == values.numpy().tobytes()


def test_ultralytics_still_loads_checkpoints_to_the_cpu_only():
    """Once this fails, `values_left_in_file` may go."""
    import inspect

    from ultralytics.nn.tasks import torch_safe_load

    assert "map_location" not in inspect.signature(torch_safe_load).parameters


def test_only_the_warning_of_optimizers_is_dropped(caplog):
    logger = logging.getLogger("DeepSpeed")
    compat.accept_torch_optimizers()
    compat.accept_torch_optimizers()
    assert logger.filters.count(compat._no_warning_of_optimizers) == 1
    propagate, logger.propagate = logger.propagate, True
    try:
        logger.warning(
            "**** You are using ZeRO with an untested optimizer, proceed with caution *****"
        )
        logger.warning("another warning")
    finally:
        logger.propagate = propagate
        logger.removeFilter(compat._no_warning_of_optimizers)
    # Once or more: it depends on who has imported DeepSpeed before, and set its logger up.
    assert {record.message for record in caplog.records} == {"another warning"}


def test_deepspeed_still_warns_of_optimizers():
    """Once this fails, `accept_torch_optimizers` may go, or its words have changed."""
    import inspect

    from deepspeed.runtime import engine

    assert "You are using ZeRO with an untested optimizer" in inspect.getsource(engine)


def test_deepspeed_builds_nothing_ahead_of_need():
    import deepspeed.ops

    kept = deepspeed.ops.__compatible_ops__
    try:
        compat.skip_needless_builds()
        assert deepspeed.ops.__compatible_ops__ == {}
    finally:
        deepspeed.ops.__compatible_ops__ = kept


class FullDisk:
    """What TensorBoard's thread writes to."""

    def write(self, data: bytes) -> None:
        raise OSError(28, "No space left on device")


def written_to_a_full_disk(capfd) -> str:
    """What the screen shows when TensorBoard's thread has failed; its error waits for the next
    write."""
    from tensorboard.summary.writer.event_file_writer import _AsyncWriter

    writer = _AsyncWriter(FullDisk(), flush_secs=1)
    with suppress(OSError):  # told at once where the thread is that quick
        writer.write(b"point")
    writer._worker.join(10)
    with pytest.raises(OSError, match="No space left"):
        writer.write(b"point")
    return capfd.readouterr().err


def test_a_full_disk_is_told_by_the_next_write_alone(capfd, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    compat.leave_failures_to_the_next_write()
    assert written_to_a_full_disk(capfd) == ""
    other = threading.Thread(target=lambda: 1 / 0)
    other.start()
    other.join()
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_tensorboard_still_tells_twice(capfd, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    assert "No space left" in written_to_a_full_disk(capfd), "the workaround is no longer needed"


def test_torchs_nccl_backend_ends_no_rank_before_the_watchdog_has_spoken():
    found = {}
    compat.leave_lost_ranks_to_the_watchdog(found)
    assert found == {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
        "TORCH_NCCL_ENABLE_MONITORING": "0",
        "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
    }
    theirs = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1", "TORCH_NCCL_ENABLE_MONITORING": "1"}
    compat.leave_lost_ranks_to_the_watchdog(given := dict(theirs))
    assert {name: given[name] for name in theirs} == theirs
    compat.leave_lost_ranks_to_the_watchdog(old := {"NCCL_ASYNC_ERROR_HANDLING": "1"})
    assert "TORCH_NCCL_ASYNC_ERROR_HANDLING" not in old


def test_the_installed_torch_still_reads_what_keeps_its_nccl_backend_quiet():
    import torch

    header = (
        Path(torch.__file__).parent / "include/torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp"
    )
    compat.leave_lost_ranks_to_the_watchdog(names := {})
    text = header.read_text(encoding="utf-8")
    assert all(f'"{name}"' in text for name in names)
    assert "NoHandling = 0" in text


def test_ultralytics_is_muted_for_a_while_and_after_a_failure_speaks_again():
    from ultralytics.utils import LOGGER

    with suppress(ZeroDivisionError), compat.quiet_ultralytics():
        assert LOGGER.disabled
        raise ZeroDivisionError
    assert not LOGGER.disabled


def test_damaged_images_meet_pillows_own_open_and_ultralytics_still_replaces_it():
    """Once the last line fails, `image_opener` may go."""
    from PIL import Image
    from ultralytics.utils import patches

    assert compat.image_opener("a.jpg").__module__ == "PIL.Image"
    assert compat.image_opener("a.HEIC") is Image.open
    assert Image.open.__module__ == patches.__name__


def test_ultralytics_has_the_private_steps_that_are_taken_from_it():
    from ultralytics.models.yolo.detect import DetectionValidator
    from ultralytics.nn.modules.head import Detect

    assert hasattr(DetectionValidator, "_prepare_batch") and hasattr(
        DetectionValidator, "_process_batch"
    )
    assert hasattr(Detect, "_inference")


def test_activations_are_no_longer_shared_and_weights_stay_the_same_objects():
    from torch import nn

    shared, linear = nn.SiLU(), nn.Linear(2, 2)
    net = nn.Sequential(nn.Sequential(linear, shared), nn.Sequential(linear, shared))
    compat.own_shared_modules(net)
    assert net[0][1] is not net[1][1] and isinstance(net[0][1], nn.SiLU)
    assert net[0][0] is linear and net[1][0] is linear


def test_ultralytics_convolutions_still_share_one_activation():
    """Once this fails, `own_shared_modules` may go."""
    from ultralytics.nn.modules.conv import Conv

    assert Conv(1, 1).act is Conv(1, 1).act


class Scaled:
    """A DeepSpeed optimizer with all that has to do with scales."""

    def __init__(self):
        self.torch_autocast_gradscaler, self.loss_scaler = object(), object()


@pytest.mark.parametrize("optimizer", [Scaled(), SimpleNamespace()])
def test_deepspeeds_engine_neither_clips_nor_scales(optimizer):
    engine = SimpleNamespace(optimizer=optimizer, torch_autocast_z0_gradscaler=object())
    engine.clip_fp32_gradients = lambda: 1 / 0
    scale, had = object(), set(vars(optimizer))
    compat.leave_norm_and_scale_to_us(engine, scale)
    assert engine.clip_fp32_gradients() is None
    assert engine.torch_autocast_z0_gradscaler is None
    assert vars(optimizer) == (
        {"torch_autocast_gradscaler": None, "loss_scaler": scale} if had else {}
    )


def test_deepspeed_still_clips_and_scales_under_the_names_that_are_replaced():
    folder = Path(importlib.util.find_spec("deepspeed").origin).parent / "runtime"
    engine = (folder / "engine.py").read_text(encoding="utf-8")
    assert "self.clip_fp32_gradients()" in engine and "self.torch_autocast_z0_gradscaler" in engine
    for file in ("stage_1_and_2.py", "stage3.py"):
        text = (folder / "zero" / file).read_text(encoding="utf-8")
        assert "self.torch_autocast_gradscaler.update()" in text and "self.loss_scaler" in text


def pointwise_gradient():
    """A gradient (4, 3, 1, 1) in channels-last, as a GPU computes it; it counts as contiguous all
    the same."""
    gradient = torch.arange(12.0).reshape(4, 3, 1, 1).as_strided((4, 3, 1, 1), (3, 1, 3, 3))
    assert gradient.is_contiguous()
    return gradient


@pytest.mark.parametrize("place", ["engine", "optimizer"])
def test_a_bucket_of_one_gradient_is_reduced_whatever_its_strides(place):
    owner = SimpleNamespace(flatten=_flatten_dense_tensors)
    engine = owner if place == "engine" else SimpleNamespace(optimizer=owner)
    engine.__dict__.setdefault("optimizer", SimpleNamespace())
    compat.keep_lone_gradients_apart(engine)
    plain, other = torch.ones(2, 2), pointwise_gradient()
    (back,) = _unflatten_dense_tensors(owner.flatten([other]) * 2, [other])
    assert back.flatten().tolist() == [2.0 * number for number in range(12)]
    other.copy_(_unflatten_dense_tensors(owner.flatten([other]), [other])[0])
    assert other.flatten().tolist() == list(range(12))
    assert (
        owner.flatten([plain]).data_ptr() == plain.data_ptr()
    )  # where it does no harm nothing is copied
    assert owner.flatten([plain, other]).tolist() == [1.0] * 4 + list(range(12))


def test_torch_still_refuses_to_copy_a_lone_gradient_onto_itself():
    """Once this fails, `keep_lone_gradients_apart` may go."""
    gradient = pointwise_gradient()
    (synced,) = _unflatten_dense_tensors(_flatten_dense_tensors([gradient]), [gradient])
    with pytest.raises(RuntimeError, match="single memory location"):
        gradient.copy_(synced)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checksum_sees_one_bit_and_two_values_that_changed_places(dtype):
    weights = [torch.randn(5, 3).to(dtype), torch.randn(7).to(dtype)]
    expected = compat.weights_checksum(weights)
    assert torch.equal(expected, compat.weights_checksum([each.clone() for each in weights]))
    changed = [each.clone() for each in weights]
    changed[1].view(torch.int16)[-1] ^= 1
    assert not torch.equal(expected, compat.weights_checksum(changed))
    swapped = [weights[0].clone(), weights[1].clone()]
    swapped[0].view(-1)[3], swapped[1][2] = weights[1][2], weights[0].view(-1)[3]
    assert not torch.equal(expected, compat.weights_checksum(swapped))
    assert torch.equal(compat.weights_checksum([]), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("equal", [True, False])
def test_weights_are_broadcast_only_where_ranks_differ(monkeypatch, equal):
    from deepspeed.runtime.engine import DeepSpeedEngine

    told, broadcast = [], []

    def gather(found, mine, group):
        found.copy_(torch.cat((mine, mine if equal else mine + 1)))

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_into_tensor", gather)
    monkeypatch.setattr(DeepSpeedEngine, "_broadcast_model", broadcast.append)
    engine = SimpleNamespace(module=torch.nn.Linear(2, 3), seq_data_parallel_group=None)
    with compat.equal_weights_stay(told.append):
        DeepSpeedEngine._broadcast_model(engine)
    assert (broadcast, len(told)) == (([], 0) if equal else ([engine], 1))
    assert DeepSpeedEngine._broadcast_model == broadcast.append


def test_deepspeed_still_broadcasts_every_parameter():
    """Once this fails, `equal_weights_stay` may go."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    text = inspect.getsource(DeepSpeedEngine._broadcast_model)
    assert "for n, p in self.module.named_parameters():" in text and "dist.broadcast" in text


def test_a_launcher_starts_processes_and_sets_handlers_through_what_it_is_lent():
    launcher = SimpleNamespace(subprocess=subprocess, signal=None)
    compat.lend(launcher, "processes", "signals")
    assert vars(launcher) == {"subprocess": "processes", "signal": "signals"}


@pytest.mark.parametrize("name", ["runner", "launch"])
def test_deepspeeds_launchers_still_start_processes_by_the_names_that_are_lent(name):
    folder = Path(importlib.util.find_spec("deepspeed").origin).parent / "launcher"
    text = (folder / f"{name}.py").read_text(encoding="utf-8")
    assert "subprocess.Popen(" in text and "signal.signal(" in text


def test_the_command_that_kills_is_changed_and_the_other_is_not():
    class Runner:
        def get_cmd(self, environment, resources):
            return ["start"], ["kill"], environment

    compat.change_kill_command(Runner, lambda kill: [*kill, "gently"])
    assert Runner().get_cmd({"A": "1"}, {}) == (["start"], ["kill", "gently"], {"A": "1"})


def test_every_name_of_a_collective_leads_to_the_wrapped_one(monkeypatch):
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    for module in (dist, distributed_c10d):
        monkeypatch.setattr(module, "barrier", print)
    monkeypatch.setattr(dist.Work, "wait", len)
    compat.wrap_collectives(["barrier"], lambda function: ("wrapped", function))
    assert dist.barrier is distributed_c10d.barrier == ("wrapped", print)
    assert dist.Work.wait == ("wrapped", len)


def test_workers_of_a_loader_are_ended_and_a_loader_without_any_is_left():
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    data = TensorDataset(torch.zeros(4, 1))
    compat.end_workers(iter(DataLoader(data)))
    batches = iter(DataLoader(data, num_workers=1))
    compat.end_workers(batches)
    assert [worker.is_alive() for worker in batches._workers] == [False]


def test_only_a_loader_s_process_gets_memory_that_is_shared():
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Made(Dataset):
        def __getitem__(self, place):
            made = compat.loader_memory(2, 3)
            return made.fill_(place), made.is_shared()

        def __len__(self):
            return 2

    for workers in (0, 1):
        batches = [*DataLoader(Made(), batch_size=None, num_workers=workers)]
        assert [shared for _, shared in batches] == [bool(workers)] * 2
        for place, (made, _) in enumerate(batches):
            assert made.dtype == torch.uint8 and made.tolist() == [[place] * 3] * 2


def test_a_transform_draws_its_partners_as_it_is_told():
    from ultralytics.data.augment import Mosaic

    mosaic = Mosaic(type("Set", (), {"cache": "ram", "__len__": lambda self: 9})(), imgsz=64)
    compat.draw_partners(mosaic, lambda own: ["drawn", len(own())])
    assert mosaic.get_indexes() == ["drawn", 3]


def test_a_storage_is_told_from_others_where_data_is_at_no_address():
    import torch

    one, other = torch.empty(4, device="meta"), torch.empty(4, device="meta")
    assert (
        compat.storage_key(one) == compat.storage_key(one.view(2, 2)) != compat.storage_key(other)
    )
    assert one.data_ptr() == other.data_ptr(), "the workaround is no longer needed"


def test_torch_notes_where_a_tensor_is_that_it_left_in_its_file(tmp_path):
    import torch

    torch.save({"a": torch.zeros(5), "b": torch.arange(3.0)}, tmp_path / "a.pt")
    left = torch.load(tmp_path / "a.pt", map_location="meta")
    begin = compat.place_in_file(left["b"])
    content = (tmp_path / "a.pt").read_bytes()
    assert content[begin : begin + 12] == torch.arange(3.0).numpy().tobytes()
    assert compat.place_in_file(torch.zeros(1)) is None
