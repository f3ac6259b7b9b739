"""Test that each check of tokenizers passes good ones and catches broken ones."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from pydantic import ConfigDict, Field
from tests.broken import after, assert_caught, broken
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


Change = Callable[[Tensor, Tensor], Tensor]


def with_ids(change: Change, sound: type[Any] = TinyCodec) -> type[Any]:
    """Return a tokenizer that emits ``change(ids, wave)``."""

    def encode(right: Any, self: Any, wave: Tensor, lengths: Tensor) -> Tokens:
        tokens = right(wave, lengths)
        return Tokens(change(tokens.ids, wave), tokens.lengths)

    return broken(sound, encode=encode)


def with_wave(change: Callable[[Tensor], Tensor]) -> type[Any]:
    """Return a codec that encodes ``change(wave)``."""
    return broken(TinyCodec, encode=lambda right, self, wave, lengths: right(change(wave), lengths))


def with_audio(change: Change, **more: Any) -> type[Any]:
    """Return a codec that decodes to ``change(wave, codes)``."""

    def decode(right: Any, self: Any, codes: Tensor, lengths: Tensor) -> Tensor:
        return change(right(codes, lengths), codes)

    return broken(TinyCodec, decode=decode, **more)


def with_encoder(**changes: Any) -> type[Any]:
    """Return a codec whose streaming encoder is changed."""
    encoder = broken(FramesOnceFull, **changes)
    return broken(EncodesInChunks, streaming_encoder=lambda right, self: encoder(self))


def half_the_frames(right: Any, self: Any, wave: Tensor, lengths: Tensor) -> Tokens:
    tokens = right(wave, lengths)
    return Tokens(tokens.ids[:, :, ::2], -(-tokens.lengths // 2))


def lengths_elsewhere(right: Any, self: Any, wave: Tensor, lengths: Tensor) -> Tokens:
    tokens = right(wave, lengths)
    return Tokens(tokens.ids, tokens.lengths.to("meta"))


def counts_calls(self: Any, wave: Tensor, lengths: Tensor) -> None:
    self.calls += 1


def sealed(fingerprint: Callable[[Any, str], str]) -> type[Any]:
    """Return a codec with another fingerprint."""

    def seal(right: Any, self: Any, name: str) -> str:
        self._fingerprint = fingerprint(self, name)
        return self._fingerprint

    return broken(TinyCodec, seal=seal)


def with_part(sound: type[Any], build: Callable[[Any], None], **changes: Any) -> type[Any]:
    """Return a tokenizer that builds one part more."""

    def init(right: Any, self: Any, config: TinyOptions) -> None:
        right(config)
        with torch.no_grad():
            build(self)

    return broken(sound, __init__=init, **changes)


def another_way(right: Any, self: Any) -> StreamingDecoder:
    decoder = right()
    decoder.finish = lambda: torch.zeros(2, 0)
    decoder._right = 1
    return decoder


def one_bad_pair(wave: Tensor, codes: Tensor) -> Tensor:
    bad = (codes[:, 0] == 6) & (codes[:, -1] == 2) if codes.shape[1] > 1 else codes[:, 0] < 0
    return wave.masked_fill(bad.repeat_interleave(40, dim=1), torch.nan)


def one_bad_sequence(wave: Tensor, codes: Tensor) -> Tensor:
    bad = (codes[:, 0, :-1] == 6) & (codes[:, 0, 1:] == 2)
    return wave.masked_fill(bad.any(dim=1, keepdim=True), torch.nan)


def holds_all_audio(right: Any, self: Any, wave: Tensor) -> Tensor:
    self.waiting = torch.cat([self.waiting, wave], dim=1) if self.waiting.numel() else wave
    return torch.zeros(len(wave), 2, 0, dtype=torch.long)


def keeps_waiting(right: Any, self: Any) -> Tensor:
    waiting = self.waiting
    found: Tensor = right()
    self.waiting = waiting
    return found


def drops_the_rest(self: Any) -> None:
    self.waiting = self.waiting[:, :0]


def needs_gradients(self: Any, wave: Tensor, lengths: Tensor) -> None:
    with torch.enable_grad():
        torch.autograd.grad((wave * self.codes.sum()).sum(), self.codes)


def packed(tensor: Tensor) -> Tensor:
    """Read memory in order, whatever the strides."""
    return tensor.as_strided(tensor.shape, torch.empty(tensor.shape).stride())


def at_most_eight(self: Any, rows: Tensor, lengths: Tensor) -> None:
    assert len(rows) <= 8


#: Check, what it says, and what it says it of.
BROKEN: list[tuple[str, str, type[Any]]] = [
    ("emits_what_its_spec_declares", "frames are emitted",
     broken(TinyCodec, encode=half_the_frames)),
    ("emits_what_its_spec_declares", "allowed are 0 to 7", with_ids(lambda ids, wave: ids + 1)),
    ("emits_what_its_spec_declares", "int32, not int64", with_ids(lambda ids, wave: ids.int())),
    ("emits_what_its_spec_declares", "wave is written to", with_wave(lambda wave: wave.mul_(2))),
    ("emits_what_its_spec_declares", "AcousticCodec", TinySemantic),
    ("emits_what_its_spec_declares", "encode returned tuple, not Tokens",
     broken(TinyCodec, encode=lambda right, self, *audio: (right(*audio).ids, audio[1]))),
    ("decodes_any_number_of_levels", "decode returned ndarray, not Tensor",
     broken(TinyCodec, decode=lambda right, self, *codes: right(*codes).numpy())),
    ("batch_equals_rows", "in a batch", with_wave(lambda wave: wave - wave.mean(1, True))),
    ("ignores_what_lies_beyond", "noise beyond the end",
     broken(TinyCodec, frames=lambda right, self, wave, lengths: right(
         wave, torch.full_like(lengths, wave.shape[1])))),
    ("ignores_what_lies_beyond", "other strides", with_wave(packed)),
    ("decoded_batch_equals_rows", "decoded in a batch",
     broken(TinyCodec, decode=lambda right, self, codes, lengths: right(packed(codes), lengths))),
    ("encodes_odd_audio", "AssertionError", broken(TinyCodec, encode=after(at_most_eight))),
    ("frames_are_heard_in_their_place", "AssertionError",
     broken(TinyCodec, decode=after(at_most_eight))),
    ("training_step_can_be_learnt_from", "seeds torch",
     broken(TinyCodec, training_step=after(lambda self, batch: torch.manual_seed(0)))),
    ("encodes_silence", "tokens of silence",
     with_ids(lambda ids, wave: ids.masked_fill((wave.abs().amax(1) == 0)[:, None, None], -1))),
    ("encodes_one_frame", "IndexError",
     broken(TinyCodec, encode=after(lambda self, wave, lengths: wave[:, 40]))),
    ("is_deterministic", "the second time", with_wave(lambda wave: wave + torch.rand_like(wave))),
    ("respects_the_device", "lengths are on meta", broken(TinyCodec, encode=lengths_elsewhere)),
    ("works_in_double_precision", "RuntimeError",
     with_wave(lambda wave: wave @ torch.eye(wave.shape[1]))),
    ("can_be_trained_in_mixed_precision", "NaN",
     broken(TinyCodec, training_step=lambda right, self, batch: {
         "loss": right(batch)["loss"] * (torch.nan if torch.is_autocast_enabled("cpu") else 1)})),
    ("training_step_can_be_learnt_from", "reaches no parameter",
     broken(TinyCodec, training_step=lambda right, self, batch: {"loss": 0 * self.codes.sum()})),
    ("state_round_trip", "after loading",
     with_part(TinyCodec, lambda codec: setattr(codec, "offset", torch.randn(40)),
               frames=lambda right, self, *args: right(*args) + self.offset)),
    ("seal_fills_the_fingerprint", "second seal",
     sealed(lambda codec, name: str(torch.rand(()).item()))),
    ("fingerprint_follows_weights", "all weights change", sealed(lambda codec, name: name)),
    ("fingerprint_follows_options", "option hop changes", sealed(lambda codec, name: name)),
    ("fingerprint_follows_options", "under another name",
     sealed(lambda codec, name: str(codec.codes.sum().item()))),
    ("fingerprint_without_weights_is_known_early", "persistent=False",
     with_part(TinySemantic, lambda one: one.register_buffer("table", torch.ones(3)))),
    ("decodes_any_number_of_levels", "IndexError",
     broken(TinyCodec, decode=lambda right, self, codes, lengths: right(
         codes[:, [0, 1]], lengths))),
    ("decodes_any_number_of_levels", "decode to", with_audio(lambda wave, codes: wave[:, :-1])),
    ("decoded_batch_equals_rows", "decoded in a batch",
     with_audio(lambda wave, codes: wave * torch.linspace(1, 0, wave.shape[1]))),
    ("decoded_audio_ends_in_zeros", "goes on beyond",
     broken(TinyCodec, decode=lambda right, self, codes, lengths: right(
         codes, torch.full_like(lengths, codes.shape[2])))),
    ("every_code_decodes", "infinite",
     with_part(TinyCodec, lambda codec: codec.codes[1, 5].fill_(torch.inf))),
    ("streamed_equals_offline", "off by", broken(TinyCodec, decode_context=(0, 0))),
    ("streamed_equals_offline", "shape", broken(TinyCodec, streaming_decoder=another_way)),
    ("streamed_encoding_equals_offline", "RuntimeError", with_encoder(finish=keeps_waiting)),
    ("streamed_encoding_equals_offline", "frames instead",
     with_encoder(finish=after(drops_the_rest))),
    ("round_trip_is_finite", "decoded a second time",
     with_audio(lambda wave, codes: wave * (1 + 0.1 * torch.rand(())))),
    ("decoding_respects_the_device", "float32", with_audio(lambda wave, codes: wave.float())),
    ("encodes_odd_audio", "of constant 1",
     with_ids(lambda ids, wave: ids.masked_fill(
         ((wave.abs() >= 1).sum(dim=1) > 3)[:, None, None], 8))),
    ("encodes_odd_audio", r"constant 0\.5",
     with_ids(lambda ids, wave: ids.masked_fill(
         ((wave.std(dim=1) == 0) & (wave[:, 0] != 0) & (wave.shape[1] > 1))[:, None, None], -1))),
    ("handles_long_audio", "RuntimeError",  # beyond six seconds
     with_ids(lambda ids, wave: ids + torch.zeros(1, 1, 1200).long()[:, :, : ids.shape[2]])),
    ("tokens_follow_the_audio", "only from frame 25 on",
     with_ids(lambda ids, wave: torch.cat([ids[:, :, :1], ids[:, :, :-1]], dim=2))),
    ("tokens_follow_the_audio", "whatever the audio holds",
     with_ids(lambda ids, wave: torch.zeros_like(ids))),
    ("every_code_is_emitted", r"never has the codes \[5\]",
     with_ids(lambda ids, wave: ids - (ids == 5).long(), TinyFitted)),
    ("train_mode_changes_no_token", "in train mode",
     broken(TinyCodec, encode=lambda right, self, wave, lengths: right(
         wave.flip(1) if self.training else wave, lengths))),
    ("is_deterministic", "the second time",
     with_ids(lambda ids, wave: (ids + int(time.time())) % 8)),
    ("is_deterministic", "the second time",
     with_ids(lambda ids, wave: (ids + datetime.now().day) % 8)),
    ("is_deterministic", "the third time",
     broken(TinyCodec, calls=0, encode=after(counts_calls),
            frames=lambda right, self, *args: right(*args).roll(self.calls // 4, dims=1))),
    ("train_mode_changes_no_token", "decoded in train mode",
     broken(TinyCodec, decode=lambda right, self, *args: right(*args) * (1 + self.training))),
    ("encodes_one_frame", "IndexError", with_ids(lambda ids, wave: ids + int(wave[0, 1] * 0))),
    ("leaves_the_process_alone", "torch's random state",
     broken(TinyCodec, encode=after(lambda *_: torch.manual_seed(0)))),
    ("leaves_the_process_alone", "NumPy's random state",
     broken(TinyCodec, encode=after(lambda *_: numpy.random.seed(0)))),
    ("leaves_the_process_alone", "number of threads",
     broken(TinyCodec, encode=after(lambda *_: torch.set_num_threads(2)))),
    ("leaves_the_process_alone", "grad mode",
     broken(TinyCodec, decode=after(lambda *_: torch.set_grad_enabled(False)))),
    ("decodes_any_number_of_levels", "float64", with_audio(lambda wave, codes: wave.double())),
    ("every_level_is_heard", "to silence", with_audio(lambda wave, codes: 0 * wave)),
    ("every_level_is_heard", "of 1 levels decode to silence",
     with_audio(lambda wave, codes: wave * float(codes.shape[1] > 1))),
    ("round_trip_is_finite", "decoded a second time",
     with_audio(lambda wave, codes: wave * (1 + time.time() % 86_400))),
    ("every_level_is_heard", "level 1 change nothing",
     broken(TinyCodec, decode=lambda right, self, codes, lengths: right(codes[:, :1], lengths))),
    ("loudness_is_kept_in_bounds", "times as loud", with_audio(lambda wave, codes: 100 * wave)),
    ("frames_are_heard_in_their_place", "own samples",
     with_audio(lambda wave, codes: wave.roll(40, dims=1), decode_context=(2, 0))),
    ("every_code_decodes", "pair of codes", with_audio(one_bad_pair)),
    ("every_code_decodes", "pair of codes", with_audio(one_bad_sequence)),
    ("streams_share_nothing", "stream|RuntimeError",
     broken(TinyCodec, streaming_decoder=lambda right, self: self.__dict__.setdefault(
         "shared", right()))),
    ("streams_share_nothing", "encoding stream|RuntimeError",
     broken(EncodesInChunks, streaming_encoder=lambda right, self: self.__dict__.setdefault(
         "shared", right()))),
    ("streams_do_not_wait_for_the_end", "before the end",
     broken(EncodesInChunks, streaming_decoder=lambda right, self: WindowedDecoder(self, 1, 1000))),
    ("streams_do_not_wait_for_the_end", "were encoded before", with_encoder(push=holds_all_audio)),
    ("handles_long_audio", "stay the same in the second",
     with_ids(lambda ids, wave: ids * (torch.arange(ids.shape[2]) < 200))),
    ("handles_long_audio", "to silence in the second half",
     with_audio(lambda wave, codes: wave * (torch.arange(wave.shape[1]) < 8000))),
    ("handles_long_audio", "RuntimeError", broken(TinyCodec, encode=after(needs_gradients))),
    ("leaves_the_process_alone", "heard of its state",
     with_part(TinyCodec, lambda codec: codec.register_buffer("heard", torch.zeros(())),
               encode=after(lambda self, *_: self.heard.add_(1)))),
    ("training_step_can_be_learnt_from", "batch is written to",
     broken(TinyCodec, training_step=after(lambda self, batch: batch.wave.mul_(0.5)))),
    ("training_step_can_be_learnt_from", r"use as .*\[3\]",
     broken(TinyCodec, training_step=lambda right, self, batch: {
         **right(batch), "use": torch.ones(3)})),
    ("training_step_can_be_learnt_from", "returned -1",
     broken(TinyCodec, weight_of=lambda right, self, batch: -1.0)),
    ("vectors_belong_to_codes", r"not \(2, 12, D\)",
     broken(TinyCodec, vectors=lambda right, self, ids: self.codes[0][ids[:, 0]].mT)),
    ("likeness_ranks_rows_on_their_own", "of a row alone",
     broken(TinyCodec, likeness=lambda right, self, known, new: (
         known.lengths.float() - new.lengths.float().mean()))),
    ("vectors_belong_to_codes", "all vectors are the same",
     broken(TinyCodec, vectors=lambda right, self, ids: torch.zeros(len(ids), ids.shape[2], 3))),
]  # fmt: skip
BROKEN_OPTIONS = [
    ("unknown_options_are_refused", "unknown key", BrokenOptions.Unknown()),
    ("options_are_frozen", "can be assigned", BrokenOptions.Loose()),
    ("options_survive_json", "became", BrokenOptions.Unsaved(gain=2.0)),
    ("spec_is_that_of_the_options", "carries a fingerprint", BrokenOptions.TwoRates()),
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


@pytest.mark.parametrize(("name", "problem", "component"), BROKEN)
def test_a_broken_one_is_caught(name: str, problem: str, component: type[Any]) -> None:
    subject = subject_of(
        component, TinyOptions(num_levels=1 + (not issubclass(component, TinyFitted)))
    )
    if problem == "AcousticCodec":
        subject.kind = "codec"
    assert_caught(CHECKS[name], subject, problem)


@pytest.mark.parametrize(("name", "problem", "options"), BROKEN_OPTIONS)
def test_broken_options_are_caught(name: str, problem: str, options: TinyOptions) -> None:
    assert_caught(CHECKS[name], subject_of(TinyCodec, options), problem)


def test_every_check_can_fail() -> None:
    named = {name for name, *_ in (*BROKEN, *BROKEN_OPTIONS)}
    assert named | {"options_import_no_torch"} == set(CHECKS)


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
