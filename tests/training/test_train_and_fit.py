"""Parts that are trained by gradient first and then fitted, whatever stops them in between."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import TINY
from tests.forks import Fork

from segue.core.checkpoint_files import newest_checkpoint, read_manifest
from segue.core.config_files import load_config
from segue.core.errors import AssemblyError, TrainingError
from segue.core.hookspecs import hookimpl
from segue.core.plugins import PluginHost
from segue.training.saving import STATE, newest_trained
from segue.training.workspace import Workspace, tokenize, train_all, train_part

PART = "semantic_tokenizer"
SET = [
    f"{PART}.use=ssl_encoder.v1",
    f"{PART}.options={{width: 16, depth: 2, heads: 2, layer: 1, num_clusters: 16, "
    "objective: best_rq, target_codes: 8, code_width: 4}",
    f"{PART}.training={{steps: 4, batch_size: 2, crop_seconds: 0.5, save_every: 2, "
    "validate_every: 100}",
]
FILES = ("model.safetensors", "component.json")


class Watch:
    """Keeps what was trained and saved; does something when a checkpoint is saved."""

    def __init__(self, stop_after: int = 0) -> None:
        self.steps: list[int] = []
        self.saved: list[str] = []
        self.stop_after = stop_after

    @hookimpl
    def segue_train_step(self, part: str, step: int, losses: dict[str, float]) -> None:
        if part == PART:
            self.steps.append(step)

    @hookimpl
    def segue_checkpoint_saved(self, part: str, directory: Path, step: int) -> None:
        self.saved.append(directory.name)
        if self.stop_after and step == self.stop_after:
            raise KeyboardInterrupt


def workspace(
    directory: Path, data: Path, *overrides: str, stop_after: int = 0
) -> tuple[Workspace, Watch]:
    host, watch = PluginHost.discover(entry_points=False), Watch(stop_after)
    host.register(watch)
    config = load_config("speech/baseline", host, [*TINY, *SET, *overrides]).config
    return Workspace(config, directory, data, host), watch


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / PART).iterdir() if path.is_dir())


def content(directory: Path) -> list[bytes]:
    return [(directory / name).read_bytes() for name in FILES]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Several take sums in an order that may change from run to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, recordings_folder: Path) -> Path:
    """What a run that nobody stopped ends with."""
    space, watch = workspace(tmp_path_factory.mktemp("whole"), recordings_folder)
    last = train_part(space, PART)
    assert watch.steps == [1, 2, 3, 4]
    assert watch.saved == ["step-00000002", "step-00000004", "step-00000004-fitted"]
    return last


def test_the_fitted_checkpoint_is_the_newest(whole: Path) -> None:
    assert whole.name == "step-00000004-fitted"
    assert newest_checkpoint(whole.parent) == whole
    trained = newest_trained(whole.parent)
    assert trained is not None and trained.name == "step-00000004"
    before, after = (load_file(d / "model.safetensors") for d in (trained, whole))
    assert not before["fitted"] and after["fitted"]
    assert torch.equal(
        before["encoder.subsampling.out.weight"], after["encoder.subsampling.out.weight"]
    )
    assert (trained / STATE).is_file() and not (whole / STATE).exists()
    figures = read_manifest(whole).trained
    assert figures["steps"] == 4 and figures["frames"] > 0 and figures["recordings"] > 0


def test_the_same_command_again_does_nothing(whole: Path, recordings_folder: Path) -> None:
    before = content(whole)
    space, watch = workspace(whole.parent.parent, recordings_folder)
    assert train_part(space, PART) == whole
    assert (watch.steps, watch.saved) == ([], [])
    assert content(whole) == before


@pytest.mark.parametrize("step", [2, 4])
def test_a_stop_between_steps_or_before_fitting_changes_nothing(
    step: int, whole: Path, tmp_path: Path, recordings_folder: Path
) -> None:
    space, watch = workspace(tmp_path, recordings_folder, stop_after=step)
    with pytest.raises(KeyboardInterrupt):
        train_part(space, PART)
    assert names(tmp_path)[-1] == f"step-{step:08d}"
    again, watch = workspace(tmp_path, recordings_folder)
    last = train_part(again, PART)
    assert watch.steps == list(range(step + 1, 5))
    assert content(last) == content(whole)


def test_killed_while_fitting_it_fits_again_and_trains_no_more(
    whole: Path, tmp_path: Path, recordings_folder: Path
) -> None:
    log = tmp_path.with_suffix(".log")
    process = Fork(killed_while_fitting, tmp_path, recordings_folder, log=log)
    assert process.wait() == -signal.SIGKILL, process.written()
    assert names(tmp_path) == ["step-00000002", "step-00000004"]
    left = tmp_path / PART / ".tmp-step-00000004-fitted-x"  # as a kill while writing leaves it
    left.mkdir()
    space, watch = workspace(tmp_path, recordings_folder)
    last = train_part(space, PART)
    assert watch.steps == [] and watch.saved == ["step-00000004-fitted"]
    assert content(last) == content(whole)
    assert not left.exists()


def test_more_steps_go_on_from_the_trained_checkpoint(
    whole: Path, tmp_path: Path, recordings_folder: Path
) -> None:
    short, _ = workspace(tmp_path, recordings_folder, f"{PART}.training.steps=2")
    assert train_part(short, PART).name == "step-00000002-fitted"
    longer, watch = workspace(tmp_path, recordings_folder, f"{PART}.training.steps=4")
    last = train_part(longer, PART)
    assert watch.steps == [3, 4]
    assert last.name == "step-00000004-fitted"
    assert len(names(tmp_path)) <= 3
    fewer, watch = workspace(tmp_path, recordings_folder, f"{PART}.training.steps=3")
    assert train_part(fewer, PART) == last and watch.steps == []


def test_fine_tuning_from_a_fitted_checkpoint_fits_anew(
    whole: Path, tmp_path: Path, recordings_folder: Path
) -> None:
    slow = f"{PART}.training.learning_rate=1e-12"
    space, _ = workspace(
        tmp_path, recordings_folder, f"{PART}.checkpoint={whole}", slow, stop_after=4
    )
    with pytest.raises(KeyboardInterrupt):
        train_part(space, PART)
    unfitted = load_file(tmp_path / PART / "step-00000004" / "model.safetensors")
    given = load_file(whole / "model.safetensors")
    key = "encoder.subsampling.out.weight"
    assert torch.allclose(unfitted[key], given[key], atol=1e-6)
    assert not unfitted["fitted"]
    again, _ = workspace(tmp_path, recordings_folder, f"{PART}.checkpoint={whole}", slow)
    assert load_file(train_part(again, PART) / "model.safetensors")["fitted"]


def test_without_steps_other_clusters_are_fitted_to_the_same_features(
    whole: Path, tmp_path: Path, recordings_folder: Path
) -> None:
    few = (f"{PART}.checkpoint={whole}", f"{PART}.options.num_clusters=5")
    space, watch = workspace(tmp_path, recordings_folder, *few, f"{PART}.training.steps=0")
    fitted = train_part(space, PART)
    assert watch.steps == [] and names(tmp_path) == ["step-00000000"]
    then, now = (load_file(d / "model.safetensors") for d in (whole, fitted))
    assert now["fitted"] and now["centroids"].shape[0] == 5 != then["centroids"].shape[0]
    assert all(torch.equal(now[k], v) for k, v in then.items() if k != "centroids")
    assert read_manifest(fitted).token_spec != read_manifest(whole).token_spec
    assert train_part(space, PART) == fitted
    with pytest.raises(AssemblyError, match="fitted"):
        tokenize(workspace(tmp_path / "other", recordings_folder, *few)[0])
    for overrides in ((few[0], "codec.training.steps=0"), (f"{PART}.training.steps=0",)):
        space, _ = workspace(tmp_path / "new", recordings_folder, *overrides)
        part = overrides[-1].partition(".")[0]
        with pytest.raises(TrainingError, match=f"{part}.training.steps"):
            train_part(space, part)


def test_trained_but_unfitted_is_refused_for_tokens(
    tmp_path: Path, recordings_folder: Path
) -> None:
    train_part(workspace(tmp_path, recordings_folder)[0], "codec")
    space, _ = workspace(tmp_path, recordings_folder, stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        train_part(space, PART)
    with pytest.raises(AssemblyError, match="fitted") as caught:
        tokenize(workspace(tmp_path, recordings_folder)[0])
    assert caught.value.place == PART and f"segue train {PART}" in caught.value.fix


def test_a_pipeline_is_trained_with_it(tmp_path: Path, recordings_folder: Path) -> None:
    space, watch = workspace(tmp_path, recordings_folder)
    pipeline = train_all(space)
    assert watch.steps == [1, 2, 3, 4]
    saved = load_file(pipeline / PART / "model.safetensors")
    assert saved["fitted"]


def killed_while_fitting(directory: Path, data: Path) -> None:
    space, _ = workspace(directory, data)
    space.progress = lambda part, done, total: os.kill(os.getpid(), signal.SIGKILL)
    train_part(space, PART)
