"""One way to run a step: how model, optimizer and batch are divided among the ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from yolods.plan.buckets import bucket_elements

if TYPE_CHECKING:
    from yolods.config import RunConfig

BUCKET = 500_000_000
"""DeepSpeed's default for "allgather_bucket_size", and its buckets without ZeRO, in elements."""
PERSISTENT = 100_000
"""Elements up to which ZeRO-3 keeps a parameter whole ("stage3_param_persistence_threshold",
deepspeed 0.19.8, zero/config.py:228)."""
PREFETCHED = 50_000_000
"""Elements that ZeRO-3 gathers ahead ("stage3_prefetch_bucket_size", zero/config.py:222)."""


# Wide: one field for each setting that memory, traffic or time depends on.
@dataclass(frozen=True, kw_only=True)
class Layout:
    """What decides a step's memory, traffic and time besides the model and the images."""

    imgsz: int
    """Side of the images in pixels."""
    micro_batch: int = 1
    """Images per replica and forward pass."""
    accumulation: int = 1
    """Micro-batches per step."""
    replicas: int = 1
    """Data-parallel ranks."""
    precision: str = "fp32"
    """Data type of the parameters: fp32, bf16 or fp16. Masters and BatchNorm are always fp32."""
    autocast: str | None = None
    """bf16 or fp16: autocast over fp32 parameters; None: off."""
    zero_stage: int = 1
    """0 to 3; with several stages 0 or 1."""
    offload_optimizer: bool = False
    """Whether masters and optimizer states are in host memory."""
    offload_param: bool = False
    """Whether parameters are in host memory."""
    cuts: tuple[int, ...] = ()
    """Index of the first node of every pipeline stage except the first; (): no pipeline."""
    schedule: str = "1f1b"
    """Order of a pipeline's passes: 1f1b or zb."""
    recompute: int = 0
    """What the backward pass recomputes; 0: nothing. With a pipeline: nodes per segment. Without:
    number of segments, -1 for about the square root of the nodes."""
    sync_bn: bool = False
    """Whether BatchNorm computes its batch statistics over all replicas."""
    owned: bool = True
    """ZeRO-1 and 2: whether gradients reach only the rank that updates them."""
    once: bool = True
    """ZeRO-2: whether gradients reach their owners once per step, or per micro-batch."""
    overlapped: bool = True
    """Whether the reduction begins within the backward pass; a pipeline's never does."""
    reduce_bucket: int | None = None
    """Elements of DeepSpeed's buffer for gradients; None: by the model (`buckets`)."""
    gather_bucket: int = BUCKET
    """Elements of DeepSpeed's buffer for updated parameters."""

    @property
    def stages(self) -> int:
        """Number of pipeline stages; 1: no pipeline."""
        return len(self.cuts) + 1

    @property
    def ranks(self) -> int:
        """Number of all ranks: replicas x stages."""
        return self.replicas * self.stages

    def bucket(self, trained: int) -> int:
        """Elements of the buffer for gradients of a model or stage.

        Args:
            trained: elements of all its gradients.
        """
        if self.reduce_bucket is not None:
            return self.reduce_bucket
        return bucket_elements(trained, whole=not self.overlapped or self.stages > 1)

    @property
    def images(self) -> int:
        """Images per step."""
        return self.micro_batch * self.replicas * self.accumulation


_DESCRIBED = ("stage", "reduce_bucket_size", "allgather_bucket_size", "offload_optimizer")
"""Keys of "zero_optimization" that a layout has."""


def undescribed(config: RunConfig) -> tuple[str, ...]:
    """Names of settings that change a rank's memory and that its `Layout` does not have."""
    ds = config.deepspeed
    content = ds.for_initialize()
    # As the formulas for memory assume it; the engine says so for a pipeline.
    usual = {"overlap_comm": False, "contiguous_gradients": ds.pipeline is None}
    halves = [content.get(block, {}) for block in ("bf16", "fp16")]
    found = {
        "freeze": bool(config.hyper.freeze),
        "multi_scale": bool(config.hyper.multi_scale),
        # Its memory of what was not sent is as large as two gradients.
        "compression": ds.own.compression.kind != "none",
        "masters in low precision": any(
            key.endswith(("master_weights_and_grads", "optimizer_states")) and block[key]
            for block in halves
            for key in block
        ),
        **{
            key: key not in _DESCRIBED and value != usual.get(key)
            for key, value in content.get("zero_optimization", {}).items()
        },
    }
    return tuple(name for name, changes in found.items() if changes)


def layout_of(config: RunConfig, cuts: tuple[int, ...] = ()) -> Layout:
    """The layout that a run's configuration describes.

    Args:
        cuts: the cuts of its partition, if it has a pipeline.
    """
    ds = config.deepspeed
    zero = ds.for_initialize().get("zero_optimization", {})
    recompute = ds.pipeline.activation_checkpoint_interval if ds.pipeline else 0
    if ds.recompute is not None:
        recompute = ds.recompute.number_checkpoints or -1
    return Layout(
        imgsz=config.imgsz,
        micro_batch=ds.micro_batch,
        accumulation=ds.accumulation,
        replicas=ds.dp_size,
        precision=ds.precision,
        autocast=ds.autocast,
        zero_stage=ds.zero_stage,
        offload_optimizer=ds.offload_optimizer,
        offload_param=ds.offload_param,
        cuts=cuts,
        schedule=ds.pipeline.schedule if ds.pipeline else "1f1b",
        recompute=recompute,
        sync_bn=config.hyper.sync_bn and ds.dp_size > 1,
        owned=ds.reduction.owned or ds.zero_stage not in (1, 2),
        once=ds.reduction.owned and ds.reduction.once != "micro_batch",
        overlapped=ds.reduction.overlapped or ds.pipeline is not None,
        reduce_bucket=None if (size := zero.get("reduce_bucket_size")) is None else int(size),
        gather_bucket=int(zero.get("allgather_bucket_size", BUCKET)),
    )
