"""Check the promises of every domain: configs, recipe, prompt."""

from __future__ import annotations

import inspect

import soundfile

from segue.core.assembly import assemble
from segue.core.config_files import load_config
from segue.core.discovery import import_target
from segue.core.domain import DEFAULT_VARIANT, PIPELINE_FILE, Domain
from segue.testing.check import NotApplicable, made, require
from segue.testing.options_checks import require_no_torch
from segue.testing.subject import Subject


def check_is_called_what_it_is_registered_as(subject: Subject) -> None:
    """Check that the domain's own name is the registered one."""
    domain = made(subject, Domain)
    if isinstance(subject.factory, str):
        right = domain.name == subject.factory
        require(right, f"its name is {domain.name!r}, it is registered as {subject.factory!r}")
    require(domain.name.isidentifier(), f"its name {domain.name!r} is not one plain word")


def check_every_config_assembles(subject: Subject) -> None:
    """Check that the default config exists, and that the parts of every variant fit."""
    domain = made(subject, Domain)
    files = f"neither {DEFAULT_VARIANT}.yaml nor pretrained/{PIPELINE_FILE}"
    require(domain.name in domain.names, f"{domain.directory} holds {files}")
    for name in domain.names:
        path = domain.config_path(name.partition("/")[2])
        assemble(load_config(path, subject.known).config, subject.known)


def check_recipe_can_be_called(subject: Subject) -> None:
    """Check that the recipe takes a source, an output and progress."""
    domain = made(subject, Domain)
    recipe = import_target(domain.recipe)
    try:
        inspect.signature(recipe).bind("source", "output", None)
    except TypeError as error:
        require(False, f"{domain.recipe} does not take (source, output, progress): {error}")


def check_prompt_is_audio(subject: Subject) -> None:
    """Check that the demo prompt can be read and is not silent."""
    domain = made(subject, Domain)
    wave, _ = soundfile.read(domain.prompt, always_2d=True)
    require(bool(len(wave)) and bool(wave.any()), f"{domain.prompt} holds no sound")


def check_findings_can_be_imported(subject: Subject) -> None:
    """Check that the suite of findings can be imported, if it names one."""
    domain = made(subject, Domain)
    if not domain.findings:
        raise NotApplicable("it has no findings")
    import_target(domain.findings)


def check_imports_no_torch(subject: Subject) -> None:
    """Check that importing the module of the domain imports no torch."""
    if not isinstance(subject.factory, str):
        raise NotApplicable("it is not registered")
    record = subject.known.find("domain", subject.factory, subject.label)
    require_no_torch(record.target.partition(":")[0])
