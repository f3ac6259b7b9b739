"""The web page in a real browser: Chromium without a window, driven by Playwright."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import soundfile

from segue.core.domain import Domain

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PORT = 7869
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
PATIENCE = 120_000  # ms: loading the page and a pipeline on a busy machine
STOPPED = Event()  # set when work without a prompt has ended early
DURATIONS = "players => players.map(player => player.duration)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium on the path: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(
    tiny_pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The page, with tiny pipelines in place of the shipped ones."""
    pytest.importorskip("gradio", reason="pip install 'segue[web]'")
    from segue.apps.web.page import launch
    from segue.apps.web.studio import Abandoned, Studio

    generate = Studio.generate

    def generate_watched(studio: Studio, model: Any, settings: Any, progress: Any) -> Any:
        def slow(*counts: Any) -> None:  # work must not end before it is stopped
            progress(*counts)
            time.sleep(0 if STOPPED.is_set() else 0.5)

        try:
            return generate(studio, model, settings, slow)
        except Abandoned:
            STOPPED.set()
            raise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Studio, "generate", generate_watched)
        patch.setattr(Domain, "pretrained", property(lambda self: tiny_pipelines[self.name]))
        studio = Studio(tmp_path_factory.mktemp("studio"))
        blocks = launch(studio, port=PORT)
        yield f"http://127.0.0.1:{PORT}"
        blocks.close()


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def tab(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """An open page that complains of nothing and loads nothing from elsewhere."""
    tab = browser.new_page(viewport=request.param)
    tab.set_default_timeout(PATIENCE)
    wrong: list[str] = []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on(
        "request",
        lambda sent: sent.url.startswith((address, "data:", "blob:")) or wrong.append(sent.url),
    )
    tab.goto(address)
    tab.wait_for_selector("#go")
    yield tab
    assert wrong == []
    # Nothing sticks out to the right.
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.close()


def durations(tab: Any, number: int) -> list[float]:
    """Return the lengths of a result's players once the browser has read their files."""
    players = f"article[data-number='{number}'] audio"
    tab.wait_for_selector(players)
    tab.wait_for_function(
        f'[...document.querySelectorAll("{players}")].every(player => player.duration > 0)'
    )
    return tab.eval_on_selector_all(players, DURATIONS)  # type: ignore[no-any-return]


def test_upload_continue_choose_a_stretch_and_go_on(
    tab: Any, prompt_file: Path, tmp_path: Path
) -> None:
    tab.locator("#prompt input[type=file]").set_input_files(prompt_file)
    tab.wait_for_selector("#prompt audio", state="attached")
    tab.get_by_label("number input for Seconds").fill("2")
    tab.get_by_label("number input for Variants").fill("2")
    tab.keyboard.press("Tab")
    tab.locator("#go").click()
    before = soundfile.info(prompt_file).duration
    for number in (1, 2):
        whole, new, prompt = durations(tab, number)
        assert new == pytest.approx(2.0, abs=0.1)
        assert prompt == pytest.approx(before, abs=0.1)
        assert whole == pytest.approx(new + prompt, abs=0.01)
    # Dragged from 30 % to 60 % of the second picture.
    picture = tab.locator("article[data-number='2'] .picture")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    tab.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 40)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 40, steps=3)
    tab.mouse.up()
    tab.wait_for_selector("#extend")
    # In sight without scrolling, also below a long list of results.
    bottom = tab.evaluate("document.querySelector('#fill').getBoundingClientRect().bottom")
    assert 0 < bottom <= tab.viewport_size["height"]
    chosen = [float(field.input_value()) for field in tab.locator("#edit input").all()]
    assert chosen == pytest.approx([2, 0.3 * whole, 0.6 * whole], abs=0.1)
    tab.locator("#extend").click()
    longer, new, kept = durations(tab, 3)
    assert kept == pytest.approx(0.3 * whole, abs=0.1)
    assert longer == pytest.approx(kept + 2, abs=0.1)
    # What was made last stands on top, and the page goes there.
    tab.wait_for_function("""
        (() => {
          const card = document.querySelector("article[data-number='3']");
          const { top } = card.getBoundingClientRect();
          return top >= 0 && top < innerHeight / 2;
        })()
    """)
    # A stretch of the longer one, typed.
    tab.locator("article[data-number='3'] footer button").click()
    tab.get_by_label("From (s)").fill("1.2")
    tab.get_by_label("To (s)").fill("2.0")
    tab.keyboard.press("Tab")
    tab.locator("#fill").click()
    filled, stretch = durations(tab, 5)
    assert filled == pytest.approx(longer, abs=0.01)
    assert stretch == pytest.approx(0.8, abs=0.1)
    with tab.expect_download() as download:
        tab.locator("article[data-number='3'] a", has_text="WAV").click()
    download.value.save_as(tmp_path / "down.wav")
    assert soundfile.info(tmp_path / "down.wav").duration == pytest.approx(longer, abs=0.001)


def test_mistakes_are_said_in_plain_words(tab: Any, tmp_path: Path) -> None:
    tab.locator("#go").click()
    assert "Record or upload a prompt first" in tab.locator(".problem").inner_text()
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    tab.locator("#prompt input[type=file]").set_input_files(tmp_path / "broken.wav")
    tab.wait_for_selector("#prompt audio", state="attached")
    tab.locator("#go").click()
    tab.wait_for_function(
        "document.querySelector('.problem')?.innerText.includes('cannot be read')"
    )
    said = tab.locator(".problem").inner_text()
    assert said.startswith("Your prompt: ") and "/" not in said and "Traceback" not in said


def test_work_can_be_stopped(tab: Any) -> None:
    STOPPED.clear()
    tab.get_by_label("number input for Seconds").fill("30")
    tab.get_by_label("number input for Variants").fill("4")
    tab.keyboard.press("Tab")
    tab.locator("#nothing").click()
    tab.wait_for_selector(".working progress")
    tab.locator("#stop").click()
    tab.wait_for_selector("text=Stopped.")
    assert STOPPED.wait(30)
    tab.get_by_label("number input for Seconds").fill("1")
    tab.get_by_label("number input for Variants").fill("1")
    tab.keyboard.press("Tab")
    tab.locator("#nothing").click()
    assert durations(tab, 1) == pytest.approx([1.0], abs=0.1)
