"""Crops of tokens: aligned, of one group, all of them once an epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.data_helpers import GROUP, bound, clock_recordings, clocks, stage, timed

from segue.core.errors import DataError
from segue.core.spec import StageSpec
from segue.data.epochs import Share
from segue.data.recordings import Recording, RecordingsBuilder, Split
from segue.data.store_writer import write_store
from segue.data.token_crops import TokenCrops
from segue.data.token_store import TokenStore
from segue.inference.generation import window_frames


@pytest.fixture
def recordings(tmp_path: Path) -> dict[Split, list[Recording]]:
    return clock_recordings(tmp_path / "audio")


@pytest.fixture
def store(tmp_path: Path, recordings: dict[Split, list[Recording]]) -> TokenStore:
    return TokenStore(write_store(tmp_path / "tokens", clocks(), recordings), "train")


@pytest.mark.parametrize(
    ("target", "given"),
    [
        ("acoustic 0 2", ("semantic",)),
        ("semantic", ("acoustic 1 3",)),
        ("acoustic 2 4", ("semantic", "acoustic 0 2")),
        ("acoustic 0 4", ()),
    ],
)
def test_crops_of_all_slices_are_aligned_and_of_one_group(
    store: TokenStore, target: str, given: tuple[str, ...]
) -> None:
    spec = stage(store, target, *given)
    parts = (spec.target, *spec.given)
    slowest = min(part.frame_rate for part in parts)
    crops = TokenCrops(store, spec, 0.5, 40, 0)
    for step in range(5):
        batch = crops.batch(step)
        assert len(batch.given) == len(given)
        for row in range(40):
            slices = [batch.target.row(row), *(part.row(row) for part in batch.given)]
            times = []
            for part, tokens in zip(parts, slices, strict=True):
                assert tokens.dtype == torch.int64 and tokens.shape[0] == part.num_levels
                times.append(tokens[0, :: int(part.frame_rate / slowest)])
            assert all(torch.equal(times[0], other) for other in times[1:])
            assert len(set((times[0] // GROUP).tolist())) == 1


def test_short_recordings_are_joined_to_others_of_their_group(store: TokenStore) -> None:
    """Group 1 holds 49 slow frames in three recordings, the longest of 22."""
    crops = TokenCrops(store, stage(store, "semantic"), 1.6, 64, 0)
    batch = crops.batch(0)
    orders = set()
    for row in batch.target.rows():
        time = row[0]
        if int(time[0]) // GROUP == 1:
            assert row.shape[1] == 40
            jumps = (time.diff() != 2).nonzero()[:, 0]
            assert 1 <= len(jumps) <= 3  # the first one may come round again at the end
            orders.add(tuple((time[[0, *(jumps + 1).tolist()]] % GROUP // 100).tolist()))
            assert len(time.unique()) == 40
    assert len(orders) > 3  # in random order


def test_ends_are_where_recordings_end_and_not_where_crops_do(store: TokenStore) -> None:
    batch = TokenCrops(store, stage(store, "semantic"), 1.6, 64, 0).batch(0)
    assert batch.ends is not None and batch.ends.shape == batch.target.mask.shape
    whole = slice(0, 1)
    last = {
        int(store.read(r, "semantic", whole, int(n) - 1, int(n)))
        for r, n in enumerate(store.frames)
    }  # a clock's last tick
    for row, ends in zip(batch.target.rows(), batch.ends, strict=True):
        wanted = [int(token) in last for token in row[0]]
        assert ends[: row.shape[1]].tolist() == wanted
        assert not ends[row.shape[1] :].any()
    assert batch.ends.any() and not batch.ends[:, -1].all()


def test_a_group_shorter_than_a_crop_is_taken_whole(store: TokenStore) -> None:
    batch = TokenCrops(store, stage(store, "semantic"), 1.6, 400, 0).batch(0)
    short = [row for row in batch.target.rows() if int(row[0, 0]) // GROUP == 3]
    assert short and all(row[0].tolist() == list(range(3000, 3012, 2)) for row in short)
    assert int(batch.target.lengths.max()) == 40
    assert len(short) == 400 / 5  # crops an epoch: the others have 60 and 49 frames, two each


def covered(store: TokenStore, crops: TokenCrops, steps: range) -> set[int]:
    """Ids of all frames in some batches: they tell group and time."""
    ids: set[int] = set()
    for step in steps:
        for row in crops.batch(step).target.rows():
            ids |= set(row[0].tolist())
    return ids


def test_an_epoch_holds_every_frame(store: TokenStore) -> None:
    every = {
        int(token)
        for index, frames in enumerate(store.frames)
        for token in store.read(index, "semantic", slice(0, 1), 0, int(frames))[0]
    }
    crops = TokenCrops(store, stage(store, "semantic"), 0.4, 2, 7)
    joined = {token for token in every if token // GROUP == 1}
    for epoch in range(5):
        steps = range(epoch * crops.epochs.steps, (epoch + 1) * crops.epochs.steps)
        found = covered(store, crops, steps)
        assert joined <= found  # a group of several is covered whole
        assert {token // GROUP for token in found} == {0, 1, 3}
        assert found <= every and len(found) > 0.8 * len(every)


def test_an_epoch_s_crops_differ_from_the_next_one_s(store: TokenStore) -> None:
    crops = TokenCrops(store, stage(store, "semantic"), 0.4, 2, 7)
    first, second = (
        [tuple(row[0].tolist()) for step in range(begin, begin + crops.epochs.steps)
         for row in crops.batch(step).target.rows()]
        for begin in (0, crops.epochs.steps)
    )  # fmt: skip
    assert len(first) == len(second) and len(set(first) & set(second)) < len(first) / 2


def test_shares_make_up_the_whole_batch(store: TokenStore) -> None:
    crops = TokenCrops(store, stage(store, "semantic"), 0.4, 6, 7)
    for step in (0, 5):
        whole = crops.batch(step).target
        for index in range(3):
            part = crops.batch(step, Share(index, 3)).target
            for mine, row in zip(part.rows(), list(whole.rows())[index::3], strict=True):
                assert torch.equal(mine, row)


def test_weights_of_sources_say_how_often(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    items = [replace(timed(tmp_path / "audio", g, f"{g}", 0, 100), source=g) for g in range(2)]
    builder = RecordingsBuilder()
    for item in items:
        builder.add(item)
    for weights, counts in (((1.0, 3.0), (10, 30)), ((0.5, 1.0), (5, 10))):
        directory = write_store(tmp_path / "t", clocks(), {"train": builder.build(weights)})
        store = TokenStore(directory, "train")  # new weights need no new tokens
        crops = TokenCrops(store, stage(store, "semantic"), 0.2, 1, 0)
        assert crops.epochs.size == sum(counts)
        groups = [int(crops.batch(s).target.ids[0, 0, 0]) // GROUP for s in range(sum(counts))]
        assert (groups.count(0), groups.count(1)) == counts


def test_every_place_of_a_recording_is_cropped(store: TokenStore) -> None:
    crops = TokenCrops(store, stage(store, "semantic"), 1.6, 400, 0)
    rows = list(crops.batch(0).target.rows())
    starts = {int(row[0, 0]) // 2 for row in rows if int(row[0, 0]) // GROUP == 0}
    assert starts == set(range(21))  # 60 frames, crops of 40


def test_token_batches_depend_on_the_seed_and_the_step_alone(
    store: TokenStore, tmp_path: Path
) -> None:
    spec = stage(store, "acoustic 0 2", "semantic")
    crops = TokenCrops(store, spec, 0.4, 8, seed=5)
    batches = [crops.batch(step) for step in range(4)]
    again = TokenCrops(TokenStore(tmp_path / "tokens", "train"), spec, 0.4, 8, seed=5)
    torch.rand(3)
    for step in (3, 1):
        batch = again.batch(step)
        assert torch.equal(batch.target.ids, batches[step].target.ids)
        assert torch.equal(batch.given[0].ids, batches[step].given[0].ids)
    assert not torch.equal(batches[0].target.ids, batches[1].target.ids)
    other = TokenCrops(store, spec, 0.4, 8, seed=6).batch(0)
    assert not torch.equal(other.target.ids, batches[0].target.ids)


@pytest.mark.parametrize("seconds", [0.01, 0.1, 0.29, 0.3, 0.57, 0.58, 1.01])
@pytest.mark.parametrize("target", ["acoustic 0 2", "semantic"])
def test_a_window_of_generation_is_as_long_as_a_crop(
    store: TokenStore, target: str, seconds: float
) -> None:
    other = "semantic" if target != "semantic" else "acoustic 0 1"
    spec = stage(store, target, other)
    batch = TokenCrops(store, spec, seconds, 50, 0).batch(0)
    assert int(batch.target.lengths.max()) == window_frames(spec, seconds)


def test_other_tokens_than_a_stage_s_are_refused(store: TokenStore) -> None:
    ours = store.streams["semantic"].fingerprint
    other = bound(store, "semantic", fingerprint="feedbeef")
    for spec in (
        StageSpec("coarse", bound(store, "acoustic 0 2"), (other,)),
        StageSpec("coarse", other),
    ):
        with pytest.raises(DataError) as caught:
            TokenCrops(store, spec, 0.5, 4, 0)
        assert caught.value.place == str(store.directory)
        for name in (ours, "feedbeef", "coarse", "semantic"):
            assert name in caught.value.problem


def test_a_store_without_a_stream_is_refused(
    tmp_path: Path, store: TokenStore, recordings: dict[Split, list[Recording]]
) -> None:
    acoustic = {"acoustic": clocks()["acoustic"]}
    lone = TokenStore(write_store(tmp_path / "lone", acoustic, recordings), "train")
    with pytest.raises(DataError, match=r"lone: holds no semantic tokens; tokenize again"):
        TokenCrops(lone, stage(store, "acoustic 0 2", "semantic"), 0.5, 4, 0)
