"""Section `review`: when judgements become records, and how records are given to people to look at."""

from __future__ import annotations

from pydantic import Field

from tunesmith.section import Section


class ReviewSection(Section):
    """Expert review of predictions."""

    min_feedback: int = Field(default=1, ge=1)
    """`tunesmith renew` refuses below this many new judgements with a right answer."""
    reviewers: int = Field(default=1, ge=1)
    """How many people label each review item. Where they differ, one more is asked, until a label has more than half of the votes."""
    adjudicators: tuple[str, ...] = ()
    """Reviewers whose label decides an item, whatever others said."""
    guidelines: str = ""
    """Markdown file with the guidelines for reviewers, relative to the project; goes along with every export, and its version onto every label."""
