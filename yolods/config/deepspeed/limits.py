"""Finds settings that DeepSpeed 0.19.8 accepts and then crashes on or computes wrongly.

Each function checks one part of the JSON; benchmarks/config_fuzz.py starts what passes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yolods.config.optimizers.supported import OPTIMIZERS, HostKernel
from yolods.errors import Faults

_MODULES = {"wandb": "wandb", "comet": "comet_ml"}
_ALIASES = """gather_16bit_weights_on_model_save use_all_reduce_for_fetch_params allgather_sequential
    prefetch_bucket_size param_persistence_threshold model_persistence_threshold max_live_parameters max_reuse_distance
    module_granularity_threshold"""  # noqa: E501
_REPLACED = {
    "cpu_offload": "offload_optimizer",
    "cpu_offload_param": "offload_param",
    "stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
}
_LONG_NAMES = {
    **dict.fromkeys(("float32", "float", "torch.float32"), "fp32"),
    **dict.fromkeys(("float16", "half", "torch.float16"), "fp16"),
    **dict.fromkeys(("bfloat16", "torch.bfloat16"), "bf16"),
}


@dataclass(frozen=True, kw_only=True)
class JsonSettings:
    """The resolved settings that the checks here and in `unused_keys` compare with each other."""

    sound: Mapping[str, Any]
    """The JSON without faulty keys; see `keys.check_keys`."""
    zero_stage: int
    """0 to 3."""
    precision: str
    """Data type of the parameters: fp32, bf16 or fp16."""
    autocast: str | None
    """bf16 or fp16; None: off."""
    offload: Mapping[str, bool]
    """Whether "optimizer" and "param" are kept in host memory."""
    pipelined: bool
    """Whether the model is cut into stages."""
    world_size: int
    """Number of all ranks."""
    device: str
    """cpu or cuda."""
    stock: bool
    """Whether DeepSpeed's own handling of bad steps is used: "overflow": {"handling": "stock"}."""
    optimizer: str
    """One of `OPTIMIZERS`, or auto."""
    arguments: Mapping[str, Any]
    """The optimizer's arguments from the JSON."""
    compressed: bool = False
    """Whether gradients are compressed between ranks."""

    @property
    def zero(self) -> Mapping[str, Any]:
        """The zero_optimization block."""
        return self.sound.get("zero_optimization") or {}

    @property
    def gradients(self) -> str:
        """Data type in which gradients accumulate: fp32, bf16 or fp16."""
        return self.dtype("grad_accum_dtype") or self.precision

    def dtype(self, key: str) -> str | None:
        """A data type under "data_types": fp32, bf16 or fp16; None: not given."""
        given = (self.sound.get("data_types") or {}).get(key)
        return _LONG_NAMES.get(given, given)


def check_limits(settings: JsonSettings, where: str, faults: Faults) -> None:
    """Add a fault for every setting that would end the ranks or give wrong numbers.

    Args:
        where: the JSON's name in messages.
    """
    for check in (
        _names,
        _gradients,
        _types,
        _partitions,
        _quantisation,
        _host_memory,
        _optimizer,
        _monitors,
        _pipe,
        _compression,
    ):
        check(settings, where, faults)


def _names(settings: JsonSettings, where: str, faults: Faults) -> None:
    """Refuse two names of one setting, of which only one could take effect."""
    pairs = [(name, f"stage3_{name}") for name in _ALIASES.split()]
    for one, other in [*pairs, *_REPLACED.items()]:
        if settings.zero.get(one) is not None and settings.zero.get(other) is not None:
            faults.add(
                f'{where}: "zero_optimization".{one} and {other} are the same setting; keep {other}'
            )


def _gradients(settings: JsonSettings, where: str, faults: Faults) -> None:
    """Check how gradients are divided before and after they are summed over ranks."""
    zero, factor = settings.zero, settings.sound.get("gradient_predivide_factor", 1.0)
    scattered = zero.get("reduce_scatter", True)
    asked = [f'"gradient_predivide_factor" {factor:g}'] if factor != 1 else []
    asked += ['"prescale_gradients"'] if settings.sound.get("prescale_gradients") else []
    for name in asked:
        if settings.zero_stage == 3:
            # With "reduce_scatter": false ZeRO-3 runs, but divides by the factor twice.
            faults.add(
                f"{where}: {name} with ZeRO stage 3: DeepSpeed divides gradients incorrectly by "
                "it; remove it"
            )
        elif settings.zero_stage == 2 and scattered:
            faults.add(
                f'{where}: {name} with ZeRO stage 2 needs "zero_optimization": {{"reduce_scatter": '
                "false}; add that, or remove it"
            )
    if zero.get("legacy_stage1"):
        faults.add(
            f'{where}: "zero_optimization".legacy_stage1: removed in DeepSpeed 0.19; remove it'
        )


