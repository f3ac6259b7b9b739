"""`segue continue`, `generate` and `resynthesize`: what they write and what they say."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
from tests.apps.conftest import Segue, tone
from torch import nn

from segue.plugins.layers.transformer import Transformer
from segue.plugins.models.delay_transformer.model import DelayTransformer
from segue.plugins.models.depth_transformer.model import DepthTransformer
from segue.plugins.models.flat_transformer.model import FlatTransformer
from segue.plugins.models.masked_transformer.model import MaskedTransformer

Write = Callable[..., Path]


def described(path: Path) -> Any:
    return json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))


def test_a_prompt_is_continued_and_the_file_described(
    segue: Segue, tiny: Path, prompt_file: Path
) -> None:
    done = segue(
        "continue", prompt_file, "-o", "a/out.wav", "--pipeline", tiny, "--seconds", 1, "--seed", 3
    )
    assert (done.code, done.err, done.new) == (0, "", ["a/out.wav", "a/out.wav.json"])
    assert "a/out.wav: 1.0 s generated in" in done.out and "seed 3" in done.out
    audio, prompt = soundfile.info("a/out.wav"), soundfile.info(prompt_file)
    assert audio.samplerate == 16_000
    assert audio.duration == pytest.approx(prompt.duration + 1, abs=0.1)
    facts = described(Path("a/out.wav"))
    assert (facts["task"], facts["seed"], facts["seconds"]) == ("continue", 3, 1.0)
    assert facts["notes"] == []
    assert facts["config"]["stages"][0]["name"] == "semantic"
    assert facts["config"]["codec"]["use"] == "spectral_codec.v1"
    assert facts["prompt_seconds"] == pytest.approx(prompt.duration, abs=0.1)


def test_few_functions_lie_between_the_command_and_a_model(
    segue: Segue, tiny: Path, prompt_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads from the command on has understood a step of generation after seven functions."""
    plain, counts = Transformer.forward, []

    def forward(self: Transformer, *arguments: Any) -> Any:
        calls = [
            frame.f_code.co_name
            for frame, _ in traceback.walk_stack(None)
            if frame.f_globals["__name__"].startswith("segue.")
        ]
        counts.append(calls.index("continue_") + 2)  # from the command to this one, both included
        return plain(self, *arguments)

    monkeypatch.setattr(Transformer, "forward", forward)
    by_torch = [f"stages.{name}.decoding.backend=torch" for name in ("semantic", "acoustic")]
    sets = [part for setting in by_torch for part in ("--set", setting)]
    assert segue("continue", prompt_file, "-p", tiny, "--seconds", 0.5, *sets).code == 0
    assert counts and max(counts) <= 7
    for kind in (FlatTransformer, DelayTransformer, DepthTransformer, MaskedTransformer):
        assert len([base for base in kind.__mro__ if issubclass(base, nn.Module)]) <= 4


def test_the_seed_decides_and_settings_are_recorded(
    segue: Segue, tiny: Path, prompt_file: Path
) -> None:
    waves = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        done = segue(
            *("continue", prompt_file, "-o", f"{name}.wav", "-p", tiny, "--seconds", 0.5),
            *("--seed", seed, "--set", "stages.acoustic.sampling.temperature=0.9", "--json"),
        )
        assert done.code == 0 and done.err == ""
        waves[name] = soundfile.read(f"{name}.wav")[0]
    assert numpy.array_equal(waves["a"], waves["b"])
    assert not numpy.array_equal(waves["a"], waves["c"])
    assert described(Path("c.wav"))["sampling"]["acoustic"]["temperature"] == 0.9
    report = done.json
    assert (report["output"], report["seed"], report["notes"]) == ("c.wav", 1, [])
    assert report["seconds_generated"] == pytest.approx(0.5, abs=0.1)
    assert report["real_time_factor"] > 0


def test_a_domain_is_the_pipeline_that_it_ships(
    segue: Segue, shipped: dict[str, Path], prompt_file: Path
) -> None:
    for options, name in (((), "speech"), (("--domain", "piano"), "piano")):
        done = segue("continue", prompt_file, "-o", "o.wav", "--seconds", 0.5, "--json", *options)
        assert (done.code, done.json["pipeline"]) == (0, name)


