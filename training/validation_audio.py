"""Make validation audible: held-out audio through a codec, or continued by a stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int64
from torch import Tensor

from segue.core.errors import SegueError
from segue.core.interfaces import (
    AcousticCodec,
    Component,
    StageBatch,
    StageLM,
    Tokens,
    WaveBatch,
)
from segue.core.options import Decoding, Sampling
from segue.core.sampling import row_generators
from segue.core.spec import ACOUSTIC, StageSpec
from segue.inference.promises import calling, check_wave
from segue.training.ranks import is_sharded

ROWS = 2  # of a validation batch
SECONDS = 2.0  # of a crop; a stage continues its first half
SEED = 0  # of the stage's sampling


@dataclass
class StageDecoder:
    """The codec and sampling that turn a stage's tokens into audio."""

    # Builds the codec of its tokens; called once, when it is needed.
    make: Callable[[], AcousticCodec]
    sampling: Sampling  # how the stage draws

    @cached_property
    def codec(self) -> AcousticCodec | None:
        """The codec, or None if it cannot be built: training does not depend on it."""
        try:
            return self.make()
        except SegueError:
            return None


def validation_audio(
    component: Component, batch: WaveBatch | StageBatch, decoder: StageDecoder | None
) -> tuple[int, dict[str, Tensor]] | None:
    """Return samples of a validation batch for people to listen to, or None.

    A codec gives ``recording`` and ``reconstruction``. A stage gives the ``reconstruction`` of
    its crops and its own ``continuation`` of their first half, decoded with the levels below.

    Args:
        component: in eval mode.
        decoder: for a stage; without one there is no audio.

    Returns:
        Sample rate and waves ``[B, T]`` on the CPU.
    """
    if isinstance(component, AcousticCodec) and isinstance(batch, WaveBatch):
        wave = batch.wave[:ROWS].to(component.device)
        tokens = component.encode(wave, batch.lengths[:ROWS].to(component.device))
        made = _decoded(component, tokens.ids, tokens.lengths)
        audio = {"recording": wave.cpu(), "reconstruction": made}
        return component.spec.sample_rate, audio
    if not isinstance(component, StageLM) or not isinstance(batch, StageBatch) or decoder is None:
        return None
    batch = _first_rows(batch, component.device)
    below = _levels_below(component.stage, batch)
    if below is None or is_sharded(component) or decoder.codec is None:
        return None
    audio = _continued(component, batch, below, decoder.codec, decoder.sampling)
    return (decoder.codec.spec.sample_rate, audio) if audio else None


def _continued(
    lm: StageLM, batch: StageBatch, below: Tensor, codec: AcousticCodec, sampling: Sampling
) -> dict[str, Tensor]:
    """Return nothing if a crop is too short to be halved."""
    stage, target = lm.stage, batch.target
    frames = min(int(SECONDS * stage.target.frame_rate), int(target.lengths.min()))
    half = frames // (2 * stage.alignment) * stage.alignment
    if not half:
        return {}
    prompt = Tokens.full(target.ids[:, :, :half])
    # Other backends keep copies of the weights, which training changes under them.
    lm.decode_with(Decoding(backend="torch"))
    generators = row_generators(SEED, len(prompt.ids))
    with calling(lm, "generate"):
        new = lm.generate(batch.given, prompt, half, sampling, generators)
        made = torch.cat([prompt.ids, new.ids], dim=2)

    def decoded(ids: Tensor, lengths: Tensor) -> Tensor:
        codes = torch.cat([below[:, :, : ids.shape[2]], ids], dim=1)
        return _decoded(codec, codes, lengths)

    return {
        "reconstruction": decoded(target.ids[:, :, : 2 * half], 2 * prompt.lengths),
        "continuation": decoded(made, prompt.lengths + new.lengths),
    }


def _decoded(codec: AcousticCodec, codes: Tensor, lengths: Tensor) -> Tensor:
    with calling(codec, "decode"):
        wave = codec.decode(codes, lengths)
    samples = codes.shape[2] * codec.spec.frame_size
    return check_wave(codec, wave, len(lengths), samples).float().cpu()


def _first_rows(batch: StageBatch, device: torch.device) -> StageBatch:
    def rows(tokens: Tokens) -> Tokens:
        return Tokens(tokens.ids[:ROWS].to(device), tokens.lengths[:ROWS].to(device))

    return StageBatch(rows(batch.target), tuple(map(rows, batch.given)))


def _levels_below(stage: StageSpec, batch: StageBatch) -> Int64[Tensor, "B q N"] | None:
    """Return the acoustic levels below the stage's own; None if it is not given all of them."""
    if stage.target.stream != ACOUSTIC:
        return None
    found = {
        part.start + level: tokens.ids[:, level]
        for part, tokens in zip(stage.given, batch.given, strict=True)
        if part.stream == ACOUSTIC
        for level in range(part.num_levels)
    }
    if any(level not in found for level in range(stage.target.start)):
        return None
    levels = [found[level][:, None] for level in range(stage.target.start)]
    return torch.cat([batch.target.ids[:, :0], *levels], dim=1)
