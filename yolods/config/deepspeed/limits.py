"""What DeepSpeed 0.19.8 takes in its JSON and then dies of on every rank, or computes wrongly: said before a start.

Each function answers for one part of the JSON; benchmarks/config_fuzz.py starts what they let through.
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
    module_granularity_threshold"""
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
    """What the rest of the JSON has decided."""

    sound: Mapping[str, Any]
    """The JSON, without what is wrong in itself; see `keys.check_keys`."""
    zero_stage: int
    """ZeRO's."""
    precision: str
    """Of the parameters: fp32, bf16 or fp16."""
    autocast: str | None
    """bf16 or fp16; None: off."""
    offload: Mapping[str, bool]
    """Whether "optimizer" and "param" are kept in host memory."""
    pipelined: bool
    """Whether the model is cut into stages."""
    world_size: int
    """Ranks in all."""
    device: str
    """cpu or cuda."""
    stock: bool
    """Whether DeepSpeed's own handling of bad steps is in place."""
    optimizer: str
    """One of `OPTIMIZERS`, or auto."""
    arguments: Mapping[str, Any]
    """What the JSON's optimizer gives it."""

    @property
    def zero(self) -> Mapping[str, Any]:
        """The zero_optimization block."""
        return self.sound.get("zero_optimization") or {}

    @property
    def gradients(self) -> str:
        """Type that gradients are to accumulate in: fp32, bf16 or fp16."""
        return self.dtype("grad_accum_dtype") or self.precision

    def dtype(self, key: str) -> str | None:
        """A type under "data_types": fp32, bf16 or fp16; None where it is not given."""
        given = (self.sound.get("data_types") or {}).get(key)
        return _LONG_NAMES.get(given, given)


def check_limits(settings: JsonSettings, where: str, faults: Faults) -> None:
    """Add a fault for everything that the ranks would die of.

    Args:
        where: the JSON's name in messages.
    """
    for check in (_names, _gradients, _types, _partitions, _quantisation, _host_memory, _optimizer, _monitors, _pipe):
        check(settings, where, faults)


def _names(settings: JsonSettings, where: str, faults: Faults) -> None:
    """Keys that are one and the same."""
    pairs = [(name, f"stage3_{name}") for name in _ALIASES.split()]
    for one, other in [*pairs, *_REPLACED.items()]:
        if settings.zero.get(one) is not None and settings.zero.get(other) is not None:
            faults.add(f'{where}: "zero_optimization".{one} and {other} are the same setting; keep {other}')


def _gradients(settings: JsonSettings, where: str, faults: Faults) -> None:
    """How gradients are divided before and after they are summed."""
    zero, factor = settings.zero, settings.sound.get("gradient_predivide_factor", 1.0)
    scattered = zero.get("reduce_scatter", True)
    asked = [f'"gradient_predivide_factor" {factor:g}'] if factor != 1 else []
    asked += ['"prescale_gradients"'] if settings.sound.get("prescale_gradients") else []
    for name in asked:
        if settings.zero_stage == 3:
            # Without reduce_scatter it runs, and divides by the factor twice.
            faults.add(f"{where}: {name} with ZeRO stage 3: DeepSpeed divides gradients wrongly by it; remove it")
        elif settings.zero_stage == 2 and scattered:
            faults.add(
                f'{where}: {name} with ZeRO stage 2 needs "zero_optimization": {{"reduce_scatter": false}}; add that, '
                "or remove it"
            )
    if zero.get("legacy_stage1"):
        faults.add(f'{where}: "zero_optimization".legacy_stage1: DeepSpeed 0.19 has no such stage any more; remove it')


def _types(settings: JsonSettings, where: str, faults: Faults) -> None:
    """The types of parameters, buffers and gradients."""
    precision, parameters, buffers = settings.precision, settings.dtype("param_dtype"), settings.dtype("buffer_dtype")
    if parameters not in (None, precision):
        remedy = "" if parameters == "fp32" else f', or enable "{parameters}"'
        faults.add(
            f'{where}: "data_types".param_dtype is {parameters}, but the parameters are {precision} by the blocks '
            f'"bf16" and "fp16"; remove it{remedy}'
        )
    if buffers not in (None, "fp32"):
        faults.add(
            f'{where}: "data_types".buffer_dtype {buffers} is refused: the buffers of a detector are BatchNorm\'s '
            "running statistics, which stay fp32; remove it"
        )
    if settings.gradients == precision:
        return
    name = f'{where}: "data_types".grad_accum_dtype {settings.gradients}'
    if settings.zero_stage == 0 or settings.pipelined:
        place = "a pipeline" if settings.pipelined else "ZeRO stage 0"
        faults.add(f"{name}: with {place} gradients have the type of the parameters, {precision}; remove it")
    elif settings.gradients == "fp16":
        faults.add(f'{name} needs the loss scale that comes with "fp16"; use fp32, or remove it')


def _partitions(settings: JsonSettings, where: str, faults: Faults) -> None:
    """ZeRO-3's groups of parameters and of ranks."""
    zero = settings.zero
    size = min(zero.get("zero_hpz_partition_size", 1), settings.world_size)
    if settings.zero_stage == 3 and size > 1 and settings.world_size % size:
        faults.add(
            f'{where}: "zero_optimization".zero_hpz_partition_size {size} does not divide {settings.world_size} ranks: '
            f"{settings.world_size} / {size} = {settings.world_size / size:.2f}; "
            "give a divisor, as a rule the GPUs of one host"
        )
    for name in ("module_granularity_threshold", "stage3_module_granularity_threshold"):
        if settings.zero_stage == 3 and zero.get(name):
            # A module above the threshold is gathered as a whole, and its children, which the model calls by
            # themselves as well, then compute with the empty pieces.
            faults.add(
                f'{where}: "zero_optimization".{name} {zero[name]} is refused: DeepSpeed loses the shapes of a '
                "detector's weights in the first step; use stage3_prefetch_bucket_size for fewer gathers"
            )


