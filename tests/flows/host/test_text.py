"""Numbers as people read them."""

import pytest

from flows.host.text import quantity


@pytest.mark.parametrize(
    ("value", "unit", "digits", "text"),
    [
        (0.0123456, "s", 3, "0.0123 s"),
        (119.9, "s", 3, "120 s"),
        (120, "s", 3, "2 min"),
        (7199, "s", 3, "120 min"),
        (7200, "s", 3, "2 h"),
        (3600 * 12_345, "s", 3, "12,345 h"),
        (99.4, "s", 2, "99 s"),
        (99.6, "s", 2, "100 s"),  # not 1e+02
        (9.9e7, "B", 3, "99 MB"),
        (1e8, "B", 3, "0.1 GB"),
        (80e9, "B", 2, "80 GB"),
        (123_456e9, "B", 3, "123,456 GB"),
        (12.3456, "USD", 3, "12.3 USD"),
    ],
)
def test_a_quantity_has_the_unit_that_suits_it(value: float, unit: str, digits: int, text: str) -> None:
    assert quantity(value, unit, digits) == text
