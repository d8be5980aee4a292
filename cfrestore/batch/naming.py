"""Names of results: beside their sources, in a folder, or from a template."""

from __future__ import annotations

import os
import string
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cfrestore.batch.job import MARK
from cfrestore.errors import ConfigError
from cfrestore.image import EXTENSIONS


@dataclass(frozen=True)
class Kind:
    """A kind of files that are worked on.

    Attributes:
        noun: what they are called, plural.
        endings: extensions by which they are found in folders, with a dot, in lower case.
        written: extensions that results may have; None: any.
        otherwise: extension of the result of a file whose own extension is not in `written`.
    """

    noun: str
    endings: Collection[str]
    written: Collection[str] | None = None
    otherwise: str = ""

    def ending(self, source: Path) -> str:
        """The extension of the result of this file."""
        kept = self.written is None or source.suffix.lower() in self.written
        return source.suffix if kept else self.otherwise


PICTURES = Kind("pictures", frozenset(EXTENSIONS))


@dataclass(frozen=True)
class Naming:
    """How the name of a result is made from that of its picture.

    Attributes:
        mark: added before the extension to results beside their sources.
        suffix: replaces the mark, and is added to results elsewhere too.
        extension: replaces that of the picture, with its dot; empty: the picture's is kept.
        fidelity: the value of {w} in a template; None: templates cannot use {w}.
        kind: the kind of the files.
    """

    mark: str = MARK
    suffix: str = ""
    extension: str = ""
    fidelity: float | None = None
    kind: Kind = PICTURES

    def beside(self, source: Path) -> Path:
        """The result beside its source."""
        return source.with_name(source.stem + (self.suffix or self.mark) + self._extension(source))

    def within(self, folder: Path, source: Path) -> Path:
        """The result in a folder of results."""
        return folder / (source.stem + self.suffix + self._extension(source))

    def filled(self, template: str, source: Path) -> Path:
        """The result as the template names it; in a folder if that ends with a slash.

        Raises:
            ConfigError: as `fill`.
        """
        extension = self._extension(source)
        fields = {
            "stem": source.stem,
            "ext": extension.removeprefix("."),
            "name": source.stem + extension,
            "dir": str(source.parent),
        }
        if self.fidelity is not None:
            fields["w"] = f"{self.fidelity:g}"
        text = fill(template, fields)
        return Path(text) / fields["name"] if text.endswith(("/", os.sep)) else Path(text)

    def _extension(self, source: Path) -> str:
        return self.extension or self.kind.ending(source)


def is_template(output: str) -> bool:
    """Whether an output is a template: whether it has a brace."""
    return "{" in output or "}" in output


def fill(template: str, fields: Mapping[str, str]) -> str:
    """The template with {field} replaced by its value, {{ by { and }} by }.

    Raises:
        ConfigError: a field is unknown, or a brace stands alone.
    """
    parts = []
    for literal, field in _parse(template):
        parts.append(literal)
        if field is None:
            continue
        if field not in fields:
            known = ", ".join(f"{{{name}}}" for name in fields)
            raise ConfigError(
                f"{{{field}}} in {template} is unknown; known are {known}, and {{{{ is a brace"
            )
        parts.append(fields[field])
    return "".join(parts)


def fixed_folder(template: str) -> Path | None:
    """The folder that every result of a template lies in; None if its first part already varies."""
    literal, _ = next(_parse(template))
    folder = literal.replace(os.sep, "/").rpartition("/")[0]
    return Path(folder) if folder else None


def _parse(template: str) -> Iterator[tuple[str, str | None]]:
    """Text and the field that follows it, alternately."""
    try:
        for literal, field, form, conversion in string.Formatter().parse(template):
            whole = field
            if form or conversion:  # not supported, but shown in the message
                whole = (
                    f"{field}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
                )
            yield literal, whole
    except ValueError as error:
        raise ConfigError(
            f"the output {template} has a single brace; {{{{ and }}}} stand for braces"
        ) from error
