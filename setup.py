"""Map the root folders to the import package `segue`; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

FOLDERS = ("core", "data", "training", "evaluation", "findings", "testing", "plugins", "apps")
ROOTS = {folder: f"segue.{folder}" for folder in FOLDERS}


class BuildWithRegistry(build_py):
    """Carry registry.yaml from the root folder into the built package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copy2("registry.yaml", Path(self.build_lib) / "segue" / "registry.yaml")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        registry = str(Path(self.build_lib) / "segue" / "registry.yaml")
        return [*super().get_outputs(include_bytecode), registry]

    def get_source_files(self) -> list[str]:
        # What a source distribution carries: without it no wheel could be built from one.
        return [*super().get_source_files(), "registry.yaml"]


def nested_packages() -> list[str]:
    """Every package below the root folders, under its import name."""
    found = ["segue"]
    for folder, name in ROOTS.items():
        found += [name, *(f"{name}.{child}" for child in find_packages(folder))]
    return found


setup(
    packages=nested_packages(),
    package_dir={"segue": "src/segue"} | {name: folder for folder, name in ROOTS.items()},
    cmdclass={"build_py": BuildWithRegistry},
)
