"""The decoding engine: backends, number formats, sliding windows, guidance, ends of audio."""

from __future__ import annotations

import gc
import math
import os
import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_stage import (
    MODELS,
    STAGES,
    CausalLM,
    alone,
    batch_for,
    build,
    decoding,
    given_for,
    recorded,
    repeated,
)
from helpers_stage import tokens as random_tokens
from pytest import MonkeyPatch
from tests.stage_runs import run_stage

from segue.core.eight_bits import quantize
from segue.core.errors import ConfigError, GenerationError
from segue.core.interfaces import StageBatch, Tokens
from segue.core.options import Decoding, Sampling
from segue.core.sampling import row_generators
from segue.core.spec import SliceSpec, StageSpec
from segue.plugins.layers import decoding as engine
from segue.plugins.layers import pages
from segue.plugins.layers.cache import KeyValueCache
from segue.plugins.layers.drawing import FRAMES_PER_PIECE
from segue.plugins.layers.native import library as native_library
from segue.plugins.layers.native import step as native_step
from segue.plugins.layers.native.library import KernelError
from segue.plugins.layers.quantize import rounded
from segue.plugins.models.delay_transformer import model as delay_model

GREEDY = Sampling(temperature=0)
BACKENDS = ("torch", "native", "fixed")
FIELDS = ("full", "row_scales", "column_scales")  # of the kernel's matrices
#: One model of each way to draw and to see positions; the variants repeat what these show of number
#: formats.
APART = ("flat", "delay", "depth_relative")
FORMATS = [
    pytest.param(kind, marks=() if kind in APART else (pytest.mark.slow,)) for kind in MODELS
]
WINDOWED = ("flat", "flat_relative", "delay", "delay_flattened", "depth", "depth_relative")


@pytest.fixture
def use(monkeypatch: MonkeyPatch) -> Callable[..., None]:
    """Make a model decode with a backend; "fixed" takes the steps of fixed shapes, uncompiled."""

    def chosen(model: CausalLM, backend: str, weights: str = "stored") -> None:
        if backend == "fixed":
            monkeypatch.setattr(torch, "compile", lambda function, **_: function)
            model.decode_with(Decoding(backend="compile", weights=weights))  # type: ignore[arg-type]
            return
        decoding(backend)  # skips where there is no compiler
        model.decode_with(Decoding(backend=backend, weights=weights))  # type: ignore[arg-type]

    return chosen


def drawn(model: CausalLM, frames: int = 12, sampling: Sampling = GREEDY) -> torch.Tensor:
    known = (3, 0, 5)
    given = given_for(model.stage, *[count + frames for count in known])
    prompt = random_tokens(model.stage.target, *known)
    return model.generate(given, prompt, frames, sampling, row_generators(0, 3)).ids


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", APART)
def test_a_cache_goes_when_its_call_ends(kind: str, backend: str, use: Callable[..., None]) -> None:
    """A cycle would keep it until Python looks for cycles, which it does by the number of objects
    and not by their size."""
    model = build(kind, STAGES["two"]).eval()
    use(model, backend)

    def caches() -> int:
        return sum(isinstance(one, KeyValueCache) for one in gc.get_objects())

    drawn(model)  # steps of fixed shapes are kept with their slots
    gc.collect()
    gc.disable()
    try:
        before = caches()
        drawn(model)
        assert caches() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", WINDOWED)
@pytest.mark.parametrize(
    "prompt_frames", [(9, 0, 30, 2), pytest.param((0,), marks=pytest.mark.slow)]
)
def test_a_sliding_window_over_a_ring_equals_the_uncached_model(
    kind: str,
    backend: str,
    prompt_frames: tuple[int, ...],
    use: Callable[..., None],
    monkeypatch: MonkeyPatch,
) -> None:
    """Prompts and continuations are longer than the window, so slots are overwritten."""
    stage = STAGES["levels"]
    model = build(kind, stage, attention_window=7)
    use(model, backend)
    prompt = random_tokens(stage.target, *prompt_frames)
    new, stepwise = recorded(model, (), prompt, 10, monkeypatch)
    scores = model.score(StageBatch(prompt.append(new)))
    for row, known in enumerate(prompt_frames):
        uncached = scores[row, :, known : known + 10]
        torch.testing.assert_close(stepwise[row], uncached, atol=1e-4, rtol=1e-4)


def test_a_window_hides_what_is_older(kind: str) -> None:
    """With one layer, a token out of the window changes nothing at all."""
    stage = STAGES["plain"]
    model = build(kind, stage, attention_window=4)
    del model.transformer.blocks[1:]
    batch = batch_for(stage, 12)
    before = model.score(batch)[0, 0]
    ids = batch.target.ids.clone()
    ids[0, 0, 2] = (ids[0, 0, 2] + 1) % 11
    changed = (model.score(StageBatch(Tokens(ids, batch.target.lengths)))[0, 0] - before).abs() > 0
    # Token 2 is the input of position 3, which positions 3 to 6 see.
    assert changed.nonzero().flatten().tolist() == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("kind", WINDOWED)
