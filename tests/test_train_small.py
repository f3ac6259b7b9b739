"""The tools behind `make train-small-speech` and `train-small-piano`, at a tiny size."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from segue import Pipeline
from tests.conftest import TINY, melody

ROOT = Path(__file__).resolve().parent.parent
FONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")


def tool(name: str) -> ModuleType:
    spec = spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KEPT = [value for value in TINY if "num_levels" not in value and "num_clusters" not in value]
SMALL = [
    *KEPT,
    *(
        value.replace(".acoustic.", f".{part}.")
        for part in ("coarse", "fine")
        for value in KEPT
        if value.startswith("stages.acoustic.")
    ),
    "codec.options.num_levels=9",
    "semantic_tokenizer.options.width=16",
    "semantic_tokenizer.options.depth=2",
    "semantic_tokenizer.options.heads=2",
    "semantic_tokenizer.options.layer=1",
    "semantic_tokenizer.options.num_clusters=8",
    "semantic_tokenizer.options.refine_at=2",
    "semantic_tokenizer.training.steps=4",
    "semantic_tokenizer.training.batch_size=2",
    "semantic_tokenizer.training.crop_seconds=1",
]


@pytest.mark.slow
def test_one_command_trains_what_ships(recordings_folder: Path, tmp_path: Path) -> None:
    rows = [
        {"path": path, "corpus": "made", "speaker": path.parent.name, "duration_s": 3.0,
         "split": "valid" if path.parent.name == "group3" else "train"}
        for path in sorted(recordings_folder.rglob("*.wav"))
    ]  # fmt: skip
    source = tmp_path / "source"
    source.mkdir()
    with (source / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    tool = [sys.executable, str(ROOT / "tools" / "train_small.py")]
    call = [*tool, "speech", str(source), str(tmp_path / "out"), *SMALL]
    for _ in range(2):  # the second time there is nothing left to do
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    pipeline = Pipeline.from_pretrained(tmp_path / "out" / "textless")
    assert pipeline.codec.spec.num_levels == 8
    assert pipeline.semantic_tokenizer.spec.codebook_size == 8  # type: ignore[union-attr]
    prompt = melody(1.0, seed=1)
    assert pipeline.config.stage("acoustic").lm.use == "masked_transformer.v1"  # type: ignore[union-attr]
    flat = Pipeline.from_pretrained(tmp_path / "out" / "three_stage")
    assert [stage.name for stage in flat.config.stages] == ["semantic", "coarse", "fine"]
    for one in (pipeline, flat):
        result = one.continue_(prompt, 16_000, seconds=0.4)
        assert result.tokens["acoustic"].num_levels == 4
        assert result.continuation().shape[0] == 0.4 * 16_000


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("fluidsynth") and FONT.exists()), reason="no fluidsynth")
def test_one_command_trains_what_piano_ships(tmp_path: Path) -> None:
    mido = pytest.importorskip("mido")
    source, output = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    lines = ["path,source,composer,duration_s,n_notes,split,licence"]
    for piece in range(6):
        track = mido.MidiTrack()
        for note in range(12):
            track.append(mido.Message("note_on", note=48 + piece + 2 * note, velocity=80, time=0))
            track.append(mido.Message("note_off", note=48 + piece + 2 * note, time=240))
        mido.MidiFile(tracks=[track]).save(source / f"piece{piece}.mid")
        split = "valid" if piece > 3 else "train"
        lines.append(f"piece{piece}.mid,made,composer{piece},6.0,12,{split},CC0-1.0")
    (source / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    own = [value for value in KEPT if "semantic_tokenizer" not in value]
    small = ["codec.options.num_levels=9", "semantic_tokenizer.options.num_clusters=8"]
    tool = [sys.executable, str(ROOT / "tools" / "train_small.py")]
    call = [*tool, "piano", str(source), str(output), *own, *small]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pipeline = Pipeline.from_pretrained(output / "pipeline")
    made = pipeline.continue_(melody(1.0, seed=1), 16_000, seconds=0.4)
    assert made.tokens["semantic"].num_levels == 4
    assert made.continuation().shape[0] == 0.4 * 16_000


@pytest.mark.parametrize("values", [["songs", "data", "out"], ["piano", "data"]])
def test_a_missing_argument_says_how(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, values: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"train_small\.py DOMAIN SOURCE OUTPUT"):
        tool("train_small").main(values)


@pytest.mark.parametrize(
    "value", ["stages.finest.lm.options.width=8", "codec.options.width", "seed=3"]
)
def test_a_value_for_no_part_is_refused_before_anything_is_made(tmp_path: Path, value: str) -> None:
    output = tmp_path / "out"
    with pytest.raises(SystemExit) as refused:
        tool("train_small").main(["speech", str(tmp_path), str(output), value])
    assert f"{value}: is not KEY=VALUE of a part" in str(refused.value) and not output.exists()
    assert "stages.coarse" in str(refused.value)
