"""Promises of every tokenizer about the tokens that it emits."""

from __future__ import annotations

import torch

from segue.core.interfaces import AcousticCodec, SemanticTokenizer, Tokenizer, Tokens, WaveBatch
from segue.core.options import TokenizerOptions
from segue.core.spec import TokenSpec
from segue.testing.check import NotApplicable, require
from segue.testing.compare import (
    any_device,
    require_finite,
    require_legal,
    require_same_tokens,
    unchanged,
)
from segue.testing.subject import Subject
from segue.testing.synthetic import ragged_audio

#: Lengths of the rows of the audio that is encoded, in frames: whole and broken, long and short.
_FRAMES = (24.4, 13.0, 5.5, 1.0, 0.1)
_CONTRACTS = {"semantic_tokenizer": SemanticTokenizer, "codec": AcousticCodec}


def tokenizer_of(subject: Subject) -> Tokenizer:
    """A prepared instance of the subject, checked to be what its kind says."""
    component = subject.create()
    contract = _CONTRACTS[subject.kind]
    name = type(component).__name__
    require(isinstance(component, contract), f"{name} is no {contract.__name__}")
    assert isinstance(component, Tokenizer)
    return component


def audio_for(spec: TokenSpec) -> WaveBatch:
    """A ragged batch of audio from a tenth of a frame to some two dozen frames."""
    lengths = [max(1, round(frames * spec.frame_size)) for frames in _FRAMES]
    return ragged_audio(lengths, spec.sample_rate)


@torch.no_grad()
def encode(tokenizer: Tokenizer, audio: WaveBatch) -> Tokens:
    return tokenizer.encode(audio.wave, audio.lengths)


def check_spec_is_that_of_the_options(subject: Subject) -> None:
    """An instance's spec is what its options answer before any weight is loaded."""
    tokenizer = tokenizer_of(subject)
    is_model = isinstance(tokenizer.config, TokenizerOptions)
    require(is_model, f"{type(tokenizer.config).__name__} is no TokenizerOptions")
    promised, actual = tokenizer.config.spec(), tokenizer.spec.with_fingerprint("")
    require(promised.fingerprint == "", "the options' spec carries a fingerprint")
    require(actual == promised, f"the instance says {actual}, its options say {promised}")
    require(promised.frame_size >= 1, "a frame holds no sample")
    needs = (tokenizer.needs_training, tokenizer.needs_fitting)
    require(all(isinstance(need, bool) for need in needs), f"needs are {needs}")


def check_emits_what_its_spec_declares(subject: Subject) -> None:
    """Emitted levels, frames, types and ids are those that the spec declares."""
    tokenizer = tokenizer_of(subject)
    spec, audio = tokenizer.spec, audio_for(tokenizer.spec)
    with unchanged(wave=audio.wave, lengths=audio.lengths):
        tokens = encode(tokenizer, audio)
    frames = [spec.num_frames(length) for length in audio.lengths.tolist()]
    emitted = tokens.lengths.tolist()
    require(emitted == frames, f"{emitted} frames are emitted, the spec declares {frames}")
    declared = (len(frames), spec.num_levels)
    shape = tuple(tokens.ids.shape)
    require(shape[:2] == declared, f"ids are {shape}, the spec declares {(*declared, max(frames))}")
    require(shape[2] >= max(frames), f"ids have room for {shape[2]} of {max(frames)} frames")
    require_legal(tokens, spec.codebook_size, "tokens")


def check_batch_equals_rows(subject: Subject) -> None:
    """Each row of a ragged batch is encoded as it would be alone."""
    tokenizer = tokenizer_of(subject)
    audio = audio_for(tokenizer.spec)
    together = encode(tokenizer, audio)
    for row, length in enumerate(audio.lengths.tolist()):
        one = slice(row, row + 1)
        alone = encode(tokenizer, WaveBatch(audio.wave[one, :length], audio.lengths[one]))
        batch = Tokens(together.ids[one], together.lengths[one])
        require_same_tokens(batch, alone, f"row {row} in a batch", subject.mismatches)


def check_ignores_what_lies_beyond(subject: Subject) -> None:
    """What lies beyond a row's length has no influence on its tokens."""
    tokenizer = tokenizer_of(subject)
    audio = audio_for(tokenizer.spec)
    beyond = torch.arange(audio.wave.shape[1]) >= audio.lengths[:, None]
    loud = torch.where(beyond, torch.rand_like(audio.wave) * 2 - 1, audio.wave)
    quiet, noisy = (encode(tokenizer, WaveBatch(w, audio.lengths)) for w in (audio.wave, loud))
    require_same_tokens(noisy, quiet, "with noise beyond the end", subject.mismatches)


