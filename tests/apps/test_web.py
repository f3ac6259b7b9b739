"""The web page: what it makes, shows and says, without a browser."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import soundfile
import torch
from tests.apps.conftest import Segue
from tests.plugins.provenance.conftest import Credentials

from segue.core.domain import Domain
from segue.core.errors import AudioError, CheckpointError
from segue.inference.request import GeneratedAudio
from segue.plugins.provenance.signing import Signer, read_signature

pytest.importorskip("matplotlib", reason="the page draws pictures: pip install 'segue[web]'")

from segue.apps.web import cards, studio
from segue.apps.web.studio import Choices, ProblemError, Result, Studio


def silent(name: str, done: int, total: int) -> None:
    """Report nothing."""


@pytest.fixture(scope="module")
def tiny_studio(
    tiny_pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Studio:
    """A studio whose domains ship tiny pipelines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Domain, "pretrained", property(lambda self: tiny_pipelines[self.name]))
        mine = tiny_pipelines["piano"]
        made = Studio(tmp_path_factory.mktemp("studio"), pipelines=[mine])
        made._pipeline("speech")
    return made


@pytest.fixture
def continued(tiny_studio: Studio, prompt_file: Path) -> list[Result]:
    model = tiny_studio.model("speech", "standard")
    settings = Choices(1.0, 2, 5, {"acoustic": 0.5})
    return tiny_studio.continue_(model, prompt_file, settings, silent)


def test_the_default_domain_comes_after_the_users_own_pipelines(
    tiny_studio: Studio, tiny_pipelines: dict[str, Path]
) -> None:
    own = tiny_pipelines["piano"].parent.name
    assert list(tiny_studio.models) == [own, "speech", "piano"]
    assert tiny_studio.model(own, "standard").example is None
    speech = tiny_studio.model("speech", "standard")
    assert list(speech.temperatures) == ["semantic", "acoustic"]
    assert speech.example is not None and speech.example.is_file()


def test_shipped_variants_are_offered() -> None:
    models = studio.offered_models()
    assert [model.source for model in models["speech"].values()][:1] == ["speech"]
    assert models["speech"]["three stage"].source == "speech/three_stage"
    words = models["speech"]["standard"].description
    assert words[0].isupper() and words.endswith(".")


def test_variants_have_their_own_sounds_and_one_config(
    continued: list[Result], tiny_pipelines: dict[str, Path], prompt_file: Path
) -> None:
    from segue import Pipeline

    first, second = continued
    assert (first.number, first.seed, second.seed) == (1, 5, 6)
    assert list(first.sounds) == ["Joined", "Continuation", "Prompt"]
    wave, rate = soundfile.read(second.whole)
    new, before = (soundfile.read(second.sounds[s][0])[0] for s in ("Continuation", "Prompt"))
    assert numpy.array_equal(wave, numpy.concatenate([before, new]))
    assert second.marks == (len(before) / rate,) == (second.sounds["Continuation"][1],)
    assert second.seconds == len(wave) / rate
    pipeline = Pipeline.from_pretrained(tiny_pipelines["speech"])
    prompt, prompt_rate = soundfile.read(prompt_file)
    alone = pipeline.continue_(
        prompt, prompt_rate, seconds=1, seed=6, sampling={"acoustic": {"temperature": 0.5}}
    )
    assert numpy.abs(alone.row().numpy() - wave).max() < 1e-3
    facts = json.loads(second.config.read_text())
    assert facts["sampling"]["acoustic"]["temperature"] == 0.5
    assert facts["pipeline"] == "speech"
    assert second.picture.read_bytes().startswith(b"\x89PNG")


def test_a_result_is_continued_from_a_point_in_it(
    tiny_studio: Studio, continued: list[Result]
) -> None:
    model, source = tiny_studio.model("speech", "standard"), continued[0]
    (longer,) = tiny_studio.extend(model, source, 1.6, Choices(0.5, 1, 0), silent)
    wave, old = soundfile.read(longer.whole)[0], soundfile.read(source.whole)[0]
    kept = round(longer.marks[0] * 16_000)
    assert longer.marks[0] == pytest.approx(1.6, abs=0.05)
    # But for the cross-fade of 20 ms at the join, nothing before the point has changed.
    assert numpy.array_equal(wave[: kept - 400], old[: kept - 400])
    assert longer.about == "continues result 1 from 1.6 s"
    assert json.loads(longer.config.read_text())["source"]["seed"] == 5
    with pytest.raises(ProblemError, match=r"within the 2\.3 s"):
        tiny_studio.extend(model, source, 9.0, Choices(), silent)


