"""Lay out the web page and connect its parts to the studio."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import quote

import gradio as gr

from segue.apps.web.cards import EMPTY, problem_html, progress_html, results_html
from segue.apps.web.studio import (
    Choices,
    Model,
    ProblemError,
    Result,
    Studio,
    followed,
    forget,
    plain_words,
)
from segue.core.progress import Progress

HERE = Path(__file__).parent
MOST_SECONDS, MOST_VARIANTS, MOST_RESULTS, MOST_WAITING = 30, 4, 24, 20
MOST_BYTES = "100mb"  # of an upload
# Fonts of the visitor's device: none is fetched from elsewhere.
FONTS, FIXED_FONTS = ["ui-sans-serif", "system-ui", "sans-serif"], ["ui-monospace", "monospace"]
TITLE = "# Segue\nGive it a few seconds of speech or music; it plays on."

Update = dict[Any, Any]  # component → its new value


class Page:
    """The page: its components, and what happens when they are used."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._stops: dict[str | None, Event] = {}  # of work that runs, by the visitor's session
        self.num_stages = max(
            len(model.temperatures)
            for variants in studio.models.values()
            for model in variants.values()
        )
        with gr.Blocks(title="Segue", analytics_enabled=False, fill_width=True) as self.blocks:
            self.results = gr.State([], delete_callback=forget)
            gr.Markdown(TITLE)
            with gr.Row(elem_id="columns"):
                with gr.Column(scale=2, min_width=320):
                    self._lay_out_settings()
                with gr.Column(scale=3, min_width=320):
                    self._lay_out_results()
            self._connect()

    def _lay_out_settings(self) -> None:
        domain = next(iter(self.studio.models))
        variants = list(self.studio.models[domain])
        model = self.studio.model(domain, variants[0])
        with gr.Row():
            self.domain = gr.Radio(
                list(self.studio.models), value=domain, label="Domain", min_width=180
            )
            self.variant = gr.Dropdown(
                variants, value=variants[0], label="Stage model", filterable=False, min_width=180
            )
        self.description = gr.Markdown(model.description, elem_id="description")
        self.prompt = gr.Audio(
            sources=["upload", "microphone"], type="filepath", label="Prompt", elem_id="prompt",
            buttons=[],
        )  # fmt: skip
        self.example = gr.Button("Use the example", size="sm", visible=model.example is not None)
        with gr.Row():
            self.seconds = gr.Slider(
                1, MOST_SECONDS, value=5, step=0.5, label="Seconds", min_width=180
            )
            self.count = gr.Slider(
                1, MOST_VARIANTS, value=1, step=1, label="Variants", min_width=180
            )
        with gr.Row():
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=120)
            self.fresh = gr.Checkbox(True, label="New seed each time", min_width=120)
        with gr.Accordion("Temperatures (higher is more varied)", open=False):
            self.temperatures = [
                gr.Slider(0, 2, step=0.05, **shown)
                for shown in _temperatures(model, self.num_stages)
            ]
        with gr.Row():
            self.go = gr.Button("Continue", variant="primary", elem_id="go")
            self.nothing = gr.Button("Start from nothing", elem_id="nothing")
            self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")

    def _lay_out_results(self) -> None:
        self.status = gr.HTML(visible=False, apply_default_css=False, elem_id="status")
        self.cards = gr.HTML(
            EMPTY,
            elem_id="cards",
            apply_default_css=False,
            js_on_load=(HERE / "page.js").read_text(encoding="utf-8"),
        )
        with gr.Column(visible=False, elem_id="edit") as self.edit:
            with gr.Row():
                self.which = gr.Dropdown([], label="Result", min_width=70, filterable=False)
                self.start = gr.Number(0, label="From (s)", minimum=0, step=0.1, min_width=70)
                self.end = gr.Number(0, label="To (s)", minimum=0, step=0.1, min_width=70)
            with gr.Row():
                self.extend = gr.Button("Continue from there", min_width=120, elem_id="extend")
                self.fill = gr.Button("Fill the stretch", min_width=120, elem_id="fill")

    def _connect(self) -> None:
        listen: Any = partial(dict, api_visibility="private")
        self.domain.change(
            self.choose_domain, [self.domain, self.prompt],
            [self.variant, self.prompt, *self._of_model()], **listen(),
        )  # fmt: skip
        self.variant.change(
            self.choose_variant, [self.domain, self.variant], self._of_model(), **listen()
        )
        self.example.click(self.use_example, [self.domain, self.variant], self.prompt, **listen())
        self.cards.select(
            self.choose, None, [self.edit, self.which, self.start, self.end], **listen()
        )
        for component in (self.which, self.start, self.end):
            component.change(
                None, [self.which, self.start, self.end], js="(...c) => window.segueShow(...c)"
            )
        chosen = [self.domain, self.variant, self.seconds, self.count, self.seed, self.fresh]
        work: list[tuple[Any, Any, set[Any]]] = [
            (self.go, self.continue_, {self.prompt}),
            (self.nothing, self.generate, set()),
            (self.extend, self.extend_, {self.which, self.start}),
            (self.fill, self.fill_, {self.which, self.start, self.end}),
        ]
        for button, function, others in work:
            button.click(
                function,
                {self.results, *others, *chosen, *self.temperatures},
                [self.results, self.status, self.cards, self.seed, self.go, self.nothing,
                 self.extend, self.fill, self.stop, self.edit, self.which],
                show_progress="hidden",
                concurrency_id="model",  # one at a time: they share the machine
                **listen(),
            )  # fmt: skip
            button.click(None, js="() => window.segueWatch()")
        self.stop.click(self.ask_to_stop, None, None, queue=False, **listen())

    def _of_model(self) -> list[Any]:
        """Return the components that depend on the model."""
        return [self.description, self.example, *self.temperatures]

    # --- small answers --------------------------------------------------------------------------

    def choose_domain(self, domain: str, prompt: str | None) -> Update:
        """Offer the domain's models, and its own example in place of another's."""
        variants = list(self.studio.models[domain])
        shown = {self.variant: gr.update(choices=variants, value=variants[0])}
        if prompt is not None and self.studio.is_example(Path(prompt)):
            shown[self.prompt] = self.use_example(domain, variants[0])
        return {**shown, **self.choose_variant(domain, variants[0])}

    def choose_variant(self, domain: str, variant: str) -> Update:
        """Show what a model is, and its temperatures."""
        if variant not in self.studio.models[domain]:
            return {}  # the domain has just changed; its own answer follows
        model = self.studio.model(domain, variant)
        sliders = _temperatures(model, self.num_stages)
        return {
            self.description: model.description,
            self.example: gr.update(visible=model.example is not None),
            **{s: gr.update(**u) for s, u in zip(self.temperatures, sliders, strict=True)},
        }

    def use_example(self, domain: str, variant: str) -> str | None:
        """Take the domain's own prompt."""
        example = self.studio.model(domain, variant).example
        return None if example is None else str(example)

    def choose(self, event: gr.EventData) -> Update:
        """Take the stretch that was chosen on a picture."""
        return {
            self.edit: gr.update(visible=True),
            self.which: event.number,
            self.start: round(event.start, 2),
            self.end: round(event.end, 2),
        }

    def ask_to_stop(self, visitor: gr.Request) -> None:
        """Let the visitor's own work end; it shows that it did, after all of its progress."""
        if (stop := self._stops.get(visitor.session_hash)) is not None:
            stop.set()

    # --- work -----------------------------------------------------------------------------------

    def continue_(self, chosen: Update, visitor: gr.Request | None = None) -> Iterator[Update]:
        """Continue the prompt."""
        prompt = chosen[self.prompt]

        def work(model: Model, settings: Choices, progress: Progress) -> list[Result]:
            path = None if prompt is None else Path(prompt)
            return self.studio.continue_(model, path, settings, progress)

        yield from self._run(chosen, visitor, work)

    def generate(self, chosen: Update, visitor: gr.Request | None = None) -> Iterator[Update]:
        """Start from nothing."""
        yield from self._run(chosen, visitor, self.studio.generate)

    def extend_(self, chosen: Update, visitor: gr.Request | None = None) -> Iterator[Update]:
        """Continue a result from a point in it."""

        def work(model: Model, settings: Choices, progress: Progress) -> list[Result]:
            result, point = self._result(chosen), chosen[self.start] or 0.0
            return self.studio.extend(model, result, point, settings, progress)

        yield from self._run(chosen, visitor, work)

    def fill_(self, chosen: Update, visitor: gr.Request | None = None) -> Iterator[Update]:
        """Draw a stretch of a result anew."""

        def work(model: Model, settings: Choices, progress: Progress) -> list[Result]:
            stretch = chosen[self.start] or 0.0, chosen[self.end] or 0.0
            return self.studio.fill(model, self._result(chosen), stretch, settings, progress)

        yield from self._run(chosen, visitor, work)

    def _result(self, chosen: Update) -> Result:
        for result in chosen[self.results]:
            if result.number == chosen[self.which]:
                return result
        raise ProblemError("Choose a result first.")

    def _run(self, chosen: Update, visitor: gr.Request | None, work: Any) -> Iterator[Update]:
        """Do the work and show how it goes; the outcome is results, a problem, or a stop."""
        name = visitor.session_hash if visitor is not None else None
        stop = self._stops[name] = Event()
        model = self.studio.model(chosen[self.domain], chosen[self.variant])
        stages = list(model.temperatures)
        seed = random.randrange(10**6) if chosen[self.fresh] else int(chosen[self.seed] or 0)
        settings = Choices(
            chosen[self.seconds], int(chosen[self.count]), seed,
            {s: chosen[c] for s, c in zip(stages, self.temperatures, strict=False)},
        )  # fmt: skip
        yield {
            self.seed: seed,
            self.status: _shown_html(progress_html(stages, {})),
            **self._busy(True),
        }
        try:
            with closing(followed(partial(work, model, settings))) as updates:
                for update in updates:
                    if isinstance(update, list):
                        yield {**self._shown(update, chosen[self.results]), **self._busy(False)}
                    elif stop.is_set():
                        yield {self.status: _shown_html("<p>Stopped.</p>"), **self._busy(False)}
                        return
                    else:
                        yield {self.status: _shown_html(progress_html(stages, update))}
        except Exception as error:
            yield {self.status: _shown_html(problem_html(plain_words(error))), **self._busy(False)}
        finally:
            self._stops.pop(name, None)

    def _shown(self, new: Sequence[Result], before: Sequence[Result]) -> Update:
        """Show new results above earlier ones; the oldest are forgotten."""
        last = max((result.number for result in before), default=0)
        numbered = [replace(result, number=last + result.number) for result in new]
        kept = [*numbered, *before][:MOST_RESULTS]
        forget([*numbered, *before][MOST_RESULTS:])
        return {
            self.results: kept,
            self.status: gr.update(visible=False),
            self.cards: results_html(kept, address),
            self.edit: gr.update(visible=False),
            self.which: gr.update(choices=[result.number for result in kept], value=None),
        }

    def _busy(self, busy: bool) -> Update:
        waiting = dict.fromkeys(
            (self.go, self.nothing, self.extend, self.fill), gr.update(interactive=not busy)
        )
        return {**waiting, self.stop: gr.update(visible=busy)}


