"""Fixtures that several tests share: synthetic recordings and a tiny pipeline trained on them.

Importing this imports no torch: the process that hands tests out to others has no use for it, and
would keep them waiting.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

TINY = [
    "codec.options.width=16",
    "codec.options.encoder_depth=1",
    "codec.options.decoder_depth=1",
    "codec.options.codebook_size=32",
    "codec.options.num_levels=3",
    "codec.training.steps=3",
    "codec.training.batch_size=4",
    "codec.training.validation_batches=1",
    "semantic_tokenizer.options.num_clusters=16",
    "stages.semantic.lm.options.width=16",
    "stages.semantic.lm.options.depth=1",
    "stages.semantic.lm.options.heads=2",
    "stages.semantic.lm.training.steps=3",
    "stages.semantic.lm.training.batch_size=2",
    "stages.semantic.lm.training.validation_batches=1",
    "stages.semantic.crop_seconds=2",
    "stages.acoustic.lm.options.width=16",
    "stages.acoustic.lm.options.depth=1",
    "stages.acoustic.lm.options.heads=2",
    "stages.acoustic.lm.training.steps=3",
    "stages.acoustic.lm.training.batch_size=2",
    "stages.acoustic.lm.training.validation_batches=1",
    "stages.acoustic.crop_seconds=2",
]


def melody(seconds: float, seed: int, rate: int = 16_000) -> torch.Tensor:
    """Notes with overtones and pauses: ``[T]``, tonal, not silent, below full scale."""
    import torch

    random = torch.Generator().manual_seed(seed)
    time = torch.arange(round(0.2 * rate)) / rate
    notes = []
    for _ in range(math.ceil(seconds / 0.2)):
        pitch = 110 * 2 ** (int(torch.randint(24, (1,), generator=random)) / 12)
        partials = [torch.sin(2 * math.pi * pitch * k * time) / k for k in (1, 2, 3)]
        notes.append(torch.stack(partials).sum(0) * torch.exp(-6 * time) * 0.25)
    return torch.cat(notes)[: round(seconds * rate)]


def pytest_collection_finish() -> None:
    """Keep what was imported and collected out of every later garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are faster on one thread, sums are the same on every machine, and test processes
    that run side by side do not compete for cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def recordings_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four groups of synthetic recordings."""
    import soundfile

    folder = tmp_path_factory.mktemp("recordings")
    for group in range(4):
        (folder / f"group{group}").mkdir()
        for take in range(2):
            wave = melody(3.0, seed=10 * group + take)
            soundfile.write(folder / f"group{group}" / f"{take}.wav", wave.numpy(), 16_000)
    return folder


@pytest.fixture(scope="session")
def tiny_pipelines(
    tmp_path_factory: pytest.TempPathFactory, recordings_folder: Path
) -> dict[str, Path]:
    """Directories of both domains' pipelines, shrunk and trained for a few steps by `train_all`."""
    from segue.core.config_files import load_config
    from segue.core.plugins import PluginHost
    from segue.training.workspace import Workspace, train_all

    host = PluginHost.discover(entry_points=False)
    found = {}
    for seed, domain in enumerate(("speech", "piano")):
        settings = [*TINY, f"name={domain}", f"codec.training.seed={seed}"]
        config = load_config(f"{domain}/baseline", host, settings, anew=True).config
        directory = tmp_path_factory.mktemp(f"tiny-{domain}")
        found[domain] = train_all(Workspace(config, directory, recordings_folder, host))
    return found


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    """A prompt of 1.3 s."""
    import soundfile

    path = tmp_path / "prompt.wav"
    soundfile.write(path, melody(1.3, seed=99).numpy(), 16_000)
    return path


FIXTURES = Path(__file__).parent / "plugin_fixtures"

Install = Callable[..., None]
WriteDistribution = Callable[[str, str, str], Path]
WriteRegistry = Callable[[str], Path]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put fake distributions on the path: names of folders in ``plugin_fixtures``, or folders.

    Only they are seen. What was imported of them is forgotten after the test.
    """
    before = set(sys.modules)

    def install(*folders: str | Path) -> None:
        names = set()
        for folder in folders:
            monkeypatch.syspath_prepend(str(FIXTURES / folder))
            names |= {path.name.split("-")[0] for path in (FIXTURES / folder).glob("*.dist-info")}
        monkeypatch.setenv("SEGUE_PLUGINS", ",".join(names) or "off")

    yield install
    for name in set(sys.modules) - before:
        if name.startswith("segue_"):
            del sys.modules[name]


@pytest.fixture
def write_registry(tmp_path: Path) -> WriteRegistry:
    """Write a user's registry file; ``api_version: 1`` is put in front."""

    def write(text: str) -> Path:
        path = tmp_path / "segue-registry.yaml"
        path.write_text(f"api_version: 1\n{text}")
        return path

    return write


def registering(kind: str, targets: Mapping[str, str]) -> str:
    """Return the source of a plugin that registers components: names and their import paths."""
    records = [
        f"PluginRecord({kind!r}, {name!r}, {target!r}, api_version=1)"
        for name, target in targets.items()
    ]
    return (
        "from segue.core.hookspecs import hookimpl\n"
        "from segue.core.records import PluginRecord\n"
        "@hookimpl\n"
        "def segue_register():\n"
        f"    return [{', '.join(records)}]\n"
    )


@pytest.fixture
def write_distribution(tmp_path: Path) -> Callable[[str, str, str], Path]:
    """Write a fake distribution of one module; returns the folder to put on the path."""

    def write(module: str, source: str, entry_points: str) -> Path:
        folder = tmp_path / "site"
        info = folder / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        return folder

    return write
