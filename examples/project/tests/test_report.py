from almanac import Reading, report


def test_june_is_reported(june: list[Reading], expected_report: str) -> None:
    assert report(june) == expected_report


def test_the_last_line_names_the_warmest_day(june: list[Reading]) -> None:
    assert report(june).splitlines()[-1] == "warmest: 2026-06-05, 19.0"
