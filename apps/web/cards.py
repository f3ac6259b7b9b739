"""Write the HTML of results, of progress and of problems. Imports no gradio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from segue.apps.web.studio import Result, Steps

Link = Callable[[Path], str]

EMPTY = """
<div class="empty">
  <p><b>Results appear here.</b></p>
  <p>Record or upload a few seconds, then press <i>Continue</i>. Drag over a picture to go on from
  there.</p>
</div>
"""

LABEL_SHARE = 0.15  # of a narrow picture: the width of "12.3 s"


def results_html(results: Sequence[Result], link: Link) -> str:
    """Return cards, the newest first, and variants of one request side by side."""
    return f'<div class="cards">{"".join(_card(r, link) for r in results)}</div>'


def _card(result: Result, link: Link) -> str:
    number = result.number
    marks = "".join(
        f'<i class="mark" style="left:{_percent(result, at)}"></i>' for at in result.marks
    )
    labels = "".join(_time(result, at) for at in labelled(result.marks, result.seconds))
    sounds = "".join(
        f"<label><span>{escape(label)}</span>"
        f'<audio controls preload="metadata" controlslist="nodownload noplaybackrate"'
        f' data-start="{start:.3f}" src="{link(path)}"></audio>'
        "</label>"
        for label, (path, start) in result.sounds.items()
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in result.notes)
    return f"""
<article class="card" data-number="{number}" data-seconds="{result.seconds:.4f}">
  <header><b>{number}</b><span>{escape(result.about)}</span>
    <small>{escape(result.model)}, seed {result.seed}</small></header>
  <div class="picture">
    <img src="{link(result.picture)}" draggable="false"
      alt="Waveform and spectrogram of {result.seconds:.1f} s; {_spoken(result)}">
    {marks}<i class="chosen" hidden></i><i class="playhead" hidden></i>
  </div>
  <div class="times">{labels}</div>
  {sounds}
  {f"<ul>{notes}</ul>" if notes else ""}
  <footer>
    <button type="button">Go on from its end</button>
    <a download href="{link(result.whole)}">Download WAV</a>
    <a download href="{link(result.config)}">Config</a>
  </footer>
</article>"""


def _percent(result: Result, at: float) -> str:
    return f"{100 * at / result.seconds:.2f}%"


def labelled(marks: Sequence[float], seconds: float) -> list[float]:
    """Return the moments to name below a picture: joins before the ends, where both fit."""
    shown: list[float] = []
    for at in (*marks, 0.0, seconds):
        if all(abs(at - other) >= LABEL_SHARE * seconds for other in shown):
            shown.append(at)
    return sorted(shown)


def _time(result: Result, at: float) -> str:
    return f'<span style="left:{_percent(result, at)}">{at:.1f} s</span>'


def _spoken(result: Result) -> str:
    if not result.marks:
        return "all of it is new"
    begins, *ends = (f"{at:.1f} s" for at in result.marks)
    return f"new audio begins at {begins}" + (f" and ends at {ends[0]}" if ends else "")


def progress_html(stages: Sequence[str], steps: Steps) -> str:
    """Return one bar per stage, with the time left of the one at work."""
    if not steps:
        return '<p class="working" role="status">Getting ready: loading the model …</p>'
    bars = "".join(_bar(stage, *steps.get(stage, (0, 1, 0.0))) for stage in stages)
    ready = all(done >= total for done, total, _ in steps.values()) and len(steps) == len(stages)
    ending = "<p>Turning tokens into sound …</p>" if ready else ""
    return f'<div class="working" role="status">{bars}{ending}</div>'


def _bar(stage: str, done: int, total: int, elapsed: float) -> str:
    share = done / total if total else 0.0
    left = f"{elapsed * (1 - share) / share:.0f} s left" if 0 < share < 1 and elapsed > 1 else ""
    text = "done" if share >= 1 else left or ("waiting" if not done else f"{share:.0%}")
    return (
        f"<label><span>{escape(stage)}</span>"
        f'<progress value="{done}" max="{max(total, 1)}"></progress><small>{text}</small></label>'
    )


def problem_html(message: str) -> str:
    """Return a message that screen readers read out."""
    return f'<p class="problem" role="alert">{escape(message)}</p>'
