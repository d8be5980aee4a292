"""Which options are accepted, and which are refused before any work."""

from pathlib import Path

import numpy as np
import pytest

from cfrestore.errors import ConfigError
from cfrestore.options import Options, Upsampling


@pytest.mark.parametrize("value", ["foo", "", 900.5, 0, -1, True, b"auto", [9], float("nan")])
@pytest.mark.parametrize("name", ["max_face", "batch_size"])
def test_a_limit_is_a_whole_number_or_one_of_its_words(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} must be auto.* found ") as refused:
        Options(**{name: value})  # type: ignore[arg-type]
    assert repr(value) in str(refused.value)


@pytest.mark.parametrize("name", ["min_face", "samples", "seed"])
@pytest.mark.parametrize("value", ["9", 1.5, True, None, -1])
def test_a_count_is_a_whole_number(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be a whole number from 0, found "):
        Options(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["fidelity", "temperature"])
@pytest.mark.parametrize("value", ["x", None, True, float("nan"), float("inf"), -0.1])
def test_a_number_is_finite(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must "):
        Options(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"faces": (True,)}, {"faces": (0.0,)}, {"faces": [0]}, {"upscale": 2.0}]
)
def test_other_types_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Options(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["faces", "max_face", "batch_size"])
def test_an_array_is_refused_like_any_other_type(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be .* found array"):
        Options(**{name: np.array([0, 1])})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["no", "false", 1, None])
def test_a_flag_is_a_bool(value: object) -> None:
    makers = ((Options, "aligned"), (Options, "draw_box"), (Upsampling, "faces"))
    for make, name in makers:
        with pytest.raises(ConfigError, match=f"^{name} must be True or False, found {value!r}$"):
            make(**{name: value})


@pytest.mark.parametrize("value", [3, True, b"compact"])
def test_an_up_sampler_is_a_name_or_a_path(value: object) -> None:
    with pytest.raises(ConfigError, match=f"must be a name or a path, found {value!r}$"):
        Upsampling(value)  # type: ignore[arg-type]
    assert Upsampling(Path("own.pth")).network == Path("own.pth")


def test_what_is_refused_is_told_in_words() -> None:
    with pytest.raises(ConfigError, match="^upscale must be 1, 2 or 4, found 3$"):
        Options(upscale=3)
    with pytest.raises(ConfigError, match="^temperature must be above 0 and finite, found inf$"):
        Options(temperature=float("inf"))


def test_what_fits_is_taken() -> None:
    assert Options(max_face=None).max_face is None
    assert Options(max_face=900, min_face=900).max_face == 900
    assert Options(batch_size=1).batch_size == 1
    assert Options() == Options(max_face="auto", batch_size="auto")
    with pytest.raises(ConfigError, match="^no face is at least 901 and at most 900 pixels large$"):
        Options(max_face=900, min_face=901)


def test_an_unknown_task_is_one_sentence() -> None:
    from cfrestore import load_pipeline

    with pytest.raises(ConfigError, match="no task 'painting', only restoration, inpainting"):
        load_pipeline("compact", task="painting")  # type: ignore[arg-type]
