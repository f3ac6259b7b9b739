"""Check the promises of every acoustic codec about decoding."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segue.core.interfaces import AcousticCodec, Tokens, WaveBatch
from segue.core.spec import TokenSpec
from segue.testing.check import NotApplicable, require, returned
from segue.testing.compare import (
    a_day_later,
    any_device,
    require_close,
    require_finite,
    require_same_tokens,
    unchanged,
)
from segue.testing.subject import Subject
from segue.testing.synthetic import ragged_audio, reordered
from segue.testing.tokenizer_checks import audio_for, encode, tokenizer_of

_FRAMES = (23, 9, 4, 1)
_ROW_FRAMES = 64
_PAIRED_CODES = 64  # largest codebook of which every pair is tried
_LOUDEST = 30.0


def codec_of(subject: Subject) -> AcousticCodec:
    codec = tokenizer_of(subject)
    assert isinstance(codec, AcousticCodec)
    return codec


def codes_for(spec: TokenSpec) -> Tokens:
    """Return a ragged batch of random codes of all levels; padding holds codes as well."""
    shape = (len(_FRAMES), spec.num_levels, max(_FRAMES))
    return Tokens(torch.randint(spec.codebook_size, shape), torch.tensor(_FRAMES))


@torch.no_grad()
def decode(codec: AcousticCodec, codes: Tokens) -> Tensor:
    return returned(codec.decode(codes.ids, codes.lengths), Tensor, "decode")


def check_decodes_any_number_of_levels(subject: Subject) -> None:
    """Check that the first q levels, for every q, decode to N frames of finite audio."""
    codec = codec_of(subject)
    spec, codes = codec.spec, codes_for(codec.spec)
    wanted = (len(_FRAMES), max(_FRAMES) * spec.frame_size)
    for count in range(1, spec.num_levels + 1):
        with unchanged(codes=codes):
            wave = decode(codec, codes.levels(0, count))
        shape = tuple(wave.shape)
        require(shape == wanted, f"{count} levels decode to {shape} instead of {wanted}")
        require(wave.dtype == torch.float32, f"decoded audio is {wave.dtype}, not float32")
        require_finite(wave, f"audio of {count} levels")


def check_decoded_batch_equals_rows(subject: Subject) -> None:
    """Check that each row of a ragged batch is decoded as alone, whatever padding and strides."""
    codec = codec_of(subject)
    codes = codes_for(codec.spec)
    together = decode(codec, Tokens(reordered(codes.ids), codes.lengths))
    for row, ids in enumerate(codes.rows()):
        alone = decode(codec, Tokens.full(ids[None]))[0]
        batch = together[row, : len(alone)]
        require_close(batch, alone, f"row {row} decoded in a batch", subject.atol)


def check_decoded_audio_ends_in_zeros(subject: Subject) -> None:
    """Check that decoded audio is zero beyond a row's length."""
    codec = codec_of(subject)
    codes = codes_for(codec.spec)
    wave = decode(codec, codes)
    for row, length in enumerate((codes.lengths * codec.spec.frame_size).tolist()):
        silent = not bool(wave[row, length:].any())
        require(silent, f"row {row} goes on beyond its {length} samples")


