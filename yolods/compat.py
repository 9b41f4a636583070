"""All workarounds for dependencies, each with its reason and the version in which it was seen.

`prepare()` must run before ultralytics, matplotlib or deepspeed are imported; the command line
calls it first.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolods.errors import OwnError
from yolods.system.folders import cache_dir, ultralytics_folders

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor, nn


def prepare() -> None:
    """Redirect the dependencies' side files to our cache, and keep them off the network.

    Raises:
        OwnError: the cache cannot be created or written.
    """
    leave_closed_folders_off_the_path(os.environ)
    cache = cache_dir()
    # ultralytics 8.4.190 resolves two public host names during its import, writes settings.json to
    # ~/.config and downloads fonts; matplotlib writes ~/.config/matplotlib; torch builds extensions
    # in ~/.cache.
    _unless_set("YOLO_OFFLINE", "true")
    _unless_set("YOLO_CONFIG_DIR", str(cache))
    # It also wraps PIL's `Image.open`, so that a damaged image makes it pip-install a decoder.
    _unless_set("YOLO_AUTOINSTALL", "false")
    _unless_set("MPLCONFIGDIR", str(cache / "matplotlib"))
    # Figures go to files. A notebook or desktop may have set a backend that this Python lacks.
    os.environ["MPLBACKEND"] = "Agg"
    _unless_set("TORCH_EXTENSIONS_DIR", str(cache / "torch_extensions"))
    _unless_set("TRITON_CACHE_DIR", str(cache / "triton"))
    # torch 2.13's stores and gloo print 20 lines of C++ frames per rank about a lost connection,
    # which the watchdog reports in one line.
    _unless_set("TORCH_CPP_LOG_LEVEL", "ERROR")
    for variable in ("YOLO_CONFIG_DIR", "MPLCONFIGDIR"):
        _make_writable(Path(os.environ[variable]), variable, cache)


def _unless_set(name: str, value: str) -> None:
    """Set a variable that is unset or empty: libraries take "" for the current folder."""
    os.environ[name] = os.environ.get(name) or value


def _make_writable(folder: Path, variable: str, cache: Path) -> None:
    """Create the folder that a variable names; raises OwnError if it cannot be written."""
    remedy = (
        f"set {'YOLODS_CACHE' if folder.is_relative_to(cache) else variable} to a writable folder"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OwnError(f"cannot create {folder}: {error.strerror or error}; {remedy}") from None
    # Otherwise ultralytics and matplotlib would silently use another folder.
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OwnError(f"cannot write to {folder}; {remedy}")


def stand_in_for_torchvision() -> bool:
    """Make `import torchvision` succeed where it fails; True if the replacement is used.

    Seen with torch 2.13.0+cpu and torchvision 0.28.0 from the package index: "operator
    torchvision::nms does not exist". ultralytics' validator imports torchvision only for `ops.nms`,
    and its own TorchNMS returns the same boxes. Unused as soon as the first `import` below
    succeeds, which every start tries.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        # The failed import leaves parts of the package behind, which would break later imports.
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        from ultralytics.utils.nms import TorchNMS

        module = types.ModuleType("torchvision")
        module.__version__ = "0.0.0+yolods.standin"
        module.__spec__ = importlib.util.spec_from_loader("torchvision", loader=None)
        module.ops = types.SimpleNamespace(nms=TorchNMS.nms)
        sys.modules["torchvision"] = module
        return True
    return False


