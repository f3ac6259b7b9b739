"""A codec of which every figure is known."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from segue.core.config import PromptConfig
from segue.core.config_files import load_config
from segue.core.errors import AssemblyError, ConfigError, DataError
from segue.core.interfaces import AcousticCodec, Metric, Tokens
from segue.core.options import TokenizerOptions
from segue.core.plugins import PluginHost
from segue.core.spec import TokenSpec
from segue.data.recordings import Recording
from segue.evaluation.codec import CodebookUse, evaluate_codec
from segue.evaluation.subjects import load_tokenizer

pytestmark = pytest.mark.usefixtures("constant_waves")

RATE, SIZE = 16_000, 320
LIMITS = PromptConfig(min_seconds=0.5, max_seconds=2.0)


class Options(TokenizerOptions):
    def spec(self) -> TokenSpec:
        return TokenSpec(RATE, Fraction(50), 4, 1000)


class Digits(AcousticCodec):
    """The first sample of each frame in decimal digits, one a level; the frame is flat."""

    needs_training = False

    def encode(self, wave: torch.Tensor, lengths: torch.Tensor) -> Tokens:
        frames = -(-wave.shape[1] // SIZE)
        first = ((wave[:, ::SIZE] + 1) / 2 * 9999).round().long()
        ids = torch.stack([first // 10**power % 10 for power in (3, 2, 1, 0)], dim=1)
        return Tokens(ids, torch.full((len(wave),), frames))

    def decode(self, codes: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        places = 10.0 ** torch.arange(3, 3 - codes.shape[1], -1)
        value = (codes * places[:, None]).sum(1) / 9999 * 2 - 1
        return value.repeat_interleave(SIZE, dim=1)


class Distance(Metric):
    higher_is_better = False

    def __call__(self, reference: torch.Tensor, audio: torch.Tensor, sample_rate: int) -> float:
        assert reference.shape == audio.shape and sample_rate == RATE
        return float((reference - audio).abs().max())


class Loudness(Metric):
    def __call__(self, reference: torch.Tensor, audio: torch.Tensor, sample_rate: int) -> float:
        level = float(audio.abs().mean())
        return level if level > 0.3 else math.nan


@pytest.fixture
def recordings(tmp_path: Path) -> list[Recording]:
    """Two that can be used, four that cannot."""
    flat = {"low": 0.25, "high": 0.75, "short": 0.5, "nan": math.nan}
    for name, value in flat.items():
        wave = torch.full((RATE * 3 if name != "short" else 999,), value)
        soundfile.write(tmp_path / f"{name}.wav", wave.numpy(), RATE, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no audio")
    names = ["low", "short", "nan", "text", "missing", "high"]
    return [Recording(tmp_path / f"{name}.wav", 3.0, name, "valid") for name in names]


def test_figures_of_a_codec(recordings: list[Recording]) -> None:
    told: list[tuple[str, int, int]] = []
    metrics = {"distance": Distance(), "loudness": Loudness()}
    found = evaluate_codec(
        Digits(Options()), LIMITS, recordings, metrics, [1, 4], lambda *what: told.append(what)
    )
    assert (found["recordings"], found["unusable"], found["seconds"]) == (2, 4, 4.0)
    assert told == [("codec", n, 6) for n in range(1, 7)]
    # 1000 codes take 10 bits, 50 times a second.
    assert [row["kbit_per_second"] for row in found["levels"].values()] == [0.5, 2.0]
    assert found["levels"]["4"]["distance"]["highest"] < 2e-4
    one = found["levels"]["1"]
    # 6249 and 8749 of 9999 become 6000 and 8000.
    assert one["distance"]["lowest"] == pytest.approx(2 * 249 / 9999, abs=2e-4)
    assert one["distance"]["highest"] == pytest.approx(2 * 749 / 9999, abs=2e-4)
    assert one["distance"]["worst"].endswith("high.wav")  # the lower the better
    assert one["loudness"]["left_out"] == 1 and one["loudness"]["count"] == 1
    assert found["levels"]["4"]["loudness"]["worst"].endswith("high.wav")
    assert found["metrics"]["distance"] == {"unit": "", "higher_is_better": False}
    assert found["encode_speed"] > 1 and one["decode_speed"] > 1


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("high", "returned a str, not a number"),
        (None, "returned a NoneType, not a number"),
        (True, "returned a bool, not a number"),
        (ValueError("too loud"), "ValueError: too loud"),
        (SystemExit(3), "SystemExit: 3"),
        (BaseException("panic"), "BaseException: panic"),  # as compiled code of Rust raises
    ],
)
def test_a_metric_that_fails_takes_no_other_figures_with_it(
    recordings: list[Recording], returned: object, reason: str
) -> None:
    class Broken(Metric):
        calls = 0

        def __call__(self, reference: torch.Tensor, audio: torch.Tensor, sample_rate: int) -> Any:
            self.calls += 1
            if self.calls == 2 and isinstance(returned, BaseException):
                raise returned
            return 1.0 if self.calls < 2 else returned

    broken = Broken()
    metrics = {"broken": broken, "distance": Distance()}
    found = evaluate_codec(Digits(Options()), LIMITS, recordings, metrics, [1, 4])
    assert reason in found["failed"]["broken"]
    assert broken.calls == 2
    assert set(found["metrics"]) == {"distance"}
    for row in found["levels"].values():
        assert row["distance"]["count"] == 2 and "broken" not in row
    json.dumps(found, allow_nan=False)


def test_metrics_listen_at_one_rate_if_asked(recordings: list[Recording]) -> None:
    rates: list[int] = []

    class Listener(Metric):
        def __call__(self, reference: torch.Tensor, audio: torch.Tensor, sample_rate: int) -> float:
            rates.append(sample_rate)
            assert reference.shape == audio.shape == (2 * sample_rate,)
            return 0.0

    codec = Digits(Options())
    for asked in (None, 8000):
        evaluate_codec(codec, LIMITS, recordings, {"d": Listener()}, [1], sample_rate=asked)
    assert rates == [RATE] * 2 + [8000] * 2
    with pytest.raises(ConfigError, match="sample_rate: is 24000, above the codec's; use at most"):
        evaluate_codec(codec, LIMITS, recordings, {}, [1], sample_rate=24_000)


def test_use_of_the_codebooks(recordings: list[Recording]) -> None:
    found = evaluate_codec(Digits(Options()), LIMITS, recordings, {"d": Distance()}, [1])
    first = found["codebooks"][0]
    # Two seconds of each of two recordings, of one code each: one bit.
    assert first["frames"] == 200 and first["used"] == 2 / 1000
    assert first["perplexity"] == pytest.approx(2 / 1000)
    assert first["entropy_kbit_per_second"] == pytest.approx(0.05)


def test_padding_is_no_use() -> None:
    use = CodebookUse(TokenSpec(RATE, Fraction(50), 2, 4))
    use.add(Tokens(torch.tensor([[[1, 2, 0], [3, 3, 0]]]), torch.tensor([2])))
    assert use.counts.tolist() == [[0, 1, 1, 0], [0, 0, 0, 2]]
    assert [book["perplexity"] for book in use.figures()] == pytest.approx([0.5, 0.25])


def test_refusals(recordings: list[Recording]) -> None:
    codec = Digits(Options())
    with pytest.raises(DataError, match="recordings: none can be used; check the data"):
        evaluate_codec(codec, LIMITS, recordings[1:5], {"d": Distance()}, [1])
    for count in (0, 5):
        with pytest.raises(ConfigError, match=f"levels: {count} is out of range; use 1 to 4"):
            evaluate_codec(codec, LIMITS, recordings, {"d": Distance()}, [count])


# --- one part of a config ---------------------------------------------------------------------


def test_a_codec_is_loaded_without_stages_that_fit_it(tiny_pipelines: dict[str, Path]) -> None:
    host = PluginHost.discover(entry_points=False)
    saved = tiny_pipelines["speech"]
    trained = saved.parent / "codec"
    newest = max(trained.glob("step-*"))
    # A codec of piano, which the speech stages were not trained on, by its folder or a checkpoint.
    other = tiny_pipelines["piano"].parent / "codec"
    for directory in (other, max(other.glob("step-*"))):
        config = load_config(str(saved), host, [f"codec.checkpoint={directory}"]).config
        codec = load_tokenizer(config, "codec", host)
        assert codec.spec.num_levels == 3 and codec.spec.fingerprint
        assert (
            codec.spec != load_tokenizer(load_config(str(saved), host).config, "codec", host).spec
        )
    config = load_config(str(saved), host, [f"codec.checkpoint={newest}"]).config
    saved_codec = load_tokenizer(load_config(str(saved), host).config, "codec", host)
    assert load_tokenizer(config, "codec", host).spec == saved_codec.spec


def test_a_part_without_weights_is_refused() -> None:
    host = PluginHost.discover(entry_points=False)
    config = load_config("speech/baseline", host).config
    with pytest.raises(AssemblyError, match="must be trained, and the config names no weights"):
        load_tokenizer(config, "codec", host)
    with pytest.raises(ConfigError, match="this pipeline has none"):
        load_tokenizer(load_config("speech/acoustic_only", host).config, "semantic_tokenizer", host)
    with pytest.raises(ConfigError, match="nowhere: is not a domain"):
        load_config("nowhere", host)
