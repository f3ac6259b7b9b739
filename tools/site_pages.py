"""Hooks of mkdocs: the pages that are written elsewhere, and links that leave the site.

The README is the first page, and the public interface comes from docstrings. A link to a file that
is no page of the site, such as source code, keeps its words only.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<![!`])\[([^\]]+)\]\(([^)\s]+)\)")
NOTEBOOK = ".ipynb"
INHERITED = "\n    options:\n      inherited_members: true"
PUBLIC = (
    "segue.inference.pipeline.Pipeline",
    "segue.inference.request.GeneratedAudio",
    "segue.core.audio.Audio",
    "segue.core.interfaces",
    "segue.core.options",
    "segue.core.spec",
    "segue.core.metrics",
    "segue.core.errors",
    "segue.core.records",
    "segue.testing",
)


def on_files(files: Any, config: Any) -> Any:
    """Add the first page, the reference of Python, and notebooks as pages."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    parts = [f"::: {name}{INHERITED * name.endswith('Pipeline')}" for name in PUBLIC]
    reference = "\n\n".join(["# Python", *parts, ""])
    pages = {"index.md": readme, "reference/python.md": reference}
    for file in [file for file in files if file.src_uri.endswith(NOTEBOOK)]:
        pages[file.src_uri.removesuffix(NOTEBOOK) + ".md"] = from_notebook(file.abs_src_path)
        files.remove(file)
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def from_notebook(path: str) -> str:
    """Return the cells of a notebook as one page."""
    parts = []
    for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Take the links out that leave the site."""

    def kept(link: re.Match[str]) -> str:
        words, target = link.groups()
        if target.endswith(NOTEBOOK):
            target = target.removesuffix(NOTEBOOK) + ".md"
        if "://" in target or target.startswith("#"):
            return link.group()
        folder = posixpath.dirname(page.file.src_uri)
        path = posixpath.normpath(posixpath.join(folder, target.partition("#")[0]))
        return f"[{words}]({target})" if files.get_file_from_path(path) else words

    return LINK.sub(kept, markdown)