def skip_needless_builds() -> None:
    """Keep DeepSpeed from compiling its shared-memory collective when it starts on a CPU.

    Seen with deepspeed 0.19.8: on the first start `init_distributed` builds `deepspeed_shm_comm`
    for 50-100 s, although gloo does the same work without it, and probes the compiler for every op.
    DeepSpeed consults the table `deepspeed.ops.__compatible_ops__` before it builds; an empty table
    means that nothing is built ahead of need. A builder that is needed (CPUAdam under offload) is
    loaded directly, without the table.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}


def leave_closed_folders_off_the_path(environ: MutableMapping[str, str]) -> None:
    """Remove folders from PATH that this user may not enter, such as root's after a change of user.

    Seen with deepspeed 0.19.8: it calls `numactl` and handles its absence (FileNotFoundError), but
    with such a folder on PATH a missing command raises PermissionError.
    """
    folders = environ.get("PATH", "").split(os.pathsep)
    entered = [folder for folder in folders if not _is_closed(folder)]
    if len(entered) < len(folders):
        environ["PATH"] = os.pathsep.join(entered)


def _is_closed(folder: str) -> bool:
    try:
        os.stat(os.path.join(folder, "."))
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def forget_mpi(environ: MutableMapping[str, str]) -> None:
    """Keep DeepSpeed from comparing a rank with mpirun's variables.

    Values that count were copied before (`rank_env.complete_environment`).

    Seen with deepspeed 0.19.8: `_configure_with_arguments` asserts that OMPI_COMM_WORLD_LOCAL_RANK
    equals LOCAL_RANK. In a shell that mpirun has started, the former belongs to the shell.
    """
    for name in [name for name in environ if name.startswith("OMPI_COMM_WORLD_")]:
        del environ[name]


def leave_lost_ranks_to_the_watchdog(environ: MutableMapping[str, str]) -> None:
    """Keep torch's NCCL backend from ending ranks before the watchdog reports which one is lost.

    Seen with torch 2.13 (ProcessGroupNCCL.hpp). When a rank dies, a thread of each remaining rank
    raises, which ends it with C++ frames (TORCH_NCCL_ASYNC_ERROR_HANDLING, 3 by default). If that
    thread is blocked for eight minutes, which is less than the first steps may take, another thread
    ends the process (TORCH_NCCL_ENABLE_MONITORING). It also raises CUDA errors that the main thread
    meets as well and reports with their place (TORCH_NCCL_RETHROW_CUDA_ERRORS). The watchdog
    (watchdog/watchdog.py) detects each of these cases and ends the run. The user's own values stay.
    """
    if "NCCL_ASYNC_ERROR_HANDLING" not in environ:  # the variable's old name
        environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
    environ.setdefault("TORCH_NCCL_RETHROW_CUDA_ERRORS", "0")


def torch_ends_lost_ranks(environ: Mapping[str, str]) -> bool:
    """Whether torch's NCCL backend ends ranks that lost another one, at the user's request."""
    asked = environ.get(
        "TORCH_NCCL_ASYNC_ERROR_HANDLING", environ.get("NCCL_ASYNC_ERROR_HANDLING", "0")
    )
    return asked != "0"


def take_gpus_by_name(environ: Mapping[str, str]) -> None:
    """Let DeepSpeed query GPU memory if CUDA_VISIBLE_DEVICES contains names.

    Seen with deepspeed 0.19.8: with pynvml installed, `available_memory` converts the parts of the
    variable to numbers, and ZeRO-1 calls it. Without pynvml it asks torch. Call this after
    DeepSpeed has chosen its accelerator.
    """
    if not all(
        part.isdigit() for part in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part
    ):
        from deepspeed.accelerator import cuda_accelerator

        cuda_accelerator.pynvml = None


def accept_torch_optimizers() -> None:
    """Suppress DeepSpeed's warning of an untested optimizer. Repeated calls change nothing.

    Seen with deepspeed 0.19.8: under ZeRO it warns of SGD and every other torch optimizer except
    Adam, although our JSON sets `zero_allow_untested_optimizer`. tests/parity has tested them.
    """
    logger = logging.getLogger("DeepSpeed")
    if _no_warning_of_optimizers not in logger.filters:
        logger.addFilter(_no_warning_of_optimizers)


def _no_warning_of_optimizers(record: logging.LogRecord) -> bool:
    return "ZeRO with an untested optimizer" not in str(record.msg)


def print_to_the_log() -> None:
    """Send DeepSpeed's prints to its logger, and so to train.log. Repeated calls change nothing.

    Seen with deepspeed 0.19.8: `wall_clock_breakdown`, `memory_breakdown` and `comms_logger` print
    between the lines of the epochs, at any log level. The flops profiler prints, too, but accepts a
    file.
    """
    from deepspeed.runtime import utils
    from deepspeed.utils import comms_logging
    from deepspeed.utils import logging as theirs

    for module in (utils, theirs, comms_logging):
        # A module's global name comes before the built-in one, in this module alone.
        module.print = _to_deepspeeds_log


def _to_deepspeeds_log(*words: object, **_: object) -> None:
    logging.getLogger("DeepSpeed").info(" ".join(map(str, words)))


_earlier_hook = threading.excepthook


def leave_failures_to_the_next_write() -> None:
    """Suppress the traceback of TensorBoard's writer thread. Repeated calls change nothing.

    Seen with tensorboard 2.21: on a full disk the thread keeps the error for the next call that
    writes, which reports it in one line, but the thread also raises it.
    """
    global _earlier_hook
    if threading.excepthook is not _of_other_threads:
        _earlier_hook, threading.excepthook = threading.excepthook, _of_other_threads


def _of_other_threads(failure: threading.ExceptHookArgs) -> None:
    if type(failure.thread).__name__ != "_AsyncWriterThread":
        _earlier_hook(failure)


@contextmanager
def local_checkpoints() -> Iterator[None]:
    """Make ultralytics load exactly the given file, without the network and without messages.

    Seen with ultralytics 8.4.190: `torch_safe_load` removes quotes from a path and reads
    `yolov5s.pt` as `yolov5su.pt`, looks for a file of the new name on github, and warns before it
    raises. Unnecessary once it uses an existing path unchanged.
    """
    from ultralytics.utils import downloads

    theirs, downloads.attempt_download_asset = downloads.attempt_download_asset, str
    try:
        with quiet_ultralytics():
            yield
    finally:
        downloads.attempt_download_asset = theirs


@contextmanager
def values_left_in_file() -> Iterator[None]:
    """Make ultralytics load a checkpoint on the meta device, without reading a tensor's values.

    `place_in_file` tells where the values are. Where torch does not note that (`notes_places`), the
    file is mapped instead. Seen with ultralytics 8.4.190: `torch_safe_load` passes
    `map_location="cpu"` to `torch.load` and has no parameter for it. Unnecessary once it has.
    """
    from ultralytics.nn import tasks

    ours = {"map_location": "meta"} if notes_places() else {"mmap": True}
    theirs = tasks.torch_load
    tasks.torch_load = lambda file, **settings: theirs(file, **{**settings, **ours})
    try:
        yield
    finally:
        tasks.torch_load = theirs


@contextmanager
def quiet_ultralytics() -> Iterator[None]:
    """Silence ultralytics.

    Seen with ultralytics 8.4.190: Albumentations lists its transforms once per rank and pipeline,
    and a damaged checkpoint causes a warning before the error. No argument disables either.
    """
    from ultralytics.utils import LOGGER

    muted, LOGGER.disabled = LOGGER.disabled, True
    try:
        yield
    finally:
        LOGGER.disabled = muted


def image_opener(file: str) -> Callable[..., Image.Image]:
    """Pillow's own `Image.open`, except for HEIC.

    Seen with ultralytics 8.4.190: it replaces `Image.open` by a function that takes a damaged file
    for HEIC and tries to install a decoder. Unnecessary once it leaves Pillow's function in place.
    """
    from PIL import Image
    from ultralytics.utils import patches

    if file.lower().endswith((".heic", ".heif")):
        return Image.open
    return getattr(patches, "_image_open", Image.open)


def skip_own_decoding(head: nn.Module) -> None:
    """Make a Detect head return (None, raw outputs) in evaluation mode.

    Seen with ultralytics 8.4.190: the head decodes boxes in its own dtype, and yolods does not use
    them. On a device, the host waits nine times for images whose shape differs from the last ones.
    """
    head._inference = lambda raw: None


def labels_of(validator: Any, place: int, batch: dict[str, Any]) -> dict[str, Any]:
    """The labels of one image of a batch, as ultralytics' validator matches them with boxes.

    Seen with ultralytics 8.4.190: this and `matches` are the validator's own steps, without public
    names. Using them makes mAP equal to ultralytics' own.
    """
    return validator._prepare_batch(place, batch)


def matches(validator: Any, prediction: dict[str, Tensor], labels: dict[str, Any]) -> np.ndarray:
    """Which boxes of an image are correct: (boxes, IoU thresholds) bool. See `labels_of`."""
    return validator._process_batch(prediction, labels)["tp"]


UNICODE_FONT = "Arial.Unicode.ttf"
"""The font that ultralytics requests for text with characters beyond ASCII."""
_unicode_font: Path | None = None


def local_font(font: str = "Arial.ttf") -> Path:
    """The file of a font, or of a substitute that is on this machine; without the network.

    For `UNICODE_FONT` this is the file given to `use_local_font`. Otherwise it is the one that
    ultralytics would find itself, in its settings folder or among the system's fonts. The last
    resort is DejaVu Sans, which every matplotlib includes: it has Latin, Greek, Cyrillic and
    Arabic, but no Chinese, Japanese or Korean.

    Args:
        font: name or path of the font file that ultralytics requests.
    """
    import matplotlib
    from matplotlib import font_manager
    from ultralytics.utils import USER_CONFIG_DIR

    name = Path(font).name
    if name == UNICODE_FONT and _unicode_font is not None:
        return _unicode_font
    for folder in (Path(USER_CONFIG_DIR), *ultralytics_folders()):
        if (folder / name).is_file():
            return folder / name
    for entry in font_manager.fontManager.ttflist:
        # As ultralytics matches it; the file may be gone, because the list is a cache.
        if name in entry.fname and Path(entry.fname).is_file():
            return Path(entry.fname)
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def use_local_font(unicode_font: Path | None = None) -> None:
    """Make ultralytics look fonts up with `local_font`, and set the font for non-ASCII text.

    Seen with ultralytics 8.4.190: `check_font` requests Arial.ttf from github, and its callers
    (`plotting.Annotator`, `data.utils.check_det_dataset`) have no parameter for another file.
    Therefore this replaces the name `check_font` in each module that uses it.

    Args:
        unicode_font: the file for `UNICODE_FONT`; None keeps the one given before, if any.
    """
    from ultralytics.data import utils as data_utils
    from ultralytics.utils import checks, plotting

    global _unicode_font
    _unicode_font = unicode_font or _unicode_font
    for module in (checks, plotting, data_utils):
        module.check_font = local_font


@contextmanager
def downloads_to(folder: Path) -> Iterator[None]:
    """Make ultralytics look for data sets in `folder`, and download them there.

    Seen with ultralytics 8.4.190: `check_det_dataset` uses the folder of the settings that were
    read at its import, which are those of our cache, and has no parameter for another.
    """
    from ultralytics.data import utils

    theirs, utils.DATASETS_DIR = utils.DATASETS_DIR, folder
    try:
        yield
    finally:
        utils.DATASETS_DIR = theirs


def import_muon_uncompiled() -> None:
    """Let DeepSpeed test whether an optimizer is Muon without loading torch's compiler.

    Seen with deepspeed 0.19.8: for that test ZeRO 1 to 3 import their Muon, whose `@compile` loads
    Inductor, which takes 0.8 s in every rank. yolods refuses Muon, so nothing needs the compiled
    function. Without effect once the import no longer calls `torch.compile`.
    """
    import torch

    kept = torch.compile
    torch.compile = lambda function=None, **_: (
        function if function is not None else (lambda inner: inner)
    )
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    except ImportError:  # another version of DeepSpeed has it elsewhere, or not at all
        pass
    finally:
        torch.compile = kept


def own_shared_modules(net: nn.Module) -> None:
    """Give every layer its own copies of modules without parameters, such as activations.

    All of ultralytics' convolutions share one activation, an attribute of their class. DeepSpeed's
    ZeRO-3 registers its hooks on a module once per parent (0.19.8, zero/parameter_offload.py). With
    one SiLU under all N convolutions, N sets of hooks run N times per forward pass: a step of
    YOLOv5n at 64 pixels took 1.5 s of CPU time instead of 0.3 s, and the first step, which records
    the order of the modules, 15 s instead of 2 s. Every other model in the process shared this SiLU
    and its hooks, and could not be pickled.
    """
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if not any(True for _ in child.parameters()):
                setattr(parent, name, deepcopy(child))


def leave_norm_and_scale_to_us(engine: Any, scale: Any) -> None:
    """Keep a DeepSpeed engine from clipping, and replace its loss scale by ours.

    Seen with deepspeed 0.19.8: without ZeRO it clips in fp32 although we have clipped already
    (runtime/engine.py, `clip_fp32_gradients`). Under torch_autocast it uses torch's GradScaler,
    clips gradients that are still scaled, and does not reach the scaler's `update` after an
    overflow: with ZeRO 1 to 3 it then skips every later step (zero/stage_1_and_2.py and
    zero/stage3.py, `step`).

    Args:
        engine: the result of `deepspeed.initialize`.
        scale: a `LossScale`. Without loss scaling it is one that stays at 1, because DeepSpeed's
            own would count a skipped step in fp32 as an overflow.
    """
    engine.clip_fp32_gradients = lambda: None
    engine.torch_autocast_z0_gradscaler = None
    if hasattr(engine.optimizer, "torch_autocast_gradscaler"):
        engine.optimizer.torch_autocast_gradscaler = None
    if hasattr(engine.optimizer, "loss_scaler"):
        engine.optimizer.loss_scaler = scale


def keep_lone_gradients_apart(engine: Any) -> None:
    """Let DeepSpeed reduce a bucket of one gradient whose memory format is not the plain one.

    Seen with deepspeed 0.19.8: it flattens a bucket, reduces it, and copies the result back into
    the gradients (runtime/engine.py, `allreduce_and_copy`, and zero/stage_1_and_2.py). The flat
    form of a single gradient is a view of it. That of a 1x1 convolution may have the strides of
    channels-last, and torch refuses a copy between two views of one memory with different strides.
    GPUs and CPUs with bf16 instructions compute such gradients.

    Args:
        engine: the result of `deepspeed.initialize`.
    """
    for owner in (engine, engine.optimizer):
        if hasattr(owner, "flatten"):
            owner.flatten = _apart(owner.flatten)


def _apart(flatten: Callable[[Sequence[Tensor]], Tensor]) -> Callable[[Sequence[Tensor]], Tensor]:
    def flat(tensors: Sequence[Tensor]) -> Tensor:
        joined = flatten(tensors)
        if len(tensors) == 1 and joined.view(tensors[0].shape).stride() != tensors[0].stride():
            return joined.clone()
        return joined

    return flat


@contextmanager
def equal_weights_stay(told: Callable[[str], None]) -> Iterator[None]:
    """Let `deepspeed.initialize` broadcast rank 0's weights only where the ranks' weights differ.

    Seen with deepspeed 0.19.8: without ZeRO-3 it broadcasts every parameter, one call each, 220 for
    YOLOv5n (runtime/engine.py, `_broadcast_model`). All ranks have built the same weights from the
    same seed or file; a checksum of 16 bytes per rank confirms it.

    Args:
        told: gets a line if they differ; then DeepSpeed broadcasts as before.
    """
    from deepspeed.runtime.engine import DeepSpeedEngine

    theirs = DeepSpeedEngine._broadcast_model

    def unless_equal(engine: Any) -> None:
        if _are_equal(list(engine.module.parameters()), engine.seq_data_parallel_group):
            return
        told("the ranks have built different weights; all ranks take those of rank 0")
        theirs(engine)

    DeepSpeedEngine._broadcast_model = unless_equal
    try:
        yield
    finally:
        DeepSpeedEngine._broadcast_model = theirs


def _are_equal(tensors: Sequence[Tensor], group: Any) -> bool:
    """Whether all ranks of a group have the same values. A collective."""
    import torch.distributed as dist

    mine = weights_checksum(tensors)
    found = mine.new_empty(dist.get_world_size(group) * 2)
    dist.all_gather_into_tensor(found, mine, group=group)
    return bool((found.view(-1, 2) == mine).all())


def weights_checksum(tensors: Sequence[Tensor]) -> Tensor:
    """Two sums over the bits of contiguous tensors, modulo 2 ** 64: (2,) int64 on their device.

    Their elements, of 2 or 4 bytes each, are added as integers. The second sum multiplies every
    element by its position, so that it also notices values in other places, as in Adler-32.
    """
    import torch

    device = tensors[0].device if tensors else None
    total = torch.zeros(2, dtype=torch.int64, device=device)
    first = 1
    for tensor in tensors:
        bits = tensor.detach().view(-1).view({2: torch.int16, 4: torch.int32}[tensor.itemsize])
        # In pieces, which bounds the memory of the products.
        for piece in bits.split(_SUMMED):
            place = torch.arange(first, first + len(piece), device=device)
            total += torch.stack((piece.sum(), (piece * place).sum()))
            first += len(piece)
    return total


_SUMMED = 1 << 20


def lend(launcher: Any, subprocess: Any, signal: Any) -> None:
    """Give one of DeepSpeed's launchers other modules for processes and signals.

    Seen with deepspeed 0.19.8: `deepspeed.launcher.runner` and `.launch` import both from the
    standard library and accept no replacement. launch/deepspeed_runner.py and
    launch/node_launcher.py list what goes wrong with them. Unnecessary once the stock launchers
    pass tests/faults/test_requests.py.
    """
    launcher.subprocess, launcher.signal = subprocess, signal


def change_kill_command(runner: Any, change: Callable[[Sequence[str]], list[str]]) -> None:
    """Pass the command with which DeepSpeed kills ranks on other hosts through `change`.

    Seen with deepspeed 0.19.8: its pattern also matches pdsh and the remote shells, which carry the
    output of ranks that are saving.

    Args:
        runner: the class `deepspeed.launcher.multinode_runner.PDSHRunner`.
    """
    theirs = runner.get_cmd

    def get_cmd(self: Any, environment: Any, resources: Any) -> Any:
        command, kill, environment = theirs(self, environment, resources)
        return command, change(kill), environment

    runner.get_cmd = get_cmd


def wrap_collectives(names: Sequence[str], wrap: Callable[[Any], Any]) -> None:
    """Replace functions of torch.distributed, and `Work.wait`, by `wrap` of each.

    Seen with torch 2.13: it has no callback for the start and the end of a rank's wait for others,
    which any caller may cause.
    """
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    for name in names:
        wrapped = wrap(getattr(distributed_c10d, name))
        # In both modules, because torch compares the functions of one with those of the other.
        for module in (dist, distributed_c10d):
            setattr(module, name, wrapped)
    dist.Work.wait = wrap(dist.Work.wait)


def default_store() -> Any:
    """The store through which the ranks of torch's default process group met.

    Seen with torch 2.13: there is no public way to it, and another store would need a port.
    """
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def place_in_file(tensor: Tensor) -> int | None:
    """Byte at which the memory of a tensor begins in its file, if `torch.load` left it there.

    Seen with torch 2.13: `map_location="meta"` notes it under a private name (their pull request
    147787); earlier versions do not, which gives None. Unnecessary once there is a public name.

    Args:
        tensor: loaded with `map_location="meta"`.
    """
    return getattr(tensor.untyped_storage(), "_checkpoint_offset", None)


@lru_cache
def notes_places() -> bool:
    """Whether this torch notes what `place_in_file` tells."""
    import torch

    file = io.BytesIO()
    torch.save(torch.zeros(1), file)
    file.seek(0)
    return place_in_file(torch.load(file, map_location="meta")) is not None


def draw_partners(mix: Any, draw: Callable[[Callable[[], Any]], Any]) -> None:
    """Let a transform that mixes images draw its partners by `draw`, which gets its own way.

    ultralytics 8.4.190 chooses between a buffer and the whole set, by the set's `cache`.
    """
    mix.get_indexes = lambda: draw(partial(type(mix).get_indexes, mix))


def loader_memory(*shape: int) -> Tensor:
    """An uninitialised uint8 tensor; in a loader's process, in memory that it shares with the main
    process.

    Workers would copy any other tensor there. torch 2.13 has no public function for it; its own
    `default_collate` does this.
    """
    import torch

    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)


def end_workers(batches: Iterator[Any]) -> None:
    """End a DataLoader's worker processes now instead of at garbage collection.

    Seen with torch 2.13: the iterator has no public method for it, and a run may end in `os._exit`,
    which would leave the workers behind. An iterator without workers lacks the private method, too.
    """
    if hasattr(batches, "_shutdown_workers"):
        batches._shutdown_workers()


def storage_key(tensor: Tensor) -> int:
    """Identity of a tensor's storage. Once a storage is freed, another may get the same number.

    Seen with torch 2.13: on the meta device the public `data_ptr` is always 0.
    """
    return tensor.untyped_storage()._cdata


def as_if_on_cpu(kind: type[Any], meta: Any) -> Any:
    """A tensor of a subclass, on a meta tensor's storage, that autograd takes for one on a CPU.

    Seen with torch 2.13: only a private function makes one.
    """
    import torch

    return torch.Tensor._make_subclass(
        kind, meta, False, dispatch_device=True, device_for_backend_keys=torch.device("cpu")
    )


@lru_cache(maxsize=1)
def fake_tensors() -> Any:
    """torch's mode of fake tensors, without torch's compiler.

    Seen with torch 2.13: creating the mode imports the compiler, which takes over a second, to read
    two of its settings.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with without_compiler():
        mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode.cache_enabled = False
    return mode


