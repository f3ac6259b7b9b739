"""Describe a domain plugin: configs, a data recipe, weights, a demo prompt. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segue.core.errors import ConfigError

DEFAULT_VARIANT = "config"  # of a domain's configs
PIPELINE_FILE = "pipeline.yaml"  # of a saved pipeline


@dataclass(frozen=True)
class Domain:
    """A kind of audio that pipelines are made for.

    Attributes:
        name: the word users write: ``--domain speech``.
        directory: holds ``config.yaml``, its variants (``three_stage.yaml``) and ``pretrained/``.
            There ``pipeline.yaml`` is the pipeline ``speech``, and ``three_stage.yaml`` is
            ``speech/three_stage``; the config of the same name may differ from it.
        recipe: ``"module:function"`` that turns source data into a manifest:
            ``function(source: Path, output: Path, progress) -> Path``.
        prompt: an audio file that may be published with the package, for demos.
        findings: ``"module:attribute"`` of a ``segue.findings.suite.Suite`` that `segue reproduce`
            measures; empty if there is none.
    """

    name: str
    directory: Path
    recipe: str
    prompt: Path
    findings: str = ""

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the domain's configs; ``config`` is the default one."""
        return tuple(sorted(path.stem for path in self.directory.glob("*.yaml")))

    @property
    def pretrained(self) -> Path | None:
        """The directory of shipped weights, if this installation carries them."""
        directory = self.directory / "pretrained"
        return directory if (directory / PIPELINE_FILE).is_file() else None

    @property
    def pretrained_names(self) -> tuple[str, ...]:
        """Names that `Pipeline.from_pretrained` takes: ``speech``, ``speech/three_stage``."""
        if self.pretrained is None:
            return ()
        variants = sorted(path.stem for path in self.pretrained.glob("*.yaml"))
        default = Path(PIPELINE_FILE).stem
        return (self.name, *(f"{self.name}/{name}" for name in variants if name != default))

    def pretrained_file(self, variant: str = "") -> Path | None:
        """Return the pipeline file of shipped weights, if any; "" is the default variant."""
        if self.pretrained is None:
            return None
        path = self.pretrained / (f"{variant}.yaml" if variant else PIPELINE_FILE)
        return path if path.is_file() else None

    def config_path(self, variant: str = DEFAULT_VARIANT) -> Path:
        """Return the YAML file of a variant.

        Raises:
            ConfigError: if there is no such variant.
        """
        path = self.directory / f"{variant}.yaml"
        if not path.is_file():
            raise ConfigError(
                f"{self.name}/{variant}",
                "is not a config of this domain",
                f"choose one of {', '.join(f'{self.name}/{v}' for v in self.variants)}",
            )
        return path
