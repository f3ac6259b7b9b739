"""The three components keep their contracts, and do what they are for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import segue_toy
import torch

from segue.core.interfaces import AcousticCodec, SemanticTokenizer
from segue.core.plugins import PluginHost
from segue.testing import (
    TINY_STAGES,
    Check,
    Subject,
    parametrize_with_checks,
    ragged_audio,
)

pytestmark = pytest.mark.segue_plugins("segue-toy")

SUBJECTS = [
    Subject("semantic_tokenizer", "toy_loudness.v1"),
    Subject("codec", "toy_mdct.v1"),
    *(Subject("stage_lm", "toy_gru.v1", {"width": 16}, stage) for stage in TINY_STAGES.values()),
]


@parametrize_with_checks(SUBJECTS)
def test_conformance(subject: Subject, check: Check) -> None:
    check(subject)


def test_plugin_is_found_without_torch() -> None:
    program = (
        "import sys; from segue.core.plugins import PluginHost;"
        "print(*(r.name for r in PluginHost.discover().records() if r.source == 'segue-toy'));"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (
        done.stdout.split() == ["toy_mdct.v1", "toy_loudness.v1", "toy_gru.v1"] or not done.stderr
    )
    assert sorted(done.stdout.split()) == ["toy_gru.v1", "toy_loudness.v1", "toy_mdct.v1"]


def test_codec_reconstructs_what_it_hears() -> None:
    codec = PluginHost.discover().create("codec", "toy_mdct.v1", {}, place="codec")
    assert isinstance(codec, AcousticCodec)
    audio = ragged_audio([32_000, 32_000], 16_000)
    tokens = codec.encode(audio.wave, audio.lengths)
    previous = torch.zeros(2)
    for levels in (1, 3, 6):
        decoded = codec.decode(tokens.ids[:, :levels], tokens.lengths)[:, :32_000]
        noise = (decoded - audio.wave).square().sum(dim=1)
        ratio = 10 * torch.log10(audio.wave.square().sum(dim=1) / noise)
        assert (ratio > previous).all(), "more levels must not sound worse"
        previous = ratio
    assert (previous > 4).all(), f"{previous} dB"


def test_semantic_tokens_tell_loud_from_quiet_and_bright_from_dull() -> None:
    tokenizer = PluginHost.discover().create(
        "semantic_tokenizer", "toy_loudness.v1", {}, place="semantic_tokenizer"
    )
    assert isinstance(tokenizer, SemanticTokenizer)
    time = torch.arange(6400) / 16_000
    tone = [torch.sin(6.2832 * hertz * time) for hertz in (200, 3000)]
    wave = torch.stack([tone[0], 0.01 * tone[0], tone[1]])
    ids = tokenizer.encode(wave, torch.full((3,), 6400)).ids[:, 0]
    loud, bright = (ids // 16).median(dim=1).values, (ids % 16).median(dim=1).values
    assert loud[0] == loud[2] > loud[1]
    assert bright[0] == bright[1] < bright[2]


def test_stage_model_learns() -> None:
    from segue.core.interfaces import StageBatch, StageLM, Tokens

    stage = TINY_STAGES["first"]
    lm = PluginHost.discover().create("stage_lm", "toy_gru.v1", {"width": 32}, stage, place="lm")
    assert isinstance(lm, StageLM)
    batch = StageBatch(Tokens.full(torch.arange(40).remainder(7).expand(4, 1, -1)))
    optimizer = torch.optim.Adam(lm.parameters(), lr=0.02)
    for _ in range(60):
        loss = lm.loss(batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@pytest.mark.parametrize("name", ["semantic", "codec", "stage_lm"])
def test_each_component_fits_on_a_page(name: str) -> None:
    source = Path(segue_toy.__file__).with_name(f"{name}.py").read_text()
    assert len(source.splitlines()) <= 50
