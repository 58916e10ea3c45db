from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def complaints():
    """200 real complaints: 25 of each of 8 labels, with line breaks and natural near duplicates. CFPB, public domain."""
    return Path(__file__).parents[1] / "fixtures" / "complaints.csv"
