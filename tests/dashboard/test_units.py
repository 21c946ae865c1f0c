from __future__ import annotations

import pytest

from atlas.dashboard import units


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (0, "0"),
        (999, "999"),
        (9999, "9,999"),
        (12345, "12.3k"),
        (999_400, "999k"),
        (1_234_567, "1.23M"),
        (2.5e9, "2.5B"),
    ],
)
def test_counts_are_short(value: float | None, expected: str) -> None:
    assert units.count(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (0, "0 ms"),
        (0.0042, "4.2 ms"),
        (0.084, "84 ms"),
        (1.239, "1.24 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (3 * 86400, "3 d"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations_are_told_in_two_parts(value: float | None, expected: str) -> None:
    assert units.seconds(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(0, "0 B"), (4_813_000, "4.81 MB"), (25.3e9, "25.3 GB"), (None, "–")])
def test_sizes(value: float | None, expected: str) -> None:
    assert units.size(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(None, "–"), (0, "0.0000"), (1234, "0.0012"), (2_500_000, "2.50")])
def test_money_is_in_millionths(value: float | None, expected: str) -> None:
    assert units.money(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(None, "–"), (0, "0"), (0.254, "0.254"), (12.55, "12.6"), (340.2, "340")])
def test_rates(value: float | None, expected: str) -> None:
    assert units.rate(value) == expected


def test_moments_are_utc() -> None:
    assert units.moment(1_700_000_000) == "2023-11-14 22:13:20"
    assert units.iso(1_700_000_000) == "2023-11-14T22:13:20Z"
