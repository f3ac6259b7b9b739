"""The audio side of a pipeline: prompts to tokens of every stream, and codes back to audio."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import SILENCE, Audio, as_audio, prepare, resample
from segue.core.config.schema import PromptConfig
from segue.core.errors import AudioError, GenerationError
from segue.core.interfaces import AcousticCodec, SemanticTokenizer, Tokens, WaveBatch
from segue.core.spec import ACOUSTIC, TokenSpec, common_samples

MAX_GAIN = 100.0  # 40 dB: what is quieter than that is noise
DECODE_SECONDS = 20.0  # longer audio is decoded in pieces of that length, where the codec can


class Transcoder:
    """Takes audio to tokens and back with a pipeline's tokenizers.

    Attributes:
        streams: the tokens of each stream of the pipeline, of the levels that its stages predict.
        limits: what of a prompt is used, and how loud.
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

    def prepared(
        self, prompts: Sequence[tuple[object, int] | Audio], *, whole_units: bool
    ) -> list[Audio]:
        """Prompts at the pipeline's rate; ``whole_units``: cut to whole frames of all streams."""
        if not prompts:
            raise GenerationError("prompts", "is empty", "give at least one prompt")
        limits, audios = self.limits, []
        for index, prompt in enumerate(prompts):
            place = "prompt" if len(prompts) == 1 else f"prompts[{index}]"
            audio = prompt if isinstance(prompt, Audio) else _pair(prompt, place)
            audio = prepare(
                audio,
                self.sample_rate,
                min_seconds=limits.min_seconds,
                max_seconds=limits.max_seconds,
                place=place,
            )
            if whole_units:
                # The end is where the continuation joins: what does not fill a frame goes in front.
                spare = audio.wave.shape[0] % self.unit_samples
                audio = Audio(audio.wave[spare:], audio.sample_rate, audio.notes)
                if not audio.wave.shape[0]:
                    least = self.unit_samples / self.sample_rate
                    raise AudioError(
                        place, "is shorter than one frame", f"give at least {least:g} s"
                    )
            audios.append(audio)
        return audios

    def gains(self, audios: Sequence[Audio]) -> Float[Tensor, "B"]:
        """What brings each prompt to the level of the training data."""
        return gains_to(self.limits.level, [audio.wave for audio in audios])

    def no_prompt(self, batch: int) -> dict[str, Tokens]:
        """Every stream without a frame."""
        return {
            name: Tokens.empty(batch, spec.num_levels, self.device)
            for name, spec in self.streams.items()
        }

    def encode(self, audios: Sequence[Audio], gains: Float[Tensor, "B"]) -> dict[str, Tokens]:
        """Tokens of every stream, of the levels that stages predict."""
        return {
            stream: self.encode_stream(stream, audios, gains).levels(0, spec.num_levels)
            for stream, spec in self.streams.items()
        }

    @torch.inference_mode()
    def encode_stream(
        self, stream: str, audios: Sequence[Audio], gains: Float[Tensor, "B"]
    ) -> Tokens:
        """Tokens of one stream, all levels, cut to the frames that the audio fills."""
        tokenizer = self.codec if stream == ACOUSTIC else self.semantic_tokenizer
        assert tokenizer is not None
        spec = tokenizer.spec
        waves = [audio.wave * gain for audio, gain in zip(audios, gains, strict=True)]
        if spec.sample_rate != self.sample_rate:
            waves = [resample(wave, self.sample_rate, spec.sample_rate) for wave in waves]
        batch = WaveBatch.pad(waves)
        tokens = tokenizer.encode(batch.wave.to(self.device), batch.lengths.to(self.device))
        frames = [
            min(row.shape[1], math.ceil(audio.wave.shape[0] * spec.frame_rate / self.sample_rate))
            for row, audio in zip(tokens.rows(), audios, strict=True)
        ]
        return Tokens.stack([r[:, :n] for r, n in zip(tokens.rows(), frames, strict=True)])

    @torch.inference_mode()
    def decode(self, codes: Tokens) -> Tensor:
        piece = int(DECODE_SECONDS * self.codec.spec.frame_rate)
        if not self.codec.can_stream or codes.ids.shape[2] <= piece:
            return self.codec.decode(codes.ids, codes.lengths).float().cpu()
        rows = []
        for row in codes.rows():  # one by one: a stream's pieces end where the row ends
            decoder = self.codec.streaming_decoder()
            parts = [decoder.push(part) for part in row[None].split(piece, dim=2)]
            rows.append(torch.cat([*parts, decoder.finish()], dim=1)[0].float().cpu())
        return WaveBatch.pad(rows).wave


def gains_to(level: float | None, waves: Sequence[Float[Tensor, "T"]]) -> Float[Tensor, "B"]:
    """What brings each wave to an RMS of ``level``; 1 for silence, or if there is no level."""
    if level is None:
        return torch.ones(len(waves))
    rms = torch.stack([wave.square().mean().sqrt() for wave in waves])
    gains = torch.where(rms < SILENCE, 1.0, level / rms.clamp_min(SILENCE))
    return gains.clamp(1 / MAX_GAIN, MAX_GAIN)


def _pair(prompt: object, place: str) -> Audio:
    """Audio from a pair of wave and sample rate."""
    if not isinstance(prompt, tuple) or len(prompt) != 2:
        raise AudioError(place, f"is a {type(prompt).__name__}", "give (wave, sample_rate)")
    return as_audio(*prompt, place=place)
