"""Commands that restore: the sources of their arguments, and their shared options."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand

from cfrestore.cli.arguments import CommonArguments
from cfrestore.cli.parameters import FACES, FILES, MANY, NETWORKS, TALK
from cfrestore.cli.published import translate
from cfrestore.cli.settings import FILE


class PictureCommand(TyperCommand):
    """A command that also accepts the published spellings, and variables CFRESTORE_OPTION."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.auto_envvar_prefix = "CFRESTORE"
        parameters: list[Any] = self.params
        for parameter in parameters:
            parameter.show_envvar = False  # the help mentions them once for all
        try:
            return super().parse_args(ctx, translate(args))
        except typer.BadParameter as error:
            name = error.param.name if error.param else None
            source = getattr(ctx.get_parameter_source(name or ""), "name", None)
            if source in ("ENVIRONMENT", "DEFAULT_MAP"):  # not the command line, so say where
                place = _variable(error.param) if source == "ENVIRONMENT" else ctx.meta[FILE]
                error.message = f"{error.message.rstrip('.')}; it is set by {place}"
            raise


def _variable(parameter: Any) -> str:
    """The environment variable that supplied a parameter's value."""
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
    shared.sort(key=lambda parameter: _place(parameter.annotation))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        parameters = [*shared, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own)]

        @wraps(command)
        def call(**values: Any) -> None:
            args = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            command(args, **values)

        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call

    return decorate


def _place(annotation: Any) -> int:
    """The place of a parameter in the help: that of its heading, arguments first."""
    (info,) = annotation.__metadata__
    headings = (None, FILES, MANY, FACES, NETWORKS, TALK)
    return headings.index(getattr(info, "rich_help_panel", None))
