"""Options models and the blocks below the stage models."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from helpers_stage import STAGES, build, semantic
from pydantic import ValidationError

from segue.core.errors import ConfigError
from segue.core.spec import SliceSpec, StageSpec
from segue.plugins.layers.cache import KeyValueCache
from segue.plugins.layers.config import TransformerOptions
from segue.plugins.layers.heads import LevelEmbedding
from segue.plugins.layers.positions import RelativeBias
from segue.plugins.layers.transformer import Transformer
from segue.plugins.models.delay_transformer.config import DelayTransformerOptions
from segue.plugins.models.delay_transformer.model import DelayTransformer
from segue.plugins.models.delay_transformer.pattern import Pattern
from segue.plugins.models.depth_transformer.config import DepthTransformerOptions
from segue.plugins.models.flat_transformer.config import FlatTransformerOptions
from segue.plugins.models.flat_transformer.model import FlatTransformer


@pytest.mark.parametrize("options", [FlatTransformerOptions, DelayTransformerOptions])
def test_options_refuse_what_cannot_be_built(options: type[TransformerOptions]) -> None:
    with pytest.raises(ValidationError, match="divisible by 24"):
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


@pytest.mark.parametrize("encoding", ["rotary", "relative"])
@pytest.mark.parametrize("chunks", [(6,), (1,) * 6, (3, 1, 2), (2, 4)])
def test_chunks_over_a_cache_equal_the_whole(chunks: tuple[int, ...], encoding: str) -> None:
    """A query that is shorter than its keys is aligned with the last of them, not the first."""
    torch.manual_seed(0)
    options = TransformerOptions(width=16, depth=2, heads=2, position_encoding=encoding)  # type: ignore[arg-type]
    model = Transformer(options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x, positions = torch.randn(2, 6, 16), torch.arange(6.0)[None]
    cache, parts, start = KeyValueCache(2, 6), [], 0
    for count in chunks:
        end = start + count
        sight = model.sight_of(positions[:, start:end], positions[:, :end], None)
        parts.append(model(x[:, start:end], sight, cache))
        start = end
    whole = model(x, model.sight(positions))
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("encoding", ["rotary", "relative"])
def test_only_the_distance_of_positions_matters(encoding: str) -> None:
    torch.manual_seed(0)
    options = TransformerOptions(width=16, depth=1, heads=2, position_encoding=encoding)  # type: ignore[arg-type]
    model = Transformer(options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    x, positions = torch.randn(1, 5, 16), torch.arange(5.0)[None]
    here, there = model(x, model.sight(positions)), model(x, model.sight(positions + 20))
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(there, model(x, model.sight(positions * 2)), atol=1e-4)


def test_relative_buckets_tell_near_distances_apart_and_join_far_ones() -> None:
    bias = RelativeBias(heads=1, num_buckets=32, reach=128)
    buckets = bias.buckets
    assert len(buckets) == 257 and buckets.min() == 0 and buckets.max() == 31
    after, before = buckets[128:], buckets[:128].flip(0)  # distances 0.., and -1..
    assert after[:8].tolist() == list(range(8))  # one each
    assert before[:7].tolist() == [16 + distance for distance in range(1, 8)]
    assert (after.diff() >= 0).all() and (before.diff() >= 0).all()
    assert after[127] == after[128] == 15
    with torch.no_grad():
        bias.weight.copy_(torch.arange(32.0)[None])
    here = torch.tensor([[300.0]])
    far = bias(here, torch.tensor([[0.0, 299.0, 300.0, 302.0, 900.0]]))
    assert far[0, 0, 0].tolist() == [15.0, 1.0, 0.0, 18.0, 31.0]  # beyond reach is as at reach


def test_a_ring_keeps_the_newest_positions() -> None:
    cache = KeyValueCache(1, 3, ring=True)
    keys = torch.arange(5.0).view(1, 1, 5, 1)
    seen, _ = cache.extend(0, keys, keys)
    assert torch.equal(seen, keys)  # the first positions see each other whatever fits
    cache.advance(5)
    for position in (5.0, 6.0):
        new = torch.full((1, 1, 1, 1), position)
        seen, _ = cache.extend(0, new, new)
        cache.advance(1)
        assert sorted(seen.flatten().tolist()) == [position - 2, position - 1, position]
    with pytest.raises(ValueError, match="ring"):
        cache.extend(0, keys[:, :, :2], keys[:, :, :2])


@pytest.mark.parametrize("options", [FlatTransformerOptions, DepthTransformerOptions])
def test_sizes_have_names(options: type[TransformerOptions]) -> None:
    paper = options(size="paper")  # type: ignore[call-arg]
    assert (paper.width, paper.depth, paper.heads, paper.feed_forward) == (1024, 12, 16, 4096)
    assert paper.position_encoding == "relative"
    assert options(size="paper", depth=12, dropout=0.3).dropout == 0.3  # type: ignore[call-arg]
    assert options.model_validate(paper.model_dump()) == paper
    with pytest.raises(ValidationError, match="depth 12"):
        options(size="paper", depth=2)  # type: ignore[call-arg]
    for wrong in ("papre", [1]):
        with pytest.raises(ValidationError, match="choose one of"):
            options(size=wrong)  # type: ignore[call-arg]


def test_the_paper_s_stages_have_the_paper_s_size() -> None:
    with torch.device("meta"):
        model = FlatTransformer(FlatTransformerOptions(size="paper"), STAGES["slower"])  # type: ignore[call-arg]
    layers = sum(parameter.numel() for parameter in model.transformer.parameters())
    assert 200e6 < layers < 205e6  # with a gated feed-forward; 12 layers of 4 D^2 + 3 D 4096


def test_no_two_levels_share_a_row() -> None:
    """Neither codes of different levels, nor a code and what stands for no code."""
    table = LevelEmbedding(3, 8, 2)
    with torch.no_grad():
        table.table.weight.copy_(torch.arange(24.0)[:, None].expand(-1, 2))
    ids = torch.arange(8)[:, None].expand(8, 3)[None]
    found = table(ids)[0, :, :, 0]
    assert sorted(found.flatten().tolist()) == list(range(24))
    for level in range(3):
        assert torch.equal(table.level(torch.arange(8), level)[:, 0], found[:, level])
    assert torch.equal(table.level(torch.arange(8), -1), table.level(torch.arange(8), 2))


# --- codebook patterns ---------------------------------------------------------------------

PATTERNS = {
    "delay": ({}, 1, (0, 1, 2, 3)),
    "parallel": ({}, 1, (0, 0, 0, 0)),
    "flattened": ({}, 4, (0, 1, 2, 3)),
    "custom": ({"stride": 2, "delays": (0, 1, 1, 5)}, 2, (0, 1, 1, 5)),
}


def pattern_of(name: str) -> Pattern:
    options = DelayTransformerOptions(pattern=name, **PATTERNS[name][0])  # type: ignore[arg-type]
    return Pattern.of(options, 4, "here")


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_a_pattern_draws_every_code_once_and_shows_it_in_the_next_step(
    name: str, frames: int
) -> None:
    pattern = pattern_of(name)
    assert (pattern.stride, pattern.delays) == PATTERNS[name][1:]
    steps = pattern.num_steps(frames)
    places = [place for step in range(steps) for place in pattern.drawn_in(step, frames)]
    assert sorted(places) == [(q, t) for q in range(4) for t in range(frames)]
    assert pattern.drawn_in(steps - 1, frames) and not pattern.drawn_in(steps, frames)
    codes = torch.arange(4 * frames).view(1, 4, frames)
    grid = pattern.inputs(codes, steps + 1, outside=-1)
    for step in range(steps):
        shown = {(q, int(code) - q * frames) for q, code in enumerate(grid[0, :, step + 1])
                 if code >= 0}  # fmt: skip
        assert shown == set(pattern.drawn_in(step, frames))
    assert (grid[:, :, 0] == -1).all()
    by_frame = pattern.by_frame(torch.arange(steps)[None], frames)[0]
    for level, frame in places:
        assert (level, frame) in pattern.drawn_in(int(by_frame[frame, level]), frames)


def test_patterns_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValidationError, match="custom"):
        DelayTransformerOptions(delays=(0, 1))
    with pytest.raises(ValidationError, match="smallest is 0"):
        DelayTransformerOptions(pattern="custom", delays=(1, 2))
    options = DelayTransformerOptions(pattern="custom", delays=(0, 1))
    with pytest.raises(ConfigError, match=r"coarse.lm.options.delays"):
        DelayTransformer(options, STAGES["slower"])
    with pytest.raises(ValidationError, match="level_width 10"):
        DepthTransformerOptions(level_width=10, level_heads=4)


def test_a_full_cache_takes_no_more() -> None:
    cache = KeyValueCache(1, 2)
    cache.extend(0, torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    cache.advance(2)
    with pytest.raises(ValueError, match="fit a cache"):
        cache.extend(0, torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))
