"""Which images are left out: those that were found not to be finite too often. Pure, and alike on every rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from yolods.stability.attribution import INPUT, Culprit

ImageFaults = tuple[tuple[str, int], ...]
"""Identities of images that were found not to be finite and how often, sorted, as a checkpoint holds it; earlier
checkpoints hold their files."""


@dataclass(frozen=True)
class Quarantine:
    """The images that bad steps were traced to."""

    limit: int
    """Times that an image may be found before it is left out for good; 0: it never is."""
    faults: ImageFaults = ()
    """How often each was found."""

    def after(self, culprits: Iterable[Culprit]) -> Quarantine:
        """The same after one more step; an image counts once per culprit, however often a mosaic shows it."""
        counts = Counter(dict(self.faults))
        counts.update(image for each in culprits if each.name == INPUT for image in set(each.files))
        return Quarantine(self.limit, tuple(sorted(counts.items())))

    @property
    def excluded(self) -> frozenset[str]:
        """Images that are left out, by their identities."""
        return frozenset(image for image, count in self.faults if self.limit and count >= self.limit)
