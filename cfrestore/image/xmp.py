"""Edits XMP packets in as few bytes as possible; the rest of a packet is never rewritten.

A packet is parsed only to locate its elements. One that declares a document type is left alone,
so that no entity is ever expanded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

NAMESPACE = "urn:cfrestore:1.0:"

_ORIENTATION = re.compile(rb"(?<=tiff:Orientation)(\s*=\s*[\"']|>)([1-8])")
_RECORD = "cfrestore:Restoration"
_TASK = re.compile(rb"cfrestore:task\s*(?:>|=\s*[\"'])([a-z]+)")
_THUMBNAILS = ("xmp:Thumbnails", "xap:Thumbnails")
_EMPTY = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '</rdf:RDF></x:xmpmeta>\n<?xpacket end="w"?>'
).encode()


def take_orientation(packet: bytes) -> tuple[int | None, bytes]:
    """Returns the orientation in a packet, and the packet with the orientation set to 1."""
    found = _ORIENTATION.search(packet)
    return (int(found[2]) if found else None), _ORIENTATION.sub(rb"\g<1>1", packet)


def with_record(packet: bytes | None, record: Mapping[str, str]) -> bytes | None:
    """Adds a record of the restoration to a packet, replacing an earlier one.

    Args:
        packet: None to create a new one.
        record: names, which must be XML names, and their values.
    Returns:
        The new packet; None if it is damaged, declares a document type, or is not UTF-8.
    """
    packet = packet or _EMPTY
    places = _find(packet)
    if places is None:
        return None
    about, rdf = quoteattr(places.about), places.prefix
    values = "".join(f"<cfrestore:{k}>{escape(v)}</cfrestore:{k}>" for k, v in record.items())
    text = f'<{_RECORD} {rdf}parseType="Resource">{values}</{_RECORD}>'
    start, end = places.record or (places.end, places.end)
    if not places.record:
        space = f'{rdf}about={about} xmlns:cfrestore="{NAMESPACE}"'
        text = f"<{rdf}Description {space}>{text}</{rdf}Description>"
    changed = packet[:start] + text.encode() + packet[end:]
    return changed if _find(changed) else None


def task_in(packet: bytes) -> str | None:
    """The task in the record of a restoration, also of one that other programs have rewritten."""
    found = _TASK.search(packet)
    return found[1].decode() if found else None


def without_thumbnails(packet: bytes) -> bytes:
    """The packet without thumbnails, which show the unrestored photograph."""
    places = _find(packet)
    for start, end in reversed(places.thumbnails if places else ()):
        packet = packet[:start] + packet[end:]
    return packet


@dataclass
class _Places:
    """Locations in a packet, as byte offsets of start and end.

    Attributes:
        end: end of the RDF element's content.
        prefix: of the RDF namespace, with its colon.
        about: the rdf:about value of its descriptions.
        record: an earlier record of a restoration.
        thumbnails: all thumbnails.
    """

    end: int = 0
    prefix: str = "rdf:"
    about: str = ""
    record: tuple[int, int] | None = None
    thumbnails: list[tuple[int, int]] = field(default_factory=list)


def _find(packet: bytes) -> _Places | None:
    """Locates the elements of a packet; None if it cannot be edited."""
    places, starts = _Places(), list[int]()
    parser = expat.ParserCreate("utf-8")

    def begin(name: str, attributes: dict[str, str]) -> None:
        starts.append(parser.CurrentByteIndex)
        if name.endswith(":Description") and not places.about:
            places.about = attributes.get(name.replace("Description", "about"), "")

    def finish(name: str) -> None:
        start, at = starts.pop(), parser.CurrentByteIndex
        if not packet.startswith(b"</" + name.encode(), at):
            return  # an empty-element tag has no content
        end = packet.index(b">", at) + 1
        if name.endswith(":RDF"):
            places.end, places.prefix = at, name.removesuffix("RDF")
        elif name == _RECORD:
            places.record = start, end
        elif name in _THUMBNAILS:
            places.thumbnails.append((start, end))

    def refuse(*_: object) -> None:
        raise ValueError("a document type is declared")

    parser.StartElementHandler, parser.EndElementHandler = begin, finish
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(packet.rstrip(b"\0"), True)
    except (expat.ExpatError, ValueError):
        return None
    return places if places.end else None
