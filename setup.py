"""Map the root folders to the import package `segue`; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

FOLDERS = (
    "core", "sound", "inference", "data", "training", "evaluation", "findings", "testing",
    "plugins", "apps",
)  # fmt: skip
ROOTS = {folder: f"segue.{folder}" for folder in FOLDERS}


#: Files beside the package's modules: they go into it under their own paths.
EXAMPLE = Path("examples") / "third_party_plugin"  # `segue new-plugin` copies from it
CARRIED = [Path("registry.yaml"), EXAMPLE / "pyproject.toml", *(EXAMPLE / "src").rglob("*.py")]


class BuildWithFiles(build_py):
    """Carry files from the root folder into the built package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for path, target in zip(CARRIED, self._targets(), strict=True):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)

    def _targets(self) -> list[Path]:
        return [Path(self.build_lib) / "segue" / path for path in CARRIED]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *map(str, self._targets())]

    def get_source_files(self) -> list[str]:
        # A source distribution carries these: without them it could not build a wheel.
        return [*super().get_source_files(), *map(str, CARRIED)]


def nested_packages() -> list[str]:
    """Every package below the root folders, under its import name."""
    found = ["segue"]
    for folder, name in ROOTS.items():
        found += [name, *(f"{name}.{child}" for child in find_packages(folder))]
    return found


setup(
    packages=nested_packages(),
    package_dir={"segue": "src/segue"} | {name: folder for folder, name in ROOTS.items()},
    cmdclass={"build_py": BuildWithFiles},
)
