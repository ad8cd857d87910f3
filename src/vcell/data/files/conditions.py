"""Perturbations with a dose, or of a type: ``panobinostat@0.2``, ``KLF1@CRISPRa``, ``X@0.2@drug``.

A dose or type makes another perturbation of the same name: groups, splits and scores keep them apart, and vectors of the perturbation
table have columns for both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

MARK = "@"
NUMBER = r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
CONDITION = re.compile(rf"^(?P<name>.+?)(?:@(?P<dose>{NUMBER}))?(?:@(?P<type>[A-Za-z][\w-]*))?$")


class Condition(NamedTuple):
    """What a label says: a perturbation, and its dose and type where it has them."""

    name: str
    dose: float | None
    type: str | None

    @classmethod
    def of(cls, label: str) -> Condition:
        found = CONDITION.match(label)
        if found is None or MARK not in label:
            return cls(label, None, None)
        return cls(found["name"], None if found["dose"] is None else float(found["dose"]), found["type"])

    @property
    def plain(self) -> bool:
        """Whether the label is a name alone."""
        return self.dose is None and self.type is None


def types_of(labels: Iterable[str]) -> list[str]:
    """Types that labels name, sorted."""
    return sorted({kind for label in labels if (kind := Condition.of(label).type) is not None})
