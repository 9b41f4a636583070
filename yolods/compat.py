"""The one place that works around a dependency: with the reason, the version seen, and a check that notices the end.

`prepare()` has to run before ultralytics, matplotlib or deepspeed are imported; the command line calls it first.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolods.errors import OwnError
from yolods.system.folders import cache_dir, ultralytics_folders

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor, nn


def prepare() -> None:
    """Point every dependency's side files at our cache and keep all of them off the network.

    Raises:
        OwnError: the cache cannot be made or written.
    """
    leave_closed_folders_off_the_path(os.environ)
    cache = cache_dir()
    # ultralytics 8.4.190 resolves two public host names while it is imported, writes settings.json under
    # ~/.config and downloads fonts; matplotlib writes ~/.config/matplotlib; torch builds extensions in ~/.cache.
    _unless_set("YOLO_OFFLINE", "true")
    _unless_set("YOLO_CONFIG_DIR", str(cache))
    # It also wraps PIL's `Image.open` so that a damaged image makes it try to pip-install a decoder.
    _unless_set("YOLO_AUTOINSTALL", "false")
    _unless_set("MPLCONFIGDIR", str(cache / "matplotlib"))
    # Pictures go to files. What a notebook or a desktop has set may be no backend that this Python has.
    os.environ["MPLBACKEND"] = "Agg"
    _unless_set("TORCH_EXTENSIONS_DIR", str(cache / "torch_extensions"))
    _unless_set("TRITON_CACHE_DIR", str(cache / "triton"))
    # torch 2.13's stores and gloo show C++ frames, 20 lines a rank, of a connection that the watchdog tells of in one.
    _unless_set("TORCH_CPP_LOG_LEVEL", "ERROR")
    for variable in ("YOLO_CONFIG_DIR", "MPLCONFIGDIR"):
        folder = Path(os.environ[variable])
        remedy = f"set {'YOLODS_CACHE' if folder.is_relative_to(cache) else variable} to a folder that can be written"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OwnError(f"{folder} cannot be made: {error.strerror or error}; {remedy}") from None
        if not os.access(folder, os.W_OK | os.X_OK):  # else ultralytics and matplotlib take a place of their own
            raise OwnError(f"{folder} cannot be written; {remedy}")


def _unless_set(name: str, value: str) -> None:
    """An empty value is none: libraries would take it for the folder where the user stands."""
    os.environ[name] = os.environ.get(name) or value


def stand_in_for_torchvision() -> bool:
    """Make `import torchvision` succeed where the installed one cannot; True if the stand-in is used.

    Seen with torch 2.13.0+cpu beside torchvision 0.28.0 from the package index: "operator torchvision::nms does not
    exist". ultralytics' validator imports torchvision only for `ops.nms`; its own TorchNMS gives the same boxes.
    No longer needed once the first `import` below succeeds, which is tried at every start.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
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

    Seen with deepspeed 0.19.8: `init_distributed` builds `deepspeed_shm_comm` for 50-100 s on the first start, although
    gloo does the same work without it, and probes every op's compiler besides. DeepSpeed asks the table
    `deepspeed.ops.__compatible_ops__` before building; an empty one says that nothing is to be built ahead of need.
    A builder that is really needed (CPUAdam under offload) is loaded directly and does not ask the table.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}


def leave_closed_folders_off_the_path(environ: MutableMapping[str, str]) -> None:
    """Take folders that this user may not enter off the PATH, such as root's own after a change of user.

    Seen with deepspeed 0.19.8: it calls `numactl` and is ready for its absence, but with such a folder on the PATH a
    command that is nowhere is "Permission denied".
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
    """Keep DeepSpeed from comparing a rank with what mpirun has said; where that counts, it is written down already.

    Seen with deepspeed 0.19.8: `_configure_with_arguments` asserts that OMPI_COMM_WORLD_LOCAL_RANK is LOCAL_RANK. In a
    shell that mpirun has started the first is that of the shell.
    """
    for name in [name for name in environ if name.startswith("OMPI_COMM_WORLD_")]:
        del environ[name]


def leave_lost_ranks_to_the_watchdog(environ: MutableMapping[str, str]) -> None:
    """Keep torch's NCCL backend from ending ranks before the watchdog has said which one they have lost.

    Seen with torch 2.13 (ProcessGroupNCCL.hpp). When a rank dies, a thread of each that is left raises, which ends it
    with C++ frames (TORCH_NCCL_ASYNC_ERROR_HANDLING, 3 by default). When that thread is held up for eight minutes, less
    than the first steps may take, another ends the process (TORCH_NCCL_ENABLE_MONITORING). And it raises CUDA errors
    that the main thread meets as well, and would tell of with the place (TORCH_NCCL_RETHROW_CUDA_ERRORS). The watchdog
    (watchdog/watchdog.py) sees each of these cases and ends the run. What the user has set stays.
    """
    if "NCCL_ASYNC_ERROR_HANDLING" not in environ:  # its old name
        environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
    environ.setdefault("TORCH_NCCL_RETHROW_CUDA_ERRORS", "0")


def torch_ends_lost_ranks(environ: Mapping[str, str]) -> bool:
    """Whether torch's NCCL backend ends ranks that have lost one: where a user has asked for it."""
    asked = environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", environ.get("NCCL_ASYNC_ERROR_HANDLING", "0"))
    return asked != "0"


