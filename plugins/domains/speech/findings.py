"""Name the pipeline and the metrics by which the paper's findings on speech are reproduced.

Imports no torch.
"""

from __future__ import annotations

from segue.findings.suite import Suite

SUITE = Suite(
    pipeline="speech/textless",  # its tokens know no transcript, as AudioLM's do not
    prompt_seconds=3.0,
    seconds=5.0,
    continuations=("health.v1", "speaker.v1", "phones.v1", "naturalness.v1"),
    quick=("health.v1", "speaker.v1", "phones.v1", "naturalness.v1"),
    shown=(
        "health.v1 healthy",
        "health.v1 level_ratio_db",
        "speaker.v1 similarity",
        "speaker.v1 classified",
        "phones.v1 phones_per_second",
        "phones.v1 bigram_distance",
        "naturalness.v1 overall",
    ),
    structure={
        "phones.v1 phone_distance": "low",
        "phones.v1 bigram_distance": "low",
        "naturalness.v1 overall": "high",
    },
    rule={
        "health.v1 level_ratio_db": "zero",
        "speaker.v1 similarity": "high",
        "phones.v1 bigram_distance": "low",
        "naturalness.v1 overall": "high",
    },
    pairs={"log_mel.v1": "low", "stoi.v1": "high", "pesq.v1": "high"},
    content="phone_error.v1",
    voice="speaker.v1",
)
