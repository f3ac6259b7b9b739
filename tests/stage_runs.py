"""Run one stage alone, as a pipeline's generation does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from segue.core.interfaces import StageLM, Tokens
from segue.inference.generation import StageRun


def run_stage(
    lm: StageLM, given: Sequence[Tokens], prompt: Tokens, num_frames: int, **options: Any
) -> Tokens:
    """Continue every row of ``prompt`` by ``num_frames`` frames; return prompt and continuation.

    Args:
        given: whole streams, aligned with frame 0 of the prompt, one per given slice.
        options: as for ``StageRun``.
    """
    run = StageRun(lm, prompt, num_frames, **options)
    run.finish(given)
    return run.known.cut(torch.tensor(run.ends))
