from pathlib import Path

import pytest
from almanac import Reading, load

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def june() -> list[Reading]:
    return load(FIXTURES / "june.csv")


@pytest.fixture
def expected_report() -> str:
    return (FIXTURES / "june.txt").read_text()
