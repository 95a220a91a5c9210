import pytest

from headstart.core.patterns import matches


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [
        ("head.weight", "head", True),
        ("head.weight", "head.weight", True),
        ("head.weight", "weight", False),
        ("heads.weight", "head", False),
        ("body.head.weight", "head", False),
        ("body.head.weight", "*.head", True),
        ("block1.conv.weight", "block?", True),
        ("block12.conv.weight", "block?", False),
        ("block3.conv.weight", "block[1-2]", False),
        ("weight", "*", True),
    ],
)
def test_patterns_fit_a_name_or_a_module_around_it(name, pattern, fits):
    assert matches(name, pattern) is fits
