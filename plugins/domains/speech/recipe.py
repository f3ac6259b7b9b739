"""Turn a labelled speech collection into a manifest for training.

The source is a folder with ``manifest.csv``: path, corpus, speaker, split, duration_s. Recordings
without labels need no recipe: `segue prepare files`.
"""

from __future__ import annotations

from pathlib import Path

from segue.core.errors import DataError
from segue.core.progress import Progress
from segue.data.recipe import check_folder, read_rows, write_manifest

COLUMNS = ("path", "corpus", "speaker", "split", "duration_s")

#: Corpora of single words: useful to a codec, but no sentence to continue.
SINGLE_WORDS = ("speech-commands", "fsdd")


def prepare(source: Path, output: Path, progress: Progress | None = None) -> Path:
    """Write ``manifest.csv`` (running speech only) and ``manifest-all.csv`` (with single words).

    Args:
        source: folder with ``manifest.csv``.
        output: folder to write to; audio stays where it is.
    """
    files = "recordings without labels are prepared by `segue prepare files`"
    check_folder(source, f"manifest.csv (columns {', '.join(COLUMNS)}); {files}")
    rows = read_rows(source / "manifest.csv", COLUMNS)
    every = [
        {
            "path": (source / row["path"]).resolve(),
            "split": row["split"],
            "group": f"{row['corpus']}/{row['speaker']}",
            "duration_s": row["duration_s"],
        }
        for _, row in rows
    ]
    if not every:
        raise DataError(str(source / "manifest.csv"), "lists no recording", "check the manifest")
    running = [row for row in every if not str(row["group"]).startswith(SINGLE_WORDS)]
    write_manifest(output / "manifest-all.csv", every)
    if progress is not None:
        progress("manifest", len(every), len(every))
    return write_manifest(output / "manifest.csv", running or every)