@pytest.mark.parametrize("kind", ["none", "codec"])
def test_what_the_file_starts_with(segue: Segue, tiny: Path, prompt_file: Path, kind: str) -> None:
    done = segue(
        *("continue", prompt_file, "-o", "o.flac", "-p", tiny, "--seconds", 0.5),
        *("--prompt-audio", kind, "--json"),
    )
    assert done.code == 0
    seconds = 0.5 + (0 if kind == "none" else soundfile.info(prompt_file).duration)
    assert soundfile.info("o.flac").duration == pytest.approx(seconds, abs=0.1)
    assert done.json["seconds_generated"] == pytest.approx(0.5, abs=0.1)


USABLE: Sequence[tuple[str, Any, int, str | None, str | None, list[str]]] = [
    (
        "six.flac",
        tone(1, 48_000, channels=6),
        48_000,
        None,
        "PCM_24",
        ["mixed 6 channels to mono", "resampled from 48000 Hz to 16000 Hz"],
    ),
    ("a.opus", tone(1), 16_000, "OGG", "OPUS", []),
    (
        "silent.wav",
        numpy.zeros(16_000),
        16_000,
        None,
        None,
        [
            "the prompt is silent",
            "raised by 100 dB for the models; the result is as quiet as the prompt",
        ],
    ),
]


@pytest.mark.parametrize("case", USABLE, ids=[case[0] for case in USABLE])
def test_what_can_be_used_is_converted_and_the_command_says_so(
    segue: Segue, tiny: Path, write: Write, case: tuple[Any, ...]
) -> None:
    name, wave, rate, kind, code, notes = case
    if kind is not None and kind not in soundfile.available_formats():
        pytest.skip(f"this libsndfile has no {kind}")
    path = write(name, wave, rate, kind, code)
    done = segue("continue", path, "-o", "out.wav", "-p", tiny, "--seconds", 0.5)
    assert done.code == 0
    said = [line.removeprefix("note: ") for line in done.err.splitlines()]
    assert [line for line in said if not line.startswith("brought")] == notes
    assert described(Path("out.wav"))["notes"] == said


def test_several_files_are_numbered_and_rows_repeat_alone(segue: Segue, tiny: Path) -> None:
    done = segue(
        "generate",
        "-o",
        "new.wav",
        "-p",
        tiny,
        "--seconds",
        0.5,
        "--count",
        2,
        "--seed",
        4,
        "--json",
    )
    assert done.code == 0
    assert done.json["outputs"] == ["new.wav", "new-2.wav"]
    assert done.new == ["new-2.wav", "new-2.wav.json", "new.wav", "new.wav.json"]
    facts = [described(Path(name)) for name in done.json["outputs"]]
    assert [(each["row"], each["seed"]) for each in facts] == [(0, 4), (1, 5)]
    alone = segue("generate", "-o", "one.wav", "-p", tiny, "--seconds", 0.5, "--seed", 5)
    assert "one.wav: 0.5" in alone.out
    # Batches are summed in another order: the last bit of a sample may differ.
    numpy.testing.assert_allclose(
        soundfile.read("one.wav")[0], soundfile.read("new-2.wav")[0], atol=1e-4
    )


@pytest.mark.parametrize("through", ["codec", "semantic", "sampled"])
def test_resynthesis_keeps_the_notes(segue: Segue, tiny: Path, write: Write, through: str) -> None:
    path = write("stereo.wav", tone(1, channels=2))
    levels = ("--levels", 1) if through == "codec" else ()
    done = segue("resynthesize", path, "-o", "o.wav", "-p", tiny, "--through", through, *levels)
    assert done.code == 0 and done.out.startswith(f"o.wav: 1.0 s through {through} in ")
    facts = described(Path("o.wav"))
    assert facts["through"] == through
    assert "mixed 2 channels to mono" in facts["notes"]
    assert [f"note: {note}" for note in facts["notes"]] == done.err.splitlines()


