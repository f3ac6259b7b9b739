"""What a part in training sounds like: held-out audio through a codec, or continued by a stage."""

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
from segue.training.sharding import is_sharded

ROWS_HEARD = 2  # of a validation batch
SECONDS_HEARD = 2.0  # of what a stage is given the first half of
SEED = 0  # of what it draws


@dataclass
class Voice:
    """What a stage is heard by.

    Attributes:
        make: builds the codec of its tokens; asked once, when it is needed.
        sampling: how the stage draws.
    """

    make: Callable[[], AcousticCodec]
    sampling: Sampling

    @cached_property
    def codec(self) -> AcousticCodec | None:
        """None if it cannot be had: training needs it not."""
        try:
            return self.make()
        except SegueError:
            return None


def heard(
    component: Component, batch: WaveBatch | StageBatch, voice: Voice | None
) -> tuple[int, dict[str, Tensor]] | None:
    """What to let hear of a validation batch: a sample rate and waves ``[B, T]`` on the CPU.

    Of a codec a few crops and what it makes of them. Of a stage a few crops' tokens, and of their
    first half and what the stage makes of it; where there is a voice, its levels sound with those
    that it is given, and its weights are not shared out to ranks.
    """
    if isinstance(component, AcousticCodec) and isinstance(batch, WaveBatch):
        return component.spec.sample_rate, _through_codec(component, batch)
    if not isinstance(component, StageLM) or not isinstance(batch, StageBatch) or voice is None:
        return None
    batch = _first_rows(batch, component.device)
    below = _levels_below(component.stage, batch)
    if below is None or is_sharded(component) or voice.codec is None:
        return None
    audio = _continued(component, batch, below, voice.codec, voice.sampling)
    return (voice.codec.spec.sample_rate, audio) if audio else None


def _through_codec(codec: AcousticCodec, batch: WaveBatch) -> dict[str, Tensor]:
    wave = batch.wave[:ROWS_HEARD].to(codec.device)
    tokens = codec.encode(wave, batch.lengths[:ROWS_HEARD].to(codec.device))
    made = codec.decode(tokens.ids, tokens.lengths)
    return {"recording": wave.cpu(), "reconstruction": made.float().cpu()}


def _continued(
    lm: StageLM, batch: StageBatch, below: Tensor, codec: AcousticCodec, sampling: Sampling
) -> dict[str, Tensor]:
    """Nothing where a crop is too short to be halved."""
    stage, target = lm.stage, batch.target
    frames = min(int(SECONDS_HEARD * stage.target.frame_rate), int(target.lengths.min()))
    half = frames // (2 * stage.alignment) * stage.alignment
    if not half:
        return {}
    prompt = Tokens.full(target.ids[:, :, :half])
    generators = row_generators(SEED, len(prompt.lengths))
    lm.decode_with(Decoding(backend="torch"))  # nothing is kept that follows other weights
    new = lm.generate(batch.given, prompt, half, sampling, generators)

    def decoded(ids: Tensor, lengths: Tensor) -> Tensor:
        codes = torch.cat([below[:, :, : ids.shape[2]], ids], dim=1)
        return codec.decode(codes, lengths).float().cpu()

    return {
        "reconstruction": decoded(target.ids[:, :, : 2 * half], 2 * prompt.lengths),
        "continuation": decoded(
            torch.cat([prompt.ids, new.ids], dim=2), prompt.lengths + new.lengths
        ),
    }


def _first_rows(batch: StageBatch, device: torch.device) -> StageBatch:
    def rows(tokens: Tokens) -> Tokens:
        return Tokens(tokens.ids[:ROWS_HEARD].to(device), tokens.lengths[:ROWS_HEARD].to(device))

    return StageBatch(rows(batch.target), tuple(map(rows, batch.given)))


def _levels_below(stage: StageSpec, batch: StageBatch) -> Int64[Tensor, "B q N"] | None:
    """Acoustic levels below the stage's own, which it is given; None if they do not sound."""
    if stage.target.stream != ACOUSTIC:
        return None
    found = {
        part.start + level: tokens.ids[:, level]
        for part, tokens in zip(stage.given, batch.given, strict=True)
        if part.stream == ACOUSTIC
        for level in range(part.num_levels)
    }
    wanted = range(stage.target.start)
    if any(level not in found for level in wanted):
        return None
    levels = [found[level][:, None] for level in wanted]
    return torch.cat([batch.target.ids[:, :0], *levels], dim=1)
