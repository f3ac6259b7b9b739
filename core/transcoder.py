"""Turn audio into the tokens of every stream, and codes into audio."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import Audio, prepare, resample
from segue.core.config import PromptConfig
from segue.core.errors import AudioError, GenerationError
from segue.core.inputs import Prompt, as_prompt
from segue.core.interfaces import AcousticCodec, SemanticTokenizer, StreamingDecoder
from segue.core.promises import check_tokens, check_wave
from segue.core.spec import ACOUSTIC, TokenSpec, common_samples
from segue.core.tokens import Tokens, WaveBatch

MAX_GAIN = 1e5  # 100 dB: nothing but digital silence is quieter
NOTED_GAIN = 100.0  # 40 dB: a user should know
DECODE_SECONDS = 20.0  # longer audio is decoded in pieces of this length, to save memory


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
        """Round a length up to whole frames of every stream."""
        # Exact: a float product may lie a hair above a whole number of units.
        exact = Fraction(seconds).limit_denominator(self.sample_rate)
        units = math.ceil(exact * self.sample_rate / self.unit_samples)
        return Fraction(units * self.unit_samples, self.sample_rate)

    def prepared(self, prompts: Sequence[Prompt], *, whole_units: bool) -> list[Audio]:
        """Bring prompts to the pipeline's rate and length.

        Args:
            prompts: in any form that ``segue.core.inputs.as_prompt`` takes.
            whole_units: cut each to whole frames of all streams.

        Raises:
            AudioError: if a prompt cannot be used.
            GenerationError: if there is no prompt.
        """
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
        """Bring a whole recording of any length to the pipeline's rate.

        Raises:
            AudioError: if it cannot be used.
        """
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

    @torch.inference_mode()
    def encode_stream(
        self, stream: str, audios: Sequence[Audio], gains: Float[Tensor, "B"]
    ) -> Tokens:
        """Return the tokens of one stream, all levels, cut to the frames that the audio fills."""
        tokenizer = self.codec if stream == ACOUSTIC else self.semantic_tokenizer
        assert tokenizer is not None
        spec = tokenizer.spec
        waves = [audio.wave * gain for audio, gain in zip(audios, gains, strict=True)]
        if spec.sample_rate != self.sample_rate:
            waves = [resample(wave, self.sample_rate, spec.sample_rate) for wave in waves]
        batch = WaveBatch.pad(waves)
        tokens = check_tokens(
            tokenizer,
            tokenizer.encode(batch.wave.to(self.device), batch.lengths.to(self.device)),
            spec,
            batch.lengths,
        )
        # Resampling may round a length up to one more frame than the prompt has.
        frames = [
            math.ceil(audio.wave.shape[0] * spec.frame_rate / self.sample_rate) for audio in audios
        ]
        return tokens.cut(torch.tensor(frames, device=tokens.lengths.device))

    @torch.inference_mode()
    def decode(self, codes: Tokens) -> Float[Tensor, "B T"]:
        """Return the audio of codes, on the CPU."""
        piece = int(DECODE_SECONDS * self.codec.spec.frame_rate)
        waves = []
        for row in codes.rows():  # one by one: the sums of a row are the same in every batch
            if not self.codec.can_stream or row.shape[1] <= piece:
                wave = self.codec.decode(row[None], Tokens.full(row[None]).lengths)
            else:
                decoder = self.codec.streaming_decoder()  # each holds the state of one stream
                parts = [decoder.push(part) for part in row[None].split(piece, dim=2)]
                wave = torch.cat([*parts, decoder.finish()], dim=1)
            samples = row.shape[1] * self.codec.spec.frame_size
            waves.append(check_wave(self.codec, wave, 1, samples)[0].float().cpu())
        return WaveBatch.pad(waves).wave

    @torch.inference_mode()
    def _next(self, decoder: StreamingDecoder, codes: Tokens | None) -> Float[Tensor, "1 T"]:
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
        skip = int(prompt.lengths[0]) * size  # samples of the prompt that are still to come
        if skip:
            skip -= self._next(decoder, prompt).shape[1]
        waiting = prompt.ids[:, :, :0]  # frames whose samples the decoder still withholds
        for piece in itertools.chain(pieces, [None]):
            wave = self._next(decoder, piece)
            wave, skip = wave[:, skip:], max(0, skip - wave.shape[1])
            if piece is not None:
                waiting = torch.cat([waiting, piece.ids], dim=2)
            if wave.shape[1]:
                frames = wave.shape[1] // size
                yield wave, Tokens.full(waiting[:, :, :frames])
                waiting = waiting[:, :, frames:]


def gains_to(level: float | None, waves: Sequence[Float[Tensor, "T"]]) -> Float[Tensor, "B"]:
    """Return the factors that bring each wave to an RMS of ``level``; 1 if there is no level.

    They grow steadily as waves get quieter, so that a result is never much louder than its prompt.
    """
    if level is None:
        return torch.ones(len(waves))
    rms = torch.stack([wave.square().mean().sqrt() for wave in waves])
    return (level / rms.clamp_min(level / MAX_GAIN)).clamp_min(1 / MAX_GAIN)
