"""`segue reproduce` on a tiny pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.apps.conftest import Segue


@pytest.fixture
def common(tiny_pipelines: dict[str, Path], recordings_folder: Path) -> tuple[object, ...]:
    """A small table of piano, which needs no model to be measured by."""
    return (
        *("reproduce", "piano", "-p", tiny_pipelines["piano"], "--data", recordings_folder),
        *("-o", "tables", "--items", 2, "--prompt-seconds", 1, "--seconds", 1),
    )


def test_tables_are_written_and_kept(segue: Segue, common: tuple[object, ...]) -> None:
    done = segue(*common, "--tables", "preference, voice", "--json")
    assert done.code == 0, done.err
    assert done.new == ["tables/preference.json", "tables/results.md"]
    assert done.json["voice"] is None and "voice does not apply: piano has no words" in done.err
    assert done.json["preference"]["rows"]["shuffled"]["preferred"]["count"] == 2
    again = segue(*common, "--tables", "preference")
    assert again.code == 0 and "preference was made before" in again.err
    assert "not decided" in again.out and str(Path("tables/results.md")) in again.out
    page = Path("tables/results.md").read_text()
    assert (
        page.startswith("# The paper's findings: piano") and "$ segue evaluate likelihood" in page
    )


def test_commands_of_a_table_give_its_figures(segue: Segue, common: tuple[object, ...]) -> None:
    found = segue(*common, "--tables", "preference", "--json").json["preference"]
    (command,) = found["commands"]
    plain = segue(*command.split()[1:], "--json")
    assert plain.code == 0, plain.err
    assert plain.json["order"]["shuffled"] == found["rows"]["shuffled"]["preferred"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--tables", "nope"), "--tables:"),
        (("--temperatures", "warm"), "--temperatures:"),
        (("--clusters", "many"), "--clusters:"),
        (("--codes", "50x8"), "--codes:"),
        (("--tables", "codes", "--codes", "75x5x16"), "--codes:"),
        (("--where", "label"), "--where:"),
        (("--seconds", 99), "no recording lasts 100 s"),
    ],
)
def test_refusals(
    segue: Segue, common: tuple[object, ...], arguments: tuple[object, ...], problem: str
) -> None:
    chosen = () if "--tables" in arguments else ("--tables", "preference")
    kept = common[: -2 if "--seconds" in arguments else None]
    assert segue(*kept, *chosen, *arguments).refused(problem)


def test_an_unknown_domain(segue: Segue, recordings_folder: Path) -> None:
    done = segue("reproduce", "whales", "--data", recordings_folder, "-o", "tables")
    assert done.refused("whales")