@contextmanager
def without_compiler() -> Iterator[None]:
    """Within, torch does not import its compiler, which takes over a second, unless it has already.

    Seen with torch 2.13: dispatch modes, and operations on the meta device that torch wrote in
    Python, tell the compiler to leave them out (torch/_compile.py), and import it for that. What
    runs here for the first time would not be left out of what somebody compiles later, which yolods
    never does.
    """
    name = "torch._dynamo"
    if name in sys.modules:
        yield
        return
    stand_in = types.ModuleType(name)
    stand_in.disable = lambda function, recursive=True, wrapping=True: function
    stand_in.config = types.ModuleType(f"{name}.config")
    # Every setting that operations ask for is off.
    stand_in.config.__getattr__ = lambda setting: None
    modules = {name: stand_in, f"{name}.config": stand_in.config}
    sys.modules |= modules
    try:
        yield
    finally:
        for each in modules:
            del sys.modules[each]


def plain_attributes() -> Any:
    """The `__torch_function__` of a subclass of tensors that changes none of their attributes.

    Seen with torch 2.13: the inherited one makes every attribute cost microseconds.
    """
    import torch

    return torch._C._disabled_torch_function_impl


def next_backward() -> int:
    """Number that autograd will give to the next operation it records; they ascend.

    Seen with torch 2.13: only a private function tells it.
    """
    from torch.autograd import _get_sequence_nr

    return _get_sequence_nr()


def running_backward() -> int | None:
    """Number of the recorded operation whose backward pass runs in this thread; None if none does.

    Seen with torch 2.13: only private functions tell it.
    """
    import torch

    node = torch._C._current_autograd_node()
    return None if node is None else node._sequence_nr()
