"""ABX errors, warping and items: known answers, and plain Python to compare with."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from tests.conftest import melody
from torch.utils._python_dispatch import TorchDispatchMode

from segue.core.audio import Audio
from segue.core.config_files import load_config
from segue.core.errors import DataError
from segue.evaluation import abx as abx_module
from segue.evaluation import abx as dtw
from segue.evaluation.abx import abx_errors, frame_distances, pair_distances, warped
from segue.evaluation.representations import (
    Representation,
    log_mel,
    mfcc,
    of_tokenizer,
    piece,
    plain_features,
)
from segue.evaluation.semantic import evaluate_semantic, label_bits
from segue.evaluation.statistics import mutual_information
from segue.evaluation.subjects import Item, load_items, thinned

# --- warping ----------------------------------------------------------------------------------


def abx(*compared: Any) -> dict[str, dict[str, Any]]:
    return {name: errors.estimate() for name, errors in abx_errors(*compared).items()}


def plain_warping(costs: list[list[float]]) -> float:
    """The same by loops: cheapest sum, and the length of the path walked back from the end."""
    height, width = len(costs), len(costs[0])
    total = [[math.inf] * width for _ in range(height)]
    for i, j in itertools.product(range(height), range(width)):
        before = [total[a][b] for a, b in steps(i, j)]
        total[i][j] = costs[i][j] + (min(before) if before else 0.0)
    i, j, length = height - 1, width - 1, 1
    while steps(i, j):
        i, j = min(steps(i, j), key=lambda cell: total[cell[0]][cell[1]])
        length += 1
    return total[-1][-1] / length


def steps(i: int, j: int) -> list[tuple[int, int]]:
    """Cells before one: both, then right, then down."""
    cells = [(i - 1, j - 1), (i, j - 1), (i - 1, j)]
    return [cell for cell in cells if min(cell) >= 0]


def test_warping_is_what_loops_make_it() -> None:
    random = torch.Generator().manual_seed(0)
    for height, width in ((1, 1), (1, 6), (7, 1), (5, 5), (9, 4), (3, 11)):
        costs = torch.rand(4, height, width, generator=random)
        found = warped(costs, torch.full((4,), height), torch.full((4,), width))
        expected = [plain_warping(table) for table in costs.tolist()]
        assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_ties_are_broken_as_in_loops() -> None:
    costs = torch.randint(2, (50, 6, 8), generator=torch.Generator().manual_seed(1)).float()
    found = warped(costs, torch.full((50,), 6), torch.full((50,), 8))
    assert found.tolist() == pytest.approx([plain_warping(t) for t in costs.tolist()], abs=1e-6)


@pytest.mark.parametrize("distance", ["angular", "hamming"])
def test_padding_and_batches_change_nothing(
    distance: dtw.Distance, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = torch.Generator().manual_seed(2)
    sizes = (1, 3, 8, 5, 12, 2, 30)
    if distance == "angular":
        sequences = [torch.randn(size, 5, generator=random) for size in sizes]
    else:
        sequences = [torch.randint(3, (size, 2), generator=random) for size in sizes]
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    expected = [
        plain_warping(frame_distances(sequences[a][None], sequences[b][None], distance)[0].tolist())
        for a, b in pairs.tolist()
    ]
    for cells in (10, 200, 1 << 20):
        monkeypatch.setattr(dtw, "TABLE_CELLS", cells)
        found = pair_distances(sequences, pairs, distance)
        assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_sequence_said_slowly_is_the_same() -> None:
    sequence = torch.randn(9, 6, generator=torch.Generator().manual_seed(3))
    slow = sequence.repeat_interleave(3, dim=0)
    pairs = torch.tensor([[0, 1], [0, 2]])
    same, other = pair_distances([sequence, slow, sequence.flip(0)], pairs, "angular").tolist()
    assert same < 1e-3 < 0.1 < other


def test_distances_of_frames() -> None:
    a, b = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]])
    assert frame_distances(a, b, "angular").flatten().tolist() == pytest.approx([0, 0.5, 1])
    ids, others = torch.tensor([[[1, 2]]]), torch.tensor([[[1, 2], [1, 0], [0, 0]]])
    assert frame_distances(ids, others, "hamming").flatten().tolist() == [0, 0.5, 1]


# --- ABX --------------------------------------------------------------------------------------


def grid(labels: int, speakers: int, takes: int, contexts: int = 1) -> list[Item]:
    return [
        Item(Path(f"{take}.wav"), f"word{label}", f"speaker{speaker}", f"context{context}")
        for context in range(contexts)
        for speaker in range(speakers)
        for label in range(labels)
        for take in range(takes)
    ]


def test_separable_categories_have_no_error() -> None:
    items = grid(3, 4, 2, contexts=2)
    sequences = [torch.eye(3)[[int(item.label[-1])] * 5] for item in items]
    found = abx(items, sequences, "angular")
    for side in ("within", "across"):
        assert found[side]["mean"] == found[side]["low"] == found[side]["high"] == 0
        assert found[side]["count"] == 4
    # 2 contexts, 4 speakers, 3 x 2 pairs of labels, 2 choices of A and 1 of X, 2 of B.
    assert found["within"]["triples"] == 2 * 4 * 6 * 2 * 1 * 2
    assert found["across"]["triples"] == 2 * 4 * 3 * 6 * 2 * 2 * 2


def test_one_label_swapped_for_another_is_all_wrong() -> None:
    items = grid(2, 2, 1)
    # What speaker 0 calls word 0 sounds like speaker 1's word 1, and the other way round.
    swapped = [int(item.label[-1]) ^ int(item.speaker[-1]) for item in items]
    found = abx(items, [torch.eye(2)[[code] * 3] for code in swapped], "angular")
    assert list(found) == ["across"] and found["across"]["mean"] == 1.0


def test_categories_that_mean_nothing_are_at_chance() -> None:
    random = torch.Generator().manual_seed(0)
    items = grid(5, 8, 3)
    found = abx(items, [torch.randn(4, 16, generator=random) for _ in items], "angular")
    for side in ("within", "across"):
        assert found[side]["mean"] == pytest.approx(0.5, abs=0.04)
        assert found[side]["low"] < found[side]["mean"] < found[side]["high"]
    alike = abx(items, [torch.zeros(3, 1, dtype=torch.long) for _ in items], "hamming")
    assert alike["within"]["mean"] == alike["across"]["mean"] == 0.5  # all are tied


def test_errors_are_averaged_over_contexts_speakers_and_labels_in_turn() -> None:
    random = torch.Generator().manual_seed(4)
    items = [item for item in grid(3, 3, 3, contexts=2) if torch.rand(1, generator=random) > 0.2]
    sequences = [torch.randn(3, 2, generator=random) for _ in items]
    found = abx(items, sequences, "angular")
    for side in ("within", "across"):
        assert found[side]["mean"] == pytest.approx(plain_abx(items, sequences, side), abs=1e-6)


def plain_abx(items: list[Item], sequences: list[torch.Tensor], side: str) -> float:
    size = len(items)
    pairs = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    distances = pair_distances(sequences, pairs, "angular").reshape(size, size)
    cells: dict[tuple[str, ...], list[float]] = {}
    for a, b, x in itertools.permutations(range(size), 3):
        A, B, X = items[a], items[b], items[x]  # noqa: N806
        if A.label != X.label or A.label == B.label or A.speaker != B.speaker:
            continue
        if len({A.context, B.context, X.context}) > 1 or (A.speaker == X.speaker) != (
            side == "within"
        ):
            continue
        near, far = float(distances[a, x]), float(distances[b, x])
        key = (A.label, B.label, A.speaker, X.speaker, A.context)
        cells.setdefault(key, []).append((near > far) + 0.5 * (near == far))
    means = {key: sum(values) / len(values) for key, values in cells.items()}
    for drop in (1, 2):  # contexts, then both speakers
        groups: dict[tuple[str, ...], list[float]] = {}
        for key, value in means.items():
            groups.setdefault(key[:-drop], []).append(value)
        means = {key: sum(values) / len(values) for key, values in groups.items()}
    return sum(means.values()) / len(means)


@pytest.mark.parametrize(("speakers", "known"), [(2, False), (3, True)])
def test_few_speakers_have_no_interval(speakers: int, known: bool) -> None:
    random = torch.Generator().manual_seed(5)
    items = grid(3, speakers, 2)
    # One who says nothing that another can be held against counts for nothing.
    items.append(Item(Path("x.wav"), "word9", "speaker9", "context0"))
    found = abx(items, [torch.randn(3, 4, generator=random) for _ in items], "angular")
    for side in ("within", "across"):
        assert found[side]["count"] == speakers
        assert (found[side]["low"] is not None) == (found[side]["high"] is not None) == known


def test_two_representations_are_held_against_each_other_on_the_same_triples() -> None:
    """Speakers differ more from each other than either representation does from the other."""
    random = torch.Generator().manual_seed(7)
    items = grid(4, 8, 2)
    clear = torch.stack([3 * torch.eye(4)[int(item.label[-1])] for item in items])
    blurred = torch.stack(
        [int(item.speaker[-1]) * torch.randn(4, generator=random) for item in items]
    )
    worse = clear + 0.4 * blurred
    better = worse + 0.3 * (clear - worse)
    one, other = (
        abx_errors(items, [frame.expand(3, 4) for frame in frames], "angular")["across"]
        for frames in (better, worse)
    )
    found, alone = one.less(other).estimate(), [one.estimate(), other.estimate()]
    assert found["mean"] == pytest.approx(alone[0]["mean"] - alone[1]["mean"])
    assert found["high"] < 0 and (found["count"], found["triples"]) == (8, alone[0]["triples"])
    assert alone[0]["high"] > alone[1]["low"]  # which by themselves would not tell
    same = one.less(one).estimate()
    assert same["mean"] == same["low"] == same["high"] == 0


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that is made."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.size = max(self.size, made.untyped_storage().nbytes())
        return made


def test_many_items_of_one_speaker_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(6)
    distances = torch.randint(9, (350, 350), generator=random).float()  # many are tied
    labels = torch.arange(350) % 7
    with LargestTensor() as largest:
        found = abx_module._cell(distances, labels, labels, 7, same=True)
    assert largest.size < 10e6  # three such tensors; all triples at once are 172 MB each
    monkeypatch.setattr(abx_module, "MAX_CELLS", 350**3)
    with LargestTensor() as largest:
        assert all(map(torch.equal, found, abx_module._cell(distances, labels, labels, 7, True)))
    assert largest.size > 100e6


def test_what_cannot_be_compared_is_refused() -> None:
    frames = [torch.randn(2, 2) for _ in range(4)]
    with pytest.raises(DataError, match="no two labels share a context"):
        abx(grid(1, 2, 2), frames, "angular")
    with pytest.raises(DataError, match="no label has two items"):
        abx(grid(4, 1, 1), frames, "angular")


# --- items ------------------------------------------------------------------------------------


def table(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_items_of_a_table(tmp_path: Path) -> None:
    csv = table(
        tmp_path / "items.csv",
        "path,label,speaker,start,end,context,split\n"
        "a.wav,ah,1,0.5,0.75,b-t,valid\nb.wav,,1,,,,valid\nc.wav,oh,2,,,,train\n",
    )
    whole = Item(tmp_path / "c.wav", "oh", "2")
    part = Item(tmp_path / "a.wav", "ah", "1", "b-t", 0.5, 0.75)
    assert load_items(csv) == [part, whole]
    assert load_items(csv, "valid") == [part]
    assert load_items(csv, None, {"speaker": "2"}) == [whole]
    assert whole.end == math.inf


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("path,label\na.wav,x\n", "lacks the column 'speaker'"),
        ("path,label,speaker\na.wav,,1\n", "has no labelled row with a label"),
        ("path,label,speaker,start\n\na.wav,x,1,soon\n", "line 3:"),
        ("path,label,speaker,start,end\na.wav,x,1,2,1\n", "line 2:"),
        ("path,label,speaker\na.wav,x,\n", "line 2: names no speaker"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        load_items(table(tmp_path / "items.csv", text))


def test_conditions_that_are_refused(tmp_path: Path) -> None:
    csv = table(tmp_path / "items.csv", "path,label,speaker,split\na.wav,x,1,train\n")
    with pytest.raises(DataError, match="no labelled row with split=valid"):
        load_items(csv, "valid")
    with pytest.raises(DataError, match="lacks the column 'corpus'"):
        load_items(csv, None, {"corpus": "x"})


def test_items_are_thinned_evenly() -> None:
    items = [Item(Path(f"{n}.wav"), "a", "1") for n in range(10)] + [Item(Path("b.wav"), "b", "1")]
    assert [item.path.stem for item in thinned(items, 3)] == ["0", "3", "6", "b"]
    assert thinned(items, 100) == items


# --- representations --------------------------------------------------------------------------


def test_pieces_are_frames_whose_middle_lies_inside() -> None:
    frames = torch.arange(10)[:, None]  # at 10 Hz: middles at 0.05, 0.15, ...
    assert piece(frames, 10, 0.0, math.inf).shape == (10, 1)
    assert piece(frames, 10, 0.2, 0.5).flatten().tolist() == [2, 3, 4]
    assert piece(frames, 10, 0.26, 0.34).flatten().tolist() == [3]  # none: the next one
    assert piece(frames, 10, 0.96, 2.0).flatten().tolist() == [9]


def test_plain_features_of_any_rate() -> None:
    wave = melody(1.0, seed=1)
    audio, slow = Audio(wave, 16_000), Audio(wave[::2], 8_000)
    assert mfcc(audio).shape == (101, 39) and log_mel(audio).shape == (101, 40)
    assert mfcc(slow).shape == (101, 39)
    louder = Audio(3 * wave, 16_000)
    assert torch.allclose(log_mel(audio), log_mel(louder), atol=1e-3)
    assert [(one.name, one.frame_rate) for one in plain_features()] == [
        ("MFCC", 100),
        ("log-mel", 100),
    ]


def test_representations_of_tokenizers(tiny_pipelines: dict[str, Path]) -> None:
    from segue.core.plugins import PluginHost
    from segue.evaluation.subjects import load_tokenizer

    host = PluginHost.discover(entry_points=False)
    config = load_config(str(tiny_pipelines["speech"]), host).config
    audio = Audio(melody(1.0, seed=1), 16_000)
    codec = load_tokenizer(config, "codec", host)
    found = {one.name: one for one in of_tokenizer("codec", codec, 0.05, (1, 3))}
    assert [one.distance for one in found.values()] == ["hamming", "angular"] * 2
    whole = found["codec[0:3] tokens"]
    assert found["codec[0:1] tokens"].vocabulary == whole.vocabulary == 32 and whole.levels == 3
    ids, vectors = (found[f"codec[0:3] {kind}"].frames(audio) for kind in ("tokens", "vectors"))
    assert ids.shape[1] == 3 and len(ids) == len(vectors)
    assert torch.equal(found["codec[0:1] tokens"].frames(audio), ids[:, :1])
    tokenizer = load_tokenizer(config, "semantic_tokenizer", host)
    tokens, centroids = of_tokenizer("semantic", tokenizer, 0.05, (1,))
    ids, vectors = tokens.frames(audio), centroids.frames(audio)
    assert ids.shape == (25, 1)
    same = ids == ids.T
    assert torch.equal(same, (torch.cdist(vectors, vectors) < 1e-6))


def test_words_that_differ_are_told_apart(tmp_path: Path) -> None:
    items = []
    for label, speaker, take in itertools.product(range(2), range(2), range(2)):
        path = tmp_path / f"{label}{speaker}{take}.wav"
        wave = melody(0.6, seed=label) * (0.5 + 0.2 * take)
        soundfile.write(path, torch.cat([torch.zeros(4000), wave]).numpy(), 16_000)
        items.append(Item(path, f"melody{label}", f"speaker{speaker}", start=0.25))
    items.append(Item(tmp_path / "missing.wav", "melody0", "speaker0"))
    code = Representation(
        "code", 100, "hamming", lambda audio: (log_mel(audio)[:, 5:6] > 0).long(), 2
    )
    found = evaluate_semantic(items, [*plain_features(), code])
    assert (found["items"], found["unusable"], found["labels"], found["speakers"]) == (8, 1, 2, 2)
    for name in ("MFCC", "log-mel"):
        assert found["representations"][name]["within"]["mean"] == 0
        assert found["representations"][name]["across"]["mean"] == 0
    against = {side: f"{side} less MFCC" for side in ("within", "across")}
    assert not set(against.values()) & found["representations"]["MFCC"].keys()
    for name in ("log-mel", "code"):
        row = found["representations"][name]
        assert all(row[less]["mean"] == row[side]["mean"] for side, less in against.items())
    bits = found["representations"]["code"]
    assert 0 < bits["label_bits"]["mean"] < bits["label_entropy"] == pytest.approx(1)
    assert bits["label_bits"]["count"] == 2 and bits["frames"] == 8 * 61


def test_tokens_tell_speakers_that_were_not_counted() -> None:
    clear = 100 * torch.eye(4)
    assert label_bits([clear] * 4) == pytest.approx([2.0] * 4, abs=0.05)
    nothing = torch.full((4, 8), 50.0)
    assert label_bits([nothing] * 4) == pytest.approx([0.0] * 4, abs=1e-6)
    # Few counts suggest more than holds for anybody else.
    random = torch.Generator().manual_seed(0)
    chance = [torch.randint(2, (4, 40), generator=random) for _ in range(6)]
    assert all(mutual_information(table) > 0.5 for table in chance)
    assert sum(label_bits(chance)) / 6 == pytest.approx(0, abs=0.05)
