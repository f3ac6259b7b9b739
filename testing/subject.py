"""What is checked: how to build it, and how exact it has to be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from segue.core.interfaces import Component, Tokenizer
from segue.core.options import Options
from segue.core.records import Kind
from segue.core.spec import StageSpec
from segue.testing.stages import TINY_STAGES
from segue.testing.synthetic import fit_on_synthetic

if TYPE_CHECKING:
    from segue.core.manager import PluginHost


def prepare_by_default(component: Component) -> None:
    """Fit what needs fitting; anything else is checked as it was built, untrained."""
    if component.needs_fitting and isinstance(component, Tokenizer):
        fit_on_synthetic(component)


@dataclass(eq=False)
class Subject:
    """A component to check.

    Attributes:
        kind: its contract.
        factory: the name it is registered under, or what builds it: called with the options, and
            for a stage language model with its stage; the class itself will do.
        options: values for a registered component, an instance of its options model for a factory.
        stage: for a stage language model, what to predict from what. Keep its codebooks small:
            some promises are checked over every possible sequence.
        host: where a registered name is looked up; the process-wide host by default.
        prepare: makes a new instance usable, so that checks are of something fitted or trained.
        atol: how far figures that should be equal may lie apart.
        mismatches: share of tokens that may differ where all should be equal: a quantiser's ties
            can go the other way when sums are taken in another order.
        label: what to call it in reports.
    """

    kind: Kind
    factory: str | Callable[..., Component]
    options: Mapping[str, Any] | Options = field(default_factory=dict)
    stage: StageSpec = TINY_STAGES["second"]
    host: PluginHost | None = None
    prepare: Callable[[Component], object] = prepare_by_default
    atol: float = 1e-4
    mismatches: float = 0.0
    label: str = ""
    _prepared: Component | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.label:
            name = self.factory if isinstance(self.factory, str) else self.factory.__name__
            self.label = f"{name}-{self.stage.name}" if self.kind == "stage_lm" else name

    def __str__(self) -> str:
        return self.label

    def blank(self, seed: int = 0) -> Component:
        """A new instance, as it is before weights are loaded into it, in eval mode."""
        arguments = (self.stage,) if self.kind == "stage_lm" else ()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if not isinstance(self.factory, str):
                return self.factory(self.options, *arguments).eval()
            component = self._host().create(
                self.kind, self.factory, self.options, *arguments, place=self.label
            )
            assert isinstance(component, Component)
            return component.eval()

    def create(self) -> Component:
        """An instance of one's own that is ready for use, in eval mode; all are alike."""
        if self._prepared is None:
            component = self.blank()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.prepare(component)
            self._prepared = component.eval()
        return copy.deepcopy(self._prepared)

    def _host(self) -> PluginHost:
        from segue.core.manager import default_host

        return default_host() if self.host is None else self.host