def check_encodes_silence(subject: Subject) -> None:
    """Silence has legal tokens, as many as its length asks for."""
    tokenizer = tokenizer_of(subject)
    spec = tokenizer.spec
    lengths = torch.tensor([8 * spec.frame_size, 1])
    tokens = encode(tokenizer, WaveBatch(torch.zeros(2, int(lengths[0])), lengths))
    require(tokens.lengths.tolist() == [8, 1], f"{tokens.lengths.tolist()} frames for [8, 1]")
    require_legal(tokens, spec.codebook_size, "tokens of silence")


def check_encodes_one_frame(subject: Subject) -> None:
    """One frame of audio, on its own, has the tokens of one frame."""
    tokenizer = tokenizer_of(subject)
    spec = tokenizer.spec
    tokens = encode(tokenizer, ragged_audio([spec.frame_size], spec.sample_rate))
    require(tokens.lengths.tolist() == [1], f"{tokens.lengths.tolist()} frames for one")
    require_legal(tokens, spec.codebook_size, "tokens of one frame")


def check_is_deterministic(subject: Subject) -> None:
    """The same audio has the same tokens each time, whatever the global random state is."""
    tokenizer = tokenizer_of(subject)
    audio = audio_for(tokenizer.spec)
    first = encode(tokenizer, audio)
    torch.manual_seed(123)
    require_same_tokens(encode(tokenizer, audio), first, "the second time")


def check_respects_the_device(subject: Subject) -> None:
    """Tokens are on the device of the audio; an accelerator is tried if there is one."""
    tokenizer, device = tokenizer_of(subject), any_device()
    audio = audio_for(tokenizer.spec)
    wanted = encode(tokenizer, audio)
    moved = audio.to(device)
    tokens = encode(tokenizer.to(device), moved)
    for tensor, name in ((tokens.ids, "ids"), (tokens.lengths, "lengths")):
        same = tensor.device.type == device.type
        require(same, f"{name} are on {tensor.device}, the audio is on {device}")
    # Another device sums in another order: most tokens agree, ties need not.
    allowed = subject.mismatches if device.type == "cpu" else 0.05
    require_same_tokens(tokens.to("cpu"), wanted, f"on {device}", allowed)


def check_works_in_double_precision(subject: Subject) -> None:
    """In float64 it takes float64 audio; ids stay int64."""
    tokenizer = tokenizer_of(subject).to(torch.float64)
    audio = audio_for(tokenizer.spec)
    tokens = encode(tokenizer, WaveBatch(audio.wave.double(), audio.lengths))
    require_legal(tokens, tokenizer.spec.codebook_size, "tokens in float64")


def check_has_one_level(subject: Subject) -> None:
    """A semantic tokenizer emits one token per frame."""
    levels = tokenizer_of(subject).spec.num_levels
    require(levels == 1, f"the spec declares {levels} levels")


def check_training_step_can_be_learnt_from(subject: Subject) -> None:
    """A tokenizer that is trained by gradient has a finite ``loss`` that reaches a parameter."""
    tokenizer = tokenizer_of(subject)
    if not tokenizer.needs_training:
        raise NotApplicable("it is not trained by gradient")
    spec = tokenizer.spec
    losses = tokenizer.train().training_step(
        ragged_audio([32 * spec.frame_size] * 2, spec.sample_rate)
    )
    require("loss" in losses, f"no 'loss' among {sorted(losses)}")
    require_finite(losses["loss"].detach(), "loss")
    losses["loss"].backward()
    reached = [p.grad is not None and bool(p.grad.any()) for p in tokenizer.parameters()]
    require(any(reached), "the gradient of 'loss' reaches no parameter")


CHECKS = (
    check_spec_is_that_of_the_options,
    check_emits_what_its_spec_declares,
    check_batch_equals_rows,
    check_ignores_what_lies_beyond,
    check_encodes_silence,
    check_encodes_one_frame,
    check_is_deterministic,
    check_respects_the_device,
    check_works_in_double_precision,
    check_training_step_can_be_learnt_from,
)
SEMANTIC_CHECKS = (check_has_one_level,)
