"""The pipelines that ship go on with their domain's prompt: neither silent nor clipped."""

from __future__ import annotations

import pytest

from segue import Pipeline
from segue.core.config_files import find_domain
from segue.core.plugins import PluginHost
from segue.sound.reading import read_audio

HOST = PluginHost.discover(entry_points=False)
NAMES = [
    name for domain in ("speech", "piano") for name in find_domain(domain, HOST).pretrained_names
]


def test_each_domain_ships_the_paper_s_cascade_too() -> None:
    assert NAMES == [
        "speech", "speech/textless", "speech/three_stage",
        "piano", "piano/scoreless", "piano/two_stage",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_pipeline_goes_on(name: str) -> None:
    pipeline = Pipeline.from_pretrained(name, host=HOST)
    prompt = read_audio(find_domain(name.partition("/")[0], HOST).prompt)
    made = pipeline.continue_(prompt.wave, prompt.sample_rate, seconds=2, seed=1)
    wave = made.continuation()
    level = float(wave.square().mean().sqrt() / made.row().square().mean().sqrt())
    assert wave.shape[0] == 2 * made.sample_rate and wave.isfinite().all()
    assert 0.1 < level < 3 and float((wave.abs() > 0.99).float().mean()) < 0.001
    uses = {stage.lm.use.partition(".")[0] for stage in pipeline.config.stages}
    flat, delay = {"flat_transformer"}, {"delay_transformer"}
    expected = {
        "speech": flat | delay,
        "speech/three_stage": flat,
        "piano": delay,
        "piano/two_stage": flat,
    }
    assert uses == expected.get(name, flat | {"masked_transformer"})
