"""Section `registry`: under which name a run is registered and what the gate asks of it."""

from __future__ import annotations

from pydantic import Field

from tunesmith.section import Section


class RegistrySection(Section):
    """Model versions and the gate before the alias `champion`."""

    name: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]*$")
    """Name of the registered model; the project's name when empty."""
    require_beats_classical: bool = False
    """Refuse a model version that does not beat the classical baseline with the interval excluding zero."""
    error_budget: float = Field(default=0.05, gt=0, lt=0.5)
    """Chance, over all looks at one test split together, that the gate promotes a model version that is no better. Look k spends 6 / (pi k)^2 of it."""
