"""Options models and the blocks below the stage models."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from helpers_stage import build, semantic
from pydantic import ValidationError

from segue.core.errors import ConfigError
from segue.core.spec import SliceSpec, StageSpec
from segue.plugins.models.common.cache import KeyValueCache
from segue.plugins.models.common.config import TransformerOptions
from segue.plugins.models.common.transformer import Transformer
from segue.plugins.models.delay_transformer.config import DelayTransformerOptions
from segue.plugins.models.flat_transformer.config import FlatTransformerOptions


def test_configs_import_no_torch() -> None:
    code = (
        "import sys, segue.plugins.models.flat_transformer.config, "
        "segue.plugins.models.delay_transformer.config; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("options", [FlatTransformerOptions, DelayTransformerOptions])
def test_options_refuse_what_cannot_be_built(options: type[TransformerOptions]) -> None:
    with pytest.raises(ValidationError, match="choose a width divisible by 24"):
        options(width=64, heads=12)
    with pytest.raises(ValidationError, match="depht"):
        options(depht=3)  # type: ignore[call-arg]
    assert options(width=96, heads=3).feed_forward_width == 256
    assert options(width=96, heads=3, feed_forward=100).feed_forward_width == 100


def test_even_kernels_are_refused() -> None:
    with pytest.raises(ValidationError, match="odd"):
        DelayTransformerOptions(given_kernel=4)


def test_delay_needs_whole_rate_ratios() -> None:
    target = SliceSpec("acoustic", 0, 2, 7, Fraction(50))
    with pytest.raises(ConfigError, match="whole multiple"):
        build("delay", StageSpec("coarse", target, (semantic(20),)))
    build("flat", StageSpec("coarse", target, (semantic(20),)))


@pytest.mark.parametrize("chunks", [(6,), (1,) * 6, (3, 1, 2), (2, 4)])
def test_chunks_over_a_cache_equal_the_whole(chunks: tuple[int, ...]) -> None:
    """A query that is shorter than its keys is aligned with the last of them, not the first."""
    torch.manual_seed(0)
    model = Transformer(TransformerOptions(width=16, depth=2, heads=2)).eval()
    x, rotary = torch.randn(2, 6, 16), model.rotary(torch.arange(6.0)[None])
    cache, parts, start = KeyValueCache(2, 6), [], 0
    for count in chunks:
        end = start + count
        part = rotary[0][:, start:end], rotary[1][:, start:end]
        parts.append(model(x[:, start:end], part, None, cache))
        start = end
    torch.testing.assert_close(torch.cat(parts, 1), model(x, rotary), atol=1e-5, rtol=1e-5)


def test_only_the_distance_of_positions_matters() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerOptions(width=16, depth=1, heads=2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    x, positions = torch.randn(1, 5, 16), torch.arange(5.0)[None]
    there = model(x, model.rotary(positions + 20))
    torch.testing.assert_close(model(x, model.rotary(positions)), there, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(there, model(x, model.rotary(positions * 2)), atol=1e-4)


def test_a_full_cache_takes_no_more() -> None:
    cache = KeyValueCache(1, 2)
    cache.extend(0, torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    cache.advance(2)
    with pytest.raises(ValueError, match="3 positions do not fit a cache of 2"):
        cache.extend(0, torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))
