"""Test that YAML which expands without end is refused before memory is taken."""

from __future__ import annotations

import pytest

from segue.core.yaml_files import YAML_ERRORS, parse_yaml

LEVELS = range(1, 10)
ALIASES = "a0: &a0 [x]\n" + "\n".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]" for n in LEVELS)
MERGES = "a0: &a0 {k: x}\n" + "\n".join(
    f"a{n}: &a{n} {{<<: [{f'*a{n - 1}, ' * 9}]}}" for n in LEVELS
)


@pytest.mark.parametrize("text", [ALIASES, MERGES, "&a [*a]"])
def test_a_text_that_expands_without_end_is_refused(text: str) -> None:
    with pytest.raises(YAML_ERRORS):
        parse_yaml(text)


def test_aliases_and_merge_keys_work() -> None:
    text = "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]"
    assert parse_yaml(text) == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]}


@pytest.mark.parametrize(
    "sign",
    [pytest.param("[", marks=pytest.mark.slow), "{a: ", "- ", "? "],  # `[` takes long to scan
)
def test_deep_nesting_is_refused_and_does_not_end_the_process(sign: str) -> None:
    """The reader in C would overflow its stack; what it is given is too shallow for that."""
    with pytest.raises(RecursionError):
        parse_yaml(sign * 2000)
    assert parse_yaml("[" * 400 + "]" * 400)
