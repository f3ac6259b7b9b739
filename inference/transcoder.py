"""Turn audio into the tokens of every stream, and codes into audio."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import SILENCE, Audio, resample
from segue.core.config import PromptConfig
from segue.core.errors import AudioError, GenerationError
from segue.core.interfaces import AcousticCodec, SemanticTokenizer, StreamingDecoder, Tokenizer
from segue.core.spec import ACOUSTIC, TokenSpec, common_samples
from segue.core.tokens import Ids, Tokens, WaveBatch
from segue.inference.inputs import Prompt, as_prompt, prepare
from segue.inference.promises import (
    calling,
    check_codes,
    check_streamed,
    check_tokens,
    check_wave,
)
from segue.inference.recoding import windows

MAX_GAIN = 1e5  # 100 dB: nothing but digital silence is quieter
NOTED_GAIN = 100.0  # 40 dB: a user should know
MAX_CODEC_GAIN = 4.0  # 12 dB: a codec that changes more is broken, and noise would be raised
PIECE_SECONDS = 20.0  # longer audio is encoded and decoded in pieces of this length
MARGIN_SECONDS = 2.0  # of audio around a piece, where a codec cannot encode chunk by chunk


class Transcoder:
    """The audio side of a pipeline.

    Attributes:
        streams: the tokens of each stream of the pipeline, with the levels that stages predict.
        limits: which part of a prompt is used, and at what level.
    """

    def __init__(
        self,
        codec: AcousticCodec,
        semantic_tokenizer: SemanticTokenizer | None,
        streams: Mapping[str, TokenSpec],
        limits: PromptConfig,
    ) -> None:
        self.codec, self.semantic_tokenizer = codec, semantic_tokenizer
        self.streams, self.limits = streams, limits

    @property
    def sample_rate(self) -> int:
        """Samples per second of the codec's audio."""
        return self.codec.spec.sample_rate

    @property
    def device(self) -> torch.device:
        return self.codec.device

    @property
    def unit_samples(self) -> int:
        """Samples after which every stream has a whole number of frames."""
        return common_samples(list(self.streams.values()), self.sample_rate)

    def whole_seconds(self, seconds: float) -> Fraction:
        """Round a length up to whole frames of every stream, at least one."""
        # Exact: a float product may lie a hair above a whole number of units.
        exact = Fraction(seconds).limit_denominator(self.sample_rate)
        units = max(1, math.ceil(exact * self.sample_rate / self.unit_samples))
        return Fraction(units * self.unit_samples, self.sample_rate)

    def prepared(self, prompts: Sequence[Prompt], *, whole_units: bool) -> list[Audio]:
        """Bring prompts to the pipeline's rate and length.

        Args:
            prompts: in any form that ``segue.inference.inputs.as_prompt`` takes.
            whole_units: cut each to whole frames of all streams.

        Raises:
            AudioError: if a prompt cannot be used.
            GenerationError: if there is no prompt.
        """
        if not isinstance(prompts, Sequence) or isinstance(prompts, str | bytes):
            raise AudioError("prompts", f"is a {type(prompts).__name__}", "give a list of prompts")
        if not prompts:
            raise GenerationError("prompts", "is empty", "give at least one prompt")
        places = [
            f"prompts[{index}]" if len(prompts) > 1 else "prompt" for index in range(len(prompts))
        ]
        return [
            self._prepared(prompt, whole_units, place)
            for prompt, place in zip(prompts, places, strict=True)
        ]

    def recording(self, prompt: Prompt) -> Audio:
        """Bring a whole recording of any length to the pipeline's rate, or raise ``AudioError``."""
        audio = as_prompt(prompt, "prompt")
        return prepare(audio, self.sample_rate, min_seconds=0, max_seconds=math.inf, place="prompt")

    def _prepared(self, prompt: object, whole_units: bool, place: str) -> Audio:
        least, most = self.limits.min_seconds, self.limits.max_seconds
        audio = as_prompt(prompt, place, most)
        audio = prepare(audio, self.sample_rate, min_seconds=least, max_seconds=most, place=place)
        # The continuation joins at the end, so a part of a frame is cut off at the start.
        rest = audio.wave.shape[0] % self.unit_samples if whole_units else 0
        if rest == audio.wave.shape[0]:
            unit = self.unit_samples / self.sample_rate
            raise AudioError(place, "is shorter than one frame", f"give at least {unit:g} s")
        audio = Audio(audio.wave[rest:], audio.sample_rate, audio.notes)
        gain = float(self.gains([audio])[0])
        if gain <= NOTED_GAIN:
            return audio
        raised = f"raised by {20 * math.log10(gain):.0f} dB for the models"
        note = f"{raised}; the result is as quiet as the prompt"
        return replace(audio, notes=(*audio.notes, note))

    def gains(self, audios: Sequence[Audio]) -> Float[Tensor, "B"]:
        """Return the factors that bring each prompt to the level of the training data."""
        return gains_to(self.limits.level, [audio.wave for audio in audios])

    def no_prompt(self, batch: int) -> dict[str, Tokens]:
        """Return every stream without a frame."""
        return {
            name: Tokens.empty(batch, spec.num_levels, self.device)
            for name, spec in self.streams.items()
        }

    def encode(self, audios: Sequence[Audio], gains: Float[Tensor, "B"]) -> dict[str, Tokens]:
        """Return the tokens of every stream, with the levels that stages predict."""
        return {
            stream: self.encode_stream(stream, audios, gains).levels(0, spec.num_levels)
            for stream, spec in self.streams.items()
        }

    def _row_by_row(self, rows: int) -> bool:
        """Return whether rows are taken in turn.

        A CPU gains nothing from taking them together, and rounds otherwise for other shapes: in
        turn, each equals bit by bit what it is alone, and padding is not computed.
        """
        return rows > 1 and self.device.type == "cpu"

    def tokenizer_of(self, stream: str) -> Tokenizer:
        """Return what makes the tokens of a stream."""
        tokenizer = self.codec if stream == ACOUSTIC else self.semantic_tokenizer
        assert tokenizer is not None
        return tokenizer

    @torch.inference_mode()
    def encode_stream(
        self, stream: str, audios: Sequence[Audio], gains: Float[Tensor, "B"]
    ) -> Tokens:
        """Return the tokens of one stream, all levels, cut to the frames that the audio fills."""
        if self._row_by_row(len(audios)):
            pairs = zip(audios, gains.split(1), strict=True)
            rows = [self.encode_stream(stream, [audio], gain).row(0) for audio, gain in pairs]
            return Tokens.stack(rows)
        tokenizer = self.tokenizer_of(stream)
        spec = tokenizer.spec
        waves = [audio.wave * gain for audio, gain in zip(audios, gains, strict=True)]
        if spec.sample_rate != self.sample_rate:
            waves = [resample(wave, self.sample_rate, spec.sample_rate) for wave in waves]
        batch = WaveBatch.pad(waves)
        with calling(tokenizer, "encode"):
            tokens = tokenizer.encode(batch.wave.to(self.device), batch.lengths.to(self.device))
        check_tokens(tokenizer, tokens, spec, batch.lengths)
        # Resampling may round a length up to one more frame than the prompt has.
        frames = [
            math.ceil(audio.wave.shape[0] * spec.frame_rate / self.sample_rate) for audio in audios
        ]
        return tokens.cut(torch.tensor(frames, device=tokens.lengths.device))

    @torch.inference_mode()
    def encode_whole(self, audio: Audio, gain: Tensor) -> Tokens:
        """Return the acoustic tokens of audio of any length, all levels, made piece by piece."""
        return Tokens.full(
            torch.cat([*self.encode_pieces([audio.wave], audio.wave.shape[0], gain)], dim=2)
        )

    @torch.inference_mode()
    def encode_pieces(
        self, blocks: Iterable[Float[Tensor, "T"]], length: int, gain: Tensor
    ) -> Iterator[Ids]:
        """Yield acoustic tokens ``[1, Q, n]``, all levels, of audio that is read block by block."""
        size, rate = self.codec.spec.frame_size, self.sample_rate
        piece = int(PIECE_SECONDS * rate) // size * size
        encoder = self.codec.streaming_encoder() if length > piece else None
        if encoder is not None:
            heard, frames, spec = 0, 0, self.codec.spec
            for part in itertools.chain((wave for _, wave in windows(blocks, piece, 0)), [None]):
                with calling(self.codec, "encode"):
                    wave = None if part is None else (part[None] * gain).to(self.device)
                    codes = encoder.finish() if wave is None else encoder.push(wave)
                check_codes(self.codec, codes, spec.num_levels, spec.codebook_size)
                heard, frames = heard + (0 if part is None else len(part)), frames + codes.shape[2]
                owed = spec.num_frames(heard) - frames
                check_streamed(self.codec, "frames", owed, part is None)
                yield codes
            return
        margin = int(MARGIN_SECONDS * rate) // size * size
        for before, part in windows(blocks, piece, margin if length > piece else 0):
            found = self.encode_stream(ACOUSTIC, [Audio(part, rate)], gain[None]).ids
            yield found[:, :, before // size :][:, :, : piece // size]

    @torch.inference_mode()
    def decode(self, codes: Tokens) -> Float[Tensor, "B T"]:
        """Return the audio of codes, on the CPU."""
        if not codes.ids.shape[2]:
            return torch.zeros(len(codes.lengths), 0)
        if self._row_by_row(len(codes.lengths)):
            return WaveBatch.pad(
                [self.decode(Tokens.full(row[None]))[0] for row in codes.rows()]
            ).wave
        piece = int(PIECE_SECONDS * self.codec.spec.frame_rate)
        if not self.codec.can_stream or codes.ids.shape[2] <= piece:
            with calling(self.codec, "decode"):
                wave = self.codec.decode(codes.ids, codes.lengths)
            rows, samples = len(codes.lengths), codes.ids.shape[2] * self.codec.spec.frame_size
            return check_wave(self.codec, wave, rows, samples).float().cpu()
        waves = []
        for row in codes.rows():  # one by one: a stream's last piece ends where the row ends
            decoder = self.codec.streaming_decoder()  # each holds the state of one stream
            pieces = [*map(Tokens.full, row[None].split(piece, dim=2)), None]
            wave = torch.cat([self._next(decoder, part) for part in pieces], dim=1)
            samples = row.shape[1] * self.codec.spec.frame_size
            waves.append(check_wave(self.codec, wave, 1, samples)[0])
        return WaveBatch.pad(waves).wave

    def codec_gains(
        self, audios: Sequence[Audio], gains: Float[Tensor, "B"], codes: Tokens
    ) -> Float[Tensor, "B"]:
        """Return by what the codec changes the level of each prompt: below 1 if it gets quieter.

        Args:
            audios: prompts of whole frames.
            gains: the factors that they were encoded with.
            codes: those of the prompts; what follows them does not matter.
        """
        frames = [audio.wave.shape[0] // self.codec.spec.frame_size for audio in audios]
        # Decoded without what follows, so that a stream, which has not drawn it yet, agrees.
        wave = self.decode(codes.cut(torch.tensor(frames, device=codes.lengths.device)))
        found = []
        for audio, gain, decoded in zip(audios, gains, wave, strict=True):
            before = (audio.wave * gain).square().mean().sqrt()
            after = decoded[: audio.wave.shape[0]].square().mean().sqrt()
            # A prompt that is all but silent says nothing about the codec.
            silent = min(before, after) < SILENCE
            found.append(1.0 if silent else float(after / before))
        return torch.tensor(found).clamp(1 / MAX_CODEC_GAIN, MAX_CODEC_GAIN)

    @torch.inference_mode()
    def _next(self, decoder: StreamingDecoder, codes: Tokens | None) -> Float[Tensor, "1 T"]:
        with calling(self.codec, "decode"):
            wave = decoder.finish() if codes is None else decoder.push(codes.ids)
        return check_wave(self.codec, wave, 1, None).float().cpu()

    def decode_pieces(
        self, prompt: Tokens, pieces: Iterator[Tokens]
    ) -> Iterator[tuple[Float[Tensor, "1 T"], Tokens]]:
        """Decode one row piece by piece, as pieces are drawn; yield samples with their codes.

        Args:
            prompt: codes that come before the pieces; their samples are not returned.
            pieces: codes ``[1, Q, n]``.
        """
        decoder, size = self.codec.streaming_decoder(), self.codec.spec.frame_size
        if self.codec.decode_context is not None:  # earlier frames of the prompt change nothing
            kept = max(1, sum(self.codec.decode_context))
            prompt = Tokens.full(prompt.row(0)[None, :, -kept:])
        skip = int(prompt.lengths[0]) * size  # samples of the prompt that are still to come
        if skip:
            skip -= self._next(decoder, prompt).shape[1]
        owed = skip  # samples of all frames that are still to come
        waiting = prompt.ids[:, :, :0]  # frames whose samples the decoder still withholds
        for number, piece in enumerate(itertools.chain(pieces, [None])):
            if piece is None and not (number or prompt.ids.shape[2]):
                return  # codecs are not asked what no frame sounds like
            wave = self._next(decoder, piece)
            owed += (0 if piece is None else piece.ids.shape[2] * size) - wave.shape[1]
            check_streamed(self.codec, "samples", owed, piece is None)
            wave, skip = wave[:, skip:], max(0, skip - wave.shape[1])
            if piece is not None:
                waiting = torch.cat([waiting, piece.ids], dim=2)
            if wave.shape[1]:
                frames = wave.shape[1] // size
                yield wave, Tokens.full(waiting[:, :, :frames])
                waiting = waiting[:, :, frames:]

    def decode_all(
        self, pieces: Iterator[Tokens], levels: int, length: int
    ) -> Iterator[tuple[Float[Tensor, "1 T"], Tokens]]:
        """Decode pieces of one recording of ``length`` samples as ``decode`` would all of them."""
        if self.codec.can_stream and length > int(PIECE_SECONDS * self.sample_rate):
            yield from self.decode_pieces(Tokens.empty(1, levels, self.device), pieces)
            return
        codes = Tokens.full(torch.cat([piece.ids for piece in pieces], dim=2))
        yield self.decode(codes), codes


def gains_to(level: float | None, waves: Sequence[Float[Tensor, "T"]]) -> Float[Tensor, "B"]:
    """Return the factors that bring each wave to an RMS of ``level``; 1 if there is no level.

    They grow steadily as waves get quieter, so that a result is never much louder than its prompt.
    """
    return gains_of(level, torch.stack([wave.square().mean().sqrt() for wave in waves]))


def gains_of(level: float | None, rms: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Return the factors for waves of these RMS; see ``gains_to``."""
    if level is None:
        return torch.ones(len(rms))
    return (level / rms.clamp_min(level / MAX_GAIN)).clamp_min(1 / MAX_GAIN)
