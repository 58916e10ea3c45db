"""Section `review`: which predictions people see first and when judgements become records."""

from __future__ import annotations

from pydantic import Field

from tunesmith.section import Section


class ReviewSection(Section):
    """Expert review of predictions."""

    min_feedback: int = Field(default=1, ge=1)
    """`tunesmith renew` refuses below this many new judgements with a right answer."""
