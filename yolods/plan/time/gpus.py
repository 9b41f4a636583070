"""Published figures of GPUs by name, for plans that are made where no such GPU is.

Peaks are those of tensor cores without sparsity. Under "fp32" stands TF32 where a GPU has it,
because torch's convolutions use it by default (torch.backends.cudnn.allow_tf32), and plain FP32
otherwise. Sources:

    V100      NVIDIA V100 datasheet, SXM2, January 2020: 15.7 and 125 TFLOPS, 900 GB/s, NVLink 300
    T4        NVIDIA T4 datasheet, March 2019: 8.1 and 65 TFLOPS, 320 GB/s, PCIe 3.0 x16
    A100      NVIDIA A100 datasheet, SXM, June 2021: TF32 156, BF16 312, 2,039 GB/s, NVLink 600
    L40S      NVIDIA L40S datasheet: TF32 183, BF16 362.05, 864 GB/s, PCIe 4.0 x16
    RTX 4090  NVIDIA Ada GPU architecture, V2.02, appendix A: TF32 82.6, BF16 and FP16 with FP32
              accumulation 165.2, 1,008 GB/s, PCIe 4.0 x16
    H100      NVIDIA H100 datasheet, SXM: TF32 989 and BF16 1,979 with sparsity, which is twice the
              dense figure; 3.35 TB/s, NVLink 900
    H200      NVIDIA H200 datasheet, SXM: as H100; 141 GB, 4.8 TB/s

NVLink's figures are for both directions together, a PCIe lane's are for one.
"""

from __future__ import annotations

from dataclasses import dataclass

from yolods.errors import UserError, nearest

COMPUTE_EFFICIENCY = 0.4
"""Assumed share of a peak that convolutions reach; an assumption, not a measurement."""
MEMORY_EFFICIENCY = 0.8
"""Assumed share of the published bandwidth that kernels waiting for memory reach."""


@dataclass(frozen=True)
class GpuFigures:
    """A device by its published figures."""

    name: str
    """As users write it."""
    memory: float
    """Bytes; a published GB counts as 1e9, a little less than a driver shows."""
    fp32: float
    """Peak FLOP/s of fp32 convolutions."""
    bf16: float | None
    """Peak FLOP/s in bf16; None: it has no units for bf16."""
    fp16: float | None
    """Peak FLOP/s in fp16; None: it has no units for fp16."""
    bandwidth: float
    """Bytes per second of its memory."""
    peer: float
    """Bytes per second to another GPU of its host, in one direction."""
    host: float
    """Bytes per second to host memory, in one direction."""

    def peak(self, precision: str) -> float | None:
        """Peak FLOP/s in a precision: fp32, bf16 or fp16; None: it is not supported."""
        return {"fp32": self.fp32, "bf16": self.bf16, "fp16": self.fp16}[precision]


def _figures(
    name: str, gb: float, tera: tuple[float, float | None, float], gbs: tuple[float, float, float]
) -> GpuFigures:
    fp32, bf16, fp16 = tera
    bandwidth, peer, host = (1e9 * rate for rate in gbs)
    brain = None if bf16 is None else bf16 * 1e12
    return GpuFigures(name, gb * 1e9, fp32 * 1e12, brain, fp16 * 1e12, bandwidth, peer, host)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _figures("V100", 32, (15.7, None, 125), (900, 150, 16)),
        _figures("V100-16GB", 16, (15.7, None, 125), (900, 150, 16)),
        _figures("T4", 16, (8.1, None, 65), (320, 16, 16)),
        _figures("A100", 80, (156, 312, 312), (2039, 300, 32)),
        _figures("A100-40GB", 40, (156, 312, 312), (1555, 300, 32)),
        _figures("L40S", 48, (183, 362.05, 362.05), (864, 32, 32)),
        _figures("RTX 4090", 24, (82.6, 165.2, 165.2), (1008, 32, 32)),
        _figures("H100", 80, (494.7, 989.4, 989.4), (3350, 450, 64)),
        _figures("H200", 141, (494.7, 989.4, 989.4), (4800, 450, 64)),
    )
}
"""The known GPUs by name."""

CPU = GpuFigures("CPU", float("inf"), 1e11, 2.5e10, None, 2e10, 1e9, 2e10)
"""One rank on a CPU: assumptions throughout, so that only ratios between layouts mean anything. Few
CPUs have units for bf16, and the others convert every number."""


def gpu_named(name: str) -> GpuFigures:
    """A GPU of the table, by its name in any case, with or without spaces and dashes.

    Raises:
        UserError: the table has no such GPU.
    """
    known = {_plain(each): gpu for each, gpu in GPUS.items()}
    aliases = {"4090": "RTX 4090", "A100-80GB": "A100", "V100-32GB": "V100", "H100-80GB": "H100"}
    known |= {_plain(alias): GPUS[each] for alias, each in aliases.items()}
    if found := known.get(_plain(name)):
        return found
    raise UserError(
        f"--gpu {name}: no figures of this GPU{nearest(name, GPUS)}; known: {', '.join(GPUS)}"
    )


def gpu_called(product: str, memory: float) -> GpuFigures | None:
    """The GPU of the table that a driver's product name means; None: the table has none.

    Args:
        product: as nvidia-smi shows it: "NVIDIA A100-SXM4-40GB".
        memory: bytes that the driver shows; of two sizes of one GPU, the nearer is taken.
    """
    words = _plain(product)
    fitting = [gpu for gpu in GPUS.values() if _plain(gpu.name.partition("-")[0]) in words]
    return min(fitting, key=lambda gpu: abs(gpu.memory - memory), default=None)


def _plain(name: str) -> str:
    return name.lower().replace(" ", "").replace("-", "").replace("_", "")
