"""Minimal pairs and spoiled continuations, judged by a stage of which the answers are known."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch

from segue.core.audio import Audio
from segue.core.errors import ConfigError, DataError
from segue.core.interfaces import StageBatch, Tokens
from segue.data.recordings import Recording
from segue.evaluation.likelihood import (
    Pair,
    Spoiling,
    evaluate_order,
    evaluate_pairs,
    read_pairs,
    shuffled,
)

pytestmark = pytest.mark.usefixtures("constant_waves")

RATE, FRAME = 1000, 100  # ten frames a second


class FakePipeline:
    """A token is a frame's level in thousandths; only a step of one up is likely."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        target = SimpleNamespace(stream="semantic", start=0, stop=1, frame_rate=Fraction(10))
        self.config = SimpleNamespace(
            stages=[
                SimpleNamespace(name="coarse", given=("semantic",)),
                SimpleNamespace(name="semantic", given=()),
            ]
        )
        self.lm = SimpleNamespace(stage=SimpleNamespace(target=target), score=score)
        self.audio = SimpleNamespace(
            sample_rate=RATE, gains=lambda audios: torch.ones(1), encode_stream=self.encode
        )

    def stage_lm(self, name: str) -> Any:
        assert name == "semantic"
        return self.lm

    def encode(self, stream: str, audios: list[Audio], gains: torch.Tensor) -> Tokens:
        frames = audios[0].wave[: audios[0].wave.shape[0] // FRAME * FRAME].reshape(-1, FRAME)
        return Tokens.full((frames.mean(1) * 1000).round().long()[None, None])


def score(batch: StageBatch) -> torch.Tensor:
    ids = batch.target.ids
    steps = torch.diff(ids, dim=2, prepend=ids[:, :, :1] - 1)
    return torch.where(steps == 1, -0.1, -2.0)


def counting(first: int, frames: int) -> torch.Tensor:
    return torch.arange(first, first + frames).repeat_interleave(FRAME) / 1000


def write(path: Path, wave: torch.Tensor) -> Path:
    soundfile.write(path, wave.numpy(), RATE, subtype="FLOAT")
    return path


# --- minimal pairs ----------------------------------------------------------------------------


def test_pairs_are_judged_by_mean_and_sum(tmp_path: Path) -> None:
    up, down = (
        write(tmp_path / "up.wav", counting(1, 8)),
        write(tmp_path / "down.wav", counting(1, 8).flip(0)),
    )
    short = write(tmp_path / "short.wav", torch.cat([counting(1, 3), counting(9, 1)]))
    long = write(tmp_path / "long.wav", counting(1, 100))
    pairs = [
        Pair(up, down, "a", "order"),
        Pair(down, up, "b", "order"),
        Pair(up, up, "c", "same"),
        Pair(long, short, "d", "length"),  # likelier by the frame, not as a whole
        Pair(up, tmp_path / "missing.wav", "e", "same"),
    ]
    found = evaluate_pairs(FakePipeline(), pairs)  # type: ignore[arg-type]
    assert found["pairs"]["by_mean"]["mean"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert found["pairs"]["by_sum"]["mean"] == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert found["pairs"]["by_mean"]["count"] == 4 and found["pairs"]["unusable"] == 1
    assert found["pairs: length"]["by_sum"]["mean"] == 0
    assert found["pairs: order"]["by_mean"]["mean"] == 0.5
    # Eight likely frames against one likely (the first) and seven unlikely.
    margin = -0.1 - (-0.1 - 7 * 2.0) / 8
    assert found["pairs: order"]["margin"]["highest"] == pytest.approx(margin, abs=1e-6)
    with pytest.raises(DataError, match="pairs: none can be used"):
        evaluate_pairs(FakePipeline(), pairs[4:])  # type: ignore[arg-type]


TABLE = """id,filename,voice,type,correct
1,w1_a,A,noun,1
1,n1_a,A,noun,0
1,w1_b,B,noun,1
1,n1_b.flac,B,noun,0
2,w2,A,verb,1
2,n2,A,verb,0
2,n3,A,verb,0
"""


def test_tables_of_the_challenge_are_read(tmp_path: Path) -> None:
    table = tmp_path / "gold.csv"
    table.write_text(TABLE)
    found = read_pairs(table)
    assert found[0] == Pair(tmp_path / "w1_a.wav", tmp_path / "n1_a.wav", "1", "noun")
    assert found[1].wrong == tmp_path / "n1_b.flac" and found[1].group == "1"
    assert [pair.wrong.stem for pair in found[2:]] == ["n2", "n3"]
    assert read_pairs(table, Path("elsewhere"))[0].right == Path("elsewhere/w1_a.wav")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("id,filename\n1,a\n", "lacks the column 'correct'"),
        ("id,name,correct\n1,a,1\n", "lacks the column 'filename'"),
        ("id,filename,correct\n1,a,1\n\n1,b,yes\n", "line 4: 'correct' is 'yes'"),
        ("id,filename,correct\n1,a,1\n1,b,1\n", "id 1 has 2 correct rows of 2"),
        ("id,filename,correct\n1,a,1\n", "id 1 has 1 correct rows of 1"),
    ],
)
def test_tables_that_make_no_pairs(tmp_path: Path, text: str, told: str) -> None:
    table = tmp_path / "gold.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=told):
        read_pairs(table)


