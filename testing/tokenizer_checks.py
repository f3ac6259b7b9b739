"""Check the promises of every tokenizer about its tokens, its weights and its fingerprint."""

from __future__ import annotations

import torch

from segue.core.interfaces import AcousticCodec, SemanticTokenizer, Tokenizer, Tokens, WaveBatch
from segue.core.options import FINGERPRINT_DIGITS, TokenizerOptions, options_digest
from segue.core.spec import TokenSpec
from segue.inference.promises import check_losses, check_weight
from segue.testing.check import NotApplicable, made, require, returned
from segue.testing.compare import (
    a_day_later,
    any_device,
    require_close,
    require_finite,
    require_legal,
    require_same_tokens,
    seed_kept,
    through_safetensors,
    unchanged,
    undisturbed,
)
from segue.testing.subject import Subject
from segue.testing.synthetic import fitting_audio, ragged_audio, reordered

#: Lengths of the rows of the audio that is encoded, in frames: whole and broken, long and short.
_FRAMES = (24.4, 13.0, 5.5, 1.0, 0.1)
_CONTRACTS: dict[str, type[Tokenizer]] = {
    "semantic_tokenizer": SemanticTokenizer,
    "codec": AcousticCodec,
}
_NAME = "conformance.v1"
_LONG_SECONDS = 12
_EMITTED_CODES = 256


def tokenizer_of(subject: Subject) -> Tokenizer:
    """Return a prepared instance of the subject; require the class of its kind."""
    return made(subject, _CONTRACTS[subject.kind])


def audio_for(spec: TokenSpec) -> WaveBatch:
    """Return a ragged batch of audio from a tenth of a frame to two dozen frames."""
    lengths = [max(1, round(frames * spec.frame_size)) for frames in _FRAMES]
    return ragged_audio(lengths, spec.sample_rate)


@torch.no_grad()
def encode(tokenizer: Tokenizer, audio: WaveBatch) -> Tokens:
    return returned(tokenizer.encode(audio.wave, audio.lengths), Tokens, "encode")


def check_spec_is_that_of_the_options(subject: Subject) -> None:
    """Check that the spec of an instance is that of its options, before any weight is loaded."""
    tokenizer = tokenizer_of(subject)
    is_model = isinstance(tokenizer.config, TokenizerOptions)
    require(is_model, f"{type(tokenizer.config).__name__} is not a TokenizerOptions")
    promised, actual = tokenizer.config.spec(), tokenizer.spec.with_fingerprint("")
    require(promised.fingerprint == "", "the options' spec carries a fingerprint")
    require(actual == promised, f"the instance says {actual}, its options say {promised}")
    require(promised.frame_size >= 1, "a frame holds less than one sample")
    needs = (tokenizer.needs_training, tokenizer.needs_fitting)
    require(all(isinstance(need, bool) for need in needs), f"needs are {needs}")


def check_emits_what_its_spec_declares(subject: Subject) -> None:
    """Check that emitted levels, frames, types and ids are those that the spec declares."""
    tokenizer = tokenizer_of(subject)
    spec, audio = tokenizer.spec, audio_for(tokenizer.spec)
    with unchanged(wave=audio.wave, lengths=audio.lengths):
        tokens = encode(tokenizer, audio)
    frames = [spec.num_frames(length) for length in audio.lengths.tolist()]
    emitted = tokens.lengths.tolist()
    require(emitted == frames, f"{emitted} frames are emitted, the spec declares {frames}")
    declared, shape = (len(frames), spec.num_levels), tuple(tokens.ids.shape)
    require(shape[:2] == declared, f"ids are {shape}, the spec declares {(*declared, max(frames))}")
    require(shape[2] >= max(frames), f"ids have room for {shape[2]} of {max(frames)} frames")
    require_legal(tokens, spec.codebook_size, "tokens")


