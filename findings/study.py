"""Hold what all tables are made from: a pipeline, held-out recordings, metrics."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from segue.core.checkpoint_files import WEIGHTS
from segue.core.config import PipelineConfig
from segue.core.config_files import find_domain, load_config
from segue.core.discovery import import_target
from segue.core.errors import ConfigError, PluginError, SegueError
from segue.core.files import as_json, write_json
from segue.core.plugins import PluginHost
from segue.core.progress import Progress
from segue.data.recordings import Recording
from segue.evaluation.continuations import continued, measured
from segue.evaluation.resynthesis import Way, evaluate_resynthesis
from segue.evaluation.subjects import spread_evenly
from segue.findings.finding import Figures, read_report
from segue.findings.suite import Suite
from segue.inference.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The user's choices. `segue reproduce` says what they are by default."""

    domain: str  # whose suite measures
    source: str  # a pipeline's directory or a domain with shipped weights
    data: str  # recordings, of which only the held-out ones are measured
    prompt_seconds: float  # of each, to continue from
    seconds: float  # that are added
    items: int  # most recordings
    seed: int  # of what is drawn
    overrides: tuple[str, ...] = ()  # of the pipeline's config
    temperatures: tuple[float, ...]  # of each stage in turn
    piece_seconds: float  # pieces that change places in a shuffled continuation
    labels: str | None = None  # CSV of labelled pieces of recordings; None: ``data``
    where: tuple[str, ...] = ()  # columns of it, and the values that they must have
    per_group: int  # most items of one label, speaker and context
    scores: str | None = None  # folder of MIDI files that recordings were rendered from
    tokens: str | None = None  # a token store of the pipeline's tokenizers; None: one is made
    steps: int  # that the stages of a variant are trained for
    clusters: tuple[int, ...]  # numbers of semantic clusters
    levels: tuple[int, ...]  # numbers of levels that are drawn given the semantic tokens
    codes: tuple[str, ...]  # shapes of acoustic tokens, as ``read_shapes`` makes them
    codec_steps: int  # that the codec of each shape is trained for
    lm_width: int  # channels of the model of each shape's tokens
    lm_depth: int  # its layers


TRUTH = "true continuation"  # name of a row
COMMON = ("domain", "source", "data", "items", "seed", "overrides")


def plain_command(words: str, **options: Any) -> str:
    """Format ``segue <words>`` with options as a user would type it; a list repeats its option."""
    parts = ["segue", *words.split()]
    for key, value in options.items():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            parts.append(f"--{key.replace('_', '-')}")
            parts += [] if one is True else [f"{one:g}" if isinstance(one, float) else str(one)]
    return shlex.join(parts)


def of_truth(figures: Figures) -> Figures:
    """Return figures of the recordings' own continuations, under the names of the pipeline's."""
    return {k.replace(" truth_", " "): v for k, v in figures.items() if " truth_" in k}


def suite_of(domain: str, host: PluginHost) -> Suite:
    """Return the metrics and models that a domain is measured by."""
    found = find_domain(domain, host).findings
    if not found:
        raise PluginError(domain, "has no suite of findings", "name another domain")
    suite = import_target(found)
    assert isinstance(suite, Suite)
    return suite