def _shown_html(html: str) -> Update:
    return gr.update(value=html, visible=True)


def _temperatures(model: Model, count: int) -> list[dict[str, Any]]:
    """Return label, value and visibility of ``count`` sliders."""
    used = [
        {"label": f"{stage} stage", "value": value, "visible": True}
        for stage, value in model.temperatures.items()
    ]
    return used + [{"visible": False}] * (count - len(used))


def address(path: Path) -> str:
    """Return where the page finds a file, relative to its own address."""
    return f"gradio_api/file={quote(str(path))}"


def launch(
    studio: Studio, *, host: str = "127.0.0.1", port: int = 7860, browser: bool = False
) -> gr.Blocks:
    """Serve the page from now on, in a thread."""
    blocks = Page(studio).blocks
    theme = gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        font=FONTS,
        font_mono=FIXED_FONTS,
    ).set(body_text_color_subdued="*neutral_500")  # the lighter grey of Gradio is hard to read
    blocks.queue(max_size=MOST_WAITING)
    blocks.launch(
        server_name=host, server_port=port, inbrowser=browser, prevent_thread_lock=True,
        share=False, quiet=True, ssr_mode=False, footer_links=[], max_file_size=MOST_BYTES,
        allowed_paths=[str(studio.folder), *map(str, studio.examples)],
        theme=theme, css_paths=[HERE / "page.css"],
    )  # fmt: skip
    return blocks
