"""Plans the jobs: which picture is written where, decided before any work."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from cfrestore.batch.inputs import FoundPicture, find_pictures, has_deeper, rooted
from cfrestore.batch.job import MARK, Job, Place, Stream
from cfrestore.batch.manifest import Manifest, manifest_in
from cfrestore.batch.naming import PICTURES, Kind, Naming, fixed_folder, is_template
from cfrestore.errors import ConfigError, ImageError, OutputError
from cfrestore.files import exists, plain, seen
from cfrestore.image import EXTENSIONS, FORMATS, writable_format

_NOT_SEEN = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENAMETOOLONG)
_NUMBERED = re.compile(r"(.*)_\d{2,}\.png", re.DOTALL)


def plan(
    inputs: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    overwrite: bool = False,
    mark: str = MARK,
    suffix: str | None = None,
    kept: Sequence[str] = (),
    recursive: bool = False,
    in_place: bool = False,
    format: str | None = None,
    fidelity: float | None = None,
    shard: tuple[int, int] | None = None,
    isolate: bool = False,
    listed: Sequence[Path] = (),
    spared: Sequence[Path] = (),
    kind: Kind = PICTURES,
    say: Callable[[str], object] = lambda sentence: None,
) -> tuple[Job, ...]:
    """Decides what is read and what is written; looks at the disk, changes nothing.

    `photo.jpg` becomes `photo.restored.jpg` beside it, a folder becomes `folder.restored` beside
    it, with the names, and the tree of sub-folders, unchanged. A str is a command-line argument,
    in which `-`, patterns and templates have a meaning; a Path is just the name of a file.

    Args:
        inputs: files, folders, patterns and `-` for stdin, see `find_pictures`.
        output: `-` for stdout; a template with {stem}, {ext}, {name}, {dir} or {w}, see
            `Naming.filled`; a file, if one file is the input; else a folder, also if it exists as
            one or ends with a slash. With several inputs, each input folder gets a folder of its
            name in it.
        overwrite: whether existing files may be replaced. Inputs never are. What an earlier run
            wrote of the same pictures may always be, see `Manifest`.
        mark: one of MARKS, in place of `.restored`.
        suffix: `photo.jpg` becomes `photo_suffix.jpg`, in whatever folder.
        kept: which of KEPT are to be written beside the results. Their files have the stem of the
            source, or its full name where two stems are equal.
        recursive: include sub-folders.
        in_place: each result replaces its picture; a picture that is already a result is left as it
            is, unless `overwrite` is set.
        format: one of FORMATS or an extension, in place of that of each picture.
        fidelity: the value of {w}.
        shard: number, from 1, and count of the parts into which the pictures are divided by name;
            only the jobs of this part are returned.
        isolate: an error of one picture becomes a Job.refusal, and having no pictures is no
            error.
        listed: more files and folders, from a list such as `find` writes. Their results keep the
            tree of folders below the one that all have in common. Names inside the folder of
            results are skipped as earlier results, unless all names are inside.
        spared: other files that are read, and so are never overwritten either.
        kind: of the files that are worked on.
        say: called with sentences on inputs that are left out.
    Raises:
        ImageError: a folder or pattern holds no pictures, or a path is unreadable.
        OutputError: two jobs have one target, or a target is an input, exists, is misplaced, or
            has a format that cannot be written.
        ConfigError: suffix, format, shard or template make no sense, or contradict each other.
    """
    naming = Naming(
        mark,
        f"_{_part_of_name(suffix)}" if suffix is not None else "",
        _ending(format),
        fidelity,
        kind,
    )
    if shard and not 1 <= shard[0] <= shard[1]:
        raise ConfigError(f"a shard must be one of 1/N to N/N, found {shard[0]}/{shard[1]}")
    if in_place and (output is not None or suffix is not None or format):
        raise ConfigError("a picture that is replaced in place keeps its name and format")
    named = frozenset(_identity(Path(each)) for each in (*inputs, *listed))
    search = _Search(naming, recursive, output, isolate, named, say)
    try:
        found, several = search.found(inputs, listed, in_place)
        jobs = list[Job]()
        for picture in found:
            target, folder = _target(picture, output, several, naming, in_place)
            if kept and isinstance(target, Stream):
                raise ConfigError(f"there is no folder beside {target} for {', '.join(kept)}")
            jobs.append(
                Job(
                    picture.source,
                    plain(target) if isinstance(target, Path) else target,
                    tuple(kept),
                    format=format,
                    in_place=in_place,
                    overwrite=overwrite,
                    manifest=manifest_in(plain(folder), shard) if folder is not None else None,
                )
            )
        in_shard = [shard is None or picture.belongs(*shard) for picture in found]
        return _checked(_named(jobs, naming), in_shard, isolate, spared, kind)
    except OSError as error:
        raise ImageError(f"{error.filename} cannot be read: {error.strerror}") from error


@dataclass(frozen=True, eq=False)
class _Search:
    """How inputs are searched; its attributes are arguments of `plan`.

    Attributes:
        named: identities of all inputs, searched even if named as results are.
    """

    naming: Naming
    recursive: bool
    output: str | Path | None
    isolate: bool
    named: Set[object]
    say: Callable[[str], object]

    def found(
        self, inputs: Sequence[str | Path], listed: Sequence[Path], in_place: bool
    ) -> tuple[Sequence[FoundPicture], bool]:
        """All pictures, and whether more than one name stands for them."""
        found = tuple(self.pictures(inputs))
        fresh = _outside(listed, self.output, self.say)
        others = tuple(self.pictures(fresh))
        return (*found, *(others if in_place else rooted(others))), len(inputs) + len(fresh) > 1

    def pictures(self, words: Sequence[str | Path]) -> Iterator[FoundPicture]:
        """The pictures that inputs name or hold."""
        without = None if self.output is None else Path(self.output)
        for word in words:
            skipped = list[Path]()
            pictures = find_pictures(
                word,
                self.naming,
                recursive=self.recursive,
                without=without,
                skipped=skipped.append,
            )
            if unnamed := [each for each in skipped if _identity(each) not in self.named]:
                self.say(_skipping(unnamed))
            if not pictures and not self.isolate:
                raise ImageError(_nothing_in(word, self.recursive, self.naming.kind))
            yield from pictures


def _skipping(folders: Sequence[Path]) -> str:
    """The message that folders are skipped because of their names."""
    names = ", ".join(map(str, folders[:5]))
    more = len(folders) - 5
    names += f" and {more} more" if more > 0 else ""
    what = "folders of that name hold what earlier runs have kept"
    return f"skipped {names}: {what}; name one to have it searched"


def _nothing_in(word: str | Path, recursive: bool, kind: Kind) -> str:
    """The message that an input has no files of the kind, with a hint."""
    if not Path(word).is_dir():
        return f"{word} matches no {kind.noun}"
    deeper = not recursive and has_deeper(Path(word), kind)
    return f"{word} holds no {kind.noun}{'; -r looks into sub-folders' if deeper else ''}"


def _outside(
    names: Sequence[Path], output: str | Path | None, say: Callable[[str], object]
) -> Sequence[Path]:
    """The names outside the folder of results; all, if none is outside."""
    if output is None or (isinstance(output, str) and (output == "-" or is_template(output))):
        return names
    folder = os.path.realpath(output)
    outside = [name for name in names if not Path(os.path.realpath(name)).is_relative_to(folder)]
    inside = len(names) - len(outside)
    if not (outside and inside):
        return names
    count = f"{inside} listed name{'' if inside == 1 else 's'}"
    say(f"skipped {count} in {Path(output)}, which is where results go")
    return outside


def parse_shard(text: str) -> tuple[int, int]:
    """Number and count of parts in a text such as 2/4; `plan` checks that they make sense.

    Raises:
        ConfigError: the text is not of this form.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None:
        raise ConfigError(f"a shard must be one of 1/N to N/N, found {text!r}")
    return int(match[1]), int(match[2])


