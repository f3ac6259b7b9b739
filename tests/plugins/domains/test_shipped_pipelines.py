"""The pipelines that ship go on with their domain's prompt: neither silent nor clipped.

The detector that ships knows the prompt as recorded, and what is added as generated.
"""

from __future__ import annotations

import pytest

from segue import Pipeline
from segue.core.audio import Audio
from segue.core.config_files import find_domain
from segue.core.plugins import PluginHost
from segue.inference.detection import judge, load_detector, shipped
from segue.sound.reading import read_audio

HOST = PluginHost.discover(entry_points=False)
NAMES = [
    name for domain in ("speech", "piano") for name in find_domain(domain, HOST).pretrained_names
]
#: Ships for comparison: no detector learnt to know it.
PAPER = "speech/three_stage"


def test_the_paper_s_cascade_ships_too() -> None:
    assert NAMES == ["speech", "speech/textless", "speech/three_stage", "piano"]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name == PAPER else []) for name in NAMES],
)
def test_a_shipped_pipeline_goes_on(name: str) -> None:
    pipeline, domain = Pipeline.from_pretrained(name, host=HOST), name.partition("/")[0]
    prompt = read_audio(find_domain(domain, HOST).prompt)
    made = pipeline.continue_(prompt.wave, prompt.sample_rate, seconds=3, seed=2)
    wave = made.continuation()
    level = float(wave.square().mean().sqrt() / made.row().square().mean().sqrt())
    assert wave.shape[0] == 3 * made.sample_rate and wave.isfinite().all()
    assert 0.1 < level < 3 and float((wave.abs() > 0.99).float().mean()) < 0.001
    if name != PAPER:
        detector = load_detector(shipped(domain, HOST), HOST)
        assert judge(detector, prompt).verdict == "real"
        assert judge(detector, Audio(wave, made.sample_rate)).verdict != "real"
    uses = {stage.lm.use.partition(".")[0] for stage in pipeline.config.stages}
    flat, delay = {"flat_transformer"}, {"delay_transformer"}
    expected = {"speech": flat | delay, "speech/three_stage": flat, "piano": delay}
    assert uses == expected.get(name, flat | {"masked_transformer"})
