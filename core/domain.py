"""Describe a domain plugin: configs, a data recipe, weights, a demo prompt. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segue.core.errors import ConfigError

DEFAULT_VARIANT = "config"  # the config of a domain that ships no weights
BASELINE = "baseline"  # the variant of a domain's simplest parts, without weights
PIPELINE_FILE = "pipeline.yaml"  # of a saved pipeline


@dataclass(frozen=True)
class Domain:
    """A kind of audio that pipelines are made for."""

    name: str  # the word users write: ``--domain speech``
    # Holds configs to train from (``baseline.yaml`` is ``speech/baseline``) and ``pretrained/``,
    # pipelines with weights: ``pipeline.yaml`` there is ``speech``, ``three_stage.yaml`` is
    # ``speech/three_stage``. Without them ``config.yaml`` is ``speech``.
    directory: Path
    # ``"module:function"`` that turns source data into a manifest: ``function(source: Path, output:
    # Path, progress) -> Path``.
    recipe: str
    prompt: Path  # an audio file that may be published with the package, for demos
    # ``"module:attribute"`` of a ``segue.findings.suite.Suite`` that `segue reproduce` measures;
    # empty if there is none.
    findings: str = ""

    @property
    def pretrained(self) -> Path | None:
        """The directory of shipped weights, if this installation carries them."""
        directory = self.directory / "pretrained"
        return directory if (directory / PIPELINE_FILE).is_file() else None

    @property
    def pretrained_names(self) -> tuple[str, ...]:
        """Names of pipelines that come with weights: ``speech``, ``speech/three_stage``."""
        return () if self.pretrained is None else self._names(self.pretrained, PIPELINE_FILE)

    @property
    def names(self) -> tuple[str, ...]:
        """All that users may write: pipelines with weights first, then configs to train from."""
        configs = self._names(self.directory, f"{DEFAULT_VARIANT}.yaml")
        return tuple(dict.fromkeys((*self.pretrained_names, *configs)))

    def _names(self, directory: Path, default: str) -> tuple[str, ...]:
        files = sorted(path.name for path in directory.glob("*.yaml"))
        own = [self.name] if default in files else []
        return (*own, *(f"{self.name}/{Path(file).stem}" for file in files if file != default))

    def config_path(self, variant: str = "") -> Path:
        """Return the YAML file of ``speech`` or ``speech/VARIANT``, or raise ``ConfigError``.

        A pipeline with weights comes before a config of the same name.
        """
        places = [self.directory / f"{variant or DEFAULT_VARIANT}.yaml"]
        if self.pretrained is not None:
            places.insert(0, self.pretrained / (f"{variant}.yaml" if variant else PIPELINE_FILE))
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            raise ConfigError(
                f"{self.name}/{variant}" if variant else self.name,
                "is not a pipeline or config of this domain",
                f"choose one of {', '.join(self.names)}",
            )
        return found