def _part_of_name(suffix: str) -> str:
    if not suffix or Path(suffix).name != suffix:
        raise ConfigError(f"a suffix must be a part of a file's name, found {suffix!r}")
    return suffix


def _ending(format: str | None) -> str:
    """The extension of files of a format, with its dot; empty for None."""
    if format is None:
        return ""
    dotted = "." + format.lower().lstrip(".")
    if dotted in EXTENSIONS:
        return dotted
    if format.upper() in FORMATS:
        return next(end for end, name in EXTENSIONS.items() if name == format.upper())
    raise ConfigError(f"format {format!r} is unknown; known formats are {', '.join(FORMATS)}")


def _target(
    picture: FoundPicture, output: str | Path | None, several: bool, naming: Naming, in_place: bool
) -> tuple[Place, Path | None]:
    """Where a result goes, and the folder whose manifest records it, if one does."""
    source = picture.source
    if output == "-" or (output is None and source is Stream.STDIN and not in_place):
        return Stream.STDOUT, None
    if isinstance(source, Stream):
        return _target_of_stdin(output, naming), None
    if in_place:
        return source, source.parent if picture.root is None else picture.root
    if output is None:
        if picture.named and picture.root is not None:
            folder = _beside(picture.root, naming)
            return naming.within(folder / picture.inner, source), folder
        return naming.beside(source), None
    if isinstance(output, str) and is_template(output):
        if naming.suffix:
            raise OutputError(f"{output} says the whole name of the result; it takes no suffix")
        return naming.filled(output, source), fixed_folder(output)
    if picture.root is not None or several or _is_folder(output):
        folder = _folder(output, naming.kind)
        top = _full(picture.root).name if picture.named and picture.root and several else ""
        return naming.within(folder / top / picture.inner, source), folder
    if naming.suffix:
        raise OutputError(f"{output} is the whole name of the result, so no suffix can be added")
    return Path(output), None


