"""Tokens are drawn from the distribution that was asked for, row by row."""

from __future__ import annotations

import math

import pytest
import torch

from segue.core.options import Sampling
from segue.core.sampling import keep_top_k, keep_top_p, own_generator, row_generators, sample

INF = math.inf


def logits_of(*probabilities: float) -> torch.Tensor:
    """One row ``[1, V]``."""
    return torch.tensor([probabilities]).log()


def kept(logits: torch.Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero()[:, 0].tolist() for row in logits]


def shares(logits: torch.Tensor, sampling: Sampling, draws: int = 20_000) -> torch.Tensor:
    """How often each token comes: some drawn on from one generator, others once from each."""
    generator = torch.Generator().manual_seed(5)
    one = [int(sample(logits, sampling, [generator])) for _ in range(draws // 20)]
    rest = draws - len(one)
    many = sample(logits.expand(rest, -1), sampling, row_generators(9, rest))
    counts = torch.bincount(torch.cat([torch.tensor(one), many]), minlength=logits.shape[1])
    return counts / draws


# --- greedy -----------------------------------------------------------------------------------


def test_greedy_takes_the_most_likely_and_uses_no_randomness() -> None:
    logits = torch.tensor([[0.1, 3.0, -2.0], [5.0, 4.9, 0.0], [-9.0, -INF, -8.0]])
    generators = row_generators(0, 3)
    states = [generator.get_state() for generator in generators]
    before = torch.get_rng_state()
    drawn = sample(logits, Sampling(temperature=0), generators)
    assert drawn.tolist() == [1, 0, 2] and drawn.dtype == torch.int64
    assert torch.equal(torch.get_rng_state(), before)
    after = [generator.get_state() for generator in generators]
    assert all(torch.equal(a, b) for a, b in zip(states, after, strict=True))


def test_greedy_ignores_top_k_and_top_p() -> None:
    sampling = Sampling(temperature=0, top_k=2, top_p=0.1)
    assert sample(logits_of(0.2, 0.1, 0.7), sampling, row_generators(0, 1)).tolist() == [2]


def test_seeds_stages_and_candidates_have_numbers_of_their_own() -> None:
    """PyTorch keeps the lower half of a seed: numbers added above it must count, too."""
    asked = [(1,), (1 + 2**32,), (1, 0, 1), (1, 1, 0), (2, 0, 0), (1, 0, 0)]
    draws = [torch.rand(4, generator=own_generator(*numbers)).tolist() for numbers in asked]
    assert len({tuple(draw) for draw in draws}) == len(asked)
    assert torch.rand(4, generator=own_generator(1, 0, 1)).tolist() == draws[2]


def test_drawing_uses_its_own_generators_only() -> None:
    generators = row_generators(0, 2)
    state, other = torch.get_rng_state(), generators[1].get_state()
    sample(torch.zeros(1, 5), Sampling(), generators[:1])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(generators[1].get_state(), other)
    assert not torch.equal(generators[0].get_state(), row_generators(0, 1)[0].get_state())


# --- top-k and top-p --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "expected"),
    [(1, [3]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3])],
)
def test_top_k_keeps_the_k_largest(k: int, expected: list[int]) -> None:
    logits = torch.tensor([[0.5, 2.0, -1.0, 3.0]])
    limited = keep_top_k(logits, k)
    assert kept(limited) == [expected]
    assert torch.equal(limited[0, expected], logits[0, expected])


def test_top_k_keeps_ties_and_works_row_by_row() -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0, 0.0], [4.0, 3.0, 2.0, 1.0]])
    assert kept(keep_top_k(logits, 2)) == [[0, 1, 2], [0, 1]]


