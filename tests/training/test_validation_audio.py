"""What is heard of a stage in training: its own levels over those that it is given."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from segue.core.errors import AssemblyError, PluginError
from segue.core.interfaces import AcousticCodec, StageBatch, Tokens
from segue.core.options import Sampling, TokenizerOptions
from segue.core.spec import SliceSpec, StageSpec, TokenSpec
from segue.plugins.models.flat_transformer.config import FlatTransformerOptions
from segue.plugins.models.flat_transformer.model import FlatTransformer
from segue.training.validation_audio import StageDecoder, validation_audio


class DigitsOptions(TokenizerOptions):
    def spec(self) -> TokenSpec:
        return TokenSpec(50, Fraction(50), 4, 7)


class Digits(AcousticCodec):
    """A frame's sample is its codes, read as digits."""

    def __init__(self) -> None:
        super().__init__(DigitsOptions())

    def encode(self, wave: Tensor, lengths: Tensor) -> Tokens:
        raise NotImplementedError

    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        places = 10 ** torch.arange(codes.shape[1]).flip(0)
        return (codes * places[:, None]).sum(1).float()


def stage(start: int, *given: tuple[str, int, int]) -> StageSpec:
    parts = (SliceSpec(stream, a, b, 7, Fraction(50), "aaaa") for stream, a, b in given)
    return StageSpec("fine", SliceSpec("acoustic", start, 4, 7, Fraction(50), "aaaa"), tuple(parts))


def model(spec: StageSpec) -> FlatTransformer:
    torch.manual_seed(0)
    return FlatTransformer(FlatTransformerOptions(width=8, depth=1, heads=1), spec).eval()


def batch(spec: StageSpec, frames: int) -> StageBatch:
    target, *given = (
        Tokens.full(torch.randint(7, (3, part.num_levels, frames)))
        for part in (spec.target, *spec.given)
    )
    return StageBatch(target, tuple(given))


def test_a_stage_sounds_with_the_levels_that_it_is_given() -> None:
    spec = stage(2, ("semantic", 0, 1), ("acoustic", 0, 2))
    drawn = batch(spec, 30)
    found = validation_audio(model(spec), drawn, StageDecoder(Digits, Sampling()))
    assert found is not None
    rate, audio = found
    codes = torch.cat([drawn.given[1].ids, drawn.target.ids], dim=1)[:2]
    whole = Digits().decode(codes, drawn.target.lengths)
    made = audio["continuation"]
    assert rate == 50 and torch.equal(audio["reconstruction"], whole)
    assert torch.equal(made[:, :15], whole[:, :15]) and not torch.equal(made, whole)
    assert torch.equal(made // 100, whole // 100)  # the levels below are as given


def untrained() -> Digits:
    raise AssemblyError("codec", "must be trained", "train it")


@pytest.mark.parametrize(
    ("spec", "frames", "make"),
    [
        (stage(2, ("acoustic", 0, 1)), 30, Digits),  # a level is missing in between
        (stage(0), 1, Digits),  # too short to be halved
        (stage(0), 30, untrained),
    ],
)
def test_what_cannot_be_heard_is_not(spec: StageSpec, frames: int, make: type[Digits]) -> None:
    decoder = StageDecoder(make, Sampling())
    assert validation_audio(model(spec), batch(spec, frames), decoder) is None


class Arrays(Digits):
    def decode(self, codes: Tensor, lengths: Tensor) -> Tensor:
        return super().decode(codes, lengths).numpy()  # type: ignore[return-value]


def test_a_codec_that_breaks_its_contract_is_named() -> None:
    spec = stage(0)
    with pytest.raises(PluginError, match="decode returned ndarray") as caught:
        validation_audio(model(spec), batch(spec, 30), StageDecoder(Arrays, Sampling()))
    assert caught.value.place.startswith("Arrays")