def _target_of_stdin(output: str | Path | None, naming: Naming) -> Path:
    """The file for a picture from stdin, which has no name of its own."""
    if output is None:
        raise OutputError(f"{Stream.STDIN} is no file that can be replaced in place")
    if isinstance(output, str) and is_template(output):
        return naming.filled(output, Path("stdin"))
    if _is_folder(output) or naming.suffix:
        raise OutputError(f"{Stream.STDIN} has no name, so -o must say that of its result")
    return Path(output)


def _beside(folder: Path, naming: Naming) -> Path:
    """The folder of results beside a folder of pictures."""
    full = _full(folder)
    return full.with_name(full.name + naming.mark)


def _full(folder: Path) -> Path:
    """The folder by its real name if it is given as . or .. or the like."""
    return Path(os.path.realpath(folder)) if folder.name in ("", "..") else folder


def _is_folder(output: str | Path) -> bool:
    path = Path(output)
    return (seen(path) and path.is_dir()) or str(output).endswith(("/", os.sep))


def _folder(output: str | Path, kind: Kind) -> Path:
    """The output as a folder, which need not exist yet."""
    path = Path(output)
    named = path.suffix.lower() in kind.endings and not _is_folder(output)
    if path.is_file() or named:
        raise OutputError(f"{path} names one file, but what is to be written needs a folder")
    return path


def _named(jobs: Sequence[Job], naming: Naming) -> list[Job]:
    """The jobs with a `Job.name` that is unique within each folder of results."""
    places = [
        (
            os.path.realpath(job.target.parent) if isinstance(job.target, Path) else "",
            _stem(job.source),
        )
        for job in jobs
    ]
    times = Counter(places)
    return [
        replace(job, name=(place[1] if times[place] == 1 else _name(job.source)) + naming.suffix)
        for job, place in zip(jobs, places, strict=True)
    ]


def _name(source: Place) -> str:
    return source.name if isinstance(source, Path) else "stdin"


def _stem(source: Place) -> str:
    return source.stem if isinstance(source, Path) else "stdin"


def _checked(
    jobs: Sequence[Job], in_shard: Sequence[bool], isolate: bool, spared: Sequence[Path], kind: Kind
) -> tuple[Job, ...]:
    """This shard's jobs, after checking that they would destroy nothing.

    Targets are compared with those of all jobs, but existing files are checked for this shard only:
    other shards may be writing theirs at this moment.
    """
    mine = [job for job, yes in zip(jobs, in_shard, strict=True) if yes]
    refusals: dict[int, str] = {}
    found = (*_unwritable(mine, kind), *_collisions(jobs), *_losses(jobs, mine, spared))
    for job, sentence in found:
        if not isolate:
            raise OutputError(sentence)
        refusals.setdefault(id(job), sentence)
    return tuple(replace(job, refusal=refusals.get(id(job))) for job in mine)