def _quantisation(settings: JsonSettings, where: str, faults: Faults) -> None:
    """Weights and gradients in 8 bits."""
    if settings.zero_stage < 3:
        return
    zero, block = settings.zero, f'{where}: "zero_optimization"'
    if zero.get("zero_quantized_nontrainable_weights"):
        faults.add(
            f"{block}.zero_quantized_nontrainable_weights is refused: frozen layers, among them the bins that boxes "
            "are read from, would be rounded to 8 bits in every saved model"
        )
    for name in ("zero_quantized_weights", "zero_quantized_gradients"):
        if zero.get(name) and settings.device == "cpu":
            faults.add(f"{block}.{name}: DeepSpeed's quantisation has no kernel for a CPU; remove it")
    if zero.get("zero_quantized_gradients") and not zero.get("reduce_scatter", True):
        faults.add(f'{block}.zero_quantized_gradients needs "reduce_scatter": true')
    if zero.get("zero_quantized_weights") and settings.autocast:
        faults.add(f'{block}.zero_quantized_weights together with "torch_autocast": use "bf16" or "fp16" with it')


def _host_memory(settings: JsonSettings, where: str, faults: Faults) -> None:
    """Optimizer states in host memory."""
    block = settings.zero.get("offload_optimizer") or {}
    name = f'{where}: "offload_optimizer"'
    if block.get("super_offload"):
        faults.add(f"{name}.super_offload is refused: its weights are stepped in another process, unseen by the EMA")
    compiled = _host_kernel(settings) is not None
    reason = "on a CPU torch's optimizers are used" if settings.device == "cpu" else f"it is {settings.optimizer}"
    ratio = block.get("ratio", 1.0)
    if settings.offload["optimizer"] and settings.zero_stage == 3 and ratio < 1 and not compiled:
        faults.add(f"{name}.ratio {ratio:g} needs DeepSpeed's CPUAdam on a GPU, and {reason}; remove it")
    if settings.offload["optimizer"] and settings.sound.get("zero_force_ds_cpu_optimizer") and not compiled:
        faults.add(
            f'{where}: "zero_force_ds_cpu_optimizer" insists on DeepSpeed\'s CPUAdam, and {reason}; remove it, or '
            "train with AdamW on GPUs"
        )


def _optimizer(settings: JsonSettings, where: str, faults: Faults) -> None:
    """Arguments that the optimizer's place does not allow."""
    name = f'{where}: "optimizer".params'
    if kernel := _host_kernel(settings):
        for key in settings.arguments.keys() - set(kernel.takes):
            faults.add(f'{name}.{key}: DeepSpeed\'s CPUAdam, which steps states in host memory, has no "{key}"')
        if settings.arguments.get("amsgrad"):
            faults.add(f"{name}.amsgrad: DeepSpeed's CPUAdam, which steps states in host memory, has no AMSGrad")
        given = settings.sound["optimizer"].get("params") if "optimizer" in settings.sound else None
        if isinstance(given, Mapping) and given.get("torch_adam") is True:
            faults.add(f"{name}.torch_adam: states in host memory are stepped by DeepSpeed's CPUAdam; remove it")
    elif settings.arguments.get("capturable") and (settings.device == "cpu" or settings.offload["optimizer"]):
        faults.add(f"{name}.capturable: only states on a GPU can be captured; remove it")


def _host_kernel(settings: JsonSettings) -> HostKernel | None:
    """DeepSpeed's kernel that steps a GPU's states in host memory; None: torch steps them, wherever they are."""
    entry = OPTIMIZERS.get(settings.optimizer)  # of `auto` it is not known yet
    away = settings.offload["optimizer"] and settings.device == "cuda"
    return entry.on_host if entry and away else None


def _monitors(settings: JsonSettings, where: str, faults: Faults) -> None:
    """Services whose module has to be there."""
    for block, module in _MODULES.items():
        if (settings.sound.get(block) or {}).get("enabled") and not _installed(module):
            faults.add(f'{where}: "{block}" is enabled, but the module {module} is not installed: pip install {module}')


def _installed(module: str) -> bool:
    """Whether there is such a module; a folder of its name, as wandb leaves one wherever it runs, is none."""
    found = importlib.util.find_spec(module)
    return found is not None and found.origin is not None


def _pipe(settings: JsonSettings, where: str, faults: Faults) -> None:
    """What DeepSpeed measures in a backward pass of its own, which a stage does not take."""
    if not settings.pipelined:
        return
    instead = "the line of every epoch and TensorBoard's pipeline/ curves tell each stage's times and memory"
    for key in ("flops_profiler", "comms_logger"):
        if (settings.sound.get(key) or {}).get("enabled"):
            faults.add(f'{where}: "{key}" with "pipeline" is refused: it would measure nothing; {instead}')
    for key in ("wall_clock_breakdown", "memory_breakdown"):
        if settings.sound.get(key):
            faults.add(f'{where}: "{key}" with "pipeline" is refused: it would show zeros; {instead}')