def _types(settings: JsonSettings, where: str, faults: Faults) -> None:
    """Check the data types of parameters, buffers and gradients."""
    precision, parameters, buffers = (
        settings.precision,
        settings.dtype("param_dtype"),
        settings.dtype("buffer_dtype"),
    )
    if parameters not in (None, precision):
        remedy = "" if parameters == "fp32" else f', or enable "{parameters}"'
        faults.add(
            f'{where}: "data_types".param_dtype is {parameters}, but the blocks "bf16" and "fp16" '
            f"make the parameters {precision}; remove it{remedy}"
        )
    if buffers not in (None, "fp32"):
        faults.add(
            f'{where}: "data_types".buffer_dtype {buffers} is not supported: the buffers of a '
            "detector are BatchNorm's running statistics, which stay fp32; remove it"
        )
    if settings.gradients == precision:
        return
    name = f'{where}: "data_types".grad_accum_dtype {settings.gradients}'
    if settings.zero_stage == 0 or settings.pipelined:
        place = "a pipeline" if settings.pipelined else "ZeRO stage 0"
        faults.add(
            f"{name}: with {place}, gradients have the parameters' data type, {precision}; remove "
            "it"
        )
    elif settings.gradients == "fp16":
        faults.add(f'{name} needs the loss scale that comes with "fp16"; use fp32, or remove it')


def _partitions(settings: JsonSettings, where: str, faults: Faults) -> None:
    """Check ZeRO-3's groups of parameters and of ranks."""
    zero = settings.zero
    # The minimum lets one JSON with the size of a host run on fewer ranks as well.
    size = min(zero.get("zero_hpz_partition_size", 1), settings.world_size)
    if settings.zero_stage == 3 and size > 1 and settings.world_size % size:
        faults.add(
            f'{where}: "zero_optimization".zero_hpz_partition_size {size} does not divide '
            f"{settings.world_size} ranks: {settings.world_size} / {size} = "
            f"{settings.world_size / size:.2f}; use a divisor, usually the number of GPUs per host"
        )
    for name in ("module_granularity_threshold", "stage3_module_granularity_threshold"):
        if settings.zero_stage == 3 and zero.get(name):
            # DeepSpeed gathers a module with at most this many parameters per layer as a whole, and
            # installs no hooks on its children (runtime/zero/parameter_offload.py:350, 618). A
            # detector also calls such children directly, and they then compute with empty weights.
            faults.add(
                f'{where}: "zero_optimization".{name} {zero[name]} is not supported: DeepSpeed '
                "loses the shapes of a detector's weights in the first step; use "
                "stage3_prefetch_bucket_size for fewer gathers"
            )


def _quantisation(settings: JsonSettings, where: str, faults: Faults) -> None:
    """Check ZeRO-3's communication of weights and gradients in 8 bits."""
    if settings.zero_stage < 3:
        return
    zero, block = settings.zero, f'{where}: "zero_optimization"'
    if zero.get("zero_quantized_nontrainable_weights"):
        faults.add(
            f"{block}.zero_quantized_nontrainable_weights is not supported: it would round frozen "
            "layers, including the fixed weights that decode boxes, to 8 bits in every saved model"
        )
    for name in ("zero_quantized_weights", "zero_quantized_gradients"):
        if zero.get(name) and settings.device == "cpu":
            faults.add(
                f"{block}.{name}: DeepSpeed's quantisation has no kernel for a CPU; remove it"
            )
    if zero.get("zero_quantized_gradients") and not zero.get("reduce_scatter", True):
        faults.add(f'{block}.zero_quantized_gradients needs "reduce_scatter": true')
    if zero.get("zero_quantized_weights") and settings.autocast:
        faults.add(
            f'{block}.zero_quantized_weights together with "torch_autocast": use "bf16" or "fp16" '
            "with it"
        )


def _host_memory(settings: JsonSettings, where: str, faults: Faults) -> None:
    """Check the settings of optimizer states in host memory."""
    block = settings.zero.get("offload_optimizer") or {}
    name = f'{where}: "offload_optimizer"'
    if block.get("super_offload"):
        faults.add(
            f"{name}.super_offload is not supported: it updates weights in another process, unseen "
            "by the EMA"
        )
    compiled = _host_kernel(settings) is not None
    reason = (
        "a CPU uses torch's optimizers"
        if settings.device == "cpu"
        else f"the optimizer is {settings.optimizer}"
    )
    ratio = block.get("ratio", 1.0)
    if settings.offload["optimizer"] and settings.zero_stage == 3 and ratio < 1 and not compiled:
        faults.add(
            f"{name}.ratio {ratio:g} needs DeepSpeed's CPUAdam on a GPU, but {reason}; remove it"
        )
    if (
        settings.offload["optimizer"]
        and settings.sound.get("zero_force_ds_cpu_optimizer")
        and not compiled
    ):
        faults.add(
            f'{where}: "zero_force_ds_cpu_optimizer" requires DeepSpeed\'s CPUAdam, but {reason}; '
            "remove it, or train with AdamW on GPUs"
        )


