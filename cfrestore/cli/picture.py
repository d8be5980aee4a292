"""Commands that restore: the sources of their arguments, and their shared options."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import wraps
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand

from cfrestore.cli.arguments import CommonArguments
from cfrestore.cli.parameters import FACES, FILES, MANY, NETWORKS, TALK
from cfrestore.cli.published import translate
from cfrestore.cli.settings import FILE
from cfrestore.errors import CFRestoreError

_GIVEN = ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP")
"""Names, in click, of the sources of a value that is no default; DEFAULT_MAP is a settings file."""


class PictureCommand(TyperCommand):
    """A command that also accepts the published spellings, and variables CFRESTORE_OPTION."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.auto_envvar_prefix = "CFRESTORE"
        parameters: list[Any] = self.params
        for parameter in parameters:
            parameter.show_envvar = False  # the help of --config mentions such variables
        with _placed(ctx):
            return super().parse_args(ctx, translate(args))

    def invoke(self, ctx: Any) -> Any:
        with _placed(ctx):
            return super().invoke(ctx)


@contextmanager
def _placed(ctx: Any) -> Iterator[None]:
    """Adds to errors about an option the environment variable or settings file that sets it."""
    try:
        yield
    except typer.BadParameter as error:
        if place := _place_of(error.param, ctx):
            error.message = f"{error.message.rstrip('.')}; it is set by {place}"
        raise
    except CFRestoreError as error:
        raise type(error)(f"{error}{_places_in(error, ctx)}") from error


def _places_in(error: CFRestoreError, ctx: Any) -> str:
    """The part of the message that says where options are set.

    An error is about the options that its text names; if it names none, about those whose values
    it contains.
    """
    options = {parameter: _source_of(parameter, ctx) for parameter in ctx.command.params}
    given = [option for option, source in options.items() if source in _GIVEN]
    about = [each for each in given if _names(str(error), each.name.replace("_", "[ _-]"))]
    if not about:
        values = {each: _value_of(each, ctx) for each in given}
        about = [each for each, value in values.items() if _names(str(error), re.escape(value))]
    places: dict[str, list[str]] = {}
    for each in about:
        if (place := _place_of(each, ctx)) and place not in str(error):
            places.setdefault(place, []).append(each.name.replace("_", "-"))
    return "".join(f"; {place} sets {', '.join(names)}" for place, names in places.items())


def _names(text: str, pattern: str) -> bool:
    """Whether a text contains the pattern as a whole word, with or without leading hyphens."""
    return re.search(rf"((?<=--)|(?<![\w-])){pattern}(?![\w-])", text) is not None


def _value_of(parameter: Any, ctx: Any) -> str:
    """The text of a parameter's value, also while it is still being parsed."""
    return str(os.environ.get(_place_of(parameter, ctx), ctx.params.get(parameter.name)))


def _source_of(parameter: Any, ctx: Any) -> str:
    return getattr(ctx.get_parameter_source(parameter.name), "name", "")


def _place_of(parameter: Any, ctx: Any) -> str:
    """The environment variable or settings file that sets a parameter; empty if neither does."""
    source = _source_of(parameter, ctx) if parameter else ""
    if source == "DEFAULT_MAP":
        return str(ctx.meta[FILE])
    if source != "ENVIRONMENT":
        return ""
    names = parameter.envvar or f"CFRESTORE_{parameter.name.upper()}"
    names = [names] if isinstance(names, str) else names
    return next(name for name in names if os.environ.get(name))


def with_arguments(
    kind: type[CommonArguments],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that replaces a command's first parameter, args, by the fields of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(kind)
    ]
    shared.sort(key=lambda parameter: _help_rank(parameter.annotation))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        others = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        parameters = [*shared, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in others)]

        @wraps(command)
        def call(**values: Any) -> None:
            args = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            command(args, **values)

        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call

    return decorate


def _help_rank(annotation: Any) -> int:
    """The rank of a parameter in the help: that of its heading, with arguments first."""
    (info,) = annotation.__metadata__
    headings = (None, FILES, MANY, FACES, NETWORKS, TALK)
    return headings.index(getattr(info, "rich_help_panel", None))