def _unwritable(jobs: Sequence[Job], kind: Kind) -> Iterator[tuple[Job, str]]:
    """Jobs whose result has a format that cannot be written, each with the reason for refusal.

    A result with the extension of its picture is not checked, because nobody asked for that format:
    reading the picture tells which format it really has.
    """
    for job in jobs:
        if kind.written is not None:
            if job.ending.lower() not in kind.written:
                yield job, f"{job.target} must end with one of {', '.join(sorted(kind.written))}"
            continue
        source, target = (getattr(place, "suffix", "") for place in (job.source, job.target))
        if job.ending and (job.format or source.lower() != target.lower()):
            try:
                writable_format(job.ending, str(job.target))
            except OutputError as error:
                yield job, str(error)


def _collisions(jobs: Sequence[Job]) -> Iterator[tuple[Job, str]]:
    """Jobs whose target or stream an earlier job already has, each with the reason for refusal."""
    claims = [(job, _series(path), path) for job in jobs for path in job.series]
    numbered = {key for _, key, _ in claims}
    for job in jobs:
        for path in job.singles:
            claims.append((job, _identity(path), path))
            if _series(path) in numbered:
                claims.append((job, _series(path), path))
    taken: dict[object, Place] = {}
    for job, key, path in claims:
        if key in taken:
            yield job, f"{taken[key]} and {job.source} would both be written to {path}"
        taken.setdefault(key, job.source)
    for stream in Stream:
        for job in [job for job in jobs if stream in (job.source, job.target)][1:]:
            yield job, f"{stream} is for one picture, and there are several for it"


def _losses(
    jobs: Sequence[Job], mine: Sequence[Job], spared: Sequence[Path]
) -> Iterator[tuple[Job, str]]:
    """Jobs that would overwrite a file, each with the reason for refusal."""
    inputs = {_identity(job.source): job for job in jobs if isinstance(job.source, Path)}
    others = set(map(_identity, spared))
    manifests = _Manifests()
    for job, path in _files(mine):
        identity = _identity(path)
        owner = inputs.get(identity)
        itself = owner is job and job.in_place and path == job.target
        if identity in others or (owner is not None and not itself):
            yield job, f"{path} is an input, and inputs are never overwritten"
        elif job.overwrite or (job.in_place and path == job.target):
            continue
        elif exists(path) and not manifests.know(path, job):
            yield job, f"{path} exists; only --overwrite replaces it"


class _Manifests(dict[Path, Manifest]):
    """Manifests by their folders, each read once."""

    def __missing__(self, folder: Path) -> Manifest:
        self[folder] = Manifest.read(folder)
        return self[folder]

    def know(self, path: Path, job: Job) -> bool:
        return job.manifest is not None and self[job.manifest.parent].knows(path, job)


def _files(jobs: Sequence[Job]) -> Iterator[tuple[Job, Path]]:
    """The files that jobs would write; of numbered series, those that already exist."""
    owners = {_series(path): job for job in jobs for path in job.series}
    for job in jobs:
        for path in job.singles:
            yield job, path
    for folder in sorted({path.parent for job in jobs for path in job.series}):
        for path in _list(folder):
            if _series(path) in owners:
                yield owners[_series(path)], path


def _series(path: Path) -> object:
    """A key shared by the numbered files of one picture; None if the file is not numbered."""
    match = _NUMBERED.fullmatch(path.name)
    return (_identity(path.parent), match[1]) if match else None


def _list(folder: Path) -> list[Path]:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file, but what is to be written needs a folder")
    return sorted(folder.iterdir()) if folder.exists() else []


def _identity(path: Path) -> object:
    """A key shared by all paths of one file; for one that is absent or not visible, its path."""
    try:
        status = path.stat()
    except OSError as error:
        if error.errno not in _NOT_SEEN:
            raise
        return os.path.realpath(path)
    return status.st_dev, status.st_ino