def test_a_stretch_of_a_result_is_filled(tiny_studio: Studio, continued: list[Result]) -> None:
    model, source = tiny_studio.model("speech", "standard"), continued[0]
    steps: list[tuple[str, int, int]] = []
    first, second = tiny_studio.fill(
        model, source, (0.8, 1.4), Choices(1.0, 2, 3), lambda *step: steps.append(step)
    )
    assert (first.number, second.number, second.seed) == (1, 2, 4)
    start, end = second.marks
    assert 0.7 < start <= 0.8 and 1.4 <= end < 1.5
    assert list(second.sounds) == ["Whole", "New part"]
    wave, old = soundfile.read(second.whole)[0], soundfile.read(source.whole)[0]
    edges = round(start * 16_000) - 400, round(end * 16_000) + 400  # beyond the cross-fades
    assert numpy.array_equal(wave[: edges[0]], old[: edges[0]])
    assert numpy.array_equal(wave[edges[1] :], old[edges[1] :])
    assert not numpy.array_equal(wave, soundfile.read(first.whole)[0])
    done = [step for step in steps if step[0] == "acoustic"]
    assert done[-1][1] == done[-1][2] and done == sorted(done)
    with pytest.raises(ProblemError, match="Choose a stretch"):
        tiny_studio.fill(model, source, (1.0, 1.0), Choices(), silent)


def test_what_the_pipeline_did_not_look_at_is_put_back() -> None:
    kept = torch.arange(10.0)
    audio = GeneratedAudio(
        torch.tensor([[7.0, 8.0, 9.0, 1.0], [7.0, 8.0, 9.0, 2.0]]),
        torch.tensor([4, 4]), 1, torch.tensor([3, 3]), {}, [(), ()],
    )  # fmt: skip
    studio.put_before(audio, kept)
    assert audio.row(1).tolist() == [*kept.tolist(), 2.0]
    assert audio.continuation(0).tolist() == [1.0]


def test_audio_from_nothing_is_all_new(tiny_studio: Studio) -> None:
    model = tiny_studio.model("speech", "standard")
    (result,) = tiny_studio.generate(model, Choices(0.5, 1, 3), silent)
    assert (result.marks, list(result.sounds)) == ((), ["Generated"])
    studio.forget([result])
    assert not result.whole.parent.exists()


# --- progress and problems --------------------------------------------------------------------


def test_progress_is_followed_until_the_results_come() -> None:
    seen = Event()

    def work(progress: Any) -> list[Result]:
        progress("semantic", 1, 4)
        assert seen.wait(10)
        return []

    updates = studio.followed(work)
    steps = next(update for update in updates if update)
    assert steps["semantic"][:2] == (1, 4)  # type: ignore[call-overload]
    seen.set()
    assert list(updates)[-1] == []


def test_work_stops_when_nobody_waits_for_it() -> None:
    closed, stopped = Event(), Event()

    def work(progress: Any) -> list[Result]:
        assert closed.wait(10)
        try:
            progress("semantic", 2, 4)
        except studio.Abandoned:
            stopped.set()
        return []

    updates = studio.followed(work)
    next(updates)
    updates.close()  # type: ignore[attr-defined]
    closed.set()
    assert stopped.wait(10)


def test_problems_are_plain_words_without_paths(capsys: pytest.CaptureFixture[str]) -> None:
    said = studio.plain_words
    short = said(AudioError("prompt", "lasts 0.1 s", "give at least 0.5 s of audio"))
    assert short == "Your prompt: lasts 0.1 s. Give at least 0.5 s of audio."
    path = said(CheckpointError("/root/a b/runs/x/model.bin", "is not in /srv/x", "use runs/y"))
    assert path == "model.bin: is not in x. Use runs/y."
    assert "not enough memory" in said(MemoryError())
    assert capsys.readouterr().err == ""
    unknown = said(KeyError("secret"))
    assert "Something went wrong" in unknown and "secret" not in unknown
    assert "KeyError: 'secret'" in capsys.readouterr().err


# --- what is shown ----------------------------------------------------------------------------


def test_cards_place_the_join_and_escape_what_they_show(tmp_path: Path) -> None:
    result = Result(
        3, "a <b>", "m", 1, 8.0, (2.0,), {"Whole": (tmp_path / "a.wav", 0.0)}, tmp_path / "p.png",
        ("note & more",),
    )  # fmt: skip
    html = cards.results_html([result], lambda path: f"at/{path.name}")
    assert 'class="mark" style="left:25.00%"' in html and "2.0 s</span>" in html
    assert "a &lt;b&gt;" in html and "note &amp; more" in html
    assert 'href="at/a.wav"' in html and 'href="at/a.wav.json"' in html
    assert "new audio begins at 2.0 s" in html
    assert "&lt;script&gt;" in cards.problem_html("<script>")


def test_each_stage_has_a_bar() -> None:
    html = cards.progress_html(["semantic", "acoustic"], {"semantic": (5, 20, 3.0)})
    assert re.findall(r"<span>(\w+)</span><progress value=\"(\d+)\"", html) == [
        ("semantic", "5"),
        ("acoustic", "0"),
    ]
    assert "9 s left" in html and "waiting" in html
    assert "loading the model" in cards.progress_html(["semantic"], {})
    assert "into sound" in cards.progress_html(["semantic"], {"semantic": (2, 2, 1.0)})


# --- the page -----------------------------------------------------------------------------------


@pytest.fixture
def page(tiny_studio: Studio) -> Any:
    pytest.importorskip("gradio", reason="the page itself needs gradio: pip install 'segue[web]'")
    from segue.apps.web.page import Page

    return Page(tiny_studio)


