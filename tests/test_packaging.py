"""What the source distribution and the wheel carry, and that the wheel works where it lands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_string
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import segue
from tests.test_structure import ROOMS

ROOT = Path(__file__).resolve().parent.parent
CARRIED = ("LICENSE", "README.md", "pyproject.toml", "registry.yaml", "setup.py")
DATA = ("*.yaml", "*.json", "*.safetensors", "*.js", "*.css")
EXAMPLE = Path("examples/third_party_plugin")


def sources() -> Iterator[tuple[str, Path]]:
    """Every file that must be in the wheel: its path there, and its path here."""
    for folder in ROOMS:
        for pattern in ("*.py", *DATA):
            for path in (ROOT / folder).rglob(pattern):
                yield f"segue/{path.relative_to(ROOT).as_posix()}", path
    for path in (ROOT / "src" / "segue").glob("*.py"):
        yield f"segue/{path.name}", path
    yield "segue/py.typed", ROOT / "src" / "segue" / "py.typed"
    yield "segue/registry.yaml", ROOT / "registry.yaml"
    for path in (ROOT / EXAMPLE / "pyproject.toml", *(ROOT / EXAMPLE / "src").rglob("*.py")):
        yield f"segue/{path.relative_to(ROOT).as_posix()}", path


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def start_of(path: Path) -> bytes:
    """The first 64 KB: to compress all the weights takes long and shows nothing more."""
    with path.open("rb") as file:
        return file.read(1 << 16)


def copy_start(source: str, target: str) -> None:
    Path(target).write_bytes(start_of(Path(source)))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution built from a copy: building in place would leave build/ behind."""
    checkout = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pyc")
    for name in (*CARRIED, *ROOMS, "src", "examples"):
        source, target = ROOT / name, checkout / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignored, copy_function=copy_start)
        else:
            shutil.copy2(source, target)
    build = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    run(sys.executable, "-c", build, cwd=checkout)
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the source distribution, as an installer without wheels would."""
    directory = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(directory, filter="data")
    (unpacked,) = directory.iterdir()
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    run(sys.executable, "-c", build, cwd=unpacked)
    (made,) = unpacked.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked into a directory of its own; its dependencies are the test run's."""
    directory = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory


@pytest.mark.slow
def test_sdist_carries_what_a_wheel_is_built_from(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= set(CARRIED)


def test_wheel_carries_every_module_and_data_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        missing = sorted(name for name, _ in sources() if name not in names)
        assert not missing
        for name, path in sources():
            assert archive.read(name) == start_of(path), name


def test_wheel_carries_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"segue"}
    assert wheel.stat().st_size < 100_000_000  # PyPI takes no more


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_string(archive.read(name).decode())
    required = metadata.get_all("Requires-Dist", [])
    core = [line for line in required if "extra ==" not in line]
    assert len(core) <= 12, core
    assert set(metadata["Requires-Python"].split(",")) == {">=3.10", "<3.14"}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert any(path.endswith("LICENSE") for path in metadata.get_all("License-File", []))


def test_installed_wheel_works_away_from_the_checkout(site: Path, tmp_path: Path) -> None:
    program = f"""
        import sys
        import segue, segue.core.plugins
        from importlib.resources import files
        roots = {set(ROOMS)!r}
        assert not roots & set(sys.modules), roots & set(sys.modules)
        assert "torch" not in sys.modules
        host = segue.core.plugins.PluginHost.discover()
        assert (files("segue") / "registry.yaml").is_file()
        print(segue.__file__, segue.core.plugins.__file__, sep="\\n")
    """
    script = tmp_path / "program.py"
    script.write_text("\n".join(line.strip() for line in program.splitlines()))
    printed = run(sys.executable, script, cwd=tmp_path, PYTHONPATH=str(site))
    for line in printed.splitlines():
        assert Path(line).is_relative_to(site), line


def test_root_folders_are_no_packages_of_their_own(site: Path, tmp_path: Path) -> None:
    found = f"[name for name in {ROOMS!r} if name in sys.modules or find_spec(name)]"
    start = "import segue.core.plugins, sys; from importlib.util import find_spec"
    program = f"{start}; print({found})"
    assert run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(site)) == "[]"


def test_no_module_of_this_run_came_from_a_root_folder() -> None:
    assert not set(ROOMS) & set(sys.modules)


@pytest.mark.slow
def test_type_checkers_find_an_editable_install(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    run(sys.executable, "tools/typing_tree.py", cwd=ROOT)
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    stubs = next(path for path in sys.path if (Path(path) / "segue-stubs.pth").is_file())
    shutil.copy2(Path(stubs) / "segue-stubs.pth", site)
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site / "ours.pth").write_text("\n".join(ours), encoding="utf-8")
    (tmp_path / "plugin.py").write_text(
        "from segue import Pipeline\n"
        "from segue.core.options import Options\n"
        "class Mine(Options):\n"
        "    size: int = 1\n"
        "wrong: str = Mine().size\n"
        "also: int = Pipeline.from_pretrained('speech')\n",
        encoding="utf-8",
    )
    python = tmp_path / "venv" / "bin" / "python"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", python, "--follow-imports=silent",
         "plugin.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "import-not-found" not in done.stdout
    assert 'expression has type "int", variable has type "str"' in done.stdout
    assert 'expression has type "Pipeline", variable has type "int"' in done.stdout


def test_the_version_is_written_once() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in project and 'attr = "segue.__version__"' in project
    assert version("segue") == segue.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {segue.__version__}\n" in citation


def test_releases_that_make_installs_run_on_every_python_we_name() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    refused = []
    for pin in (Requirement(line) for line in lines if not line.startswith("#")):
        try:
            found = distribution(pin.name)
        except PackageNotFoundError:
            continue
        if not pin.specifier.contains(found.version):  # the pin of another Python
            continue
        runs_on = SpecifierSet(found.metadata["Requires-Python"] or "")
        for python in ("3.10.0", "3.11.0", "3.12.0", "3.13.0"):
            environment = {"python_version": python[:-2], "python_full_version": python}
            wanted = pin.marker is None or pin.marker.evaluate(environment)
            if wanted and not runs_on.contains(python):
                refused.append(f"{pin} needs Python {runs_on}, not {python[:-2]}")
    assert not refused


def test_public_names_are_listed() -> None:
    import segue

    assert {"Pipeline", "StageLM", "__version__"} <= set(dir(segue))
    assert set(segue.__all__) <= set(dir(segue))
