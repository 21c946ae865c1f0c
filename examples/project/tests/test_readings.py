from pathlib import Path

import pytest
from almanac import Reading, load


def test_readings_are_in_order_of_their_days(june: list[Reading]) -> None:
    assert [reading.day.day for reading in june] == [1, 2, 3, 4, 5, 6]


def test_a_day_without_a_value_was_not_measured(june: list[Reading]) -> None:
    assert [reading.celsius for reading in june if reading.day.day in (3, 4)] == [16.6, None]


@pytest.mark.parametrize("line", ["yesterday,3", "2026-06-01", "2026-06-01,warm"])
def test_a_line_that_is_not_a_reading_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "bad.csv").write_text(f"2026-06-01,1.0\n{line}\n")
    with pytest.raises(ValueError, match="line 2 is not a reading"):
        load(tmp_path / "bad.csv")
