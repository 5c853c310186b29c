"""YAML block -> OfflineWeights: how the offline judge adds features up to ratings, principle by principle."""

import hashlib
import json
from typing import Annotated

from pydantic import Field

from psychocounsel.config.base import Settings

FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


class PrincipleWeights(Settings):
    """Logit of a reply that shows nothing at all, and what each feature adds when fully there."""

    base: FiniteFloat
    features: dict[str, FiniteFloat] = Field(default_factory=dict[str, float])


class OfflineWeights(Settings):
    """The `offline` block of a rubric.

    A principle's logit is its base plus the sum of weight times feature (see `offline_features`); the scale's
    ends are the ends of the logistic curve. `faults` count on every principle; one that a principle lists
    itself has that weight there instead.
    """

    faults: dict[str, FiniteFloat] = Field(default_factory=dict[str, float])
    principles: dict[str, PrincipleWeights]

    @property
    def digest(self) -> str:
        """SHA-256 over every weight, in order: floating sums depend on it."""
        rules = [[name, by.base, list(by.features.items())] for name, by in self.principles.items()]
        content = json.dumps([list(self.faults.items()), rules])
        return hashlib.sha256(content.encode("ascii")).hexdigest()

    def of(self, principle: str) -> dict[str, float]:
        """Return the weight of every feature that counts on a principle."""
        return {**self.faults, **self.principles[principle].features}