def take_gpus_by_name(environ: Mapping[str, str]) -> None:
    """Let DeepSpeed ask a GPU for its memory where CUDA_VISIBLE_DEVICES has names; after it has chosen its accelerator.

    Seen with deepspeed 0.19.8: with pynvml at hand `available_memory` makes numbers of the variable's parts, and ZeRO-1
    asks for it. Without pynvml it asks torch.
    """
    if not all(part.isdigit() for part in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part):
        from deepspeed.accelerator import cuda_accelerator

        cuda_accelerator.pynvml = None


def accept_torch_optimizers() -> None:
    """Keep DeepSpeed's warning of an untested optimizer off the screen; calling it again changes nothing.

    Seen with deepspeed 0.19.8: under ZeRO it warns of SGD and all others of torch's but Adam, although our own JSON
    says `zero_allow_untested_optimizer`. tests/parity is what has tested them.
    """
    logger = logging.getLogger("DeepSpeed")
    if _no_warning_of_optimizers not in logger.filters:
        logger.addFilter(_no_warning_of_optimizers)


def _no_warning_of_optimizers(record: logging.LogRecord) -> bool:
    return "ZeRO with an untested optimizer" not in str(record.msg)


def print_to_the_log() -> None:
    """Make what DeepSpeed prints lines of its logger, and so of train.log; calling it again changes nothing.

    Seen with deepspeed 0.19.8: `wall_clock_breakdown`, `memory_breakdown` and `comms_logger` print, between the lines
    of the epochs, and whatever the level of its logger. The flops profiler prints too, but can be given a file.
    """
    from deepspeed.runtime import utils
    from deepspeed.utils import comms_logging
    from deepspeed.utils import logging as theirs

    for module in (utils, theirs, comms_logging):
        module.print = _to_deepspeeds_log


def _to_deepspeeds_log(*words: object, **_: object) -> None:
    logging.getLogger("DeepSpeed").info(" ".join(map(str, words)))


_earlier_hook = threading.excepthook


def leave_failures_to_the_next_write() -> None:
    """Keep the traceback of TensorBoard's writing thread off the screen; calling it again changes nothing.

    Seen with tensorboard 2.21: on a full disk the thread keeps the error for the next call that writes, which tells of
    it in a line, and raises it besides.
    """
    global _earlier_hook
    if threading.excepthook is not _of_other_threads:
        _earlier_hook, threading.excepthook = threading.excepthook, _of_other_threads


def _of_other_threads(failure: threading.ExceptHookArgs) -> None:
    if type(failure.thread).__name__ != "_AsyncWriterThread":
        _earlier_hook(failure)


@contextmanager
def local_checkpoints() -> Iterator[None]:
    """Within: ultralytics loads the very file that it is given, asks nobody for another, and says nothing.

    Seen on ultralytics 8.4.190: `torch_safe_load` drops quotes from a path and reads `yolov5s.pt` as `yolov5su.pt`, and
    looks for a file of the new name on github; it warns before it raises. No longer needed once it takes an existing
    path as it is.
    """
    from ultralytics.utils import downloads

    theirs, downloads.attempt_download_asset = downloads.attempt_download_asset, str
    try:
        with quiet_ultralytics():
            yield
    finally:
        downloads.attempt_download_asset = theirs


