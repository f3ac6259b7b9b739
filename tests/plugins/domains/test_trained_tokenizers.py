"""The tokenizers that ship trained are whole, and as good on our own prompt as they should be."""

from __future__ import annotations

import pytest
import torch

from segue.core.config_files import load_config
from segue.core.interfaces import AcousticCodec, Tokenizer
from segue.core.plugins import PluginHost
from segue.evaluation.subjects import load_tokenizer
from segue.plugins.domains.speech import DOMAIN
from segue.plugins.metrics.quality import LogMelDistance, SiSdr
from segue.plugins.tokenizers.register_kmeans.model import RegisterKMeansTokenizer
from segue.sound.reading import read_audio


@pytest.fixture(scope="module")
def prompt() -> torch.Tensor:
    """A sentence by a speaker that nothing was trained on."""
    assert DOMAIN.prompt is not None
    audio = read_audio(DOMAIN.prompt)
    assert audio.sample_rate == 16_000
    return audio.wave


def shipped(part: str, config: str = "speech/trained_tokenizers") -> Tokenizer:
    host = PluginHost.discover(entry_points=False)
    return load_tokenizer(load_config(config, host).config, part, host)


@pytest.mark.parametrize("domain", ["speech", "piano"])
def test_the_stages_left_to_train_are_as_large_as_those_that_ship(domain: str) -> None:
    host = PluginHost.discover(entry_points=False)
    sizes = []
    for name in (domain, f"{domain}/trained_tokenizers"):
        models = [stage.lm for stage in load_config(name, host).config.stages]
        keys = ("width", "depth", "heads", "feed_forward")
        sizes.append([[lm.use, *(lm.options[key] for key in keys)] for lm in models])
    assert sizes[0] == sizes[1]


def test_the_codec_follows_the_wave_and_gains_with_each_level(prompt: torch.Tensor) -> None:
    codec = shipped("codec")
    assert isinstance(codec, AcousticCodec)
    tokens = codec.encode(prompt[None], torch.tensor([len(prompt)]))
    waves = [codec.decode(tokens.ids[:, :q], tokens.lengths)[0] for q in (1, 2, 4, 8)]
    waves = [wave[: len(prompt)] for wave in waves]
    distances = [LogMelDistance()(prompt, wave, 16_000) for wave in waves]
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.35
    # A codec that makes up its phases is below -20 dB.
    assert SiSdr()(prompt, waves[-1], 16_000) > -3
    assert waves[-1].abs().max() < 1


def ids(tokenizer: Tokenizer, wave: torch.Tensor) -> torch.Tensor:
    return tokenizer.encode(wave[None], torch.tensor([len(wave)])).row(0)


@pytest.mark.parametrize("config", ["speech/trained_tokenizers", "speech/textless_tokenizers"])
def test_semantic_tokens_change_with_what_is_said(prompt: torch.Tensor, config: str) -> None:
    tokens = ids(shipped("semantic_tokenizer", config), prompt)
    assert tokens.shape[1] == -(-len(prompt) // 640)
    assert tokens.unique().numel() > 0.4 * tokens.shape[1]


def chord(*notes: int) -> torch.Tensor:
    time = torch.arange(16_000) / 16_000
    hertz = [440.0 * 2 ** ((note - 69) / 12) for note in notes]
    partials = [torch.sin(6.2832 * f * k * time) / k for f in hertz for k in (1, 2, 3)]
    return 0.003 * torch.stack(partials).sum(0) * torch.exp(-1.5 * time)


def test_tokens_of_registers_hold_every_voice_of_a_chord() -> None:
    """Clusters of the registers say when something is struck, and which keys sound."""
    tokenizer = shipped("semantic_tokenizer", "piano/trained_tokenizers")
    assert isinstance(tokenizer, RegisterKMeansTokenizer)
    played = [{48, 55, 64, 77}, {52, 59, 67, 74}]
    silence = torch.zeros(16_000)  # what sounds from the first sample on was not struck
    found = ids(tokenizer, torch.cat([silence, *(chord(*notes) for notes in played)]))
    keys = tokenizer.keys(found[None])[0]  # [N, 3, 88]
    for first, notes in zip((25, 50), played, strict=True):
        held = keys[first + 8, -1].topk(len(notes)).indices
        assert {21 + key for key in held.tolist()} == notes
        assert keys[first - 1 : first + 2, :-1].sum() > 1
        assert keys[first + 4 : first + 22, :-1].max() < 0.1  # nothing is struck meanwhile


def test_a_recogniser_s_tokens_hear_less_of_noise(prompt: torch.Tensor) -> None:
    noise = torch.randn(len(prompt), generator=torch.Generator().manual_seed(0))
    noisy = prompt + 10 ** (-10 / 20) * prompt.square().mean().sqrt() * noise  # 10 dB below
    kept = {}
    for config in ("speech/trained_tokenizers", "speech/textless_tokenizers"):
        tokenizer = shipped("semantic_tokenizer", config)
        kept[config] = (ids(tokenizer, prompt) == ids(tokenizer, noisy)).float().mean().item()
    assert kept["speech/trained_tokenizers"] > 1.5 * kept["speech/textless_tokenizers"]