@dataclass
class Study:
    """The tables of one directory."""

    settings: Settings
    directory: Path  # holds tables, tokens and the training directories of variants
    host: PluginHost
    device: torch.device | str = "cpu"
    progress: Progress | None = None
    table: str = ""  # that is being made
    missing: dict[str, str] = field(default_factory=dict)  # metrics that it does without, and why
    _metrics: dict[tuple[str, str], Any] = field(default_factory=dict)

    @cached_property
    def suite(self) -> Suite:
        return suite_of(self.settings.domain, self.host)

    @cached_property
    def config(self) -> PipelineConfig:
        """Return the pipeline's config."""
        return load_config(self.settings.source, self.host, self.settings.overrides).config

    @cached_property
    def pipeline(self) -> Pipeline:
        return self.load()

    @cached_property
    def recordings(self) -> Sequence[Recording]:
        """Return held-out recordings that last for a prompt and its true continuation."""
        asked = self.settings
        least = asked.prompt_seconds + asked.seconds
        return spread_evenly(asked.data, asked.items, "valid", least)

    @cached_property
    def weights(self) -> str:
        """Return a hash of the pipeline's weights."""
        digest = hashlib.sha256()
        for part in self.config.parts.values():
            path = Path(part.checkpoint or "") / WEIGHTS
            digest.update(path.read_bytes() if path.is_file() else b"")
        return digest.hexdigest()[:16]

    def asked(self, uses: Iterable[str]) -> dict[str, Any]:
        """Return the settings that a table depends on, for JSON."""
        every = asdict(self.settings)
        found = {name: every[name] for name in (*COMMON, *uses)}
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in found.items()
        } | {"weights": self.weights}

    def load(self, source: str | Path | None = None, overrides: Sequence[str] = ()) -> Pipeline:
        """Load the pipeline with further overrides, or ``source`` in its place without any."""
        if source is None:
            source, overrides = self.settings.source, (*self.settings.overrides, *overrides)
        return Pipeline.from_pretrained(
            source, overrides=overrides, device=self.device, host=self.host
        )

    def metrics(self, kind: Any, names: Iterable[str]) -> dict[str, Any]:
        """Return the installed metrics; ``missing`` keeps why others are not available."""
        found = {}
        for name in names:
            if (kind, name) not in self._metrics:
                try:
                    self._metrics[kind, name] = self.host.create(kind, name, {}, place=name)
                except (PluginError, ConfigError) as error:
                    self._metrics[kind, name] = error
            metric = self._metrics[kind, name]
            if isinstance(metric, SegueError):
                self.missing[name] = f"{metric.problem}; {metric.fix}"
            else:
                found[name] = metric
        return found

    def continuations(self, pipeline: Pipeline, names: Iterable[str]) -> Figures:
        """Measure continuations of the held-out recordings."""
        asked, metrics = self.settings, self.metrics("continuation_metric", names)
        records = continued(
            pipeline, self.recordings, asked.prompt_seconds, asked.seconds, asked.seed,
            self.progress,
        )  # fmt: skip
        found = measured(records, metrics, self.missing, self.progress)
        return {f"{name} {key}": v for name, row in found.items() for key, v in row.items()}

    def resynthesis(
        self, pipeline: Pipeline, ways: Sequence[Way], pairs: Iterable[str], sets: Iterable[str]
    ) -> dict[str, Figures]:
        """Measure, by way, the held-out recordings after they went through tokens."""
        found = evaluate_resynthesis(
            pipeline,
            self.recordings,
            ways,
            self.metrics("metric", pairs),
            self.metrics("continuation_metric", sets),
            seed=self.settings.seed,
            progress=self.progress,
        )
        self.missing |= found["failed"]
        return found["ways"]

    def row(self, name: str, settings: Mapping[str, Any], make: Callable[[], Figures]) -> Figures:
        """Keep figures that take long in a file, so that a killed run goes on after them.

        Args:
            name: of the row; each of a table has its own.
            settings: that they depend on, as JSON holds them.
        """
        path = self.directory / "rows" / self.table / f"{re.sub(r'[^a-z0-9.]+', '_', name)}.json"
        kept = read_report(path, settings)
        if kept is None:
            kept = as_json({"settings": settings, "figures": make()})
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, kept)
        return kept["figures"]

    def command(self, words: str, source: Path | None = None, **options: Any) -> str:
        """Format a plain `segue` command on the pipeline, or on another one."""
        if source is not None:
            return plain_command(words, pipeline=source, **options)
        asked = self.settings
        which = "domain" if asked.source == asked.domain else "pipeline"
        changes = (*asked.overrides, *options.pop("set", ()))
        return plain_command(words, **{which: asked.source}, **options, set=changes)

    @property
    def of_continuations(self) -> dict[str, Any]:
        """Return the options of `segue evaluate continuations` that match ``continuations``."""
        asked = self.settings
        return {
            "data": asked.data, "items": asked.items, "prompt_seconds": asked.prompt_seconds,
            "seconds": asked.seconds, "complete": True, "seed": asked.seed,
        }  # fmt: skip

    @property
    def of_resynthesis(self) -> dict[str, Any]:
        """Return the options of `segue evaluate resynthesis` that match ``resynthesis``."""
        asked = self.settings
        least = asked.prompt_seconds + asked.seconds
        return {
            "data": asked.data, "items": asked.items, "least_seconds": least, "seed": asked.seed,
        }  # fmt: skip