@contextmanager
def quiet_ultralytics() -> Iterator[None]:
    """Within: ultralytics says nothing.

    Seen on ultralytics 8.4.190: Albumentations lists its transforms once per rank and pipeline, and
    a damaged checkpoint is warned of before the error is raised. No argument turns either off.
    """
    from ultralytics.utils import LOGGER

    muted, LOGGER.disabled = LOGGER.disabled, True
    try:
        yield
    finally:
        LOGGER.disabled = muted


def image_opener(file: str) -> Callable[..., Image.Image]:
    """Pillow's own `Image.open`, except for HEIC.

    Seen on ultralytics 8.4.190: it replaces `Image.open` by a function that takes a damaged file
    for HEIC and tries to install a decoder. Not needed once Pillow's own stays in its place.
    """
    from PIL import Image
    from ultralytics.utils import patches

    if file.lower().endswith((".heic", ".heif")):
        return Image.open
    return getattr(patches, "_image_open", Image.open)


def skip_own_decoding(head: nn.Module) -> None:
    """Make a Detect head return (None, raw outputs) in evaluation mode.

    Seen on ultralytics 8.4.190: the head decodes boxes in its own dtype, which nobody uses here. On
    a device its host waits nine times for images of another shape than the last.
    """
    head._inference = lambda raw: None


def labels_of(validator: Any, place: int, batch: dict[str, Any]) -> dict[str, Any]:
    """The labels of one image of a batch, as ultralytics' validator matches them with boxes.

    Seen on ultralytics 8.4.190: this and `matches` are the validator's own steps, and have no
    public name. Taking them gives ultralytics' own mAP.
    """
    return validator._prepare_batch(place, batch)


def matches(validator: Any, prediction: dict[str, Tensor], labels: dict[str, Any]) -> np.ndarray:
    """Which boxes of an image are right: (boxes, IoU thresholds) bool. See `labels_of`."""
    return validator._process_batch(prediction, labels)["tp"]


UNICODE_FONT = "Arial.Unicode.ttf"
"""The font that ultralytics asks for where a text has letters beyond ASCII."""
_unicode_font: Path | None = None