def check_batch_equals_rows(subject: Subject) -> None:
    """Check that each row of a ragged batch is encoded as if alone."""
    tokenizer = tokenizer_of(subject)
    audio = audio_for(tokenizer.spec)
    together = encode(tokenizer, audio)
    for row, length in enumerate(audio.lengths.tolist()):
        one = slice(row, row + 1)
        alone = encode(tokenizer, WaveBatch(audio.wave[one, :length], audio.lengths[one]))
        batch = Tokens(together.ids[one], together.lengths[one])
        require_same_tokens(batch, alone, f"row {row} in a batch", subject.mismatches)


def check_ignores_what_lies_beyond(subject: Subject) -> None:
    """Check that samples beyond a row's length, and strides, have no influence on its tokens."""
    tokenizer = tokenizer_of(subject)
    audio = audio_for(tokenizer.spec)
    beyond = torch.arange(audio.wave.shape[1]) >= audio.lengths[:, None]
    loud = reordered(torch.where(beyond, torch.rand_like(audio.wave) * 2 - 1, audio.wave))
    quiet, noisy = (encode(tokenizer, WaveBatch(w, audio.lengths)) for w in (audio.wave, loud))
    what = "with noise beyond the end and other strides"
    require_same_tokens(noisy, quiet, what, subject.mismatches)


def check_encodes_silence(subject: Subject) -> None:
    """Check that silence has legal tokens, as many as its length asks for."""
    tokenizer = tokenizer_of(subject)
    spec = tokenizer.spec
    lengths = torch.tensor([8 * spec.frame_size, 1])
    tokens = encode(tokenizer, WaveBatch(torch.zeros(2, int(lengths[0])), lengths))
    require(tokens.lengths.tolist() == [8, 1], f"{tokens.lengths.tolist()} frames for [8, 1]")
    require_legal(tokens, spec.codebook_size, "tokens of silence")


def check_encodes_one_frame(subject: Subject) -> None:
    """Check that a frame of audio, or a single sample, on its own has the tokens of one frame."""
    tokenizer = tokenizer_of(subject)
    spec = tokenizer.spec
    for length in (spec.frame_size, 1):
        tokens = encode(tokenizer, ragged_audio([length], spec.sample_rate))
        found, what = tokens.lengths.tolist(), f"{length} samples"
        require(found == [1], f"{found} frames for {what}, which are one")
        require_legal(tokens, spec.codebook_size, f"tokens of {what}")


