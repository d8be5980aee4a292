"""Plain summaries of the licences of weight files; only the full texts are binding."""

from __future__ import annotations

from dataclasses import dataclass

from cfrestore.weights.table import APACHE, BSD, MIT, S_LAB


@dataclass(frozen=True)
class Terms:
    """A summary of a licence.

    Attributes:
        words: what it allows and requires.
        text: URL of the full text.
    """

    words: str
    text: str


_PERMISSIVE = (
    "You may use, change and pass on the file, also commercially. Whoever passes it on keeps the "
    "copyright notice and these terms."
)
_NO_WARRANTY = "There is no warranty."

TERMS = {
    S_LAB: Terms(
        "You may use, change and pass on the file for NON-COMMERCIAL purposes only. Whoever passes "
        "it on keeps the copyright notice, these terms and the disclaimer. The names of its "
        "authors must not advertise what is made from it without their permission. For commercial "
        f"use their permission is needed. {_NO_WARRANTY}",
        "https://github.com/sczhou/CodeFormer/blob/master/LICENSE",
    ),
    MIT: Terms(
        f"{_PERMISSIVE} {_NO_WARRANTY}",
        "https://github.com/xinntao/facexlib/blob/master/LICENSE",
    ),
    BSD: Terms(
        f"{_PERMISSIVE} The names of its authors must not advertise what is made from it without "
        f"their permission. {_NO_WARRANTY}",
        "https://github.com/xinntao/Real-ESRGAN/blob/master/LICENSE",
    ),
    APACHE: Terms(
        f"{_PERMISSIVE} Changed files say that they were changed. {_NO_WARRANTY}",
        "https://www.apache.org/licenses/LICENSE-2.0",
    ),
}