def local_font(font: str = "Arial.ttf") -> Path:
    """The best font file on this machine for `font`, without asking the network.

    For letters beyond ASCII it is the one given to `use_local_font`. Else, where ultralytics would find one itself (its
    settings folder, the system's fonts), that one is taken. Otherwise it is DejaVu Sans, which every matplotlib has:
    Latin, Greek, Cyrillic and Arabic, no Chinese, Japanese or Korean.
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
        if name in entry.fname and Path(entry.fname).is_file():
            return Path(entry.fname)
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def use_local_font(unicode: Path | None = None) -> None:
    """Make ultralytics look fonts up by `local_font`, and take the font `unicode` for letters beyond ASCII.

    Seen on ultralytics 8.4.190: `check_font` asks github for Arial.ttf, and its callers (`plotting.Annotator`,
    `data.utils.check_det_dataset`) offer no way to name another file, so the name they look up is replaced.
    """
    from ultralytics.data import utils as data_utils
    from ultralytics.utils import checks, plotting

    global _unicode_font
    _unicode_font = unicode or _unicode_font
    for module in (checks, plotting, data_utils):
        module.check_font = local_font


@contextmanager
def downloads_to(folder: Path) -> Iterator[None]:
    """Within: ultralytics looks for data sets in `folder`, and downloads them to it.

    Seen on ultralytics 8.4.190: `check_det_dataset` takes the folder from the settings that were read when it was
    imported, here those of our cache, and offers no way to name another.
    """
    from ultralytics.data import utils

    theirs, utils.DATASETS_DIR = utils.DATASETS_DIR, folder
    try:
        yield
    finally:
        utils.DATASETS_DIR = theirs


def import_muon_uncompiled() -> None:
    """Let DeepSpeed ask whether an optimizer is Muon without loading torch's compiler.

    Seen with deepspeed 0.19.8: ZeRO 1 to 3 import their Muon for that question, whose `@compile` loads Inductor, 0.8 s
    in every rank. Muon is refused here, so nothing compiled is missed. Not needed once the import is quick by itself:
    then `torch.compile` is not called while it runs, and this does nothing.
    """
    import torch

    kept = torch.compile
    torch.compile = lambda function=None, **_: function if function is not None else (lambda inner: inner)
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    except ImportError:  # another DeepSpeed has it elsewhere, or no more
        pass
    finally:
        torch.compile = kept


def own_shared_modules(net: nn.Module) -> None:
    """Give every layer modules of its own that have no parameters, such as activations.

    All of ultralytics' convolutions share one activation, an attribute of their class. DeepSpeed's
    ZeRO-3 registers its hooks on a module once for each parent that it is found under (0.19.8,
    zero/parameter_offload.py). On one SiLU under all convolutions that is their number squared: a
    step of YOLOv5n at 64 pixels took 1.5 s of CPU instead of 0.3, and the first, which records the
    order of modules, 15 s instead of 2. Every other model in the process had the same SiLU and with
    it the hooks, and could not be pickled.
    """
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if not any(True for _ in child.parameters()):
                setattr(parent, name, deepcopy(child))


def leave_norm_and_scale_to_us(engine: Any, scale: Any) -> None:
    """Keep a DeepSpeed engine from clipping, and put our loss scale where it has its own.

    Seen with deepspeed 0.19.8: without ZeRO it clips in fp32 whoever else has (runtime/engine.py,
    `clip_fp32_gradients`). Under torch_autocast it has torch's GradScaler, clips what that has
    still scaled, and after an overflow never comes to its `update`: with ZeRO 1 to 3 every later
    step is skipped (zero/stage_1_and_2.py and zero/stage3.py, `step`).

    Args:
        engine: what `deepspeed.initialize` returned.
        scale: a `LossScale`; where there is no scaling one that stays at 1, because DeepSpeed's own
            would call a step that is skipped in fp32 an overflow.
    """
    engine.clip_fp32_gradients = lambda: None
    engine.torch_autocast_z0_gradscaler = None
    if hasattr(engine.optimizer, "torch_autocast_gradscaler"):
        engine.optimizer.torch_autocast_gradscaler = None
    if hasattr(engine.optimizer, "loss_scaler"):
        engine.optimizer.loss_scaler = scale


def lend(launcher: Any, subprocess: Any, signal: Any) -> None:
    """Give one of DeepSpeed's launchers other modules for starting processes and handling signals.

    Seen with deepspeed 0.19.8: `deepspeed.launcher.runner` and `.launch` take both from the standard
    library by name, and nothing from outside. What goes wrong then is listed in launch/deepspeed_runner.py
    and launch/node_launcher.py. Not needed once the stock ones pass tests/faults/test_requests.py.
    """
    launcher.subprocess, launcher.signal = subprocess, signal


def change_kill_command(runner: Any, change: Callable[[Sequence[str]], list[str]]) -> None:
    """Hand the command by which DeepSpeed kills ranks on other hosts through `change`.

    Seen with deepspeed 0.19.8: its pattern fits pdsh and the remote shells as well, through which
    ranks still print while they save.

    Args:
        runner: the class `deepspeed.launcher.multinode_runner.PDSHRunner`.
    """
    theirs = runner.get_cmd

    def get_cmd(self: Any, environment: Any, resources: Any) -> Any:
        command, kill, environment = theirs(self, environment, resources)
        return command, change(kill), environment

    runner.get_cmd = get_cmd


def wrap_collectives(names: Sequence[str], wrap: Callable[[Any], Any]) -> None:
    """Replace functions of torch.distributed, and the wait for one under way, by `wrap` of each.

    Seen with torch 2.13: nothing calls us back when a rank begins to wait for others and when it
    has done so, whoever made it wait.
    """
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    for name in names:
        wrapped = wrap(getattr(distributed_c10d, name))
        for module in (dist, distributed_c10d):  # torch compares functions of the one with those of the other
            setattr(module, name, wrapped)
    dist.Work.wait = wrap(dist.Work.wait)


def end_workers(batches: Iterator[Any]) -> None:
    """End a DataLoader's worker processes now, not when the collector comes round.

    Seen with torch 2.13: its iterator has no public name for that, and a run may end in `os._exit`,
    which leaves them behind. An iterator without workers has not even the private name.
    """
    if hasattr(batches, "_shutdown_workers"):
        batches._shutdown_workers()


def storage_key(tensor: Tensor) -> int:
    """Which storage a tensor is a view of; another may get the same number once this one is freed.

    Seen with torch 2.13: on the meta device the public `data_ptr` is 0 for all.
    """
    return tensor.untyped_storage()._cdata
