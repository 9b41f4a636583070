"""Excludes images that were non-finite too often. Pure, and the same on every rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from yolods.stability.attribution import INPUT, Culprit

ImageFaults = tuple[tuple[str, int], ...]
"""Identities of images that were not finite and how often, sorted, as a checkpoint stores them.

Earlier checkpoints store file names instead of identities.
"""


@dataclass(frozen=True)
class Quarantine:
    """The images to which bad steps were traced."""

    limit: int
    """How often an image may be found before it is excluded for good; 0: never excluded."""
    faults: ImageFaults = ()
    """How often each image was found."""

    def after(self, culprits: Iterable[Culprit]) -> Quarantine:
        """The quarantine after one more step.

        An image counts once per culprit, however often a mosaic shows it.
        """
        counts = Counter(dict(self.faults))
        counts.update(image for each in culprits if each.name == INPUT for image in set(each.files))
        return Quarantine(self.limit, tuple(sorted(counts.items())))

    @property
    def excluded(self) -> frozenset[str]:
        """Identities of the excluded images."""
        return frozenset(
            image for image, count in self.faults if self.limit and count >= self.limit
        )
