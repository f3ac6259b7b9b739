"""The tokenizers that cluster features."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from segue.core.errors import CheckpointError, TrainingError
from segue.core.interfaces import WaveBatch
from segue.plugins.tokenizers.chroma_kmeans.config import ChromaKMeansOptions
from segue.plugins.tokenizers.chroma_kmeans.model import ChromaKMeansTokenizer
from segue.plugins.tokenizers.common import kmeans
from segue.plugins.tokenizers.common.kmeans import KMeansTokenizer, Reservoir
from segue.plugins.tokenizers.mel_kmeans.config import MelKMeansOptions
from segue.plugins.tokenizers.mel_kmeans.model import MelKMeansTokenizer
from segue.testing import ragged_audio

BUILDERS = {
    "mel": lambda **options: MelKMeansTokenizer(MelKMeansOptions(**options)),
    "chroma": lambda **options: ChromaKMeansTokenizer(ChromaKMeansOptions(**options)),
}


def batches() -> Iterator[WaveBatch]:
    for seed in range(3):
        yield ragged_audio([48_000, 31_234, 700], 16_000, seed)


@pytest.fixture(params=BUILDERS)
def build(request: pytest.FixtureRequest) -> Any:
    return BUILDERS[request.param]


@pytest.fixture
def fitted(build: Any) -> KMeansTokenizer:
    tokenizer: KMeansTokenizer = build(num_clusters=20)
    tokenizer.fit(batches())
    return tokenizer


def test_fitting_reports_what_it_saw(build: Any) -> None:
    figures = build(num_clusters=20).fit(batches())
    assert figures["frames"] == 3 * (75 + 49 + 2)
    assert 15 <= figures["codes_used"] <= 20
    assert math.isfinite(figures["inertia"]) and figures["inertia"] > 0


def test_fitting_is_deterministic(build: Any, fitted: KMeansTokenizer) -> None:
    again = build(num_clusters=20)
    again.fit(batches())
    assert torch.equal(again.centroids, fitted.centroids)
    assert again.seal("x.v1") == fitted.seal("x.v1")


def test_the_frames_to_fit_on_take_bounded_memory(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = build(num_clusters=20)
    monkeypatch.setattr(kmeans, "MOST_SAMPLE_BYTES", 4 * 60 * tokenizer.mean.shape[0])
    monkeypatch.setattr(kmeans, "ROWS_AT_ONCE", 7)
    kept: list[np.ndarray[Any, Any]] = []
    cluster = kmeans._cluster
    monkeypatch.setattr(
        kmeans, "_cluster", lambda rows, config: kept.append(rows) or cluster(rows, config)
    )
    figures = tokenizer.fit(batches())
    assert figures["frames"] == 3 * (75 + 49 + 2) and kept[0].shape[0] == 60
    np.testing.assert_allclose(kept[0].mean(0), 0, atol=1e-4)
    weights = tokenizer.weights()
    np.testing.assert_allclose(kept[0].std(0), 1 if weights is None else weights, atol=1e-3)
    gaps = torch.cdist(torch.from_numpy(kept[0]), tokenizer.centroids).amin(1)
    assert figures["inertia"] == pytest.approx(float(gaps.square().mean()), rel=1e-4)


def test_more_clusters_lie_closer(build: Any) -> None:
    few, many = (build(num_clusters=count).fit(batches())["inertia"] for count in (4, 64))
    assert many < few


def test_a_point_gets_its_nearest_centroid(fitted: KMeansTokenizer) -> None:
    scales = torch.linspace(0.2, 3.0, len(fitted.centroids))[:, None]
    fitted.centroids.copy_(torch.nn.functional.normalize(fitted.centroids, dim=1) * scales)
    points = torch.randn(200, fitted.centroids.shape[1], generator=torch.Generator().manual_seed(0))
    assert fitted._nearest(points)[0].equal(torch.cdist(points, fitted.centroids).argmin(1))


@pytest.mark.parametrize("samples", [0, 4000])
def test_silent_and_short_audio(fitted: KMeansTokenizer, samples: int) -> None:
    tokens = fitted.encode(torch.zeros(2, samples), torch.tensor([samples, 0]))
    assert tokens.lengths.tolist() == [-(-samples // 640), 0]
    assert tokens.ids.shape == (2, 1, -(-samples // 640))


def test_unfitted_is_refused(build: Any) -> None:
    with pytest.raises(CheckpointError, match="fitted"):
        build().encode(torch.zeros(1, 640), torch.tensor([640]))


def test_too_little_audio_is_refused(build: Any) -> None:
    with pytest.raises(TrainingError, match="clusters"):
        build().fit([ragged_audio([16_000], 16_000)])


def test_mel_tokens_ignore_loudness() -> None:
    tokenizer = MelKMeansTokenizer(MelKMeansOptions(num_clusters=20))
    tokenizer.fit(batches())
    audio = ragged_audio([16_000], 16_000)
    loud = tokenizer.encode(audio.wave, audio.lengths).ids
    soft = tokenizer.encode(0.7 * audio.wave, audio.lengths).ids
    assert (loud == soft).float().mean() > 0.8


def test_chroma_finds_the_pitch_class_and_its_register() -> None:
    tokenizer = ChromaKMeansTokenizer(ChromaKMeansOptions())
    time = torch.arange(16_000, dtype=torch.float64) / 16_000
    notes = torch.tensor([69, 81, 45])  # A4, A5, A2: pitch class 9
    frequencies = 440.0 * 2.0 ** ((notes - 69) / 12)
    waves = 0.3 * torch.sin(math.tau * frequencies[:, None] * time)
    middle = tokenizer.features(waves, torch.full((3,), 16_000))[:, 12]
    treble, bass, height = middle[:, :12], middle[:, 12:24], middle[:, 24]
    assert treble[:2].argmax(dim=1).tolist() == [9, 9]
    assert int(bass[2].argmax()) == 9
    assert height[2] < height[0] < height[1]


def test_centred_chroma_ignore_what_sounds_everywhere() -> None:
    plain = ChromaKMeansOptions()
    centred = ChromaKMeansOptions(chroma="centred")
    assert "chroma" not in plain.identity() and centred.identity()["chroma"] == "centred"
    assert centred.model_copy(update={"split_note": 48}).identity() == centred.identity()
    assert plain.model_copy(update={"split_note": 48}).identity() != plain.identity()
    tokenizer = ChromaKMeansTokenizer(centred)
    time = torch.arange(16_000) / 16_000
    tone = 0.05 * (torch.sin(math.tau * 440.0 * time) + torch.sin(math.tau * 659.3 * time))
    noise = 0.003 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([16_000])
    clear, noisy, hiss = (
        tokenizer.features(wave[None].double(), lengths)[0, :, :12].mean(0)
        for wave in (tone, tone + noise, 10 * noise)
    )
    assert hiss.norm() < 0.5 * clear.norm()
    assert clear.topk(2).indices.sort().values.tolist() == [4, 9]  # E and A
    assert abs(float(clear.sum())) < 1e-6 and clear.norm() <= 1 + 1e-6
    assert torch.nn.functional.cosine_similarity(clear, noisy, dim=0) > 0.8


def test_chroma_hears_an_onset() -> None:
    tokenizer = ChromaKMeansTokenizer(ChromaKMeansOptions())
    wave = torch.zeros(1, 16_000, dtype=torch.float64)
    wave[:, 8000:] = torch.sin(math.tau * 440 * torch.arange(8000) / 16_000)
    onset = tokenizer.features(wave, torch.tensor([16_000]))[0, :, -2]
    assert abs(int(onset.argmax()) - 12) <= 1


def test_a_reservoir_draws_evenly_in_bounded_memory() -> None:
    reservoir = Reservoir(capacity=500, width=1, seed=0)
    for start in range(0, 10_000, 130):
        reservoir.add(np.arange(start, min(start + 130, 10_000), dtype=np.float32)[:, None])
    assert reservoir.seen == 10_000
    assert reservoir.rows.shape == (500, 1)
    assert len(np.unique(reservoir.rows)) == 500
    assert abs(float(reservoir.rows.mean()) - 5000) < 500


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (MelKMeansOptions, {"clusters": 3}),
        (MelKMeansOptions, {"frame_rate": 33}),
        (MelKMeansOptions, {"window": 100}),
        (MelKMeansOptions, {"num_cepstra": 40}),
        (ChromaKMeansOptions, {"clusters": 3}),
        (ChromaKMeansOptions, {"split_note": 20}),
        (ChromaKMeansOptions, {"onset_window": 1001}),
    ],
)
def test_wrong_options_are_refused(options: Any, wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        options.model_validate(wrong)