def test_a_model_with_a_window_is_run_in_one_whatever_the_crop(kind: str) -> None:
    stage = STAGES["plain"]
    model = build(kind, stage, attention_window=8)
    assert model.unbounded and not build(kind, stage).unbounded
    prompt = random_tokens(stage.target, 5, 0)
    arguments: dict[str, Any] = {"overlap": 0.5, "sampling": Sampling()}
    found = run_stage(
        model, [], prompt, 40, window=10, generators=row_generators(1, 2), **arguments
    )
    whole = prompt.append(model.generate((), prompt, 40, Sampling(), row_generators(1, 2)))
    assert torch.equal(found.ids, whole.ids)
    decoder_slots: list[int] = []
    original = engine.KeyValueCache

    class Spy(original):  # type: ignore[misc,valid-type]
        def __init__(self, depth: int, capacity: int, *others: bool) -> None:
            decoder_slots.append(capacity)
            super().__init__(depth, capacity, *others)

    engine.KeyValueCache = Spy  # type: ignore[misc]
    try:
        model.generate((), prompt, 40, Sampling(), row_generators(1, 2))
    finally:
        engine.KeyValueCache = original  # type: ignore[misc]
    assert decoder_slots[0] == 8  # whatever the length: constant memory


def test_a_window_over_a_prefix_is_refused() -> None:
    with pytest.raises(ConfigError, match="attention_window"):
        build("flat", STAGES["slower"], attention_window=7)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_backends_draw_the_same_tokens(kind: str, backend: str, use: Callable[..., None]) -> None:
    model = build(kind, STAGES["two"])
    use(model, "torch")
    wanted = drawn(model, 8, Sampling())
    use(model, backend)
    assert torch.equal(drawn(model, 8, Sampling()), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "delay_flattened", "depth_relative"])
def test_compiled_steps_draw_the_same_tokens(kind: str, use: Callable[..., None]) -> None:
    """``torch.compile`` itself, which needs a C++ compiler."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("there is no C++ compiler")
    model = build(kind, STAGES["two"])
    use(model, "torch")
    wanted = drawn(model, sampling=Sampling())
    model.decode_with(Decoding(backend="compile"))
    assert torch.equal(drawn(model, sampling=Sampling()), wanted)


@pytest.mark.parametrize("name", ["flat", "depth_relative"])
def test_eight_bits_mean_the_same_to_every_backend(name: str, use: Callable[..., None]) -> None:
    """A model of an odd feed-forward width: the last group of weights is not full."""
    model = build(name, STAGES["slower"], feed_forward=83)
    use(model, "torch", "int8")
    wanted = drawn(model, sampling=Sampling())
    for backend in ("native", "fixed"):
        use(model, backend, "int8")
        assert torch.equal(drawn(model, sampling=Sampling()), wanted)


def test_codes_are_within_half_a_step_of_the_weights() -> None:
    weight = torch.randn(5, 150)
    codes = quantize(weight)
    steps = codes.scales.repeat_interleave(64, 1)[:, :150]
    assert codes.codes.dtype == torch.int8
    assert ((codes.dense() - weight).abs() <= 0.5 * steps + 1e-6).all()
    assert torch.equal(quantize(torch.zeros(2, 3)).dense(), torch.zeros(2, 3))
    linear = torch.nn.Sequential(torch.nn.Linear(150, 5, bias=False))
    copy = rounded(linear)
    assert torch.equal(copy[0].weight, quantize(linear[0].weight).dense())
    assert copy[0].weight is not linear[0].weight


def change_in_place(parameter: torch.Tensor) -> None:
    parameter.add_(0.3)


def change_data(parameter: torch.Tensor) -> None:
    parameter.data.add_(0.3)  # no counter of changes sees this


def replace_data(parameter: torch.Tensor) -> None:
    parameter.data = parameter.data + 0.3


@pytest.mark.parametrize(
    ("backend", "weights"), [("torch", "int8"), ("native", "stored"), ("native", "int8")]
)  # with PyTorch and stored weights there is no copy
@pytest.mark.parametrize(
    ("change", "mode"),
    [
        (change_in_place, torch.inference_mode),
        (change_data, torch.no_grad),
        (replace_data, torch.no_grad),
    ],
)
def test_training_between_two_calls_is_not_missed(
    backend: str,
    weights: str,
    change: Callable[[torch.Tensor], None],
    mode: Callable[[], Any],
    use: Callable[..., None],
) -> None:
    """Packed or rounded weights are made again when the model's own have changed."""
    stage = STAGES["slower"]
    for kind in ("flat", "depth_relative"):
        trained, fresh = build(kind, stage), build(kind, stage)
        use(trained, backend, weights)
        drawn(trained, 2)
        for first, second in zip(trained.parameters(), fresh.parameters(), strict=True):
            with mode():
                change(first)
            with torch.no_grad():
                second.add_(0.3)
        use(fresh, backend, weights)
        assert torch.equal(drawn(trained, 4), drawn(fresh, 4))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("weights", ["bfloat16", "float16"])
def test_weights_of_half_the_size_change_parameters_and_nothing_else(
    kind: str, weights: str
) -> None:
    """Scores are those of the rounded parameters, at far positions too, and are not rounded."""
    dtype = getattr(torch, weights)
    model, same = build(kind, STAGES["slower"]), build(kind, STAGES["slower"])
    model.decode_with(Decoding(weights=weights))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in same.parameters():
            parameter.copy_(parameter.to(dtype))
    batch = batch_for(STAGES["slower"], 300)
    found, wanted = model.score(batch), same.score(batch)
    assert found.dtype == torch.float32
    assert (found - wanted).abs().mean() < (0.05 if weights == "bfloat16" else 0.01)
    assert drawn(model, 4, Sampling()).max() < 7


