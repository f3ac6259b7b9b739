"""The picture of a prompt and its continuation."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch

from segue.apps import spectrogram
from segue.apps.spectrogram import check_picture, draw_spectrogram, draw_spectrograms
from segue.core.audio import write_audio
from segue.core.errors import AudioError, OutputError
from segue.inference.request import GeneratedAudio

pytest.importorskip("matplotlib")


def generated(samples: int = 8000, prompt: int = 3000, scale: float = 0.3) -> GeneratedAudio:
    wave = scale * torch.sin(torch.arange(samples) * 0.2)
    return GeneratedAudio(
        torch.stack([wave, wave.flip(0)]),
        torch.tensor([samples, samples // 2]),
        16_000,
        torch.tensor([prompt, 0]),
        {},
        [(), ()],
    )


def test_a_picture_shows_where_the_prompt_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    lines = []
    monkeypatch.setattr(Axes, "axvline", lambda self, x, **_: lines.append(x))
    path = tmp_path / "new" / "a.png"
    draw_spectrogram(generated(), path, "a title")
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert lines == [3000 / 16_000] * 2
    assert [child.name for child in path.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize("audio", [generated(200, 0), generated(scale=0.0)], ids=["short", "mute"])
def test_short_and_silent_audio_is_drawn_without_a_word(
    tmp_path: Path, audio: GeneratedAudio
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # what Matplotlib warns with
        draw_spectrogram(audio, tmp_path / "a.png", "t", row=1)
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_any_file_name_can_be_the_title(tmp_path: Path) -> None:
    title = "$\\frac{ 中文 \x1b \udcff _^{x}$.wav"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # what Matplotlib warns with
        draw_spectrogram(generated(200, 0), tmp_path / "a.png", title)
    assert (tmp_path / "a.png").exists()


def test_what_is_no_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jpg", "a", "a.wav"):
        with pytest.raises(OutputError, match=r"is not \.png; name a \.png file"):
            check_picture(tmp_path / name)
    check_picture(tmp_path / "A.PNG")
    monkeypatch.setattr(spectrogram, "find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"drawing needs matplotlib; pip install 'segue\[plot\]'"):
        check_picture(tmp_path / "a.png")
    assert importlib.util.find_spec("matplotlib") is not None


def test_a_failure_leaves_no_file_and_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    def full(self: Figure, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OutputError, match=r"a\.png: cannot be written \(No space left"):
        draw_spectrogram(generated(), tmp_path / "a.png", "t")
    assert list(tmp_path.iterdir()) == []
    assert pyplot.get_fignums() == []


def test_files_of_any_length_and_rate_share_one_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    files, lines, limits = [], [], []
    for number, (samples, rate) in enumerate([(9000, 8000), (160, 16_000)]):
        files.append(tmp_path / f"$_{number}.wav")
        write_audio(files[-1], torch.zeros(samples), rate)
    monkeypatch.setattr(Axes, "axvline", lambda self, x, **_: lines.append(x))
    set_xlim = Axes.set_xlim

    def spy(self: Axes, *x: float, **named: object) -> object:
        limits.append(x)
        return set_xlim(self, *x, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Axes, "set_xlim", spy)
    draw_spectrograms(files, tmp_path / "a.png", marks=[0.5, 1.0])
    assert lines == [0.5, 1.0] * 2 and limits[-1] == (0, 9000 / 8000)
    draw_spectrograms(files[:1], tmp_path / "b.png", seconds=0.25)
    assert limits[-1] == (0, 0.25)
    assert (tmp_path / "a.png").stat().st_size > (tmp_path / "b.png").stat().st_size > 1000
    with pytest.raises(AudioError, match=r"none\.wav"):
        draw_spectrograms([tmp_path / "none.wav"], tmp_path / "c.png")
    with pytest.raises(OutputError, match="would show 101 files; name 100"):
        draw_spectrograms(files[:1] * 101, tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()