# --- order ------------------------------------------------------------------------------------


def recording(folder: Path, name: str, group: str, wave: torch.Tensor) -> Recording:
    path = write(folder / f"{name}.wav", wave)
    return Recording(str(path), wave.shape[0] / RATE, group, "valid")


def test_true_continuations_against_spoiled_ones(tmp_path: Path) -> None:
    recordings = [
        recording(tmp_path, "a", "a", counting(1, 20)),
        recording(tmp_path, "b", "b", counting(300, 20)),
        recording(tmp_path, "short", "c", counting(1, 5)),
    ]
    order = Spoiling(prompt_seconds=1.0, seconds=1.0, piece_seconds=0.2)
    found = evaluate_order(FakePipeline(), recordings, order)["order"]  # type: ignore[arg-type]
    assert found["unusable"] == 1 and found["shuffled"]["count"] == 2
    for spoiled in ("shuffled", "reversed", "foreign", "foreign_prompt"):
        assert found[spoiled]["mean"] == 1.0
    assert found["nats"]["mean"] == pytest.approx(0.1)
    assert found["reversed_margin"]["mean"] == pytest.approx(1.9)  # no step is likely
    assert found["foreign_margin"]["mean"] == pytest.approx(0.19)  # but the first of ten
    assert found["foreign_prompt_margin"]["mean"] == pytest.approx(0.19)


def test_what_cannot_be_told_apart_counts_one_half(tmp_path: Path) -> None:
    alike = [recording(tmp_path, name, name, torch.full((2000,), 0.5)) for name in "ab"]
    order = Spoiling(1.0, 1.0, 0.2)
    found = evaluate_order(FakePipeline(), alike, order)["order"]  # type: ignore[arg-type]
    assert found["shuffled"]["mean"] == found["foreign_prompt"]["mean"] == 0.5
    one = evaluate_order(FakePipeline(), alike[:1], order)["order"]  # type: ignore[arg-type]
    assert (
        one["foreign"]["count"] == one["foreign_prompt"]["count"] == 0
        and one["shuffled"]["count"] == 1
    )


def test_orders_that_cannot_be_made(tmp_path: Path) -> None:
    one = [recording(tmp_path, "a", "a", counting(1, 20))]
    with pytest.raises(ConfigError, match="piece_seconds"):
        evaluate_order(FakePipeline(), one, Spoiling(1, 1, 0.6))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="none lasts 3 s"):
        evaluate_order(FakePipeline(), one, Spoiling(1, 2, 0.5))  # type: ignore[arg-type]


def test_a_shuffled_sequence_has_the_same_pieces_elsewhere() -> None:
    random = torch.Generator().manual_seed(0)
    ids = torch.arange(10)[None]
    for _ in range(20):
        found = shuffled(ids, 4, random)
        assert sorted(found[0].tolist()) == list(range(10)) and not torch.equal(found, ids)
        starts = [found[0].tolist().index(first) for first in (0, 4, 8)]
        assert [found[0, s : s + 2].tolist() for s in starts] == [[0, 1], [4, 5], [8, 9]]


def test_a_pipeline_of_which_every_stage_is_given_something() -> None:
    pipeline = FakePipeline()
    pipeline.config.stages = pipeline.config.stages[:1]
    with pytest.raises(ConfigError, match="each is given tokens of another"):
        evaluate_pairs(pipeline, [])  # type: ignore[arg-type]
