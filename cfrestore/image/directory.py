"""Directories of TIFF files, and of EXIF blocks, which are b"Exif\\0\\0" and a small TIFF file.

They are edited in place, so that the offsets in them, those of maker notes too, remain valid.

Source: TIFF revision 6.0, section 2; the BigTIFF design; Exif 2.3, section 4.6.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple

from PIL.ExifTags import Base as Tag

EXIF_HEAD = b"Exif\x00\x00"
DIRECTORIES = (Tag.ExifOffset, Tag.GPSInfo)
"""Tags that hold the offset of a directory of their own."""

THUMBNAIL = (Tag.JpegIFOffset, Tag.JpegIFByteCount)
"""Tags of the place and the length of a thumbnail."""

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
"""Bytes per value, by type number."""


class Entry(NamedTuple):
    """A directory entry: tag, type, number of values, and position of the value or its offset."""

    tag: int
    kind: int
    number: int
    at: int


@dataclass(frozen=True)
class Directory:
    """A directory of a TIFF file; its entries are read on demand.

    Attributes:
        block: the file.
        order: byte order, as in `struct`.
        big: it is a BigTIFF, with 64-bit numbers.
        start: position of the directory.
        places: positions of its entries.
    """

    block: bytes
    order: Literal["<", ">"]
    big: bool
    start: int
    places: range

    @property
    def entries(self) -> Iterator[Entry]:
        """The entries, in the order of the file."""
        layout = struct.Struct(self.order + ("HHQ" if self.big else "HHI"))
        for at in self.places:
            yield Entry._make((*layout.unpack_from(self.block, at), at + layout.size))

    def holds(self, entry: Entry) -> bool:
        """Whether the value of an entry, or the directory it points to, lies within the file."""
        size = entry.number * SIZES.get(entry.kind, 2**32)
        pointer = entry.tag in DIRECTORIES
        if size <= (8 if self.big else 4) and not pointer:
            return True
        return self.offset(entry.at) + (2 if pointer else size) <= len(self.block)

    @property
    def next_at(self) -> int:
        """Position of the offset of the next directory."""
        return self.places.stop

    def offset(self, at: int) -> int:
        """The offset stored at a position of the file."""
        return _unpack(self.order + ("Q" if self.big else "I"), self.block, at)


def read_directory(block: bytes, start: int | None = None) -> Directory:
    """The directory at start, or the first.

    Raises:
        struct.error: the file is truncated, or no TIFF.
    """
    if block[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        raise struct.error("no TIFF head")
    order: Literal["<", ">"] = "<" if block[:2] == b"II" else ">"
    big = b"+" in block[2:4]
    if start is None:
        start = _unpack(order + ("Q" if big else "I"), block, 8 if big else 4)
    number = _unpack(order + ("Q" if big else "H"), block, start)
    first, length = (start + 8, 20) if big else (start + 2, 12)
    places = range(first, first + number * length, length)
    if places.stop > len(block):
        raise struct.error("a directory is cut short")
    return Directory(block, order, big, start, places)


def _unpack(layout: str, block: bytes, at: int) -> int:
    return int(struct.unpack_from(layout, block, at)[0])


def count_pages(block: bytes) -> int:
    """Number of pages, as far as their directories can be found."""
    starts: set[int] = set()
    start: int | None = None
    try:
        while start != 0 and start not in starts:
            directory = read_directory(block, start)
            starts.add(directory.start)
            start = directory.offset(directory.next_at)
    except struct.error:
        pass
    return len(starts)


def take_orientation(block: bytes) -> tuple[int | None, bytes]:
    """The orientation of a TIFF file or EXIF block, and the block with the orientation set to 1."""
    orientation = None
    try:
        directory = read_directory(block)
        for entry in directory.entries:
            if entry.tag == Tag.Orientation:
                layout = directory.order + {1: "B", 4: "I"}.get(entry.kind, "H")
                (value,) = struct.unpack_from(layout, block, entry.at)
                orientation = orientation or value
                if value != 1:
                    block = overwritten(block, entry.at, struct.pack(layout, 1))
    except struct.error:
        pass
    return orientation, block


def without_thumbnail(block: bytes) -> bytes:
    """An EXIF block without its thumbnail, which shows the unrestored photograph.

    The thumbnail's directory is unlinked and its bytes are zeroed, or cut off at the block's end;
    everything else stays in place.
    """
    try:
        first = read_directory(block)
        start = first.offset(first.next_at)
        second = read_directory(block, start) if start else None
    except struct.error:
        return block
    if second is None:
        return block
    values = {e.tag: second.offset(e.at) for e in second.entries if e.tag in THUMBNAIL}
    block = overwritten(block, first.next_at, bytes(8 if first.big else 4))
    begin, size = (values.get(tag, 0) for tag in THUMBNAIL)
    end = begin + size
    if begin < 8 or not size or end > len(block):
        return block
    return block[:begin] if end == len(block) else overwritten(block, begin, bytes(size))


def overwritten(block: bytes, at: int, content: bytes) -> bytes:
    """The block with its bytes from a position on replaced by content; its length stays."""
    return block[:at] + content + block[at + len(content) :]


class DirectoryWriter:
    """Builds a directory and writes it to a file."""

    def __init__(self, stream: BinaryIO, order: Literal["<", ">"]) -> None:
        self.stream = stream
        self.entries: dict[int, bytes] = {}
        self.order = order

    def append(self, content: bytes) -> int:
        """Appends content at an even position, and returns that position."""
        place = self.stream.seek(0, 2)
        self.stream.write(bytes(place % 2) + content)
        return place + place % 2

    def put(self, tag: int, kind: int, count: int, content: bytes) -> None:
        """Adds an entry, replacing one with the same tag."""
        if len(content) > 4:
            content = struct.pack(self.order + "I", self.append(content))
        head = struct.pack(self.order + "HHI", tag, kind, count)
        self.entries[tag] = head + content.ljust(4, b"\0")

    def numbers(self, tag: int, layout: Literal["H", "I"], *values: int) -> None:
        """Adds an entry of integers, of 16 or of 32 bits."""
        content = struct.pack(f"{self.order}{len(values)}{layout}", *values)
        self.put(tag, {"H": 3, "I": 4}[layout], len(values), content)

    def finish(self, pointer: int = 4) -> int:
        """Writes the directory, with its position at pointer; returns the next pointer's place."""
        number = struct.pack(self.order + "H", len(self.entries))
        entries = b"".join(self.entries[tag] for tag in sorted(self.entries))
        start = self.append(number + entries + bytes(4))
        self.stream.seek(pointer)
        self.stream.write(struct.pack(self.order + "I", start))
        return start + len(number + entries)
