"""Tables of the paper's findings, made end to end from a tiny pipeline."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segue.core.assembly import assemble
from segue.core.checkpoint_files import read_manifest
from segue.core.errors import ConfigError, DataError, OutputError
from segue.core.plugins import PluginHost
from segue.findings import ablations, codes
from segue.findings.codes import CodeShape, read_shapes
from segue.findings.finding import above, better
from segue.findings.reproduce import TABLES, chosen_tables, reproduce
from segue.findings.study import Settings, Study
from segue.findings.suite import Suite
from segue.findings.temperature import best
from segue.findings.variants import Workshop

SUITE = Suite(
    prompt_seconds=1.0,
    seconds=1.0,
    continuations=("health.v1", "chroma.v1"),
    quick=("health.v1", "missing.v1"),
    shown=("health.v1 healthy", "chroma.v1 in_key"),
    structure={"chroma.v1 in_key": "high"},
    rule={"health.v1 level_ratio_db": "zero", "health.v1 repetition": "low"},
    pairs={"log_mel.v1": "low"},
    content="log_mel.v1",
    voice="chroma.v1",
    autoregressive="delay_transformer.v1",
    masked="masked_transformer.v1",
    masked_sampling={"iterations": [2, 1]},
)

Make = Callable[..., Study]


@pytest.fixture
def study(tiny_pipelines: dict[str, Path], recordings_folder: Path, tmp_path: Path) -> Make:
    """A study of the tiny speech pipeline."""
    host = PluginHost.discover(entry_points=False)
    few = Settings(
        domain="speech",
        source=str(tiny_pipelines["speech"]),
        data=str(recordings_folder),
        prompt_seconds=1.0,
        seconds=1.0,
        items=2,
        seed=0,
        temperatures=(0.5,),
        piece_seconds=0.5,
        per_group=10,
        steps=2,
        clusters=(8, 12),
        levels=(1, 8),
        codes=("25x2x16", "100x2x8"),
        codec_steps=2,
        lm_width=16,
        lm_depth=1,
    )

    def make(**changes: Any) -> Study:
        found = Study(replace(few, **changes), tmp_path / "tables", host)
        found.__dict__["suite"] = SUITE
        return found

    return make


def made(study: Study, name: str) -> dict[str, Any]:
    report, told = reproduce(study, name)
    assert report is not None and told == "is made"
    kept: dict[str, Any] = json.loads((study.directory / f"{name}.json").read_text())
    assert kept == report and kept["commands"] and kept["elapsed_seconds"] >= 0
    return kept


def page(study: Study) -> str:
    return (study.directory / "results.md").read_text(encoding="utf-8")


# --- tables of the pipeline itself ------------------------------------------------------------


def test_what_tokens_tell(study: Make, recordings_folder: Path, tmp_path: Path) -> None:
    found = made(study(), "tokens")
    assert any("has no labels" in note for note in found["notes"])
    assert found["shown"] == ["log_mel.v1"] and len(found["claims"]) == 1
    rows = [
        f"{recordings_folder}/group{g}/{t}.wav,{'ab'[t]},{g},valid"
        for g in range(2)
        for t in (0, 1)
    ]
    rows += [row.replace("0.wav,a", "1.wav,a") for row in rows[::2]]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["path,label,speaker,split", *rows]) + "\n")
    labelled = made(study(labels=str(labels)), "tokens")
    assert {"semantic tokens", "codec[0:1] tokens", "audio by codec"} <= set(labelled["rows"])
    assert 0 <= labelled["rows"]["semantic tokens"]["ABX within"]["mean"] <= 1
    with pytest.raises(DataError, match="no labelled row with label=nope"):
        reproduce(study(labels=str(labels), where=("label=nope",)), "tokens")


def test_content_and_voice(study: Make) -> None:
    rows = made(study(items=8), "voice")["rows"]
    assert rows["recording"]["log_mel.v1"]["mean"] == 0 < rows["codec"]["log_mel.v1"]["mean"]
    assert "chroma.v1 in_key" in rows["continuation"]
    assert rows["true continuation"]["chroma.v1 in_key"]["count"] > 0
    speechless = study()
    speechless.__dict__["suite"] = replace(SUITE, content=None)
    assert reproduce(speechless, "preference")[0] is not None
    report, told = reproduce(replace_directory(speechless), "voice")
    assert report is None and "no words" in told


def replace_directory(study: Study) -> Study:
    """The same in an empty directory."""
    study.directory = study.directory / "other"
    return study


def test_tables_are_made_once(study: Make) -> None:
    found = made(study(), "preference")
    assert set(found["rows"]) == {"shuffled", "reversed", "foreign", "foreign_prompt"}
    assert found["settings"]["items"] == 2 and found["settings"]["weights"]
    again, told = reproduce(study(steps=99), "preference")  # it depends on no step
    assert again == found and told == "was made before"
    other = made(study(seed=1), "preference")
    assert other["settings"]["seed"] == 1
    assert "## preference" in page(study()) and "not decided" in page(study())


def test_a_sweep_of_temperatures_names_the_best(study: Make) -> None:
    found = made(study(), "temperature")
    assert list(found["rows"]) == [
        "as configured", "true continuation", "semantic 0.5", "acoustic 0.5",
    ]  # fmt: skip
    assert sum("Best temperature of" in note for note in found["notes"]) == 2
    assert any(note.startswith("missing.v1 was left out: ") for note in found["notes"])
    rows = study().directory / "rows" / "temperature"
    before = {path: path.stat().st_mtime_ns for path in rows.iterdir()}
    assert len(before) == 3
    made(study(temperatures=(0.5, 0.6)), "temperature")  # what is there is not made again
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(rows.iterdir())) == 5


def test_the_best_of_several(study: Make) -> None:
    def cell(healthy: float, level: float, repetition: float | None) -> dict[str, Any]:
        names = ("health.v1 healthy", "health.v1 level_ratio_db", "health.v1 repetition")
        return {
            name: {"mean": value}
            for name, value in zip(names, (healthy, level, repetition), strict=True)
        }

    sound = "health.v1 healthy"
    cells = [cell(1, -3, 0.3), cell(1, 1, 0.2), cell(0.9, 0, 0)]
    assert best(cells, SUITE.rule, sound) == 1  # the third is less sound
    assert best([cell(1, 2, 0.1), cell(1, -2, 0.1)], SUITE.rule, sound) == 0
    # A figure that one lacks counts for none.
    assert best([cell(1, 2, 0.1), cell(1, -1, None)], SUITE.rule, sound) == 1
    assert best([cell(0, 2, 0.1), cell(0, 1, 0.2), cell(0, 1, 0.1)], SUITE.rule, sound) == 2


def test_claims_are_judged_by_intervals() -> None:
    low, high = {"low": 0.1, "high": 0.2, "groups": 9}, {"low": 0.3, "high": 0.4, "groups": 9}
    between = {"low": 0.15, "high": 0.35, "groups": 9}
    assert better("", low, high, "low").holds and better("", high, low, "high").holds
    assert better("", high, low, "low").holds is better("", low, high, "high").holds is False
    assert better("", low, between, "low").holds is better("", None, low, "low").holds is None
    assert better("", low, high | {"groups": 4}, "low").holds is None
    assert better("", {"low": 0, "high": 0, "count": 4}, high, "low").holds is None
    assert above("", high, 0.25).holds and above("", high, 0.5).holds is False
    assert above("", high, 0.35).holds is above("", {"low": None, "high": None}, 0).holds is None


def test_tables_by_name() -> None:
    assert chosen_tables(["voice", "tokens"]) == ["tokens", "voice"]
    with pytest.raises(ConfigError, match="tables: 'nope' is unknown; use some of tokens, voice"):
        chosen_tables(["tokens", "nope"])


# --- tables of variants that are trained ------------------------------------------------------


@pytest.mark.slow
def test_variants_are_trained_and_measured_once(study: Make) -> None:
    one = study()
    found = made(one, "structure")
    assert list(found["rows"]) == ["hybrid", "acoustic only", "true continuation"]
    hybrid, alone = (found["rows"][name] for name in ("hybrid", "acoustic only"))
    assert hybrid["training TFLOP"] == pytest.approx(alone["training TFLOP"], rel=0.3)
    assert "preferred to shuffled" in hybrid and "preferred to shuffled" in alone
    runs = one.directory / "runs"
    assert (runs / "acoustic-only" / "pipeline" / "pipeline.yaml").is_file()
    assert not (runs / "acoustic-only" / "pipeline" / "semantic_tokenizer").exists()
    assert (runs / "hybrid" / "tokens").resolve() == (one.directory / "tokens").resolve()

    checkpoints = list(runs.rglob("step-*/model.safetensors"))
    before = [path.stat().st_mtime_ns for path in checkpoints]
    made(study(items=3), "structure")  # measured again, trained no more
    assert [path.stat().st_mtime_ns for path in checkpoints] == before and checkpoints

    other = made(study(tokens=str(one.directory / "tokens")), "masked")
    assert list(other["rows"]) == ["masked", "autoregressive", "true continuation"]
    assert other["rows"]["masked"]["seconds per second"]["mean"] > 0
    with pytest.raises(OutputError, match="trained with other settings"):
        reproduce(study(steps=3), "masked")
    assert all(f"## {name}" in page(one) for name in ("structure", "masked"))


@pytest.mark.slow
def test_ablations(study: Make) -> None:
    found = made(study(), "clusters")
    assert list(found["rows"]) == ["8 clusters", "12 clusters", "true continuation"]
    assert found["rows"]["8 clusters"]["generated log_mel.v1"]["mean"] > 0
    found = made(study(), "levels")
    assert list(found["rows"]) == ["1 coarse levels", "3 coarse levels", "true continuation"]


@pytest.mark.slow
def test_shapes_of_codes(study: Make) -> None:
    one = study()
    found = made(one, "codes")
    assert list(found["rows"]) == ["25 Hz, 2 levels of 16", "100 Hz, 2 levels of 8"]
    slow, fast = found["rows"].values()
    assert (slow["kbit/s"], fast["kbit/s"]) == (0.2, 0.6)
    assert slow["log_mel.v1"]["mean"] > 0 and 0 < slow["least codes used"] <= 1
    for row, levels, rate in ((slow, 2, 25), (fast, 2, 100)):
        nats = sum(row[f"LM nats of level_{level}"]["mean"] for level in range(levels))
        bits = row["LM kbit/s"]["mean"] * 1000
        assert bits == pytest.approx(nats / math.log(2) * rate)
        assert row["LM share"]["mean"] == pytest.approx(bits / 1000 / row["kbit/s"])
        assert row["LM bits per token"]["mean"] == pytest.approx(bits / levels / rate)
        assert row["LM share"]["count"] == 2
        assert 0.5 < row["LM share"]["mean"] < 2  # next to nothing is learnt
    assert fast["training TFLOP"] > slow["training TFLOP"]
    assert len(found["claims"]) == 2 and found["claims"][0]["claim"].startswith("25 Hz")
    assert all(row["LM kbit/s"]["mean"] > row["kbit/s by entropy"] for row in (slow, fast))
    assert found["claims"][1]["holds"] is None  # such models decide nothing
    assert any(
        note.startswith("The model of 25 Hz, 2 levels of 16; 100") for note in found["notes"]
    )
    run = one.directory / "runs" / "codes-25x2x16"
    codec = read_manifest(run / "pipeline" / "codec")
    assert (codec.options["hop"], codec.options["window"]) == (640, 1280)
    assert codec.options["adversary"]["stft_windows"] == []
    assert not (run / "pipeline" / "semantic_tokenizer").exists()

    kept = [path.stat().st_mtime_ns for path in run.rglob("model.safetensors")]
    more = made(study(codes=("25x2x16", "50x3x32")), "codes")  # the pipeline's own comes with it
    assert more["rows"]["25 Hz, 2 levels of 16"] == slow
    assert [path.stat().st_mtime_ns for path in run.rglob("model.safetensors")] == kept
    own = "50 Hz, 3 levels of 32 is better than 25 Hz, 2 levels of 16 by log_mel.v1"
    assert more["claims"][0]["claim"] == own
    with pytest.raises(OutputError, match="trained with other settings"):
        reproduce(study(codec_steps=3), "codes")


def test_what_shapes_of_codes_may_be(study: Make) -> None:
    assert read_shapes(["25x16x1024", "12.5x8x2", "25x16x1024"]) == ("25x16x1024", "12.5x8x2")
    for wrong, problem in {
        "50x8": "'50x8' is not a shape",
        "": "'' is not a shape",
        "0x8x2": "'0x8x2' has no frames",
        "50x0x2": "no levels",
        "50x1x1": "fewer than 2 codes",
    }.items():
        with pytest.raises(ConfigError, match=problem):
            read_shapes([wrong])
    with pytest.raises(ConfigError, match=r"75x5x1024 is of frames of 213.333 samples at 16000"):
        reproduce(study(codes=("75x5x1024",)), "codes")
    told = CodeShape.parse("80x5x1024").options({"sample_rate": 16000, "window": 640})
    assert told == {"hop": 200, "window": 640, "num_levels": 5, "codebook_size": 1024}
    (kept,) = read_shapes(["86.1328125x8x1024"])
    assert CodeShape.parse(kept).options({"sample_rate": 44100, "window": 640})["hop"] == 512


def test_shapes_that_none_is_better_than() -> None:
    def row(sound: float, bits: float) -> dict[str, Any]:
        return {"sound": {"mean": sound}, "bits": {"mean": bits}}

    rows = {"a": row(1, 3), "b": row(3, 1), "c": row(2, 3), "d": row(2, 2)}
    assert codes.unbeaten(rows, {"sound": "low", "bits": "low"}) == ["a", "b", "d"]
    assert codes.unbeaten(rows, {"sound": "high", "bits": "low"}) == ["b"]


def test_codecs_that_are_not_trained_here_have_no_shapes(study: Make) -> None:
    other = study(overrides=("codec.use=soundstream.v1",))
    report, told = reproduce(other, "codes")
    assert report is None and "the codec, soundstream.v1, is none to be trained" in told


@pytest.mark.parametrize("source", ["speech/masked", "piano/cascade"])
def test_variants_of_other_cascades_fit_together(study: Make, source: str) -> None:
    other = study(source=source, levels=(2, 4))
    shop = Workshop(other)
    one = ["semantic", next(s.name for s in other.config.stages if s.name != "semantic")]
    parts = {
        "hybrid": one,
        "acoustic-only": one[1:],
        "masked": one,
        "autoregressive": one,
        "clusters-8": [stage.name for stage in other.config.stages],
        "clusters-12": [stage.name for stage in other.config.stages],
        "levels-2": [*one, "rest"],
        "levels-4": [*one, "rest"],
        "codes-25x2x16": one[1:],
        "codes-100x2x8": one[1:],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workshop, "flops", lambda self, overrides: 1.0)
        every = (
            ablations.structure_variants(other, shop)
            | ablations.masked_variants(other, shop)
            | ablations.cluster_variants(other)
            | ablations.level_variants(other, shop)
            | codes.variants(other)
        )
    configs = {variant.name: shop.config(variant.overrides) for variant in every.values()}
    plans = {name: assemble(config, other.host) for name, config in configs.items()}
    assert {name: [s.name for s in found.stages] for name, found in plans.items()} == parts
    models = {name: config.stage(one[1]) for name, config in configs.items()}
    assert models["masked"].lm.use == "masked_transformer.v1"
    assert models["masked"].sampling.iterations == ((16, 2) if "masked" in source else (2, 1))
    for name in ("hybrid", "acoustic-only", "autoregressive"):
        assert models[name].lm.use == "delay_transformer.v1"
        assert models[name].sampling.iterations is None
        assert models[name].lm.options["width"] == other.config.stage(one[1]).lm.options["width"]


def test_variants_predict_the_levels_that_the_pipeline_s_stages_do(study: Make) -> None:
    given = study(source="speech/trained_tokenizers", levels=(2, 8))
    shop = Workshop(given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workshop, "flops", lambda self, overrides: 1.0)
        every = [
            *ablations.structure_variants(given, shop).values(),
            *ablations.masked_variants(given, shop).values(),
            *ablations.level_variants(given, shop).values(),
        ]
    plans = {
        variant.name: assemble(shop.config(variant.overrides), given.host) for variant in every
    }
    assert {"hybrid", "masked", "levels-2", "levels-6"} <= set(plans)
    guidance = {
        name: found.config.stage("acoustic").sampling.guidance for name, found in plans.items()
    }
    assert guidance.pop("acoustic-only") == 1.0  # it is given nothing to be guided by
    assert set(guidance.values()) == {2.5}
    for name, found in plans.items():
        assert found.streams["acoustic"].num_levels == 6, name


def test_parts_of_a_cut_stage_have_no_more_passes_than_levels(study: Make) -> None:
    total = (
        assemble(study(source="speech/masked").config, study().host).streams["acoustic"].num_levels
    )
    given = study(source="speech/masked", levels=(1, total - 1))
    shop, passes = Workshop(given), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workshop, "flops", lambda self, overrides: 1.0)
        for variant in ablations.level_variants(given, shop).values():
            stages = shop.config(variant.overrides).stages[1:]
            passes.append([stage.sampling.iterations for stage in stages])
    assert passes == [[(16,), (16, 2)], [(16, 2), (16,)]]


def test_every_table_depends_on_known_settings(study: Make) -> None:
    for table in TABLES.values():
        assert study().asked(table.uses)["weights"]
