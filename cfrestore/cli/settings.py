"""The file cfrestore.toml: values for options set by neither arguments nor environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from cfrestore.errors import ConfigError
from cfrestore.files import is_file

NAME = "cfrestore.toml"

HERE = Path(NAME)
"""The file in the working folder."""

FILE = "cfrestore.settings"
"""Key, in a command's context, of the path of the file used."""

COMMANDS = ("restore", "inpaint", "colorize", "video")
"""The commands that use the file; a key may be an option of any of them."""

RESERVED = frozenset(
    {
        "files_from",
        "output",
        "overwrite",
        "engine",
        "address",
        "actors",
        "gpus_per_actor",
        "weights_dir",
    }
)
"""Options that a file found in the working folder may not set.

That folder may belong to somebody else, who must not decide which files are read or replaced,
where pictures are sent, or where weights come from. Files of weights and masks may be set, because
reading them executes no code.
"""


def use_settings(context: typer.Context, file: Path | None) -> Path | None:
    """Takes defaults from the given file or the one that is found; the callback of --config.

    Raises:
        ConfigError: as `read_settings`, or a file in the working folder sets a RESERVED option.
    """
    path = file or find_settings()
    if path is not None and not context.resilient_parsing:
        settings = read_settings(path)
        if file is None and path == HERE:
            _check_reserved(settings)
        context.default_map = settings
        context.meta[FILE] = path
    return path


def find_settings() -> Path | None:
    """Finds cfrestore.toml in the working folder, else in the user's settings folder, else None."""
    return next((path for path in (HERE, own_settings()) if is_file(path)), None)


def own_settings() -> Path:
    """Path of the user's own file, which need not exist."""
    return Path(typer.get_app_dir("cfrestore")) / NAME


def read_settings(path: Path) -> dict[str, str | bool]:
    """Reads the values in a file, by parameter name, in the form that the command line takes.

    Raises:
        ConfigError: the file is unreadable or not TOML, a key is not an option or is in-place, or a
            value has an unsuitable type.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # of TOML or of UTF-8
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return _checked(content, path)


def _checked(content: Mapping[str, object], path: Path) -> dict[str, str | bool]:
    known, known_flags = option_names(), option_names(flags=True)
    settings: dict[str, str | bool] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0)[0].replace("_", "-")
            raise ConfigError(
                f"{path} sets {key!r}, which is not an option; the nearest is {near!r}"
            )
        if name == "in_place":  # the file may belong to somebody else
            raise ConfigError(f"{path} sets {key!r}; only --in-place itself replaces originals")
        if name in settings:
            raise ConfigError(f"{path} sets {key!r} twice, with - and with _")
        if isinstance(value, bool) and name not in known_flags:
            raise ConfigError(f"{path} sets {key!r} to {str(value).lower()}, but it has a value")
        settings[name] = _plain(value, key, path)
    return settings


def _check_reserved(settings: Mapping[str, object]) -> None:
    """Raises ConfigError if the settings of a file in the working folder include reserved ones."""
    reserved = next((name for name in settings if name in RESERVED), None)
    if reserved is not None:
        raise ConfigError(
            f"{HERE} sets {reserved.replace('_', '-')!r}, which a file in the working folder may "
            f"not; use the option itself, {own_settings()} or --config"
        )


def _plain(value: object, key: str, path: Path) -> str | bool:
    """Converts a value to an argument: booleans unchanged, numbers as text, lists with commas."""
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(f"{path} sets {key!r} to a text with a zero character")
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list) and all(type(item) is int for item in value):
        return ",".join(map(str, value))
    raise ConfigError(
        f"{path} must set {key!r} to text, a number, true, false or a list of whole numbers"
    )


@cache
def option_names(*, flags: bool = False) -> frozenset[str]:
    """Names of the parameters that the file may set, or only of those that are on or off."""
    modules: list[Any] = [import_module(f"cfrestore.cli.{name}") for name in COMMANDS]
    commands: list[Any] = [typer.main.get_command(module.app) for module in modules]
    return frozenset(
        str(option.name)
        for command in commands
        for option in command.params
        if option.param_type_name == "option" and not option.is_eager
        if option.is_flag or not flags
    )
