"""The contracts' own behaviour: what a component needs, in the old words and the new."""

from __future__ import annotations

import pytest

from segue.core.interfaces import Component


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("none", (False, False)),
        ("training", (True, False)),
        ("fitting", (False, True)),
        ("training and fitting", (True, True)),
    ],
)
def test_a_string_of_needs_is_read_with_a_warning(old: str, new: tuple[bool, bool]) -> None:
    with pytest.warns(DeprecationWarning, match="needs_training"):
        made = type("Old", (Component,), {"needs": old})
    assert (made.needs_training, made.needs_fitting) == new


def test_a_component_is_trained_unless_it_says_otherwise() -> None:
    assert (Component.needs_training, Component.needs_fitting) == (True, False)
