"""Translates the published commands' arguments into ours; the help does not mention them.

Underscores in option names count as hyphens, so most options need no entry.
"""

from __future__ import annotations

from collections.abc import Sequence

from cfrestore.errors import ConfigError

FLAGS = {"--has-aligned": "--aligned", "--only-center-face": "--faces=center"}
VALUED = {
    "--fidelity-weight": "--w",
    "--output-path": "--output",
    "--detection-model": "--detector",
}
INPUTS = ("--input-path", "-i")

DETECTORS = {"retinaface_resnet50": "retinaface", "retinaface_mobile0.25": "mobilenet"}
NO_DETECTORS = ("YOLOv5l", "YOLOv5n", "dlib")

ABSENT = {
    "--save-video-fps": "change the rate of a video's frames",
}
"""What the published commands can do, but cfrestore cannot yet."""


def translate(words: Sequence[str]) -> list[str]:
    """Replaces every published spelling in the arguments of a command by ours.

    Raises:
        ConfigError: an option lacks its value, or requests something that cfrestore cannot do.
    """
    result: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            return [*result, word, *rest]
        name, equals, value = _split(word)
        if name in (*VALUED, *INPUTS) and not equals:
            try:
                value = next(rest)
            except StopIteration:
                raise ConfigError(f"{name} needs a value") from None
        result += _ours(name, equals, value)
    return result


def _split(word: str) -> tuple[str, str, str]:
    """Splits an option into name, with hyphens; "=" if a value is attached; and the value."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        return name.replace("_", "-"), equals, value
    if word.startswith("-i"):
        return "-i", word[2:] and "=", word[2:].removeprefix("=")
    return word, "", ""


def _ours(name: str, equals: str, value: str) -> list[str]:
    """Our arguments with the meaning of this option."""
    if name in ABSENT:
        raise ConfigError(f"cfrestore does not {ABSENT[name]} yet, which {name} asks for")
    if name in INPUTS:
        return [f"./{value}" if value.startswith("-") and value != "-" else value]
    if name == "--output-path" and value:
        value = f"{value}/"  # always a folder
    if name == "--detection-model":
        if value in NO_DETECTORS:
            raise ConfigError(
                f"cfrestore has no detector {value}; there are retinaface, mobilenet and mtcnn"
            )
        value = DETECTORS.get(value, value)
    if name in VALUED:
        return [f"{VALUED[name]}={value}"]
    return [FLAGS.get(name, name) + equals + value]