def test_top_k_does_not_bring_back_what_is_banned() -> None:
    assert kept(keep_top_k(torch.tensor([[-INF, 1.0, -INF, -INF]]), 3)) == [[1]]


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (1e-6, [2]),
        (0.49, [2]),
        (0.51, [0, 2]),
        (0.74, [0, 2]),
        (0.76, [0, 2, 3]),
        (0.9, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(p: float, expected: list[int]) -> None:
    logits = logits_of(0.25, 0.12, 0.5, 0.13)
    limited = keep_top_p(logits, p)
    assert kept(limited) == [expected]
    assert torch.equal(limited[0, expected], logits[0, expected])


def test_top_p_stops_where_p_is_reached_exactly() -> None:
    """Powers of two are exact, so that nothing depends on rounding."""
    assert kept(keep_top_p(logits_of(0.25, 0.5, 0.25), 0.5)) == [[1]]
    assert len(kept(keep_top_p(torch.zeros(1, 4), 0.5))[0]) == 2
    assert len(kept(keep_top_p(torch.zeros(1, 4), 0.25))[0]) == 1


def test_top_p_of_a_tie_keeps_the_right_number() -> None:
    assert len(kept(keep_top_p(torch.zeros(1, 8), 0.3))[0]) == 3
    limited = kept(keep_top_p(logits_of(0.6, 0.2, 0.2), 0.7))[0]
    assert limited in ([0, 1], [0, 2])


@pytest.mark.parametrize("p", [1e-12, 1e-46, 1e-320])
def test_the_smallest_top_p_keeps_the_best(p: float) -> None:
    assert kept(keep_top_p(logits_of(0.1, 0.2, 0.4, 0.3), p)) == [[2]]


def test_top_p_works_row_by_row() -> None:
    logits = torch.cat([logits_of(0.7, 0.2, 0.1), logits_of(0.1, 0.3, 0.6)])
    assert kept(keep_top_p(logits, 0.65)) == [[0], [1, 2]]


def test_top_p_does_not_bring_back_what_is_banned() -> None:
    assert kept(keep_top_p(torch.tensor([[-INF, 0.0, 0.0, -INF]]), 1.0)) == [[1, 2]]


def test_temperature_comes_before_top_p() -> None:
    """At temperature 2 the 0.81 of the best token is 0.69 only: too little for 0.75 alone."""
    logits = logits_of(0.81, 0.1, 0.09)
    cold = shares(logits, Sampling(top_p=0.75), 400)
    warm = shares(logits, Sampling(temperature=2, top_p=0.75), 400)
    assert cold[0] == 1 and warm[1] > 0


# --- the distribution -------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45])
def test_a_very_low_temperature_takes_the_most_likely(temperature: float) -> None:
    logits = torch.tensor([[3.0, 40.0, 50.0, -INF]]).expand(50, -1)
    drawn = sample(logits, Sampling(temperature=temperature, top_p=0.9), row_generators(0, 50))
    assert drawn.unique().tolist() == [2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = torch.tensor([[1.5, 0.0, -1.0, 0.7, -3.0, 1.4]])
    expected = (logits[0] / temperature).softmax(-1)
    found = shares(logits, Sampling(temperature=temperature))
    error = (expected * (1 - expected) / 20_000).sqrt()
    assert ((found - expected).abs() < 4.5 * error + 1e-4).all()


def test_draws_after_top_k_follow_what_is_left() -> None:
    found = shares(logits_of(0.4, 0.3, 0.2, 0.1), Sampling(top_k=2))
    torch.testing.assert_close(found, torch.tensor([4 / 7, 3 / 7, 0, 0]), atol=0.016, rtol=0)


def test_draws_after_top_p_follow_what_is_left() -> None:
    found = shares(logits_of(0.1, 0.2, 0.3, 0.4), Sampling(top_p=0.85))
    torch.testing.assert_close(found, torch.tensor([0, 2 / 9, 3 / 9, 4 / 9]), atol=0.016, rtol=0)


def test_every_token_can_be_drawn() -> None:
    """The first and the last included: no code is mistaken for an end-of-sequence token."""
    drawn = sample(torch.zeros(6000, 256), Sampling(), row_generators(0, 6000))
    assert drawn.unique().tolist() == list(range(256))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=10), Sampling(top_p=1.0)])
def test_a_banned_token_is_never_drawn(sampling: Sampling) -> None:
    logits = torch.zeros(5000, 6)
    logits[:, [0, 3, 5]] = -INF
    drawn = sample(logits, sampling, row_generators(1, 5000))
    assert drawn.unique().tolist() == [1, 2, 4]


def test_half_precision_logits_are_drawn_from_as_floats() -> None:
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    half = sample(logits, Sampling(temperature=0.9), row_generators(0, 50))
    full = sample(logits.float(), Sampling(temperature=0.9), row_generators(0, 50))
    assert torch.equal(half, full)


# --- seeds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=20, top_p=0.8, temperature=1.3)])
def test_row_i_equals_the_same_row_alone_with_seed_plus_i(sampling: Sampling) -> None:
    logits = torch.randn(4, 25, 100, generator=torch.Generator().manual_seed(0))
    together = row_generators(40, 4)
    batch = [sample(logits[:, step], sampling, together) for step in range(25)]
    for row in range(4):
        alone = row_generators(40 + row, 1)
        for step in range(25):
            assert sample(logits[row : row + 1, step], sampling, alone) == batch[step][row]


def test_a_seed_repeats_and_another_does_not() -> None:
    logits = torch.zeros(50, 100)
    first, again, other = (
        sample(logits, Sampling(), row_generators(seed, 50)) for seed in (7, 7, 1000)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(first.unique()) > 20  # the rows differ from each other