def check_every_code_decodes(subject: Subject) -> None:
    """Check that every legal code decodes to finite audio; of small codebooks, every pair too."""
    codec = codec_of(subject)
    size, num_levels = codec.spec.codebook_size, codec.spec.num_levels
    rows = -(-size // _ROW_FRAMES)
    frames = torch.arange(rows * _ROW_FRAMES)
    # Each level runs through all codes; different steps vary which codes are decoded together.
    levels = [(frames * (2 * q + 1) + q) % size for q in range(num_levels)]
    for ids in (torch.stack(levels), (frames % size).expand(num_levels, -1)):
        batch = ids.reshape(num_levels, rows, _ROW_FRAMES).transpose(0, 1)
        require_finite(decode(codec, Tokens.full(batch)), "audio of all codes")
    if size <= _PAIRED_CODES:
        first, second = torch.cartesian_prod(torch.arange(size), torch.arange(size)).T[:, :, None]
        for bit in range(max(1, (num_levels - 1).bit_length())):  # any two levels differ in a bit
            levels = [second if q >> bit & 1 else first for q in range(num_levels)]
            after = second.expand(-1, num_levels)[..., None]
            pairs = torch.cat([torch.stack(levels, dim=1), after], dim=2)
            require_finite(decode(codec, Tokens.full(pairs)), "audio of a pair of codes")


def check_every_level_is_heard(subject: Subject) -> None:
    """Check that the codes of each level change the audio, which is silent on no number of them."""
    codec = codec_of(subject)
    size, codes = codec.spec.codebook_size, torch.randint(codec.spec.codebook_size, (1, 1, 24))
    codes = codes.repeat(1, codec.spec.num_levels, 1)
    wave = decode(codec, Tokens.full(codes))
    for level in range(codec.spec.num_levels):
        first = decode(codec, Tokens.full(codes[:, : level + 1]))
        require(bool(first.any()), f"random codes of {level + 1} levels decode to silence")
        other = codes.clone()
        other[:, level] = (other[:, level] + 1 + size // 3) % size
        same = torch.equal(decode(codec, Tokens.full(other)), wave)
        require(not same or size == 1, f"the codes of level {level} change nothing")


def check_frames_are_heard_in_their_place(subject: Subject) -> None:
    """Check that the codes of a frame change the samples of that frame."""
    codec = codec_of(subject)
    spec, frame = codec.spec, 12
    codes = torch.randint(spec.codebook_size, (12, spec.num_levels, 24))
    other = codes.clone()
    other[:, :, frame] = torch.randint(spec.codebook_size, (12, spec.num_levels))
    gap = (decode(codec, Tokens.full(codes)) - decode(codec, Tokens.full(other))).abs()
    own = gap[:, frame * spec.frame_size : (frame + 1) * spec.frame_size]
    require(bool(own.any()), f"the codes of frame {frame} do not change its own samples")


def check_loudness_is_kept_in_bounds(subject: Subject) -> None:
    """Check that encoded and decoded audio is not far louder than the audio."""
    codec = codec_of(subject)
    audio = audio_for(codec.spec)
    wave = decode(codec, encode(codec, audio))
    ratio = float(wave.square().mean().sqrt() / audio.wave.square().mean().sqrt())
    require(ratio <= _LOUDEST, f"decoded audio is {ratio:.0f} times as loud as the audio")


@torch.no_grad()
def check_streams_share_nothing(subject: Subject) -> None:
    """Check that two streams that take turns give what each gives alone."""
    codec = codec_of(subject)
    if codec.can_stream:
        codes = torch.randint(codec.spec.codebook_size, (2, codec.spec.num_levels, 20))
        alone = [_streamed(codec.streaming_decoder(), row[None].split(4, -1)) for row in codes]
        pair = [codec.streaming_decoder() for _ in codes]
        found = _in_turn(pair, [row[None].split(4, -1) for row in codes])
        for row, (have, want) in enumerate(zip(found, alone, strict=True)):
            require_close(have, want, f"stream {row} beside another one", subject.atol)
    if codec.streaming_encoder() is not None:
        wave = audio_for(codec.spec).wave[:2]
        pieces = [row[None].split(3 * codec.spec.frame_size // 2, -1) for row in wave]
        single = [_streamed(codec.streaming_encoder(), each) for each in pieces]
        together = _in_turn([codec.streaming_encoder() for _ in pieces], pieces)
        for row, (have, want) in enumerate(zip(together, single, strict=True)):
            what = f"encoding stream {row} beside another one"
            require_same_tokens(Tokens.full(have), Tokens.full(want), what, subject.mismatches)


def _streamed(stream: Any, pieces: Sequence[Tensor]) -> Tensor:
    return _in_turn([stream], [pieces])[0]


def _in_turn(streams: Sequence[Any], pieces: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Push the pieces of several streams in turn; return all that each gave."""
    given: list[list[Tensor]] = [[] for _ in streams]
    for turn in zip(*pieces, strict=True):
        for stream, piece, own in zip(streams, turn, given, strict=True):
            own.append(stream.push(piece))
    ends = [stream.finish() for stream in streams]
    return [torch.cat([*own, end], dim=-1) for own, end in zip(given, ends, strict=True)]


@torch.no_grad()
def check_streams_do_not_wait_for_the_end(subject: Subject) -> None:
    """Check that pushed frames are given out long before the stream ends."""
    codec = codec_of(subject)
    if not codec.can_stream:
        raise NotApplicable("it says that it cannot stream: it declares no decode_context")
    spec, frames = codec.spec, 60
    ahead = frames // 2 if codec.decode_context is None else codec.decode_context[1]
    frames += ahead
    codes = torch.randint(spec.codebook_size, (1, spec.num_levels, frames))
    decoder = codec.streaming_decoder()
    early = sum(decoder.push(piece).shape[-1] for piece in codes.split(1, dim=-1))
    least = (frames - ahead) * spec.frame_size
    require(early >= least, f"{early} samples came before the end, at least {least} were known")
    encoder = codec.streaming_encoder()
    if encoder is not None:
        wave = ragged_audio([frames * spec.frame_size], spec.sample_rate).wave
        given = sum(encoder.push(piece).shape[-1] for piece in wave.split(spec.frame_size, dim=-1))
        require(given >= frames // 2, f"{given} of {frames} frames were encoded before the end")


@torch.no_grad()
def check_streamed_equals_offline(subject: Subject) -> None:
    """Check that codes pushed in chunks of any size decode to the samples of ``decode``."""
    codec = codec_of(subject)
    if not codec.can_stream:
        raise NotApplicable("it says that it cannot stream: it declares no decode_context")
    spec = codec.spec
    codes = torch.randint(spec.codebook_size, (2, spec.num_levels, 60))
    offline = codec.decode(codes, torch.tensor([60, 60]))
    decoder = codec.streaming_decoder()
    for longest in (1, 5, 40):  # finish() resets the decoder, which is used again
        pieces = [decoder.push(part) for part in _chunks(codes, longest)]
        streamed = torch.cat([*pieces, decoder.finish()], dim=1)
        what = f"streamed in chunks of up to {longest} frames"
        require_close(streamed, offline, what, subject.atol)


@torch.no_grad()
def check_streamed_encoding_equals_offline(subject: Subject) -> None:
    """Check that audio pushed in chunks of any size has the codes of ``encode``."""
    codec = codec_of(subject)
    encoder = codec.streaming_encoder()
    if encoder is None:
        raise NotApplicable("it has no streaming_encoder")
    size, audio = codec.spec.frame_size, audio_for(codec.spec).wave
    # Another end and another number of rows each time: finish() must leave no state behind.
    for longest, rows in ((size // 2, 2), (3 * size, 1), (audio.shape[1], 2)):
        wave = audio[:rows, : audio.shape[1] - rows * size // 3]
        offline = encode(codec, WaveBatch(wave, torch.full((rows,), wave.shape[1])))
        pieces = [encoder.push(part) for part in _chunks(wave, max(1, longest))]
        streamed = Tokens.full(torch.cat([*pieces, encoder.finish()], dim=2))
        what = f"encoded in chunks of up to {longest} samples"
        require_same_tokens(streamed, offline, what, subject.mismatches)


def _chunks(stream: Tensor, longest: int) -> list[Tensor]:
    """Cut a stream along its last axis into pieces of random size, the same each time."""
    random_state, sizes, left = random.Random(0), [], stream.shape[-1]
    while left:
        sizes.append(min(left, random_state.randint(1, longest)))
        left -= sizes[-1]
    return list(stream.split(sizes, dim=-1))


def check_round_trip_is_finite(subject: Subject) -> None:
    """Check that encoded audio decodes to finite audio of as many frames, the same each time."""
    codec = codec_of(subject)
    tokens = encode(codec, audio_for(codec.spec))
    wave = decode(codec, tokens)
    wanted = (tokens.ids.shape[0], tokens.ids.shape[2] * codec.spec.frame_size)
    require(tuple(wave.shape) == wanted, f"{tuple(wave.shape)} samples instead of {wanted}")
    require_finite(wave, "encoded and decoded audio")
    torch.manual_seed(123)
    with a_day_later(codec):
        again = decode(codec, tokens)
    require_close(again, wave, "decoded a second time", 0.0)


def check_decoding_respects_the_device(subject: Subject) -> None:
    """Check that decoded audio is on the device of the codes, in the precision of the codec."""
    codec, device = codec_of(subject), any_device()
    wave = decode(codec.to(device), codes_for(codec.spec).to(device))
    same = wave.device.type == device.type
    require(same, f"audio is on {wave.device}, the codes are on {device}")
    if any(tensor.is_floating_point() for tensor in (*codec.parameters(), *codec.buffers())):
        exact = decode(codec.cpu().double(), codes_for(codec.spec))
        require(exact.dtype == torch.float64, f"a codec in float64 decodes to {exact.dtype}")
