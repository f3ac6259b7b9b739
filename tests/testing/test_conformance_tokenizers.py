"""Test that each check of tokenizers passes good ones and catches broken ones."""

from __future__ import annotations

import importlib
import re
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from segue.core.interfaces import (
    AcousticCodec,
    SemanticTokenizer,
    StageBatch,
    StreamingDecoder,
    StreamingEncoder,
    Tokens,
    WaveBatch,
    WindowedDecoder,
)
from segue.core.options import TokenizerOptions
from segue.core.records import Kind
from segue.core.spec import TokenSpec
from segue.testing import (
    Check,
    Subject,
    checks_for,
    parametrize_with_checks,
    run_check,
)


class TinyOptions(TokenizerOptions):
    hop: int = 40
    num_levels: int = 2
    codebook_size: int = 8

    def spec(self) -> TokenSpec:
        rate = Fraction(8000, self.hop)
        return TokenSpec(8000, rate, self.num_levels, self.codebook_size)


# Where the options' module must be importable without torch, this one, a test, is no example.
TinyOptions.__module__ = "__main__"


class TinyCodec(AcousticCodec):
    """Residual vector quantisation of the samples of each frame; a frame rings on into the next."""

    decode_context: tuple[int, int] | None = (1, 0)

    def __init__(self, config: TinyOptions) -> None:
        super().__init__(config)
        self.codes = nn.Parameter(
            0.3 * torch.randn(config.num_levels, config.codebook_size, config.hop)
        )

    def frames(self, wave: Tensor, lengths: Tensor) -> Tensor:
        """[B, T] → [B, N, hop], silent beyond the lengths."""
        wave = wave.masked_fill(torch.arange(wave.shape[1]) >= lengths[:, None], 0.0)
        hop = self.spec.frame_size
        padded = nn.functional.pad(wave, (0, -wave.shape[1] % hop))
        return padded.view(len(wave), -1, hop)

    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        residual = self.frames(wave, lengths)
        levels = []
        for codes in self.codes:
            nearest = torch.cdist(residual, codes.expand(len(wave), -1, -1)).argmin(dim=-1)
            levels.append(nearest)
            residual = residual - codes[nearest]
        frames = -(-lengths // self.spec.frame_size)
        return Tokens(torch.stack(levels, dim=1), frames)

    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        levels = [table[ids] for table, ids in zip(self.codes, codes.unbind(1), strict=False)]
        frames = torch.stack(levels).sum(dim=0)
        frames = frames + 0.5 * nn.functional.pad(frames, (0, 0, 1, 0))[:, :-1]
        return frames.masked_fill(~Tokens(codes, lengths).mask[..., None], 0.0).flatten(1)

    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        assert isinstance(batch, WaveBatch)
        tokens = self.encode(batch.wave, batch.lengths)
        decoded = self.decode(tokens.ids, tokens.lengths)
        return {"loss": (decoded[:, : batch.wave.shape[1]] - batch.wave).square().mean()}


class TinySemantic(SemanticTokenizer):
    """Loudness of each frame in steps; nothing is learnt."""

    needs_training = False

    def __init__(self, config: TinyOptions) -> None:
        super().__init__(config)
        steps = torch.linspace(0, 1, config.codebook_size + 1)[1:-1]
        self.register_buffer("steps", steps, persistent=False)

    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        wave = wave.masked_fill(torch.arange(wave.shape[1]) >= lengths[:, None], 0.0)
        hop = self.spec.frame_size
        loud = nn.functional.pad(wave, (0, -wave.shape[1] % hop)).view(len(wave), -1, hop)
        ids = torch.bucketize(loud.abs().amax(dim=-1), self.get_buffer("steps"))
        return Tokens(ids[:, None], -(-lengths // hop))


class BrokenOptions:
    class Unknown(TinyOptions):
        model_config = ConfigDict(extra="ignore")

    class Loose(TinyOptions):
        model_config = ConfigDict(frozen=False)

    class Unsaved(TinyOptions):
        gain: float = Field(default=1.0, exclude=True)

    class TwoRates(TinyOptions):
        def spec(self) -> TokenSpec:
            return super().spec().with_fingerprint("early")


class EmitsHalfTheFrames(TinyCodec):
    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        tokens = super().encode(wave, lengths)
        return Tokens(tokens.ids[:, :, ::2], -(-tokens.lengths // 2))


class EmitsIllegalIds(TinyCodec):
    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        tokens = super().encode(wave, lengths)
        return Tokens(tokens.ids + 1, tokens.lengths)


class EmitsShortIntegers(TinyCodec):
    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        tokens = super().encode(wave, lengths)
        return Tokens(tokens.ids.to(torch.int32), tokens.lengths)


class WritesToTheWave(TinyCodec):
    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        return super().encode(wave.mul_(2), lengths)


class NormalisesTheBatch(TinyCodec):
    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        return super().encode(wave - wave.mean(dim=1, keepdim=True), lengths)


class HearsBeyondTheEnd(TinyCodec):
    def frames(self, wave: Tensor, lengths: Tensor) -> Tensor:
        return super().frames(wave, torch.full_like(lengths, wave.shape[1]))


class FailsOnSilence(TinyCodec):
    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        tokens = super().encode(wave, lengths)
        quiet = wave.abs().amax(dim=1)[:, None, None] == 0
        return Tokens(tokens.ids.masked_fill(quiet, -1), tokens.lengths)


class NeedsTwoFrames(TinyCodec):
    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        wave[:, self.spec.frame_size]
        return super().encode(wave, lengths)


class Dithers(TinyCodec):
    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        return super().encode(wave + torch.rand_like(wave), lengths)


class EmitsElsewhere(TinyCodec):
    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        tokens = super().encode(wave, lengths)
        return Tokens(tokens.ids, tokens.lengths.to("meta"))


class KnowsSinglePrecisionOnly(TinyCodec):
    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        return super().encode(wave @ torch.eye(wave.shape[1]), lengths)


class LosesNothing(TinyCodec):
    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        return {"loss": 0 * self.codes.sum()}


class ForgetsAPart(TinyCodec):
    def __init__(self, config: TinyOptions) -> None:
        super().__init__(config)
        self.offset = torch.randn(config.hop)

    def frames(self, wave: Tensor, lengths: Tensor) -> Tensor:
        return super().frames(wave, lengths) + self.offset


class SealsAtRandom(TinyCodec):
    def seal(self, name: str) -> str:
        self._fingerprint = str(torch.rand(()).item())
        return self._fingerprint


class SealsTheNameOnly(TinyCodec):
    def seal(self, name: str) -> str:
        self._fingerprint = name
        return name


class SealsTheWeightsOnly(TinyCodec):
    def seal(self, name: str) -> str:
        self._fingerprint = str(self.codes.sum().item())
        return self._fingerprint


class KeepsItsTable(TinySemantic):
    def __init__(self, config: TinyOptions) -> None:
        super().__init__(config)
        self.register_buffer("table", torch.ones(3))


class DecodesAllLevelsOnly(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        return super().decode(codes[:, [0, 1]], lengths)


class DecodesShort(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        return super().decode(codes, lengths)[:, :-1]


class FadesTheBatch(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        wave = super().decode(codes, lengths)
        return wave * torch.linspace(1, 0, wave.shape[1])


class RingsOn(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        return super().decode(codes, torch.full_like(lengths, codes.shape[2]))


class OneBadCode(TinyCodec):
    def __init__(self, config: TinyOptions) -> None:
        super().__init__(config)
        with torch.no_grad():
            self.codes[1, 5] = torch.inf


class ForgetsItsContext(TinyCodec):
    decode_context = (0, 0)


class StreamsAnotherWay(TinyCodec):
    def streaming_decoder(self) -> StreamingDecoder:
        decoder = super().streaming_decoder()
        assert isinstance(decoder, WindowedDecoder)
        decoder.finish = lambda: torch.zeros(2, 0)  # type: ignore[method-assign]
        decoder._right = 1
        return decoder


class FramesOnceFull(StreamingEncoder):
    """Encodes each frame once it is full."""

    def __init__(self, codec: AcousticCodec) -> None:
        self.codec, self.waiting = codec, torch.zeros(0, 0)

    def push(self, wave: Tensor) -> Tensor:
        known = torch.cat([self.waiting, wave], dim=1) if self.waiting.numel() else wave
        full = known.shape[1] // self.codec.spec.frame_size * self.codec.spec.frame_size
        self.waiting = known[:, full:]
        return self.codec.encode(known[:, :full], torch.full((len(known),), full)).ids

    def finish(self) -> Tensor:
        rest, self.waiting = self.waiting, torch.zeros(0, 0)
        return self.codec.encode(rest, torch.full((len(rest),), rest.shape[1])).ids


class EncodesInChunks(TinyCodec):
    """A codec that streams both ways, whose decoder keeps a state of its own."""

    decode_context = None
    can_stream = True  # type: ignore[assignment]

    def streaming_decoder(self) -> StreamingDecoder:
        return WindowedDecoder(self, 1, 0)

    def streaming_encoder(self) -> StreamingEncoder:
        return FramesOnceFull(self)


class LeavesAStateBehind(EncodesInChunks):
    def streaming_encoder(self) -> StreamingEncoder:
        class Stale(FramesOnceFull):
            def finish(self) -> Tensor:
                return self.codec.encode(
                    self.waiting, torch.full((len(self.waiting),), self.waiting.shape[1])
                ).ids

        return Stale(self)


class DropsThePartialFrame(EncodesInChunks):
    def streaming_encoder(self) -> StreamingEncoder:
        class Drops(FramesOnceFull):
            def finish(self) -> Tensor:
                self.waiting = self.waiting[:, :0]
                return super().finish()

        return Drops(self)


class DecodesAtRandom(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        wave = super().decode(codes, lengths)
        return wave * (1 + 0.1 * torch.rand(()))


class DecodesInSinglePrecision(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        return super().decode(codes, lengths).float()


class TinyFitted(SemanticTokenizer):
    """Loudness of each frame in steps of equal use, which are fitted."""

    needs_training, needs_fitting = False, True

    def __init__(self, config: TinyOptions) -> None:
        super().__init__(config)
        self.register_buffer("steps", torch.zeros(config.codebook_size - 1))

    def loudness(self, wave: Tensor, lengths: Tensor) -> Tensor:
        wave = wave.masked_fill(torch.arange(wave.shape[1]) >= lengths[:, None], 0.0)
        hop = self.spec.frame_size
        padded = nn.functional.pad(wave, (0, -wave.shape[1] % hop))
        return padded.view(len(wave), -1, hop).abs().amax(dim=-1)

    def fit(self, batches: Iterable[WaveBatch]) -> Mapping[str, float]:
        loud = torch.cat([self.loudness(b.wave, b.lengths).flatten() for b in batches])
        size = self.config.spec().codebook_size
        self.steps = loud.quantile(torch.linspace(0, 1, size + 1)[1:-1])
        return {}

    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        ids = torch.bucketize(self.loudness(wave, lengths), self.get_buffer("steps").to(wave))
        return Tokens(ids[:, None], -(-lengths // self.spec.frame_size))


class ChangesIds(TinyCodec):
    """Base of codecs whose tokens are right but for one thing."""

    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        tokens = super().encode(wave, lengths)
        return Tokens(self.change(tokens.ids, wave), tokens.lengths)

    def change(self, ids: Tensor, wave: Tensor) -> Tensor:
        raise NotImplementedError


class IsIllegalWhereClipped(ChangesIds):
    def change(self, ids: Tensor, wave: Tensor) -> Tensor:
        return ids.masked_fill((wave.abs() >= 1).sum(dim=1)[:, None, None] > 3, 8)


class IsIllegalForDc(ChangesIds):
    def change(self, ids: Tensor, wave: Tensor) -> Tensor:
        flat = (wave.shape[1] > 1) & (wave.std(dim=1) == 0) & (wave[:, 0] != 0)
        return ids.masked_fill(flat[:, None, None], -1)


class FailsBeyondSixSeconds(ChangesIds):
    def change(self, ids: Tensor, wave: Tensor) -> Tensor:
        return ids + torch.zeros(1, 6 * 200)[:, : ids.shape[2], None].squeeze(-1).long()


class EncodesAFrameLate(ChangesIds):
    def change(self, ids: Tensor, wave: Tensor) -> Tensor:
        return torch.cat([ids[:, :, :1], ids[:, :, :-1]], dim=2)


class IsConstant(ChangesIds):
    def change(self, ids: Tensor, wave: Tensor) -> Tensor:
        return torch.zeros_like(ids)


class NeverEmitsACode(TinyFitted):
    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        tokens = super().encode(wave, lengths)
        return Tokens(tokens.ids - (tokens.ids == 5).long(), tokens.lengths)


class DependsOnTheMode(ChangesIds):
    def change(self, ids: Tensor, wave: Tensor) -> Tensor:
        return ids.flip(2) if self.training else ids


class ReadsTheClock(ChangesIds):
    def change(self, ids: Tensor, wave: Tensor) -> Tensor:
        return (ids + int(time.time())) % 8


class ReadsTheDate(ChangesIds):
    def change(self, ids: Tensor, wave: Tensor) -> Tensor:
        return (ids + datetime.now().day) % 8


class CountsCalls(ChangesIds):
    calls = 0

    def change(self, ids: Tensor, wave: Tensor) -> Tensor:
        self.calls += 1
        return (ids + self.calls // 4) % 8


class DecodesByTheMode(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        return super().decode(codes, lengths) * (0.5 if self.training else 1.0)


class NeedsTwoSamples(ChangesIds):
    def change(self, ids: Tensor, wave: Tensor) -> Tensor:
        return ids + int(wave[0, 1] * 0)


class ReseedsNumPy(ChangesIds):
    def change(self, ids: Tensor, wave: Tensor) -> Tensor:
        numpy.random.seed(0)  # the fault
        return ids


class TakesMoreThreads(ChangesIds):
    def change(self, ids: Tensor, wave: Tensor) -> Tensor:
        torch.set_num_threads(2)
        return ids


class ReseedsTorch(ChangesIds):
    def change(self, ids: Tensor, wave: Tensor) -> Tensor:
        torch.manual_seed(0)
        return ids


class SwitchesGradOff(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        return super().decode(codes, lengths)


class DecodesInDoublePrecision(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        return super().decode(codes, lengths).double()


class DecodesByTheClock(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        return super().decode(codes, lengths) * (1 + time.time() % 86_400)


class IsSilentOnOneLevel(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        return super().decode(codes, lengths) * float(codes.shape[1] > 1)


class DecodesSilence(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        return 0 * super().decode(codes, lengths)


class IgnoresUpperLevels(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        return super().decode(codes[:, :1], lengths)


class DecodesTooLoud(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        return 100 * super().decode(codes, lengths)


class DecodesAFrameLate(TinyCodec):
    decode_context = (2, 0)

    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        return super().decode(codes, lengths).roll(self.spec.frame_size, dims=1)


class OneBadPair(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        bad = (codes[:, 0] == 6) & (codes[:, -1] == 2) if codes.shape[1] > 1 else codes[:, 0] < 0
        wave = super().decode(codes, lengths)
        return wave.masked_fill(bad.repeat_interleave(self.spec.frame_size, dim=1), torch.nan)


class OneBadSequence(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        bad = (codes[:, 0, :-1] == 6) & (codes[:, 0, 1:] == 2)
        wave = super().decode(codes, lengths)
        return wave.masked_fill(bad.any(dim=1, keepdim=True), torch.nan)


class SharesItsState(TinyCodec):
    def streaming_decoder(self) -> StreamingDecoder:
        if "shared" not in self.__dict__:
            self.__dict__["shared"] = super().streaming_decoder()
        shared: StreamingDecoder = self.__dict__["shared"]
        return shared


class SharesItsEncoder(EncodesInChunks):
    def streaming_encoder(self) -> StreamingEncoder:
        shared: StreamingEncoder = self.__dict__.setdefault("shared", FramesOnceFull(self))
        return shared


class HoldsEverything(EncodesInChunks):
    def streaming_decoder(self) -> StreamingDecoder:
        return WindowedDecoder(self, 1, 1000)


class HoldsAllAudio(EncodesInChunks):
    def streaming_encoder(self) -> StreamingEncoder:
        class Holds(FramesOnceFull):
            def push(self, wave: Tensor) -> Tensor:
                known = torch.cat([self.waiting, wave], dim=1) if self.waiting.numel() else wave
                self.waiting = known
                return torch.zeros(len(wave), 2, 0, dtype=torch.long)

        return Holds(self)


class HearsTheFirstSecondOnly(ChangesIds):
    def change(self, ids: Tensor, wave: Tensor) -> Tensor:
        return ids * (torch.arange(ids.shape[2]) < 200)


class FallsSilent(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        wave = super().decode(codes, lengths)
        return wave * (torch.arange(wave.shape[1]) < 8000)


class NeedsGradients(TinyCodec):
    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        with torch.enable_grad():
            torch.autograd.grad((wave * self.codes.sum()).sum(), self.codes)
        return super().encode(wave, lengths)


class LearnsWhileItEncodes(ChangesIds):
    def __init__(self, config: TinyOptions) -> None:
        super().__init__(config)
        self.register_buffer("heard", torch.zeros(()))

    def change(self, ids: Tensor, wave: Tensor) -> Tensor:
        self.get_buffer("heard").add_(1)
        return ids


class WritesToTheBatch(TinyCodec):
    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        assert isinstance(batch, WaveBatch)
        batch.wave.mul_(0.5)
        return super().training_step(batch)


class GivesALogOfVectors(TinyCodec):
    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        return {**super().training_step(batch), "use": torch.ones(3)}


class WeighsLessThanNothing(TinyCodec):
    def weight_of(self, batch: WaveBatch | StageBatch) -> float:
        return -1.0


class TakesEightRows(TinyCodec):
    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        assert len(wave) <= 8
        return super().encode(wave, lengths)


class DecodesEightRows(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        assert len(codes) <= 8
        return super().decode(codes, lengths)


class EncodesMemory(TinyCodec):
    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        order = torch.empty(wave.shape).stride()
        return super().encode(wave.as_strided(wave.shape, order), lengths)


class DecodesMemory(TinyCodec):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        order = torch.empty(codes.shape).stride()
        return super().decode(codes.as_strided(codes.shape, order), lengths)


class LearnsFromOneSeed(TinyCodec):
    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        torch.manual_seed(0)
        return super().training_step(batch)


class TurnsItsVectors(TinyCodec):
    def vectors(self, ids: Tensor) -> Tensor:
        return self.codes[0][ids[:, 0]].transpose(1, 2)


class HasOneVector(TinyCodec):
    def vectors(self, ids: Tensor) -> Tensor:
        return torch.zeros(len(ids), ids.shape[2], 3)


class ComparesTheBatch(TinyCodec):
    def likeness(self, known: Tokens, new: Tokens) -> Tensor:
        return known.lengths.float() - new.lengths.float().mean()


Broken = tuple[str, type[AcousticCodec] | type[SemanticTokenizer], type[TinyOptions], str]
BROKEN: list[Broken] = [
    ("unknown_options_are_refused", TinyCodec, BrokenOptions.Unknown, "unknown key"),
    ("options_are_frozen", TinyCodec, BrokenOptions.Loose, "can be assigned"),
    ("options_survive_json", TinyCodec, BrokenOptions.Unsaved, "became"),
    ("spec_is_that_of_the_options", TinyCodec, BrokenOptions.TwoRates, "carries a fingerprint"),
    ("emits_what_its_spec_declares", EmitsHalfTheFrames, TinyOptions, "frames are emitted"),
    ("emits_what_its_spec_declares", EmitsIllegalIds, TinyOptions, "allowed are 0 to 7"),
    ("emits_what_its_spec_declares", EmitsShortIntegers, TinyOptions, "int32, not int64"),
    ("emits_what_its_spec_declares", WritesToTheWave, TinyOptions, "wave is written to"),
    ("emits_what_its_spec_declares", TinySemantic, TinyOptions, "AcousticCodec"),
    ("batch_equals_rows", NormalisesTheBatch, TinyOptions, "in a batch"),
    ("ignores_what_lies_beyond", HearsBeyondTheEnd, TinyOptions, "noise beyond the end"),
    ("ignores_what_lies_beyond", EncodesMemory, TinyOptions, "other strides"),
    ("decoded_batch_equals_rows", DecodesMemory, TinyOptions, "decoded in a batch"),
    ("encodes_odd_audio", TakesEightRows, TinyOptions, "AssertionError"),
    ("frames_are_heard_in_their_place", DecodesEightRows, TinyOptions, "AssertionError"),
    ("training_step_can_be_learnt_from", LearnsFromOneSeed, TinyOptions, "seeds torch"),
    ("encodes_silence", FailsOnSilence, TinyOptions, "tokens of silence"),
    ("encodes_one_frame", NeedsTwoFrames, TinyOptions, "IndexError"),
    ("is_deterministic", Dithers, TinyOptions, "the second time"),
    ("respects_the_device", EmitsElsewhere, TinyOptions, "lengths are on meta"),
    ("works_in_double_precision", KnowsSinglePrecisionOnly, TinyOptions, "RuntimeError"),
    ("training_step_can_be_learnt_from", LosesNothing, TinyOptions, "reaches no parameter"),
    ("state_round_trip", ForgetsAPart, TinyOptions, "after loading"),
    ("seal_fills_the_fingerprint", SealsAtRandom, TinyOptions, "second seal"),
    ("fingerprint_follows_weights", SealsTheNameOnly, TinyOptions, "all weights change"),
    ("fingerprint_follows_options", SealsTheNameOnly, TinyOptions, "option hop changes"),
    ("fingerprint_follows_options", SealsTheWeightsOnly, TinyOptions, "under another name"),
    ("fingerprint_without_weights_is_known_early", KeepsItsTable, TinyOptions, "persistent=False"),
    ("decodes_any_number_of_levels", DecodesAllLevelsOnly, TinyOptions, "IndexError"),
    ("decodes_any_number_of_levels", DecodesShort, TinyOptions, "decode to"),
    ("decoded_batch_equals_rows", FadesTheBatch, TinyOptions, "decoded in a batch"),
    ("decoded_audio_ends_in_zeros", RingsOn, TinyOptions, "goes on beyond"),
    ("every_code_decodes", OneBadCode, TinyOptions, "infinite"),
    ("streamed_equals_offline", ForgetsItsContext, TinyOptions, "off by"),
    ("streamed_equals_offline", StreamsAnotherWay, TinyOptions, "shape"),
    ("streamed_encoding_equals_offline", LeavesAStateBehind, TinyOptions, "RuntimeError"),
    ("streamed_encoding_equals_offline", DropsThePartialFrame, TinyOptions, "frames instead"),
    ("round_trip_is_finite", DecodesAtRandom, TinyOptions, "decoded a second time"),
    ("decoding_respects_the_device", DecodesInSinglePrecision, TinyOptions, "float32"),
    ("encodes_odd_audio", IsIllegalWhereClipped, TinyOptions, "of constant 1"),
    ("encodes_odd_audio", IsIllegalForDc, TinyOptions, r"constant 0\.5"),
    ("handles_long_audio", FailsBeyondSixSeconds, TinyOptions, "RuntimeError"),
    ("tokens_follow_the_audio", EncodesAFrameLate, TinyOptions, "only from frame 25 on"),
    ("tokens_follow_the_audio", IsConstant, TinyOptions, "whatever the audio holds"),
    ("every_code_is_emitted", NeverEmitsACode, TinyOptions, r"never has the codes \[5\]"),
    ("train_mode_changes_no_token", DependsOnTheMode, TinyOptions, "in train mode"),
    ("is_deterministic", ReadsTheClock, TinyOptions, "the second time"),
    ("is_deterministic", ReadsTheDate, TinyOptions, "the second time"),
    ("is_deterministic", CountsCalls, TinyOptions, "the third time"),
    ("train_mode_changes_no_token", DecodesByTheMode, TinyOptions, "decoded in train mode"),
    ("encodes_one_frame", NeedsTwoSamples, TinyOptions, "IndexError"),
    ("leaves_the_process_alone", ReseedsTorch, TinyOptions, "torch's random state"),
    ("leaves_the_process_alone", ReseedsNumPy, TinyOptions, "NumPy's random state"),
    ("leaves_the_process_alone", TakesMoreThreads, TinyOptions, "number of threads"),
    ("leaves_the_process_alone", SwitchesGradOff, TinyOptions, "grad mode"),
    ("decodes_any_number_of_levels", DecodesInDoublePrecision, TinyOptions, "float64"),
    ("every_level_is_heard", DecodesSilence, TinyOptions, "to silence"),
    ("every_level_is_heard", IsSilentOnOneLevel, TinyOptions, "of 1 levels decode to silence"),
    ("round_trip_is_finite", DecodesByTheClock, TinyOptions, "decoded a second time"),
    ("every_level_is_heard", IgnoresUpperLevels, TinyOptions, "level 1 change nothing"),
    ("loudness_is_kept_in_bounds", DecodesTooLoud, TinyOptions, "times as loud"),
    ("frames_are_heard_in_their_place", DecodesAFrameLate, TinyOptions, "own samples"),
    ("every_code_decodes", OneBadPair, TinyOptions, "pair of codes"),
    ("every_code_decodes", OneBadSequence, TinyOptions, "pair of codes"),
    ("streams_share_nothing", SharesItsState, TinyOptions, "stream|RuntimeError"),
    ("streams_share_nothing", SharesItsEncoder, TinyOptions, "encoding stream|RuntimeError"),
    ("streams_do_not_wait_for_the_end", HoldsEverything, TinyOptions, "before the end"),
    ("streams_do_not_wait_for_the_end", HoldsAllAudio, TinyOptions, "were encoded before"),
    ("handles_long_audio", HearsTheFirstSecondOnly, TinyOptions, "stay the same in the second"),
    ("handles_long_audio", FallsSilent, TinyOptions, "to silence in the second half"),
    ("handles_long_audio", NeedsGradients, TinyOptions, "RuntimeError"),
    ("leaves_the_process_alone", LearnsWhileItEncodes, TinyOptions, "heard of its state"),
    ("training_step_can_be_learnt_from", WritesToTheBatch, TinyOptions, "batch is written to"),
    ("training_step_can_be_learnt_from", GivesALogOfVectors, TinyOptions, r"use as .*\[3\]"),
    ("training_step_can_be_learnt_from", WeighsLessThanNothing, TinyOptions, "returned -1"),
    ("vectors_belong_to_codes", TurnsItsVectors, TinyOptions, r"not \(2, 12, D\)"),
    ("likeness_ranks_rows_on_their_own", ComparesTheBatch, TinyOptions, "of a row alone"),
    ("vectors_belong_to_codes", HasOneVector, TinyOptions, "all vectors are the same"),
]
ONE_LEVEL = TinyOptions(num_levels=1)
CHECKS = {
    check.name: check for kind in ("semantic_tokenizer", "codec") for check in checks_for(kind)
}


def subject_of(component: type[Any], options: TinyOptions) -> Subject:
    kind: Kind = "codec" if issubclass(component, AcousticCodec) else "semantic_tokenizer"
    return Subject(kind, component, options)


@parametrize_with_checks(
    [
        subject_of(TinyCodec, TinyOptions()),
        subject_of(EncodesInChunks, TinyOptions()),
        subject_of(TinySemantic, ONE_LEVEL),
        subject_of(TinyFitted, ONE_LEVEL),
    ]
)
def test_a_good_one_passes(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.parametrize(("name", "broken", "options", "problem"), BROKEN)
def test_a_broken_one_is_caught(
    name: str, broken: type[Any], options: type[TinyOptions], problem: str
) -> None:
    values: dict[str, Any] = {"gain": 2.0} if options is BrokenOptions.Unsaved else {}
    values |= {"num_levels": 1} if issubclass(broken, TinyFitted) else {}
    subject = subject_of(broken, options(**values))
    if problem == "AcousticCodec":
        subject.kind = "codec"
    result = run_check(CHECKS[name], subject)
    assert result.outcome == "failed"
    assert re.search(problem, result.message), result.message


def test_every_check_can_fail() -> None:
    assert {name for name, *_ in BROKEN} | {"options_import_no_torch"} == set(CHECKS)


@pytest.mark.parametrize("imports", ["torch", "fractions"])
def test_options_that_import_torch_are_caught(
    imports: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"options_with_{imports}"
    source = f"import {imports}\nfrom segue.core.options import Options\nclass Own(Options): ...\n"
    (tmp_path / f"{module}.py").write_text(source)
    (tmp_path / "torch.py").touch()  # found first by the process that imports; the real one is slow
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module(module).Own
    monkeypatch.delitem(sys.modules, module)

    def build(_: object) -> TinySemantic:
        component = TinySemantic(ONE_LEVEL)
        component.config = own()
        return component

    subject = Subject("semantic_tokenizer", build)
    result = run_check(CHECKS["options_import_no_torch"], subject)
    assert result.outcome == ("failed" if imports == "torch" else "passed"), result.message
    assert result.message == (f"importing {module}: imports torch" if imports == "torch" else "")


def test_a_codec_that_cannot_stream_is_not_asked_to() -> None:
    class Offline(TinyCodec):
        decode_context = None

    result = run_check(CHECKS["streamed_equals_offline"], subject_of(Offline, TinyOptions()))
    assert result.outcome == "skipped"
    result = run_check(
        CHECKS["streamed_encoding_equals_offline"], subject_of(TinyCodec, TinyOptions())
    )
    assert result.outcome == "skipped"


def test_a_share_of_mismatches_can_be_allowed() -> None:
    class Ties(TinyCodec):
        def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
            tokens = super().encode(wave, lengths)
            if len(wave) > 1:
                tokens.ids[0, 0, 0] = (tokens.ids[0, 0, 0] + 1) % 8
            return tokens

    check = CHECKS["batch_equals_rows"]
    assert run_check(check, Subject("codec", Ties, TinyOptions())).outcome == "failed"
    lenient = Subject("codec", Ties, TinyOptions(), mismatches=0.05)
    assert run_check(check, lenient).outcome == "passed"
