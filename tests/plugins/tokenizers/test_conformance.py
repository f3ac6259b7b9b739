"""The tokenizers keep every promise of their contracts."""

from __future__ import annotations

import pytest

from segue.testing import Check, Subject, checks_for, parametrize_with_checks

CODEC = {
    "width": 16,
    "encoder_depth": 1,
    "decoder_depth": 2,
    "num_levels": 3,
    "codebook_size": 32,
    "codebook_dim": 4,
}
SOUNDSTREAM = {
    "channels": 4,
    "strides": (2, 4, 5),
    "latent_dim": 8,
    "num_levels": 3,
    "codebook_size": 32,
}
SUBJECTS = [
    Subject("codec", "spectral_codec.v1", CODEC),
    Subject("codec", "soundstream.v1", SOUNDSTREAM),
    Subject("semantic_tokenizer", "mel_kmeans.v1", {"num_clusters": 32}),
    Subject("semantic_tokenizer", "chroma_kmeans.v1", {"num_clusters": 32}),
]
VARIANTS = [
    Subject(
        "codec", "spectral_codec.v1", CODEC | {"subframes": 2, "window": 960}, label="subframes"
    ),
    Subject("codec", "spectral_codec.v1", CODEC | {"head": "polar"}, label="polar"),
    Subject("codec", "soundstream.v1", SOUNDSTREAM | {"weight_norm": True}, label="weight-norm"),
    Subject(
        "semantic_tokenizer",
        "chroma_kmeans.v1",
        {"num_clusters": 32, "chroma": "centred"},
        label="centred",
    ),
]


@parametrize_with_checks(SUBJECTS)
def test_conformance(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.slow
@parametrize_with_checks(VARIANTS)
def test_conformance_of_variants(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.parametrize("subject", [s for s in VARIANTS if s.kind == "codec"], ids=str)
def test_variants_stream_what_they_decode(subject: Subject) -> None:
    (check,) = (each for each in checks_for("codec") if each.name == "streamed_equals_offline")
    check(subject)
