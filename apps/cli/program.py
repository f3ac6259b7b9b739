"""Make commands that refuse an option given twice, and know `--traceback` anywhere. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from segue.core.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])

TRACEBACK = "--traceback"


class _Once:
    """Refuse an option that is given twice, where the later value would win in silence."""

    def make_parser(self, ctx: Any) -> Any:
        parser = super().make_parser(ctx)  # type: ignore[misc]
        parse = parser.parse_args

        def parse_once(args: list[str]) -> Any:
            found = parse(args=args)
            if not ctx.resilient_parsing:  # as completion does
                _refuse_repeated(found[2])
            return found

        parser.parse_args = parse_once
        return parser


def _refuse_repeated(given: list[Any]) -> None:
    """Refuse what is given twice; a flag may be, as it says the same each time."""
    for option, count in Counter(given).items():
        if option.param_type_name != "option" or option.multiple or option.count:
            continue
        if count > 1 and not (option.is_flag and not option.secondary_opts):
            raise ConfigError(max(option.opts, key=len), f"is given {count} times", "give it once")


class _Command(_Once, TyperCommand):
    pass


class _Group(_Once, TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take ``--traceback``, an option of the whole program, behind a command too."""
        end = args.index("--") if "--" in args else len(args)
        if TRACEBACK in args[:end]:
            rest = [arg for arg in args[:end] if arg != TRACEBACK]
            args = [TRACEBACK, *rest, *args[end:]]
        return super().parse_args(ctx, args)


class Program(typer.Typer):
    """Hold commands of the `segue` program."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=_Group, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Function], Function]:
        return super().command(name, cls=_Command, **settings)