def test_a_codec_hears_all_of_a_recording(
    segue: Segue, tiny: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt would be cut to its last seconds; a round trip is not, however long."""
    path = write("long.wav", tone(2.5))
    shorter = ("--set", "prompt.max_seconds=1")
    done = segue("resynthesize", path, "-o", "o.wav", "-p", tiny, *shorter)
    assert (done.code, done.err) == (0, "") and done.out.startswith("o.wav: 2.5 s through codec")
    assert soundfile.info("o.wav").duration == 2.5
    end = segue("resynthesize", path, "-o", "o.wav", "-p", tiny, *shorter, "--through", "semantic")
    assert end.err == "note: used the last 1.0 s of 2.5 s\n"


def test_a_picture_is_drawn(segue: Segue, tiny: Path, prompt_file: Path) -> None:
    pytest.importorskip("matplotlib")
    done = segue(
        "continue", prompt_file, "-o", "o.wav", "-p", tiny, "--seconds", 0.5, "--picture", "o.png"
    )
    assert (done.code, done.new) == (0, ["o.png", "o.wav", "o.wav.json"])
    assert Path("o.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_shown_as_they_are(segue: Segue, tiny: Path, prompt_file: Path) -> None:
    """Brackets and colons mean something to what prints; control characters to the terminal."""
    done = segue("generate", "-o", "[bold]x[nope]:smile:.wav", "-p", tiny, "--seconds", 0.5)
    assert done.code == 0 and "[bold]x[nope]:smile:.wav: 0.5" in done.out
    missing = segue("continue", "a\x1b[31m\nb.wav", "-o", "o.wav", "-p", tiny)
    assert missing.refused("a\\x1b[31m b.wav:")


def test_names_that_are_no_unicode(segue: Segue, tiny: Path, prompt_file: Path) -> None:
    name = b"caf\xe9.wav".decode("utf-8", "surrogateescape")
    Path(name).write_bytes(prompt_file.read_bytes())
    done = segue("continue", name, "-o", f"out-{name}", "-p", tiny, "--seconds", 0.5, "--json")
    assert done.code == 0 and done.json["output"] == f"out-{name}"
    assert described(Path(f"out-{name}"))["seed"] == 0


def test_hooks_are_told_what_was_written(
    segue: Segue, tiny: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "from segue.core.hookspecs import hookimpl\n"
        "@hookimpl\n"
        "def segue_output_written(path, metadata):\n"
        "    path.with_suffix('.seen').write_text(str(metadata['row']))\n"
        "    print('written')\n"
        "@hookimpl\n"
        "def segue_pipeline_assembled(pipeline):\n"
        "    print('assembled')\n"
        "@hookimpl\n"
        "def segue_before_generate():\n"
        "    print('begun')\n"
    )
    (place / "stamping_hook.py").write_text(source)
    (place / "mine.yaml").write_text("api_version: 1\nhooks: [stamping_hook]\n")
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("SEGUE_REGISTRY", str(place / "mine.yaml"))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    done = segue("generate", "-o", "o.wav", "-p", tiny, "--seconds", 0.5, "--count", 2, "--json")
    assert done.code == 0
    assert done.json["output"] == "o.wav"  # standard output holds nothing that a plugin printed
    assert done.err.split() == ["assembled", "begun", "written", "written"]
    assert (Path("o.seen").read_text(), Path("o-2.seen").read_text()) == ("0", "1")


def test_a_stretch_is_filled(segue: Segue, tiny: Path, prompt_file: Path) -> None:
    options = ("-o", "o.wav", "-p", tiny, "--seed", 2, "--candidates", 2, "--json")
    done = segue("fill", prompt_file, "--start", 0.5, "--end", 0.9, *options)
    assert done.code == 0 and done.new == ["o.wav", "o.wav.json"]
    report, facts = done.json, described(Path("o.wav"))
    assert report["gap"] == [0.5, pytest.approx(0.9, abs=0.04)]
    assert report["seconds_generated"] == pytest.approx(0.4, abs=0.05)
    assert report["ways"]["semantic"] == "best of 2 continuations of the left side"
    assert (facts["task"], facts["candidates"], facts["seed"]) == ("fill", 2, 2)
    before, after = (soundfile.read(path)[0] for path in (prompt_file, "o.wav"))
    assert len(before) == len(after) and numpy.array_equal(before[:7000], after[:7000])
    assert segue("fill", prompt_file, "--start", 2, *options).refused("--start", "2.0", "1.3")
