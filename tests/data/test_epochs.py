"""The order of crops: a permutation, batches alike in length, weights."""

from __future__ import annotations

import tracemalloc

import numpy
import pytest

from segue.data.epochs import Epochs, mixed, permuted


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_a_permutation_is_one(size: int) -> None:
    orders = [permuted(numpy.arange(size), size, seed).tolist() for seed in range(3)]
    for order in orders:
        assert sorted(order) == list(range(size))
    if size > 10:
        assert orders[0] != orders[1] != orders[2]
        moved = numpy.array(orders[0])
        assert abs(numpy.corrcoef(moved, numpy.arange(size))[0, 1]) < 4 / size**0.5


def test_a_permutation_stays_what_it_is() -> None:
    """Others would break the exact resume of runs that are under way."""
    assert mixed(1, 2, 3) == 7702586659592502839
    assert permuted(numpy.arange(8), 8, 42).tolist() == [2, 3, 4, 1, 5, 0, 7, 6]


def epochs(
    slots: list[int], lengths: list[int], batch: int, seed: int = 0, **more: float
) -> Epochs:
    weights = numpy.full(len(slots), more.get("weight", 1.0))
    return Epochs(numpy.array(slots), numpy.array(lengths), weights, batch, seed)


def test_an_epoch_goes_through_all_once() -> None:
    order = epochs([3, 0, 5, 4], [1, 1, 1, 1], 4)
    assert (order.size, order.steps) == (12, 3)
    for epoch in range(4):
        rows = [row for step in range(3) for row in order.rows(3 * epoch + step, range(4))]
        found = sorted((row.unit, row.slot) for row in rows)
        assert found == [(u, s) for u, n in ((0, 3), (2, 5), (3, 4)) for s in range(n)]
        assert {row.turn for row in rows} == {epoch}


def test_the_last_batch_is_filled_up_with_new_turns() -> None:
    order = epochs([2], [1], 5)
    rows = order.rows(0, range(5))
    assert len({(row.slot, row.turn) for row in rows}) == 5
    assert {row.turn for row in rows} == {0, 1, 2}
    assert {row.turn for row in order.rows(1, range(5))} == {3, 4, 5}


def test_rows_depend_on_the_step_alone() -> None:
    whole = epochs([7] * 50, list(range(1, 51)), 8, seed=3)
    batches = {step: whole.rows(step, range(8)) for step in range(100)}
    again = epochs([7] * 50, list(range(1, 51)), 8, seed=3)
    for step in (99, 3, 43, 44, 0):
        assert again.rows(step, range(8)) == batches[step]
        assert again.rows(step, range(1, 8, 2)) == batches[step][1::2]
    assert epochs([7] * 50, list(range(1, 51)), 8, seed=4).rows(0, range(8)) != batches[0]


def test_rows_of_a_batch_are_alike_in_length() -> None:
    lengths = numpy.random.default_rng(0).integers(1, 1000, 4000)
    order = epochs([1] * 4000, lengths.tolist(), 16)
    unsorted = 1 - lengths.reshape(-1, 16).mean() / lengths.reshape(-1, 16).max(1).mean()
    batches = numpy.array([
        [lengths[row.unit] for row in order.rows(step, range(16))] for step in range(order.steps)
    ])  # fmt: skip
    assert unsorted > 0.4 and 1 - batches.mean() / batches.max(1).mean() < 0.05
    first = [lengths[order.rows(step, range(1))[0].unit] for step in range(32)]
    assert first != sorted(first)  # but batches come in any order


def test_a_data_set_of_millions_is_ready_at_once() -> None:
    """More than 2^24 crops, which torch.multinomial could not draw from."""
    slots = numpy.ones(20_000_000, numpy.int64)
    order = Epochs(slots, slots, slots.astype(float), 32, 0)
    tracemalloc.start()
    rows = order.rows(300_000, range(32))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1e6  # bytes; a list of the crops would have 160 MB
    assert len({row.unit for row in rows}) == 32 and max(row.unit for row in rows) > 2**24


def test_fractional_weights_take_turns() -> None:
    order = epochs([1] * 10, [1] * 10, 5, weight=0.5)
    halves = [{r.unit for s in (e,) for r in order.rows(s, range(5))} for e in range(12)]
    assert all(len(half) == 5 for half in halves) and len(set().union(*halves)) == 10
