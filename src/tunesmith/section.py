"""The base of every section of tunesmith.yaml.

A section is a frozen pydantic model. The docstring under a field is its only description: JSON schema, `tunesmith config
explain` and the reference page all come from it. Unknown keys are errors.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen settings of one stage; unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        validate_default=True,
    )
