"""How near to real photographs an upsampler comes, and at which cost, next to interpolation.

    python benchmarks/upsample.py PICTURE|FOLDER... [--upsampler NAME|FILE] [--sheets FOLDER]
    python benchmarks/upsample.py --costs [--rounds 3]

Each picture, at most 1024 px of its middle, is reduced to half its size by averaging; or then also
compressed as JPEG of quality 75; or worn: blurred by 1 px, reduced, given noise of 5 levels, and
compressed with quality 60. Then every method doubles it. PSNR and SSIM are averaged over the
pictures of each argument. The seconds are those of one thread per megapixel of the small picture.

Photographs that come with packages: china.jpg and flower.jpg in sklearn/datasets/images;
astronaut.png, chelsea.png, coffee.png and rocket.jpg in skimage/data; grace_hopper.jpg in
matplotlib/mpl-data/sample_data.

--sheets writes, for each picture and damage, three enlarged details: the original, then each
method.

--costs doubles a tile of 400 px with each of the networks that have a name, those of Real-ESRGAN
with random weights, which cost the same; each is a process of its own, and they take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import stopwatch
import torch
from numpy.typing import NDArray

from cfrestore.evaluate.figures import load_ssim, psnr
from cfrestore.image import pictures_in, read_photo, to_uint8
from cfrestore.models.rrdbnet import RRDBNet
from cfrestore.models.srvgg import SRVGGNetCompact
from cfrestore.options import TILE
from cfrestore.upsample import UPSAMPLERS, load_upsampler

Picture = NDArray[np.uint8]
Method = Callable[[Picture], Picture]

LARGEST = 1024
DETAIL, ZOOM = 96, 3
"""Side of a sheet's details in pixels of the original, and how much they are enlarged."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("pictures", type=Path, nargs="*")
    parser.add_argument("--upsampler", default="compact")
    parser.add_argument("--limit", type=int, default=20, help="pictures of each folder")
    parser.add_argument("--sheets", type=Path)
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker)
    elif options.costs:
        costs(options.rounds)
    else:
        compare_all(options)


def compare_all(options: argparse.Namespace) -> None:
    """Prints the table of each argument, and writes the sheets."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    upsampler = load_upsampler(options.upsampler)
    methods: dict[str, Method] = {
        "bilinear": interpolation(cv2.INTER_LINEAR),
        "bicubic": interpolation(cv2.INTER_CUBIC),
        "Lanczos": interpolation(cv2.INTER_LANCZOS4),
        "network": lambda small: to_uint8(upsampler(small, 2)),
    }
    print(f"{stopwatch.machine()}, one thread, {options.upsampler}\n")
    for place in options.pictures:
        files = sorted(pictures_in(place))[: options.limit] if place.is_dir() else [place]
        print(f"{place.name}, pictures: {len(files)}\n")
        print(stopwatch.table(*compare([middle(file) for file in files], methods)), "\n")
        if options.sheets:
            options.sheets.mkdir(parents=True, exist_ok=True)
            for file in files:
                for damage, wear in DAMAGES.items():
                    path = options.sheets / f"{file.stem}-{damage}.png"
                    drawn = sheet(middle(file), wear, methods)
                    cv2.imwrite(str(path), drawn[..., ::-1])


def costs(rounds: int) -> None:
    """Prints what the networks cost."""
    names = list(UPSAMPLERS)
    found = stopwatch.in_turn({name: [__file__, "--worker", name] for name in names}, rounds)
    print(f"{stopwatch.machine()}, one thread\n")
    rows = []
    for name in names:
        ratio = found[name].middle / found[names[0]].middle
        rows.append([name, found[name].range(), f"{ratio:.3f}", f"{found[name].peak / 1e6:.0f}"])
    print(stopwatch.table(["network", "CPU s a megapixel (range)", "ratio", "peak MB"], rows))


def work(name: str) -> None:
    """Doubles a tile by the network of that name, and says what it took."""
    torch.set_num_threads(1)
    random: dict[str, Callable[[], torch.nn.Module]] = {
        "realesrgan": RRDBNet,
        "realesr-general": SRVGGNetCompact,
    }
    pixels = np.random.default_rng(0).integers(0, 256, (TILE, TILE, 3)).astype(np.uint8)
    with TemporaryDirectory() as folder:
        path: str | Path = name
        if name in random:
            path = Path(folder) / "random.pth"
            torch.save(random[name]().state_dict(), path)
        upsampler = load_upsampler(path)
        upsampler(pixels[:64, :64], 2)
        seconds, wall = stopwatch.time_of(lambda: upsampler(pixels, 2))
        stopwatch.tell(seconds * 1e6 / TILE**2, wall)


def interpolation(method: int) -> Method:
    """Doubles a picture by one of OpenCV's methods."""

    def enlarged(small: Picture) -> Picture:
        height, width = small.shape[:2]
        return np.asarray(cv2.resize(small, (2 * width, 2 * height), interpolation=method))

    return enlarged