def check_encodes_odd_audio(subject: Subject) -> None:
    """Check that constant, clipped, faint and noisy audio has legal tokens."""
    tokenizer = tokenizer_of(subject)
    spec, length = tokenizer.spec, 20 * tokenizer.spec.frame_size
    noise, one = torch.rand(length) * 2 - 1, torch.ones(length)
    alternating = 1 - 2 * (torch.arange(length) % 2).float()
    impulse = torch.zeros(length).index_fill(0, torch.tensor([length // 2]), 1.0)
    odd = {
        "constant 0.5": 0.5 * one,
        "constant 1": one,
        "constant -1": -one,
        "clipped noise": (8 * noise).clamp(-1, 1),
        "full-scale noise": noise,
        "faint noise": 1e-6 * noise,
        "alternating +1 and -1": alternating,
        "an impulse": impulse,
    }
    waves = torch.stack(list(odd.values())).repeat(2, 1)  # more rows than any other check has
    tokens = encode(tokenizer, WaveBatch(waves, torch.full((len(waves),), length)))
    for row, name in enumerate(odd):
        one_row = Tokens(tokens.ids[row : row + 1], tokens.lengths[row : row + 1])
        require_legal(one_row, spec.codebook_size, f"tokens of {name}")


@torch.inference_mode()
def check_handles_long_audio(subject: Subject) -> None:
    """Check that many seconds of audio are encoded to their end, and decoded by a codec."""
    tokenizer = tokenizer_of(subject)
    spec = tokenizer.spec
    length = _LONG_SECONDS * spec.sample_rate + 1
    tokens = encode(tokenizer, ragged_audio([length], spec.sample_rate))
    frames = spec.num_frames(length)
    require(tokens.lengths.tolist() == [frames], f"{tokens.lengths.tolist()} frames, not {frames}")
    require_legal(tokens, spec.codebook_size, f"tokens of {_LONG_SECONDS} s")
    early, late = (len(half.unique()) > 1 for half in tokens.ids[..., :frames].chunk(2, -1))
    require(late or not early, f"the tokens of {_LONG_SECONDS} s stay the same in the second half")
    if isinstance(tokenizer, AcousticCodec):
        wave = tokenizer.decode(tokens.ids, tokens.lengths)
        require_finite(wave, f"{_LONG_SECONDS} s of decoded audio")
        early, late = (bool(half.any()) for half in wave.chunk(2, -1))
        require(late or not early, f"{_LONG_SECONDS} s are decoded to silence in the second half")


def check_tokens_follow_the_audio(subject: Subject) -> None:
    """Check that other audio has other tokens, from the frame on where it begins to differ."""
    tokenizer = tokenizer_of(subject)
    spec, change = tokenizer.spec, 24
    cut, length = change * spec.frame_size, 2 * change * spec.frame_size
    audio = ragged_audio([length] * 8, spec.sample_rate)
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(audio.wave.shape, generator=generator) * 2 - 1
    at = torch.arange(length)
    other = torch.where(at >= cut, noise, audio.wave)
    before, after = (encode(tokenizer, WaveBatch(w, audio.lengths)) for w in (audio.wave, other))
    different = (before.ids != after.ids).any(dim=1).any(dim=0)
    require(bool(different.any()), "tokens are the same whatever the audio holds")
    first = int(different.nonzero()[0])
    late = f"audio changes in frame {change} of all rows, tokens only from frame {first} on"
    require(first <= change, late)


def check_every_code_is_emitted(subject: Subject) -> None:
    """Check that each code of a small codebook occurs in audio like that it was fitted to."""
    tokenizer = tokenizer_of(subject)
    spec = tokenizer.spec
    if tokenizer.needs_training or not tokenizer.needs_fitting:
        raise NotApplicable("it is not fitted: some codes may have no audio")
    if spec.codebook_size > _EMITTED_CODES:
        raise NotApplicable(f"{spec.codebook_size} codes are too many to hear each")
    left = set(range(spec.codebook_size))
    for audio in fitting_audio(tokenizer):
        left -= set(torch.cat([row.flatten() for row in encode(tokenizer, audio).rows()]).tolist())
    require(not left, f"the audio that it was fitted to never has the codes {sorted(left)}")


def check_train_mode_changes_no_token(subject: Subject) -> None:
    """Check that tokens, and their sound, are the same in train mode, which stays on."""
    tokenizer = tokenizer_of(subject)
    audio = audio_for(tokenizer.spec)
    wanted = encode(tokenizer, audio)
    found = encode(tokenizer.train(), audio)
    require_same_tokens(found, wanted, "in train mode", subject.mismatches)
    require(tokenizer.training, "train mode is off after encoding")
    if isinstance(tokenizer, AcousticCodec):
        with torch.no_grad():
            decoded = tokenizer.decode(wanted.ids, wanted.lengths)
            sound = tokenizer.eval().decode(wanted.ids, wanted.lengths)
        require_close(decoded, sound, "decoded in train mode", subject.atol)


@torch.no_grad()
def check_leaves_the_process_alone(subject: Subject) -> None:
    """Check that building, encoding and decoding change no seed or mode of the process, and
    using no weight."""
    with undisturbed():
        subject.blank()
    tokenizer = tokenizer_of(subject)
    audio = audio_for(tokenizer.spec)
    with torch.enable_grad(), undisturbed(tokenizer):
        tokens = returned(tokenizer.encode(audio.wave, audio.lengths), Tokens, "encode")
        if isinstance(tokenizer, AcousticCodec):
            tokenizer.decode(tokens.ids, tokens.lengths)


def check_is_deterministic(subject: Subject) -> None:
    """Check that audio alone determines tokens: no seed, no clock, nothing encoded before."""
    tokenizer = tokenizer_of(subject)
    audio, other = audio_for(tokenizer.spec), ragged_audio([977, 400], tokenizer.spec.sample_rate)
    first = encode(tokenizer, audio)
    torch.manual_seed(123)
    for time in ("second", "third", "fourth"):
        with a_day_later(tokenizer):
            again = encode(tokenizer, audio)
        require_same_tokens(again, first, f"the {time} time")
        encode(tokenizer, other)


def check_respects_the_device(subject: Subject) -> None:
    """Check that tokens are on the device of the audio, an accelerator if there is one."""
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
    """Check that it takes float64 audio in float64, with ids in int64."""
    tokenizer = tokenizer_of(subject).to(torch.float64)
    audio = audio_for(tokenizer.spec)
    tokens = encode(tokenizer, WaveBatch(audio.wave.double(), audio.lengths))
    require_legal(tokens, tokenizer.spec.codebook_size, "tokens in float64")


def check_training_step_can_be_learnt_from(subject: Subject) -> None:
    """Check that a tokenizer trained by gradient has a finite ``loss`` that reaches a parameter.

    Its step must not seed torch.
    """
    tokenizer = tokenizer_of(subject)
    if not tokenizer.needs_training:
        raise NotApplicable("it is not trained by gradient")
    spec = tokenizer.spec
    audio = ragged_audio([32 * spec.frame_size] * 2, spec.sample_rate)
    with unchanged(batch=audio), seed_kept():
        losses = tokenizer.train().training_step(audio)
    check_losses(tokenizer, losses, ("loss",), learning=True)
    check_weight(tokenizer, tokenizer.weight_of(audio))
    require_finite(losses["loss"].detach(), "loss")
    losses["loss"].backward()
    reached = [p.grad is not None and bool(p.grad.any()) for p in tokenizer.parameters()]
    require(any(reached), "the gradient of 'loss' reaches no parameter")


def check_can_be_trained_in_mixed_precision(subject: Subject) -> None:
    """Check that steps under ``training.precision=bf16-mixed`` and their gradients are finite."""
    tokenizer = tokenizer_of(subject)
    if not tokenizer.needs_training:
        raise NotApplicable("it is not trained by gradient")
    spec, adversary = tokenizer.spec, tokenizer.train().adversary()
    audio = ragged_audio([32 * spec.frame_size] * 2, spec.sample_rate)
    with torch.autocast("cpu", torch.bfloat16):
        losses = [tokenizer.training_step(audio)["loss"]]
        if adversary is not None:
            judged = tokenizer.adversarial_step(audio, adversary)
            losses += [judged["loss"], judged["adversary_loss"]]
    for loss in losses:
        require_finite(loss.detach(), "loss in bf16-mixed")
        loss.backward(retain_graph=True)
    for name, parameter in tokenizer.named_parameters():
        if parameter.grad is not None:
            require_finite(parameter.grad, f"gradient of {name} in bf16-mixed")


def check_vectors_belong_to_codes(subject: Subject) -> None:
    """Check that a tokenizer that knows vectors has a finite one for the codes of each frame."""
    tokenizer = tokenizer_of(subject)
    size, levels = tokenizer.spec.codebook_size, tokenizer.spec.num_levels
    codes = torch.randint(size, (2, levels, 12))
    found, turned = tokenizer.vectors(codes), tokenizer.vectors(codes.flip(2))
    if found is None or turned is None:
        raise NotApplicable("it says that its tokens stand for no vectors")
    shape = tuple(found.shape)
    require(found.ndim == 3 and shape[:2] == (2, 12), f"vectors are {shape}, not (2, 12, D)")
    require_finite(found, "vectors")
    require_close(turned, found.flip(1), "vectors", subject.atol)
    require(size == 1 or len(found.flatten(0, 1).unique(dim=0)) > 1, "all vectors are the same")


def check_likeness_ranks_rows_on_their_own(subject: Subject) -> None:
    """Check that a tokenizer that compares stretches gives each row a finite number of its own."""
    tokenizer = tokenizer_of(subject)
    if type(tokenizer).likeness is Tokenizer.likeness:
        raise NotApplicable("it does not compare continuations with their prompts")
    codes = torch.randint(tokenizer.spec.codebook_size, (3, tokenizer.spec.num_levels, 24))
    known, new = Tokens.full(codes), Tokens(codes.flip(0), torch.tensor([24, 9, 1]))
    found = tokenizer.likeness(known, new)
    require(found.shape == (3,), f"likeness of 3 rows is {tuple(found.shape)}, not (3,)")
    require_finite(found, "likeness")
    for row in range(3):
        alone = tokenizer.likeness(*(Tokens.full(t.row(row)[None]) for t in (known, new)))
        require_close(alone, found[row : row + 1], "likeness of a row alone", subject.atol)


def check_state_round_trip(subject: Subject) -> None:
    """Check that a saved and loaded instance gives the same tokens and the same fingerprint."""
    saved, loaded = tokenizer_of(subject), subject.blank(seed=99)
    assert isinstance(loaded, Tokenizer)
    loaded.load_state_dict(through_safetensors(saved.state_dict()), strict=True)
    loaded.eval()
    same = saved.seal(_NAME) == loaded.seal(_NAME)
    require(same, "another fingerprint after loading: the state dict does not hold all of it")
    audio = audio_for(saved.spec)
    require_same_tokens(encode(loaded, audio), encode(saved, audio), "after loading")


def check_seal_fills_the_fingerprint(subject: Subject) -> None:
    """Check that the spec carries the fingerprint that ``seal`` returned, and none before."""
    tokenizer = tokenizer_of(subject)
    require(tokenizer.spec.fingerprint == "", "a fingerprint before seal()")
    sealed = tokenizer.seal(_NAME)
    carried = tokenizer.spec.fingerprint
    require(bool(sealed), "seal() returns no fingerprint")
    require(carried == sealed, f"seal() returns {sealed!r}, the spec carries {carried!r}")
    require(tokenizer.seal(_NAME) == sealed, "a second seal() gives another fingerprint")


def check_fingerprint_follows_weights(subject: Subject) -> None:
    """Check that other weights have another fingerprint."""
    tokenizer = tokenizer_of(subject)
    weights = [t for t in tokenizer.state_dict().values() if t.is_floating_point() and t.numel()]
    if not weights:
        raise NotApplicable("it has no weights")
    before = tokenizer.seal(_NAME)
    with torch.no_grad():
        for tensor in weights:
            tensor.add_(1.0)
    require(tokenizer.seal(_NAME) != before, "the fingerprint stays when all weights change")


def check_fingerprint_follows_options(subject: Subject) -> None:
    """Check that another name or other options have another fingerprint."""
    tokenizer = tokenizer_of(subject)
    before = tokenizer.seal(_NAME)
    require(tokenizer.seal("other.v1") != before, "the fingerprint stays under another name")
    for name, value in tokenizer.config:
        if isinstance(value, int | float):
            # Not validated: only the fingerprint is asked for.
            tokenizer.config = tokenizer.config.model_copy(update={name: value + 1})
            changed = tokenizer.seal(_NAME) != before
            require(changed, f"the fingerprint stays when the option {name} changes")
            return


def check_fingerprint_without_weights_is_known_early(subject: Subject) -> None:
    """Check that name and options alone give the fingerprint where nothing is learnt."""
    tokenizer = tokenizer_of(subject)
    if tokenizer.learns:
        raise NotApplicable("it has weights that are learnt")
    early = options_digest(_NAME, tokenizer.config).hexdigest()[:FINGERPRINT_DIGITS]
    require(
        tokenizer.seal(_NAME) == early,
        "the fingerprint is not that of name and options, which assembly uses; keep constant "
        "tables in buffers with persistent=False",
    )
