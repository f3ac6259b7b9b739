"""What a domain plugin offers: configs, a data recipe, weights, a demo prompt. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segue.core.errors import ConfigError

DEFAULT_VARIANT = "config"


@dataclass(frozen=True)
class Domain:
    """A kind of audio that pipelines are made for.

    Attributes:
        name: the word users write: ``--domain speech``.
        directory: holds ``config.yaml``, its variants (``three_stage.yaml``) and ``pretrained/``.
        recipe: ``"module:function"`` that turns source data into a manifest:
            ``function(source: Path, output: Path, progress) -> Path``.
        prompt: an audio file that may be published with the package, for demos.
        findings: ``"module:attribute"`` of a ``segue.core.findings.suite.Suite``, by which
            `segue reproduce` measures; empty: it cannot.
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
        return directory if (directory / "pipeline.yaml").is_file() else None

    def config_path(self, variant: str = DEFAULT_VARIANT) -> Path:
        """The YAML file of a variant.

        Raises:
            ConfigError: if there is no such variant.
        """
        path = self.directory / f"{variant}.yaml"
        if not path.is_file():
            raise ConfigError(
                f"{self.name}/{variant}",
                "is no config of this domain",
                f"choose one of {', '.join(f'{self.name}/{v}' for v in self.variants)}",
            )
        return path