def test_rotary_positions_are_exact_whatever_the_number_format() -> None:
    rotary = build("flat", STAGES["plain"]).transformer.rotary
    assert rotary is not None
    far = torch.tensor([[6000.0, 6001.0]])
    wanted = rotary(far)
    for found in (rotary.to(torch.bfloat16)(far), rotary.to(torch.float64)(far)):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_around_generation_changes_nothing(
    kind: str, backend: str, use: Callable[..., None]
) -> None:
    """The kernel takes memory as it is: a cache of halves would be overrun."""
    model = build(kind, STAGES["slower"])
    use(model, backend)
    wanted = drawn(model, 6, Sampling())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(drawn(model, 6, Sampling()), wanted)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_default_number_format_changes_nothing(kind: str, dtype: torch.dtype) -> None:
    model = build(kind, STAGES["slower"])
    wanted = drawn(model, 6, Sampling())
    torch.set_default_dtype(dtype)
    try:
        assert torch.equal(drawn(model, 6, Sampling()), wanted)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_kernel_is_given_nothing_but_float32() -> None:
    decoding("native")
    with pytest.raises(TypeError, match=r"given torch.float64 on cpu"):
        native_step.require_float32(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    head = torch.nn.Linear(8, 5, bias=False)
    product = native_step.packed(head, [head.weight], int8=False).products
    x = torch.randn(3, 8)
    found = product(x.double(), 0, 1)[:, 0]
    torch.testing.assert_close(found, head(x).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("shape", [(1, 1), (70, 101), (130, 64)])
def test_the_kernel_multiplies_and_a_row_is_what_it_is_alone(
    shape: tuple[int, int], batch: int
) -> None:
    """Numbers, codes with groups along rows, and codes with groups along columns.

    Inputs of codes are rounded to 16 bits: an error of a few 10^-5 of what the product is mostly.
    """
    weight = torch.randn(shape)
    x = torch.randn(batch, shape[1])
    by_rows, by_columns = quantize(weight).dense(), quantize(weight.t()).dense().t()
    for values, field in zip((weight, by_rows, by_columns), FIELDS, strict=True):
        owner = torch.nn.Linear(1, 1)
        product = native_step.packed(owner, [values, values + 1], int8=False).products
        found = product(x, 0, 2)
        if min(shape) > 1:
            packed = native_step.packed(owner, [values, values + 1], int8=False)
            assert getattr(packed.matrices[0], field)
        assert found.shape == (batch, 2, shape[0])
        for index in range(2):
            wanted = x @ (values + index).t()
            most = 1e-4 if field == "full" else 3e-4 * float(wanted.square().mean().sqrt())
            torch.testing.assert_close(found[:, index], wanted, atol=most, rtol=1e-4)
        for row in range(min(batch, 9)):
            assert torch.equal(found[row : row + 1, 1:], product(x[row : row + 1], 1, 2))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("x", [0.0, 1e-30, 3e30, torch.inf, torch.nan])
def test_the_kernel_rounds_no_input_to_another(x: float) -> None:
    """A group of inputs has a scale of its own, and what is no number stays none."""
    layer = torch.nn.Linear(128, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(quantize(layer.weight).dense())
    inputs = torch.randn(2, 128)
    inputs[1, 5] = x
    product = native_step.packed(layer, [layer.weight], int8=False).products
    found, wanted = product(inputs, 0, 1)[:, 0], layer(inputs).detach()
    torch.testing.assert_close(found[0], wanted[0], atol=1e-3, rtol=1e-3)
    if abs(x) < torch.inf:
        torch.testing.assert_close(found[1], wanted[1], atol=1e-3, rtol=1e-3)
    else:
        assert not found[1].isfinite().any()


@pytest.mark.parametrize("weights", ["stored", "int8"])
@pytest.mark.parametrize("kind", ["flat_relative", "flat_runs", "delay", "depth"])
def test_a_row_is_bit_by_bit_what_it_is_alone(
    kind: str, weights: str, monkeypatch: MonkeyPatch
) -> None:
    """Seventeen ragged rows: five times three that share a read weight, and two more."""
    decoding("native")
    stage, lengths = STAGES["slower"], [3, 0, 5, 1] * 4 + [2]
    model = build(kind, stage)
    model.decode_with(Decoding.model_validate({"weights": weights}))
    given = given_for(stage, *[length + 4 for length in lengths])
    prompt = random_tokens(stage.target, *lengths)
    drawn, scores = recorded(model, given, prompt, 4, monkeypatch)
    monkeypatch.setattr("helpers_stage.row_generators", lambda seed, batch: seeds)
    for row in (0, 1, 14, 16):
        seeds = [row_generators(3, 17)[row]]
        own = tuple(alone(tokens, row) for tokens in given)
        single, score = recorded(model, own, alone(prompt, row), 4, monkeypatch)
        assert torch.equal(single.ids[0], drawn.ids[row])
        assert torch.equal(score[0], scores[row])


@pytest.fixture(params=["native", pytest.param("portable", marks=pytest.mark.slow)])
def kernel(
    request: pytest.FixtureRequest, monkeypatch: MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """Compile for this processor, and for any processor of its kind."""
    decoding("native")
    if request.param == "native":
        yield
        return
    native_library._found.cache_clear()
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    monkeypatch.setattr(native_library, "PROCESSOR", ((),))
    yield
    native_library._found.cache_clear()


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("products_per_thread", [1, 10**9])
@pytest.mark.parametrize("lengths", [(4,), (3, 0, 5), (3, 0, 5, 5)])
@pytest.mark.parametrize(
    ("stage", "options", "sampling"),
    [
        ("two", {}, {"temperature": 0.8}),
        ("two", {"condition_dropout": 0.1}, {"guidance": 2.0}),
        ("slower", {"condition_dropout": 0.1}, {"guidance": 2.5, "prompt_guidance": 1.5}),
        ("levels", {"pattern": "parallel"}, {"temperature": 0}),
        ("levels", {"pattern": "flattened", "attention_window": 7}, {}),
        ("plain", {}, {"temperature": 1e-30}),
        ("plain", {}, {"temperature": 1e-46}),
    ],
)
def test_frames_drawn_in_one_call_are_those_drawn_step_by_step(
    stage: str,
    options: dict[str, Any],
    sampling: dict[str, Any],
    lengths: tuple[int, ...],
    products_per_thread: int,
    kernel: None,
    two_threads: None,
    monkeypatch: MonkeyPatch,
) -> None:
    """By threads that share the rows, by threads with rows of their own, and by one."""
    model = build("delay", STAGES[stage], **options).eval()
    model.decode_with(decoding("native"))
    monkeypatch.setattr(native_step, "PRODUCTS_PER_THREAD", products_per_thread)
    monkeypatch.setattr(native_step, "PRODUCTS_APART", products_per_thread)
    given = given_for(model.stage, *[count + 21 for count in lengths])
    prompt = random_tokens(model.stage.target, *lengths)
    made: list[object] = []

    def spy(*arguments: Any) -> object:
        made.append(native_frames(*arguments))
        return made[-1]

    def new() -> torch.Tensor:
        generators = row_generators(0, len(lengths))
        settings = Sampling.model_validate(sampling)
        return model.generate(given, prompt, 21, settings, generators).ids

    native_frames = delay_model.native_frames
    monkeypatch.setattr(delay_model, "native_frames", spy)
    together = new()
    assert made != [None]
    monkeypatch.setattr(delay_model, "native_frames", lambda *_: None)
    assert torch.equal(together, new())


def stepped(model: CausalLM, chosen: Decoding) -> tuple[engine.Decoder, torch.Tensor]:
    """A decoder after a prefix of nine positions and five steps, and their hidden states."""
    transformer, generator = model.transformer, torch.Generator().manual_seed(1)
    width = transformer.norm.weight.numel()
    x = torch.randn(3, 14, width, generator=generator)
    positions, valid = torch.arange(9).repeat(3, 1), torch.ones(3, 9, dtype=torch.bool)
    with torch.no_grad():
        decoder = engine.Decoder(transformer, x[:, :9], positions, valid, 5, chosen)
        hidden = [decoder.step(x[:, at]).clone() for at in range(9, 14)]
    return decoder, torch.stack(hidden)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("window", [None, 7])
def test_keys_and_values_are_halves_only_where_weights_are_codes(window: int | None) -> None:
    model = build("flat", STAGES["plain"], attention_window=window)
    exact, _ = stepped(model, Decoding(backend="native"))
    assert exact._cache.layers[0] and exact._cache.layers[0][0].dtype == torch.float32
    decoder, hidden = stepped(model, Decoding(backend="native", weights="int8"))
    plain, wanted = stepped(model, Decoding(backend="torch", weights="int8"))
    for halves, full in zip(decoder._cache.layers, plain._cache.layers, strict=True):
        assert halves and full and halves[0].dtype == halves[1].dtype == torch.float16
    for halves, full in zip(decoder._cache.layers[0], plain._cache.layers[0], strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(halves.float(), full, rtol=2**-11, atol=5e-4)
    torch.testing.assert_close(hidden, wanted, rtol=0, atol=0.02)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("kind", ["flat", "flat_relative"])
def test_rows_of_one_prefix_share_its_keys_and_values(kind: str, window: int | None) -> None:
    """Three of one prefix and two of another, in ``x``; each is what it is alone."""
    model = build(kind, STAGES["plain"], attention_window=window)
    with torch.no_grad():
        for block in model.transformer.layers:
            for layer in filter(lambda part: isinstance(part, torch.nn.Linear), block.modules()):
                layer.weight.copy_(quantize(layer.weight).dense())  # type: ignore[union-attr, operator]
    width = model.transformer.norm.weight.numel()
    generator = torch.Generator().manual_seed(1)
    prefixes = torch.randn(2, 9, width, generator=generator)[[0, 0, 0, 1, 1]]
    x = torch.cat([prefixes, torch.randn(5, 6, width, generator=generator)], dim=1)
    positions = torch.arange(9.0).repeat(5, 1)
    valid = torch.tensor([[0] * 2 + [1] * 7] * 3 + [[1] * 9] * 2).bool()

    def hidden(rows: list[int], backend: str, start: int = 0) -> torch.Tensor:
        chosen = Decoding.model_validate({"backend": backend})
        known = x[rows, start:9], positions[rows, start:], valid[rows, start:]
        with torch.no_grad():
            decoder = engine.Decoder(model.transformer, *known, 6, chosen)
            new = [decoder.step(x[rows, at]).clone() for at in range(9, 15)]
        return torch.stack([decoder.hidden, *new], dim=1)

    together = hidden([0, 1, 2, 3, 4], "native")
    for row in range(5):
        alone = hidden([row], "native", int((~valid[row]).sum()))
        assert torch.equal(together[row : row + 1], alone)
    torch.testing.assert_close(together, hidden([0, 1, 2, 3, 4], "torch"), rtol=0, atol=0.01)


@pytest.mark.usefixtures("kernel")
def test_keys_and_values_beyond_the_largest_half_become_it() -> None:
    model = build("flat", STAGES["plain"])
    width = model.transformer.norm.weight.numel()
    with torch.no_grad():
        model.transformer.layers[0].attention.qkv.weight[2 * width :] *= 1e7
    decoder, hidden = stepped(model, Decoding(backend="native", weights="int8"))
    _, values = decoder._cache.layers[0]  # type: ignore[misc]
    for part in (values[:, :, :9], values[:, :, 9:]):  # of the prefix, and of the steps
        assert part.abs().max() == torch.finfo(torch.float16).max
    assert hidden.isfinite().all()


def test_a_compiled_step_is_kept_for_the_next_call(monkeypatch: MonkeyPatch) -> None:
    """Interleaved calls have steps of their own; a call after them takes one of those."""
    compiled: list[object] = []

    def compile_(function: Callable[..., Any], **_: object) -> Callable[..., Any]:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    model = build("flat", STAGES["slower"])
    wanted = drawn(model)
    model.decode_with(Decoding(backend="compile"))
    prompt = random_tokens(model.stage.target, 3)
    frames = FRAMES_PER_PIECE + 4  # two pieces: both streams are under way at the same time
    given = given_for(model.stage, 3 + frames)
    streams = [
        model.stream(given, prompt, frames, GREEDY, row_generators(0, 1)) for _ in range(2)
    ]  # fmt: skip
    for pair in zip(*streams, strict=True):
        assert torch.equal(pair[0].ids, pair[1].ids)
    assert len(compiled) == 2
    del streams, pair
    list(model.stream(given, prompt, 6, GREEDY, row_generators(0, 1)))
    assert len(compiled) == 2
    assert torch.equal(drawn(model), wanted)  # another batch size: one more
    assert torch.equal(drawn(model), wanted)
    assert len(compiled) == 3


def test_a_prefix_longer_than_the_window_is_kept_row_by_row() -> None:
    model = build("flat", STAGES["plain"], attention_window=5)
    prompt = random_tokens(STAGES["plain"].target, 1, 12, 4)
    drawn = model.generate((), prompt, 9, Sampling(), row_generators(3, 3))
    for row in range(3):
        own = model.generate((), alone(prompt, row), 9, Sampling(), [row_generators(3, 3)[row]])
        assert torch.equal(own.ids[0], drawn.ids[row])


@pytest.mark.parametrize("kind", ["flat", "depth"])
def test_more_positions_than_one_table_of_angles_holds(kind: str, monkeypatch: MonkeyPatch) -> None:
    model = build(kind, STAGES["slower"])
    wanted = drawn(model, 20, Sampling())
    monkeypatch.setattr(engine, "ANGLES", 3)
    assert torch.equal(drawn(model, 20, Sampling()), wanted)


def test_backends_that_cannot_be_had_are_refused() -> None:
    model = build("flat", STAGES["slower"])
    place = r"stages\.coarse\.decoding\."
    with pytest.raises(ConfigError, match=place + "backend"):
        model.decode_with(Decoding(backend="graph"))
    with pytest.raises(ConfigError, match=place + "backend"):
        model.decode_with(Decoding(backend="native", weights="bfloat16"))
    with pytest.raises(ConfigError, match=place + "backend"):
        build("flat", STAGES["slower"]).double().decode_with(Decoding(backend="native"))
    assert model.decoding == Decoding()  # as it was


@pytest.fixture
def fresh_library() -> Iterator[None]:
    """Let the kernel be looked for anew, and again after the test."""
    native_library._found.cache_clear()
    yield
    native_library._found.cache_clear()


@pytest.mark.usefixtures("fresh_library")
def test_without_a_compiler_pytorch_computes(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(native_library.shutil, "which", lambda _: None)
    model = build("flat", STAGES["slower"])
    with pytest.raises(ConfigError, match="no C compiler"):
        model.decode_with(Decoding(backend="native"))
    model.decode_with(Decoding())
    assert drawn(model).shape == (3, 3, 12)


@pytest.mark.usefixtures("fresh_library")
def test_the_kernel_can_be_turned_off(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setenv("SEGUE_NATIVE", "0")
    with pytest.raises(KernelError, match="SEGUE_NATIVE=0"):
        native_library.library()
    assert engine.chosen_backend(Decoding(), torch.zeros(1), "here") == "torch"


@pytest.mark.usefixtures("fresh_library")
def test_a_compiler_that_fails_is_asked_once(monkeypatch: MonkeyPatch, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\necho x >> {calls}\necho no such flag >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(native_library.shutil, "which", lambda _: str(compiler))
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "cache"))
    assert not native_library.available()
    asked = calls.read_text()
    with pytest.raises(KernelError, match=r"cannot compile it \(no such flag\)"):
        native_library.library()
    assert not native_library.available() and calls.read_text() == asked
    assert list((tmp_path / "cache").iterdir()) == []  # nothing half-made is left


@pytest.fixture
def quick_compiler(fresh_library: None, monkeypatch: MonkeyPatch, tmp_path: Path) -> None:
    """Put the kernel that is there already where a new one is wanted: to compile takes seconds."""
    decoding("native")
    compiler = tmp_path / "cc"
    output = 'while [ "$1" != -o ]; do shift; done'
    copy = f'{output}; cp "{native_library.library()._name}" "$2"'
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\n{copy}\n')
    compiler.chmod(0o755)
    monkeypatch.setattr(native_library.shutil, "which", lambda _: str(compiler))
    native_library._found.cache_clear()


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("fault", ["writable", "link", "unreadable", "file"])
def test_a_cache_that_others_may_write_to_is_not_used(
    monkeypatch: MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    """What lies there is code that will be run."""
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if fault == "writable":
        cache.mkdir()
        cache.chmod(0o777)
    elif fault == "link":
        cache.symlink_to(elsewhere)
    elif fault == "file":
        cache.write_text("")
    else:
        monkeypatch.setattr(native_library.Path, "mkdir", refuse)
    monkeypatch.setenv("SEGUE_CACHE", str(cache))
    monkeypatch.setattr(native_library.tempfile, "gettempdir", lambda: str(tmp_path / "none"))
    if fault == "unreadable":
        assert not native_library.available()
        return
    assert native_library.available()
    made = [path.parent.name for path in tmp_path.rglob("kernel-*.so")]
    assert made == [f"segue-{os.getuid()}"]


def refuse(*_: object, **__: object) -> None:
    raise PermissionError("not allowed")


@pytest.mark.usefixtures("quick_compiler")
def test_a_user_without_a_home_has_a_kernel(monkeypatch: MonkeyPatch, tmp_path: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("SEGUE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(native_library.Path, "home", homeless)
    monkeypatch.setattr(native_library.tempfile, "gettempdir", lambda: str(tmp_path))
    assert native_library.available()


# --- guidance ------------------------------------------------------------------------------


def test_guidance_moves_logits_away_from_the_unconditional(kind: str) -> None:
    """Greedily, every token is the best under both models' logits combined, redone uncached."""
    stage = STAGES["slower"]
    model = build(kind, stage, condition_dropout=0.2)
    sampling = Sampling(temperature=0, guidance=2.5)
    given, prompt = given_for(stage, 9, 6), random_tokens(stage.target, 4, 1)
    new = model.generate(given, prompt, 5, sampling, row_generators(0, 2))
    blind = tuple(Tokens(g.ids, torch.zeros_like(g.lengths)) for g in given)
    for row, known in enumerate((4, 1)):
        whole = alone(prompt.append(new), row)
        seeing_given = tuple(alone(g, row) for g in given)
        blind_given = tuple(Tokens(g.ids[row : row + 1], g.lengths[row : row + 1]) for g in blind)
        places = [(level, frame) for level in range(3) for frame in range(known, known + 5)]
        tried = whole.ids.repeat(len(places), 7, 1, 1)  # [place, code, Q, N]
        for index, (level, frame) in enumerate(places):
            tried[index, :, level, frame] = torch.arange(7)
        rows = Tokens.full(tried.flatten(0, 1))
        seen, unseen = (
            model.score(StageBatch(rows, repeated(side, 7 * len(places)))).split(7)
            for side in (seeing_given, blind_given)
        )
        for (level, frame), one, other in zip(places, seen, unseen, strict=True):
            combined = (other + 2.5 * (one - other))[:, level, frame]
            assert combined[whole.ids[0, level, frame]] >= combined.max() - 1e-4


def test_guided_rows_do_not_depend_on_their_batch(kind: str) -> None:
    stage = STAGES["two"]
    model = build(kind, stage, condition_dropout=0.2)
    sampling = Sampling(guidance=3.0)
    given, prompt = given_for(stage, 9, 6), random_tokens(stage.target, 4, 1)
    both = model.generate(given, prompt, 5, sampling, row_generators(0, 2)).ids
    own = tuple(alone(g, 1) for g in given)
    single = model.generate(own, alone(prompt, 1), 5, sampling, row_generators(1, 1)).ids
    assert torch.equal(both[1], single[0])
    plain = model.generate(given, prompt, 5, Sampling(), row_generators(0, 2)).ids
    assert not torch.equal(both, plain)


def test_guidance_needs_a_model_that_learnt_to_do_without(kind: str) -> None:
    prompt = random_tokens(STAGES["slower"].target, 2)
    model, given = build(kind, STAGES["slower"]), given_for(STAGES["slower"], 5)
    with pytest.raises(GenerationError, match="condition_dropout"):
        model.generate(given, prompt, 3, Sampling(guidance=2), row_generators(0, 1))


def test_what_is_given_nothing_is_guided_by_its_prompt(kind: str) -> None:
    """Greedily, every token is the best under the logits after the prompt and after its last second
    combined, redone uncached."""
    stage = STAGES["levels"]
    model, second = build(kind, stage), math.ceil(stage.target.frame_rate)
    lengths = second + 6, second - 1
    prompt = random_tokens(stage.target, *lengths)
    sampling = Sampling(temperature=0, prompt_guidance=2.5)
    new = model.generate((), prompt, 5, sampling, row_generators(0, 2))
    for row, known in enumerate(lengths):
        whole, first = alone(prompt.append(new), row).ids, max(0, known - second)
        for level in range(whole.shape[1]):
            for frame in range(known, known + 5):
                tried = whole.repeat(7, 1, 1)
                tried[:, level, frame] = torch.arange(7)
                seen = model.score(StageBatch(Tokens.full(tried), ()))[:, level, frame]
                less = model.score(StageBatch(Tokens.full(tried[:, :, first:]), ()))
                other = less[:, level, frame - first]
                combined = other + 2.5 * (seen - other)
                assert combined[whole[0, level, frame]] >= combined.max() - 1e-4


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_a_prompt_guides_beside_what_is_given(kind: str, guidance: float) -> None:
    """Greedily, every token is the best under the logits after all, after the prompt alone and
    after the given slice alone combined, redone uncached."""
    stage, new = STAGES["slower"], 4
    model, lengths = build(kind, stage, condition_dropout=0.2), (4, 2)
    given, prompt = given_for(stage, 8, 6), random_tokens(stage.target, *lengths)
    sampling = Sampling(temperature=0, guidance=guidance, prompt_guidance=2.5)
    made = model.generate(given, prompt, new, sampling, row_generators(0, 2))
    for row, known in enumerate(lengths):
        whole = alone(prompt.append(made), row).ids
        own = tuple(alone(g, row) for g in given)
        none = tuple(Tokens(g.ids, torch.zeros_like(g.lengths)) for g in own)
        later = tuple(
            Tokens.full(g.ids[:, :, stage.given_frames(index, known) :])
            for index, g in enumerate(own)
        )
        for level in range(whole.shape[1]):
            for frame in range(known, known + new):
                tried = whole.repeat(7, 1, 1)
                tried[:, level, frame] = torch.arange(7)
                at = frame - known - new  # counted from the end
                seen, blind, unprompted = (
                    model.score(StageBatch(Tokens.full(ids), repeated(side, 7)))[:, level, at]
                    for ids, side in ((tried, own), (tried, none), (tried[:, :, known:], later))
                )
                combined = blind + guidance * (seen - blind) + 1.5 * (seen - unprompted)
                assert combined[whole[0, level, frame]] >= combined.max() - 1e-4


def test_conditions_are_dropped_in_training_only(kind: str, monkeypatch: MonkeyPatch) -> None:
    stage = STAGES["slower"]
    model = build(kind, stage, condition_dropout=0.5).train()
    batch = batch_for(stage, 6, 4)
    none = tuple(Tokens(g.ids, torch.zeros_like(g.lengths)) for g in batch.given)
    seeing, blind = model.eval().loss(batch), model.loss(StageBatch(batch.target, none))
    model.train()
    for drawn_number, wanted in ((0.6, seeing), (0.4, blind)):
        monkeypatch.setattr(torch, "rand", lambda n, x=drawn_number, **_: torch.full((n,), x))
        torch.testing.assert_close(model.loss(batch).total, wanted.total)
    model.eval()
    torch.testing.assert_close(model.loss(batch).total, seeing.total)


def test_iterations_are_refused_by_models_that_draw_once(kind: str) -> None:
    model = build(kind, STAGES["plain"])
    prompt = random_tokens(STAGES["plain"].target, 2)
    with pytest.raises(GenerationError, match="masks"):
        model.generate((), prompt, 3, Sampling(iterations=(4,)), row_generators(0, 1))


# --- where audio ends ----------------------------------------------------------------------


def ends_after(model: CausalLM, frames: int) -> None:
    """Make ends certain: the head's odds depend on nothing but its bias."""
    assert model.end_head is not None
    with torch.no_grad():
        model.end_head.weight.zero_()
        model.end_head.bias.fill_(frames)


#: One model of each way to draw; the head that learns ends is the same in their variants.
ENDING = [
    ("flat", "plain"),
    *((k, "levels") for k in ("flat", "delay", "delay_flattened", "depth")),
]
OTHERS = [(kind, name) for kind in MODELS for name in ("plain", "levels")]
OTHERS = [pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHERS if pair not in ENDING]


@pytest.mark.parametrize(("kind", "name"), [*ENDING, *OTHERS])
def test_ends_are_learnt_where_recordings_end_and_nowhere_else(kind: str, name: str) -> None:
    """Random crops do not teach to stop at the crop's length."""
    stage = STAGES[name]
    model = build(kind, stage, spread=0.0, end_of_audio=True)
    long, short = random_tokens(stage.target, 8), random_tokens(stage.target, 8, seed=5)
    batch = StageBatch(Tokens(torch.cat([long.ids, short.ids]), torch.tensor([8, 5])))
    ends = torch.zeros(2, 8, dtype=torch.bool)
    ends[1, 4] = True  # the second is whole, the first a crop
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    prompt = Tokens(batch.target.ids[:, :, :3], torch.tensor([3, 3]))
    for step in range(1, 601):
        optimizer.zero_grad()
        model.loss(StageBatch(batch.target, (), ends)).total.backward()
        optimizer.step()
        if step % 10:
            continue
        # How many steps it takes depends on rounding, which depends on the number of threads.
        new = model.generate((), prompt, 5, GREEDY, row_generators(0, 2))
        learnt = torch.equal(new.ids[0], long.ids[0, :, 3:])
        if learnt and torch.equal(new.ids[1, :, :2], short.ids[0, :, 3:5]):
            break
    assert new.lengths.tolist() == [5, 2]
    assert not new.ids[1, :, 2:].any()  # padding is 0, not what stands for "no code"
    assert torch.equal(new.ids[1, :, :2], short.ids[0, :, 3:5])
    assert torch.equal(new.ids[0], long.ids[0, :, 3:])


def test_ends_are_no_part_of_the_likelihood(kind: str) -> None:
    """No code stands for the end: every legal code stays reachable, and scores stay the same."""
    stage = STAGES["levels"]
    plain, ending = build(kind, stage), build(kind, stage, end_of_audio=True)
    ending.load_state_dict(plain.state_dict(), strict=False)
    batch = batch_for(stage, 6, 3)
    torch.testing.assert_close(ending.score(batch), plain.score(batch), atol=0, rtol=0)
    assert torch.equal(ending.loss(batch).total, plain.loss(batch).total)  # ends are not known


def test_no_row_ends_before_it_has_a_frame_and_none_goes_on_after(kind: str) -> None:
    stage = STAGES["levels"]
    model = build(kind, stage, end_of_audio=True)
    ends_after(model, 50)
    prompt = Tokens.empty(2, 3)
    new = model.generate((), prompt, 6, Sampling(), row_generators(0, 2))
    assert new.lengths.tolist() == [1, 1]
    prompt = random_tokens(stage.target, 2, 3)
    assert model.generate((), prompt, 6, Sampling(), row_generators(0, 2)).lengths.sum() == 0
    ends_after(model, -50)
    assert (
        model.generate((), prompt, 6, Sampling(), row_generators(0, 2)).lengths.tolist() == [6] * 2
    )


def test_a_stage_that_is_given_something_has_no_ends_of_its_own() -> None:
    with pytest.raises(ConfigError, match="end_of_audio"):
        build("delay", STAGES["slower"], end_of_audio=True)


def test_an_ended_row_is_the_same_in_windows(kind: str) -> None:
    stage = STAGES["plain"]
    model = build(kind, stage, end_of_audio=True)
    ends_after(model, -2)  # sigmoid(-2): ends after about eight frames
    prompt = random_tokens(stage.target, 4, 0, 2)
    arguments: dict[str, Any] = {"window": 12, "overlap": 0.5, "sampling": Sampling()}
    together = run_stage(model, [], prompt, 30, generators=row_generators(3, 3), **arguments)
    assert together.lengths.min() < 30
    for row in range(3):
        single = run_stage(
            model, [], alone(prompt, row), 30, generators=row_generators(3 + row, 1), **arguments
        )
        assert torch.equal(single.row(0), together.row(row))


# --- what counts ---------------------------------------------------------------------------


def test_only_counted_frames_are_learnt_from(kind: str) -> None:
    model = build(kind, STAGES["slower"])
    batch = batch_for(STAGES["slower"], 6, 4)
    counted = torch.zeros(2, 6, dtype=torch.bool)
    counted[0, 2:5] = True
    scores = model.score(batch)
    loss = model.loss(StageBatch(batch.target, batch.given, None, counted))
    torch.testing.assert_close(loss.per_level, -scores[0, :, 2:5].mean(dim=1))


def test_threads_are_those_of_pytorch_and_no_more_than_cores(monkeypatch: MonkeyPatch) -> None:
    much = 10 * native_step.PRODUCTS_PER_THREAD
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3}, raising=False)
    assert native_step.num_threads(much) == 2
    assert native_step.num_threads(1) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert native_step.num_threads(much) == 1


def test_memory_of_a_cache_that_is_gone_is_used_again(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_FREE", {})
    monkeypatch.setattr(pages, "KEPT_BYTES", 2**22)
    first, second = (KeyValueCache(2, 1000, halves=True) for _ in range(2))
    for cache in (first, second):
        cache.reserve(torch.zeros(4, 2, 0, 64))  # two layers of keys and values: 4 MB
    address = first.layers[0][0].data_ptr()  # type: ignore[index]
    assert address != second.layers[0][0].data_ptr()  # type: ignore[index]
    del first, cache
    third = KeyValueCache(2, 500, halves=True)
    third.reserve(torch.zeros(4, 2, 0, 64))
    assert third.layers[0][0].data_ptr() == address  # type: ignore[index]
    del second, third
    assert 0 < sum(map(len, pages._FREE.values())) <= 2**22  # of two


def test_threads_with_rows_of_their_own_do_not_meet(
    two_threads: None, monkeypatch: MonkeyPatch
) -> None:
    """They are in different steps, which draw different numbers of levels."""
    decoding("native")
    stage = StageSpec("acoustic", SliceSpec("acoustic", 0, 8, 1024, Fraction(50)))
    model = build("delay", stage, spread=0.02).eval()

    def new() -> torch.Tensor:
        prompt = random_tokens(stage.target, *[3] * 8)
        return model.generate((), prompt, 12, Sampling(), row_generators(0, 8)).ids

    shared = new()  # little work: by one thread
    monkeypatch.setattr(native_step, "PRODUCTS_APART", 1)
    for _ in range(20):
        assert torch.equal(new(), shared)


@pytest.mark.parametrize("code", [8, 100_000])
def test_no_code_makes_the_kernel_read_other_memory(code: int) -> None:
    """The last frame's second level is read by a step, not by the prefix."""
    decoding("native")
    model = build("delay", STAGES["levels"]).eval()
    prompt = random_tokens(model.stage.target, 4)
    prompt.ids[0, 2, 3] = code
    with pytest.raises(IndexError):
        model.generate((), prompt, 4, Sampling(), row_generators(0, 1))
