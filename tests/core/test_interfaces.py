"""The contracts' own behaviour: needs in the old words and the new, and names that clash."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segue.core.interfaces import Component
from segue.core.options import Options


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


@pytest.mark.parametrize(
    ("name", "value"),
    [("blocks", nn.ModuleList()), ("device", torch.device("cpu")), ("fit", nn.Linear(1, 1))],
)
def test_an_attribute_that_the_contract_would_hide_is_refused(name: str, value: object) -> None:
    class Mine(Component):
        def __init__(self) -> None:
            super().__init__(Options())
            setattr(self, f"_{name}", value)
            setattr(self, name, value)

    with pytest.raises(TypeError, match=f"Mine.{name} .* another name, such as _{name}$"):
        Mine()


def test_an_attribute_of_the_authors_own_is_kept() -> None:
    class Mine(Component):
        def __init__(self) -> None:
            super().__init__(Options())
            self.layers, self.needs_fitting = nn.ModuleList([nn.Linear(1, 1)]), True
            self.trouble = lambda figures: "none"  # type: ignore[method-assign]

    mine = Mine()
    assert len(mine.layers) == 1 and mine.needs_fitting and mine.trouble({}) == "none"