def middle(file: Path) -> Picture:
    """The middle of a photograph, with an even number of rows and columns."""
    pixels = to_uint8(read_photo(file).pixels)
    rows, columns = (
        slice(start := (side - size) // 2, start + size)
        for side in pixels.shape[:2]
        for size in [min(side, LARGEST) // 2 * 2]
    )
    return np.ascontiguousarray(pixels[rows, columns])


def reduced(sharp: Picture) -> Picture:
    """Half the size, each pixel the mean of four."""
    height, width = sharp.shape[:2]
    half = cv2.resize(sharp, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return np.asarray(half)


def compressed(pixels: Picture, quality: int) -> Picture:
    """As it comes out of a JPEG file."""
    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def worn(sharp: Picture) -> Picture:
    """Blurred, reduced, with noise, and compressed strongly."""
    small = reduced(np.asarray(cv2.GaussianBlur(sharp, (0, 0), 1)))
    noise = np.random.default_rng(0).normal(0, 5, small.shape)
    return compressed(np.rint(small + noise).clip(0, 255).astype(np.uint8), 60)


DAMAGES: Mapping[str, Callable[[Picture], Picture]] = {
    "reduced": reduced,
    "compressed": lambda sharp: compressed(reduced(sharp), 75),
    "worn": worn,
}


def compare(
    pictures: list[Picture], methods: Mapping[str, Method]
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of some pictures."""
    ssim = load_ssim()
    head = ["damage", "method", "PSNR dB", "to Lanczos", "SSIM", "CPU s a megapixel"]
    rows = []
    for damage, wear in DAMAGES.items():
        smaller = [wear(picture) for picture in pictures]
        found = {}
        for name, method in methods.items():
            painted: list[Picture] = []
            seconds = sum(
                stopwatch.time_of(lambda: painted.append(method(small)))[0]  # noqa: B023
                for small in smaller
            )
            pairs = list(zip(painted, pictures, strict=True))
            cost = seconds * 1e6 / sum(small[..., 0].size for small in smaller)
            means = [float(np.mean([rate(*pair) for pair in pairs])) for rate in (psnr, ssim)]
            found[name] = (*means, cost)
        for name, (decibel, likeness, cost) in found.items():
            gain = f"{decibel - found['Lanczos'][0]:+.2f}"
            rows.append([damage, name, f"{decibel:.2f}", gain, f"{likeness:.3f}", f"{cost:.3g}"])
    return head, rows


def sheet(
    sharp: Picture, wear: Callable[[Picture], Picture], methods: Mapping[str, Method]
) -> Picture:
    """The three details with most contrast, one a row: the original, then each method."""
    small = wear(sharp)
    columns = [sharp, *(method(small) for method in methods.values())]
    height, width = (side // DETAIL * DETAIL for side in sharp.shape[:2])
    tiles = sharp[:height, :width].reshape(height // DETAIL, DETAIL, width // DETAIL, DETAIL, 3)
    contrast = tiles.std((1, 3)).mean(-1)
    order = np.argsort(contrast, axis=None)
    chosen = order[[-1, len(order) * 3 // 4, len(order) // 4]]  # also a middling and a calm one
    strips = []
    for row, column in zip(*np.unravel_index(chosen, contrast.shape), strict=True):
        y, x = int(row) * DETAIL, int(column) * DETAIL
        strips.append(np.hstack([picture[y : y + DETAIL, x : x + DETAIL] for picture in columns]))
    return np.vstack(strips).repeat(ZOOM, 0).repeat(ZOOM, 1)


if __name__ == "__main__":
    main()