def chosen(page: Any, **values: Any) -> dict[Any, Any]:
    """What gradio passes to a handler."""
    settings = {
        "results": [], "prompt": None, "domain": "speech", "variant": "standard", "seconds": 0.5,
        "count": 1, "seed": 4, "fresh": False,
    }  # fmt: skip
    named = {getattr(page, name): value for name, value in (settings | values).items()}
    return {**named, **dict.fromkeys(page.temperatures, 1.0)}


def test_new_results_come_first_and_can_be_gone_on_from(page: Any, prompt_file: Path) -> None:
    *_, last = page.continue_(chosen(page, prompt=str(prompt_file), count=2))
    assert [result.number for result in last[page.results]] == [1, 2]
    assert last[page.which]["choices"] == [1, 2]
    assert last[page.go]["interactive"] is True and last[page.stop]["visible"] is False
    more = chosen(page, results=last[page.results], which=2, start=1.5)
    first, *_, last = page.extend_(more)
    assert "loading" in first[page.status]["value"] and first[page.go]["interactive"] is False
    assert [result.number for result in last[page.results]] == [3, 1, 2]
    assert last[page.results][0].about == "continues result 2 from 1.5 s"
    assert last[page.cards].index('data-number="3"') < last[page.cards].index('data-number="1"')


@pytest.mark.parametrize(
    "values, words",
    [({}, "Record or upload a prompt first"), ({"prompt": __file__}, "Your prompt: cannot be")],
)
def test_problems_are_shown_on_the_page(page: Any, values: dict[str, Any], words: str) -> None:
    *_, last = page.continue_(chosen(page, **values))
    shown = last[page.status]["value"]
    assert words in shown and 'role="alert"' in shown and str(Path(__file__).parent) not in shown
    assert last[page.go]["interactive"] is True


def test_a_stop_is_the_last_word_on_the_visitors_own_work(page: Any) -> None:
    """Progress that is still on its way cannot come after it."""
    mine, other = SimpleNamespace(session_hash="a"), SimpleNamespace(session_hash="b")
    work = page.generate(chosen(page, seconds=30.0, count=4), mine)
    assert next(work)[page.stop]["visible"] is True
    page.ask_to_stop(other)
    assert "Stopped" not in next(work)[page.status]["value"]
    page.ask_to_stop(mine)
    *_, last = work
    assert "Stopped" in last[page.status]["value"] and last[page.stop]["visible"] is False
    page.ask_to_stop(mine)  # nothing runs any more


def test_a_seed_is_drawn_and_shown(page: Any) -> None:
    seeds = {next(page.generate(chosen(page, fresh=True)))[page.seed] for _ in range(4)}
    assert len(seeds) > 1
    assert next(page.generate(chosen(page)))[page.seed] == 4


def test_a_domain_brings_its_models_and_temperatures(
    page: Any, prompt_file: Path, tmp_path: Path
) -> None:
    update = page.choose_domain("piano", str(prompt_file))
    assert page.prompt not in update  # the visitor's own stays
    example = page.use_example("speech", "standard")
    uploaded = shutil.copy(example, tmp_path / "upload.flac")
    update = page.choose_domain("piano", str(uploaded))
    assert update[page.prompt] == page.use_example("piano", "standard") != example
    assert update[page.variant]["choices"] == ["standard"]
    assert update[page.temperatures[0]]["label"] == "semantic stage"
    assert page.choose_variant("piano", "three stage") == {}  # of the domain before
    assert Path(page.use_example("piano", "standard")).is_file()


def test_the_command_says_what_it_needs(segue: Segue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segue.apps.cli.output.find_spec", lambda name: None)
    assert segue("web").refused("segue web", "needs gradio", "pip install 'segue[web]'")


def test_labels_below_a_picture_do_not_overlap() -> None:
    assert cards.labelled((), 8.0) == [0.0, 8.0]
    assert cards.labelled((5.0,), 8.0) == [0.0, 5.0, 8.0]
    assert cards.labelled((1.0, 2.0), 8.0) == [1.0, 8.0]  # the second join is too near
    assert cards.labelled((7.5,), 8.0) == [0.0, 7.5]


def test_a_studio_that_signs_signs_the_whole_and_the_new_part(
    shipped: dict[str, Path], credentials: Credentials, prompt_file: Path, tmp_path: Path
) -> None:
    signer = Signer(credentials.certificate, credentials.key)
    studio = Studio(tmp_path, signer=signer)
    model = studio.model("speech", "standard")
    (result,) = studio.continue_(model, prompt_file, Choices(0.5, 1, 5), silent)
    said = [read_signature(path) for path, _ in result.sounds.values()]
    assert said[0] is not None and said[0].state == "intact"
    assert said[0].said is not None and said[0].said["prompt_seconds"] > 1
    assert said[1] is not None and said[1].state == "intact"
    assert said[1].said is not None and said[1].said["prompt_seconds"] == 0
    assert said[2] is None  # the recording that came in
    longer = studio.extend(model, result, 1.0, Choices(0.5, 1, 5), silent)
    found = read_signature(longer[0].whole)
    assert found is not None and found.state == "intact"