def _optimizer(settings: JsonSettings, where: str, faults: Faults) -> None:
    """Refuse arguments that the optimizer lacks on the GPU or in host memory."""
    name = f'{where}: "optimizer".params'
    if kernel := _host_kernel(settings):
        for key in settings.arguments.keys() - set(kernel.takes):
            faults.add(f'{name}.{key}: DeepSpeed\'s CPUAdam, which offloading uses, has no "{key}"')
        if settings.arguments.get("amsgrad"):
            faults.add(
                f"{name}.amsgrad: DeepSpeed's CPUAdam, which offloading uses, has no AMSGrad"
            )
        given = settings.sound["optimizer"].get("params") if "optimizer" in settings.sound else None
        if isinstance(given, Mapping) and given.get("torch_adam") is True:
            faults.add(f"{name}.torch_adam: offloading uses DeepSpeed's CPUAdam; remove it")
    elif settings.arguments.get("capturable") and (
        settings.device == "cpu" or settings.offload["optimizer"]
    ):
        faults.add(f"{name}.capturable: only states on a GPU can be captured; remove it")


def _host_kernel(settings: JsonSettings) -> HostKernel | None:
    """DeepSpeed's kernel for a GPU's states in host memory; None: torch steps them."""
    # `auto` has no entry: it is resolved when the number of steps is known.
    entry = OPTIMIZERS.get(settings.optimizer)
    away = settings.offload["optimizer"] and settings.device == "cuda"
    return entry.on_host if entry and away else None


def _monitors(settings: JsonSettings, where: str, faults: Faults) -> None:
    """Refuse a monitor whose Python module is not installed."""
    for block, module in _MODULES.items():
        if (settings.sound.get(block) or {}).get("enabled") and not _installed(module):
            faults.add(
                f'{where}: "{block}" is enabled, but the module {module} is not installed: pip '
                f"install {module}"
            )


def _installed(module: str) -> bool:
    """Whether the module is installed. wandb leaves a folder `wandb` in the working directory,
    which Python takes for a namespace package; that one has no origin."""
    found = importlib.util.find_spec(module)
    return found is not None and found.origin is not None


def _pipe(settings: JsonSettings, where: str, faults: Faults) -> None:
    """Refuse measurements in DeepSpeed's backward pass, which a pipeline stage does not use."""
    if not settings.pipelined:
        return
    instead = (
        "each epoch's line and TensorBoard's pipeline/ curves show the times and memory of each "
        "stage"
    )
    for key in ("flops_profiler", "comms_logger"):
        if (settings.sound.get(key) or {}).get("enabled"):
            faults.add(
                f'{where}: "{key}" with "pipeline" is not supported: it would measure nothing; '
                f"{instead}"
            )
    for key in ("wall_clock_breakdown", "memory_breakdown"):
        if settings.sound.get(key):
            faults.add(
                f'{where}: "{key}" with "pipeline" is not supported: it would show zeros; {instead}'
            )


def _compression(settings: JsonSettings, where: str, faults: Faults) -> None:
    """Refuse what leaves no whole local gradient to compress, or reduces it in another way."""
    if not settings.compressed:
        return
    name, sound = f'{where}: "yolods".compression', settings.sound
    if settings.pipelined:
        faults.add(
            f'{name} with "pipeline" is not supported: the replicas of a stage average its '
            "gradients within the pipeline's own steps; remove one of them"
        )
    elif settings.zero_stage > 1:
        faults.add(
            f"{name} with ZeRO stage {settings.zero_stage}: from stage 2 on, DeepSpeed divides "
            "gradients among the ranks during the backward pass, and no rank has a whole one to "
            "compress; use stage 0 or 1"
        )
    if settings.offload["optimizer"]:
        faults.add(
            f'{name} with "offload_optimizer" is not supported: DeepSpeed sends gradients to the '
            "host in the reduction that compression replaces; remove one of them"
        )
    if settings.stock:
        faults.add(
            f'{name} with "overflow": {{"handling": "stock"}}: DeepSpeed decides only during its '
            'step whether the memory of unsent gradients may be kept; keep "handling": "own"'
        )
    if settings.gradients != settings.precision and settings.precision == "fp16":
        faults.add(
            f'{name} with "fp16" and "data_types".grad_accum_dtype {settings.gradients}: DeepSpeed '
            "adds such gradients up in the reduction that compression replaces; remove one of them"
        )
    asked = [
        *(['"zero_optimization".overlap_comm'] if settings.zero.get("overlap_comm") else []),
        *(key for key in ("communication_data_type", "prescale_gradients") if sound.get(key)),
    ]
    if sound.get("gradient_predivide_factor", 1.0) != 1:
        asked.append("gradient_predivide_factor")
    if asked:
        faults.add(
            f"{name} averages gradients itself, in fp32, after the last backward pass of a step; "
            f"remove {', '.join(asked)}"
        )
