"""Name the pipeline and the metrics by which the paper's findings on piano are reproduced.

Imports no torch.
"""

from __future__ import annotations

from segue.findings.suite import Suite

SUITE = Suite(
    prompt_seconds=4.0,
    seconds=10.0,
    continuations=("health.v1", "chroma.v1", "onsets.v1", "notes.v1"),
    quick=("health.v1", "chroma.v1", "onsets.v1"),
    shown=(
        "health.v1 healthy",
        "health.v1 level_ratio_db",
        "chroma.v1 in_key",
        "chroma.v1 class_distance_to_truth",
        "onsets.v1 within_factor_two",
        "onsets.v1 interval_distance_to_truth",
        "notes.v1 in_key",
    ),
    structure={
        "chroma.v1 in_key": "high",
        "chroma.v1 class_distance_to_truth": "low",
        "onsets.v1 within_factor_two": "high",
        "onsets.v1 interval_distance_to_truth": "low",
    },
    rule={
        "health.v1 level_ratio_db": "zero",
        "chroma.v1 in_key": "high",
        "chroma.v1 class_distance_to_truth": "low",
        "onsets.v1 interval_distance_to_truth": "low",
    },
    pairs={"log_mel.v1": "low"},
)
