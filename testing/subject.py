"""Describe what is checked: how to build it, and how exact it has to be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch

from segue.core.interfaces import Component, StageLM, Tokenizer
from segue.core.options import Options
from segue.core.plugins import PluginHost, default_host
from segue.core.records import Kind
from segue.core.spec import ACOUSTIC, SEMANTIC, SliceSpec, StageSpec
from segue.testing.stage_batches import batch_for
from segue.testing.synthetic import fit_on_synthetic

# Small, so that every sequence can be tried; of unequal sizes, so that a confusion of codebooks
# shows.
_SEMANTIC = SliceSpec(SEMANTIC, 0, 1, codebook_size=7, frame_rate=Fraction(25))
_COARSE = SliceSpec(ACOUSTIC, 0, 2, codebook_size=5, frame_rate=Fraction(50))
_FINE = SliceSpec(ACOUSTIC, 2, 5, codebook_size=3, frame_rate=Fraction(50))

#: AudioLM's three stages in miniature: given nothing, given slower frames, given two slices.
TINY_STAGES: Mapping[str, StageSpec] = {
    "first": StageSpec("first", _SEMANTIC),
    "second": StageSpec("second", _COARSE, (_SEMANTIC,)),
    "third": StageSpec("third", _FINE, (_SEMANTIC, _COARSE)),
}


_WITHOUT_OPTIONS = ("metric", "continuation_metric", "domain")  # kinds that may have none


def prepare_by_default(component: Any) -> None:
    """Fit what needs fitting, and let a stage model that learns in buffers only see a few batches.

    Anything else is checked as it was built, untrained.
    """
    if isinstance(component, Tokenizer) and component.needs_fitting:
        fit_on_synthetic(component)
    elif isinstance(component, StageLM):
        batches = [batch_for(component.stage) for _ in range(4)]
        if component.needs_training and not list(component.parameters()):
            for batch in batches:
                component.train().training_step(batch)
        if component.needs_fitting:
            component.fit(batches)


@dataclass(eq=False)
class Subject:
    """A component to check.

    Attributes:
        kind: its contract.
        factory: the name it is registered under, or a callable (such as its class) that takes the
            options and, for a stage language model, the stage; that of a metric without options
            and that of a domain take nothing.
        options: values for a registered component, an instance of its options model for a factory.
        stage: for a stage language model, what to predict from what. Keep its codebooks small:
            some promises are checked over every possible sequence.
        host: where a registered name is looked up; the process-wide host by default.
        prepare: makes a new instance usable, so that a fitted or trained one is checked.
        atol: largest distance between figures that should be equal.
        mismatches: share of tokens that may differ where all should be equal: a quantiser's ties
            can go the other way when sums are taken in another order.
        label: its name in reports.
    """

    kind: Kind
    factory: str | Callable[..., Any]
    options: Mapping[str, Any] | Options = field(default_factory=dict)
    stage: StageSpec = TINY_STAGES["second"]
    host: PluginHost | None = None
    prepare: Callable[[Any], object] = prepare_by_default
    atol: float = 1e-4
    mismatches: float = 0.0
    label: str = ""
    _prepared: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.label:
            name = self.factory if isinstance(self.factory, str) else self.factory.__name__
            self.label = f"{name}-{self.stage.name}" if self.kind == "stage_lm" else name

    def __str__(self) -> str:
        return self.label

    @property
    def known(self) -> PluginHost:
        """The host that names are looked up in."""
        return self.host or default_host()

    def blank(self, seed: int = 0) -> Any:
        """Return a new instance in eval mode, as it is before weights are loaded into it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = self._built()
        return built.eval() if isinstance(built, Component) else built

    def _built(self) -> Any:
        stage = (self.stage,) if self.kind == "stage_lm" else ()
        if not isinstance(self.factory, str):
            if self.kind in _WITHOUT_OPTIONS and not isinstance(self.options, Options):
                return self.factory()
            return self.factory(self.options, *stage)
        if self.kind == "domain":
            record = self.known.find("domain", self.factory, self.label)
            return self.known.load(record, self.label)
        return self.known.create(self.kind, self.factory, self.options, *stage, place=self.label)

    def own_options(self) -> Options | None:
        """Return the options of an instance; None for metrics without options and domains."""
        if self.kind == "domain":
            return None
        if self.kind in _WITHOUT_OPTIONS:
            if isinstance(self.factory, str):
                record = self.known.find(self.kind, self.factory, self.label)
                if not record.config:
                    return None
                values = self.options
                plain = values.model_dump() if isinstance(values, Options) else values
                return self.known.options(self.kind, self.factory, plain, self.label)
            return self.options if isinstance(self.options, Options) else None
        return self.blank().config

    def create(self) -> Any:
        """Return an instance that is ready for use, in eval mode; none is shared but metrics."""
        if self._prepared is None:
            component = self.blank()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.prepare(component)
            if not isinstance(component, Component):
                return component  # a metric may hold what cannot be copied
            self._prepared = component.eval()
        return copy.deepcopy(self._prepared)
