"""Which images a sample is mixed with: any of the set, or only those of its block."""

from __future__ import annotations

import random

from ultralytics.data.augment import BaseMixTransform, Compose, Mosaic

from yolods.compat import draw_partners
from yolods.data.augment.quicken import parts_of
from yolods.data.sampler import SampleId


class Partners:
    """Draws partners out of the block of the sample that is being made."""

    def __init__(self) -> None:
        self._sample = SampleId(0, 0)

    def begin(self, sample: SampleId) -> None:
        """The sample that is made from now on."""
        self._sample = sample

    def serve(self, pipeline: Compose) -> None:
        """Let the transforms of a pipeline draw partners here for samples with a block."""
        for part in parts_of(pipeline):
            if isinstance(part, BaseMixTransform):
                self._serve(part, part.n - 1 if isinstance(part, Mosaic) else 1)

    def _serve(self, mix: BaseMixTransform, count: int) -> None:
        draw_partners(mix, lambda own: self.drawn(count) if self._sample.block else own())

    def drawn(self, count: int) -> list[int]:
        """Indices of `count` images of the block, drawn by Python's generator.

        They are distinct and do not include the sample's own image, as far as the block has enough
        images: in so few, repeats would be frequent.
        """
        others = [index for index in self._sample.block if index != self._sample.index]
        if len(others) >= count:
            return random.sample(others, count)
        return random.choices(self._sample.block, k=count)
