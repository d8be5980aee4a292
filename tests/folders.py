"""Makes folders of files, and reads their contents."""

from pathlib import Path

from stubs import picture

from cfrestore.image import Photo, write_photo


def touch(*names: str) -> None:
    """Makes empty files, and the folders that they are in."""
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def make_pictures(count: int, height: int = 40, width: int = 50) -> None:
    """Makes in/000.png and so on, each a different picture."""
    Path("in").mkdir(exist_ok=True)
    for index in range(count):
        write_photo(Photo(picture(height, width, seed=index)), f"in/{index:03d}.png")


def contents(folder: str) -> dict[str, bytes]:
    """Contents of the files by name, without hidden ones."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
