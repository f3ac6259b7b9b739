"""How the learning rate goes up and down with the steps."""

from __future__ import annotations

import math

from segue.core.config import TrainingConfig


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The rate of a step: linear warm-up to the peak, then what ``config.schedule`` says.

    ``inverse_sqrt`` is that of Vaswani et al., arXiv 1706.03762, section 5.3, brought to the peak.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    after = step - config.warmup_steps
    progress = min(1.0, after / max(1, config.steps - config.warmup_steps))
    if config.schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * progress))
    elif config.schedule == "linear":
        share = 1 - progress
    elif config.schedule == "inverse_sqrt":
        warm = max(1, config.warmup_steps)
        share = math.sqrt(warm / (warm + after))
    else:
        share = 1.0
    return config.learning_rate * share
