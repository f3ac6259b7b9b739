"""`segue evaluate` and `segue plot`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
from tests.apps.conftest import Segue

from segue.core.hookspecs import hookimpl
from segue.core.interfaces import Metric
from segue.core.plugins import default_host
from segue.core.records import PluginRecord
from segue.evaluation.pitches import find_scores

QUICK = "log_mel.v1,si_sdr.v1"

# --- codec ------------------------------------------------------------------------------------


def test_figures_are_printed_and_written(segue: Segue, tiny: Path, recordings_folder: Path) -> None:
    common = ("--data", recordings_folder, "-p", tiny, "--items", 1, "--metrics", QUICK)
    done = segue("evaluate", "codec", *common, "-o", "new/figures.json", "--json")
    assert (done.code, done.err, done.new) == (0, "", ["new/figures.json"])
    assert done.json == json.loads(Path("new/figures.json").read_text())
    assert list(done.json["levels"]) == ["1", "2", "3"]
    figure = done.json["levels"]["3"]["si_sdr.v1"]
    assert (figure["count"], figure["low"], figure["high"]) == (1, None, None)
    assert [book["level"] for book in done.json["codebooks"]] == [0, 1, 2]
    assert done.json["codec"] == "spectral_codec.v1" and done.json["left_out"] == {}
    done = segue("evaluate", "codec", *common, "--levels", "3,1")
    assert done.code == 0 and "95 % interval" in done.out and "log_mel.v1" in done.out
    assert "perplexity" in done.out and "│ 2 " not in done.out.partition("kbit/s")[0]


def test_fewer_recordings_than_asked_for_are_mentioned(
    segue: Segue, tiny: Path, tmp_path: Path, recordings_folder: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for index in range(3):
        shutil.copy(recordings_folder / f"group{index}" / "0.wav", few / f"{index}.wav")
    common = ("--data", few, "-p", tiny, "--levels", 1, "--metrics", "si_sdr.v1", "--items", 4)
    single = segue("evaluate", "codec", *common, "--json")
    assert single.code == 0 and single.json["recordings"] == 1
    assert single.json["levels"]["1"]["si_sdr.v1"]["low"] is None
    assert "holds 1 of the 4 recordings that --items asks for" in single.err
    assert "no interval" in single.err and "--split all" in single.err
    every = segue("evaluate", "codec", *common, "--split", "all")
    assert every.code == 0 and "holds 3 of the 4" in every.err and "no interval" not in every.err


def test_metrics_that_are_missing_are_told(
    segue: Segue, tiny: Path, recordings_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pesq", "pystoi", "visqol"):
        monkeypatch.setitem(sys.modules, module, None)
        for loaded in [name for name in sys.modules if name.startswith("segue.plugins.metrics.")]:
            monkeypatch.delitem(sys.modules, loaded)
    common = ("--data", recordings_folder, "-p", tiny, "--items", 1)
    done = segue("evaluate", "codec", *common, "--levels", 1)
    assert done.code == 0 and "si_sdr.v1" in done.out
    assert "pesq.v1 was left out" in done.err and "pip install 'segue[eval]'" in done.err
    asked = segue("evaluate", "codec", *common, "--metrics", "pesq.v1")
    assert asked.refused("--metrics", "needs the extra 'eval'", "pip install 'segue[eval]'")


class BrokenMetric(Metric):
    def __call__(self, *_: object) -> float:
        raise ValueError("too quiet")


def test_a_metric_that_fails_is_named_and_the_others_keep_their_figures(
    segue: Segue, tiny: Path, recordings_folder: Path
) -> None:
    record = PluginRecord("metric", "broken.v1", f"{__name__}:BrokenMetric", api_version=1)
    default_host().register(SimpleNamespace(segue_register=hookimpl(lambda: [record])))
    common = ("--data", recordings_folder, "-p", tiny, "--items", 1, "--levels", 1)
    done = segue(
        "evaluate",
        "codec",
        *common,
        "--metrics",
        "broken.v1",
        "--metrics",
        "log_mel.v1",
        "-o",
        "x.json",
    )
    assert done.code == 0
    assert "log_mel.v1" in done.out and "broken.v1" not in done.out
    assert "metric broken.v1 has no figures: ValueError: too quiet" in done.err
    assert "too quiet" in json.loads(Path("x.json").read_text())["failed"]["broken.v1"]
    alone = segue("evaluate", "codec", *common, "--metrics", "broken.v1", "--json")
    assert alone.code == 1 and "too quiet" in alone.json["failed"]["broken.v1"]


def test_another_codec_than_the_stages_were_trained_on(
    segue: Segue, tiny: Path, tiny_pipelines: dict[str, Path], recordings_folder: Path
) -> None:
    other = tiny_pipelines["piano"].parent / "codec"
    done = segue(
        *("evaluate", "codec", "--data", recordings_folder, "-p", tiny, "--items", 1, "--json"),
        *("--set", f"codec.checkpoint={other}", "--metrics", QUICK, "--split", "all"),
    )
    assert done.code == 0 and done.json["recordings"] == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--metrics", "nope.v1"), "--metrics:"),
        (("--metrics", ","), "--metrics:"),
        (("--metrics", "log_mel.v1:bands"), "'bands' sets nothing"),
        (("--metrics", "log_mel.v1:bands=3"), "--metrics.options.bands"),
        (("--levels", "one"), "--levels:"),
        (("--levels", "1,9"), "--levels:"),
        (("--split", "test"), "--split:"),
    ],
)
def test_refusals(
    segue: Segue, tiny: Path, recordings_folder: Path, arguments: tuple[str, ...], problem: str
) -> None:
    done = segue("evaluate", "codec", "--data", recordings_folder, "-p", tiny, *arguments)
    assert done.refused(problem)


# --- semantic ---------------------------------------------------------------------------------


@pytest.fixture
def words(place: Path, recordings_folder: Path) -> Path:
    """The synthetic recordings as words of two speakers, each split in halves."""
    rows = ["path,label,speaker,start,end,corpus"]
    for group in range(4):
        for take in range(2):
            path = recordings_folder / f"group{group}" / f"{take}.wav"
            rows += [f"{path},{take},{group % 2},{0.3 * n},{0.3 * n + 0.3},c{n}" for n in range(3)]
    (place / "words.csv").write_text("\n".join(rows) + "\n")
    return Path("words.csv")


def test_abx_errors_of_all_there_is(segue: Segue, tiny: Path, words: Path) -> None:
    done = segue("evaluate", "semantic", "--data", words, "-p", tiny, "-o", "abx.json", "--json")
    assert (done.code, done.err, done.new) == (0, "", ["abx.json"])
    names = list(done.json["representations"])
    assert names == [
        *("semantic tokens", "semantic vectors"),
        *(f"codec[0:{q}] {kind}" for q in (1, 3) for kind in ("tokens", "vectors")),
        *("MFCC", "log-mel"),
    ]
    assert (done.json["items"], done.json["speakers"], done.json["labels"]) == (24, 2, 2)
    assert 0 <= done.json["representations"]["MFCC"]["across"]["mean"] <= 1
    assert "label_bits" in done.json["representations"]["semantic tokens"]


def test_abx_errors_of_what_is_asked_for(segue: Segue, tiny: Path, words: Path) -> None:
    done = segue(
        *("evaluate", "semantic", "--data", words, "-p", tiny, "--of", "codec", "--levels", 2),
        *("--where", "corpus=c1", "--json"),
    )
    assert list(done.json["representations"]) == ["codec[0:2] tokens", "codec[0:2] vectors"]
    assert done.json["items"] == 8
    shown = segue("evaluate", "semantic", "--data", words, "-p", tiny, "--of", "semantic_tokenizer")
    assert shown.code == 0 and "across" in shown.out and "label_bits" in shown.out


def test_a_part_that_cannot_be_had_is_left_out(segue: Segue, tiny: Path, words: Path) -> None:
    common = ("evaluate", "semantic", "--data", words, "-p", tiny, "--set", "codec.checkpoint=null")
    done = segue(*common, "--json")
    assert done.code == 0 and "must be trained" in done.json["left_out"]["codec"]
    assert segue(*common, "--of", "codec").refused("codec:", "must be trained")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--of", "tokens"), "--of:"),
        (("--where", "corpus"), "--where:"),
        (("--where", "corpus=x"), "has no labelled row with corpus=x"),
        (("--levels", "4"), "--levels:"),
    ],
)
def test_refusals_of_semantic(
    segue: Segue, tiny: Path, words: Path, arguments: tuple[str, ...], problem: str
) -> None:
    assert segue("evaluate", "semantic", "--data", words, "-p", tiny, *arguments).refused(problem)


def test_pitches_without_scores(segue: Segue, tiny: Path, recordings_folder: Path) -> None:
    common = ("evaluate", "pitches", "--data", recordings_folder, "-p", tiny)
    assert segue(*common, "--midi", "nope").refused("nope:")
    Path("midi").mkdir()
    assert segue(*common, "--midi", "midi").refused("fewer than two have a MIDI file")
    assert segue(*common, "--midi", "midi", "--of", "features").refused("names no tokens")


def test_scores_of_a_folder(segue: Segue, tiny: Path, recordings_folder: Path) -> None:
    common = ("evaluate", "pitches", "--data", recordings_folder, "-p", tiny, "--midi", "midi")
    for folder in ("a", "b", "a/0.mid"):
        Path("midi", folder).mkdir(parents=True)
    for name in ("a/one.MID", "b/two.Midi", "b/three.midx", "b/0.mid"):
        Path("midi", name).write_bytes(b"")
    found = {"one": "a/one.MID", "two": "b/two.Midi", "0": "b/0.mid"}
    assert find_scores(Path("midi")) == {stem: Path("midi", name) for stem, name in found.items()}
    Path("midi/b/one.midi").write_bytes(b"")
    assert segue(*common).refused("midi:")


# --- plot -------------------------------------------------------------------------------------


def report(name: str, **changes: Any) -> Path:
    figure = {"mean": 1.0, "low": 0.5, "high": 1.5}
    content = {
        "metrics": {"snr": {"unit": "dB", "higher_is_better": True}},
        "levels": {str(q): {"kbit_per_second": q, "snr": figure} for q in (1, 2)},
        "codebooks": [{"level": q, "used": 0.5, "perplexity": 0.3} for q in range(2)],
    }
    Path(f"{name}.json").write_text(json.dumps(content | changes))
    return Path(f"{name}.json")


def test_pictures_of_reports(segue: Segue) -> None:
    pytest.importorskip("matplotlib")
    reports = report("a"), report("_$b")
    for what in ("codec", "codebooks"):
        done = segue("plot", what, *reports, "-o", f"{what}.png")
        assert (done.code, done.out, done.new) == (0, f"{what}.png\n", [f"{what}.png"])
        assert Path(f"{what}.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_of_audio(segue: Segue) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a", "b"):
        soundfile.write(f"{name}.wav", [0.1, -0.1] * 4000, 16_000)
    done = segue("plot", "audio", "a.wav", "b.wav", "--mark", "0.2", "-o", "both.png")
    assert (done.code, done.out, done.new) == (0, "both.png\n", ["both.png"])
    assert segue("plot", "audio", "c.wav").refused("c.wav:")
    assert segue("plot", "audio", "a.wav", "-o", "a.jpg").refused("is not .png")


def test_a_picture_of_tokens_has_a_row_for_each_level(
    segue: Segue, tiny: Path, prompt_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    drawn: list[Any] = []
    monkeypatch.setattr(Axes, "imshow", lambda self, codes, **how: drawn.append((codes, how)))
    ticks: list[list[int]] = []
    set_ticks = Axes.set_yticks
    monkeypatch.setattr(
        Axes, "set_yticks", lambda self, at: (ticks.append([*at]), set_ticks(self, at))
    )
    done = segue("plot", "tokens", prompt_file, "-o", "t.png", "--pipeline", tiny)
    assert (done.code, done.out, done.new) == (0, "t.png\n", ["t.png"])
    (semantic, _), (acoustic, how) = drawn
    assert (semantic.shape, acoustic.shape) == ((1, 32), (3, 64))  # 1.28 s at 25 and 50 Hz
    assert how["extent"] == (0, 1.28, 3.5, 0.5) and ticks == [[1], [1, 2, 3]]
    assert (how["vmax"], int(acoustic.min()) >= 0, int(acoustic.max()) < 32) == (31, True, True)
    assert segue("plot", "tokens", "none.wav", "--pipeline", tiny).refused("none.wav:")


@pytest.mark.parametrize("entries", [3, 60])
def test_a_short_training_is_drawn_as_it_was_logged(
    segue: Segue, monkeypatch: pytest.MonkeyPatch, entries: int
) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    lines: dict[str, Any] = {}
    plot = Axes.plot

    def watched(self: Any, x: Any, y: Any, *rest: Any, label: str = "", **how: Any) -> Any:
        lines[label] = (tuple(y), how.get("marker"))
        return plot(self, x, y, *rest, label=label, **how)

    monkeypatch.setattr(Axes, "plot", watched)
    losses = [6.0, 5.0] + [3.26] * (entries - 2)
    log: list[dict[str, float]] = [{"step": step, "loss": loss} for step, loss in enumerate(losses)]
    log[-1]["valid_loss"] = 3.5
    Path("part").mkdir()
    Path("part/log.jsonl").write_text("\n".join(map(json.dumps, log)))
    assert segue("plot", "training", "part", "--json").json == {"output": "training.png"}
    (name,) = (label for label in lines if label.endswith("held out"))
    assert lines[name] == ((3.5,), "o")  # one point is seen
    curve = name.removesuffix(", held out")
    if entries < 50:
        assert lines[curve][0][-1] == 3.26
    else:
        assert 3.26 < lines[f"{curve}, running mean"][0][-1] < 3.3


def test_a_metric_that_nobody_could_measure(segue: Segue) -> None:
    pytest.importorskip("matplotlib")
    none = {"1": {"kbit_per_second": 1, "snr": {"mean": None, "low": None, "high": None}}}
    single = {"1": {"kbit_per_second": 1, "snr": {"mean": 2.0, "low": None, "high": None}}}
    pair = report("a", levels=none), report("one", levels=single)
    done = segue("plot", "codec", *pair, report("b"))
    assert done.new == ["rate_distortion.png"]


def test_reports_that_cannot_be_drawn(segue: Segue) -> None:
    pytest.importorskip("matplotlib")
    Path("text.json").write_text("[1]")
    assert segue("plot", "codec", "text.json").refused("text.json:")
    assert segue("plot", "codec", "none.json").refused("none.json:")
    assert segue("plot", "codec", report("a"), report("a")).refused("a.json:")
    other = report("b", metrics={"pesq": {"unit": "", "higher_is_better": True}})
    assert segue("plot", "codec", report("a"), other).refused("the reports:")
    assert segue("plot", "codec", report("a"), "--metrics", "x").refused("a:")
    assert segue("plot", "codec", report("a"), "-o", "a.pdf").refused("is not .png")
    low, high = report("low", sample_rate=16_000), report("high", sample_rate=24_000)
    assert segue("plot", "codec", low, high).refused("low at 16000, high at 24000", "--sample-rate")


def test_a_training_is_drawn(segue: Segue) -> None:
    pytest.importorskip("matplotlib")
    folder = Path("runs/mine/codec")
    folder.mkdir(parents=True)
    lines = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.0, "valid_loss": 2.5}]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    done = segue("plot", "training", str(folder), "--figures", "loss", "-o", "t.png")
    assert done.code == 0 and Path("t.png").read_bytes().startswith(b"\x89PNG")
    missing = segue("plot", "training", str(folder), "--figures", "mel")
    assert missing.refused("have no figure 'mel'; they have loss, valid_loss")
    assert segue("plot", "training", "runs").refused("runs/log.jsonl:")
