"""The pipeline from photograph to photograph: detect, align, paint, parse, paste."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING

import numpy as np

from cfrestore.align import FFHQ_TEMPLATE, PUBLISHED_SIZE, AlignedFace, align_face
from cfrestore.backends import ExportedNetwork
from cfrestore.detail import weigh
from cfrestore.detect import NAMES, Detector, Face, load_detector
from cfrestore.device import ON_CPU, Execution, choose_parsing_precision, faces_at_once
from cfrestore.errors import ConfigError, DegenerateFaceError
from cfrestore.filling import Filling
from cfrestore.holes import white_holes
from cfrestore.image import is_gray, resize, to_uint8
from cfrestore.network import choose_execution, choose_model, open_network
from cfrestore.options import Options, Upsampling, check_flags
from cfrestore.parse import FaceParser
from cfrestore.paste import paste_faces
from cfrestore.procedure import Prepared, Procedure, Restoration
from cfrestore.restore import FailedFace, Painter, RestoredFace, corrected
from cfrestore.select import SkippedFace, select_faces
from cfrestore.task import COLORIZATION, INPAINTING, RESTORATION, Task, TaskName, find_task
from cfrestore.treatment import Candidate, Finishing, Treatment, each
from cfrestore.turned import find_faces
from cfrestore.upsample import Background, Upsampler, load_upsampler, with_more_pixels
from cfrestore.weights import locate, weight_file
from cfrestore.weights.digests import known_sha256

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from cfrestore.holes import Holes
    from cfrestore.image import Photo, Pixels
    from cfrestore.network import Network


@dataclass(frozen=True, eq=False)
class Pipeline:
    """Restores, fills or colours the faces of photographs; `load_pipeline` makes one.

    Attributes:
        network: a CodeFormer in evaluation mode, on the device; or an exported network.
        detector: finds the faces; None: only pictures of aligned faces can be processed.
        parser: limits what is pasted to the face proper; None: a whole soft square is pasted.
        execution: how the network computes; an exported one fixes its precision, see `painted_in`.
        model_name: name of the network in messages.
        notes: sentences about the choice of weights that the user should read.
        identity: everything besides the options and the detector's name that decides results, such
            as SHA-256 of weights.
        files: the weight files that were read, by purpose.
        match_statistics: whether restoration uses latent AdaIN, see `CodeFormer.forward`; None: as
            the network's configuration says.
        bg_upsampler: enlarges the background of restored photographs, or at scale 1 cleans it;
            None: the background is interpolated.
        face_upsampler: enlarges restored faces that the result shows larger than they were painted;
            None: they are interpolated.
        task: the task that the network was trained for; None: every task is accepted.
        turns: whether the detector may search a photograph turned as well, see `find_faces`.
    """

    network: Network
    detector: Detector | None
    parser: FaceParser | None = None
    execution: Execution = ON_CPU
    model_name: str = "custom"
    notes: tuple[str, ...] = ()
    identity: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    match_statistics: bool | None = None
    bg_upsampler: Upsampler | None = None
    face_upsampler: Upsampler | None = None
    task: TaskName | None = None
    turns: bool = False

    @property
    def crop_size(self) -> int:
        """S, side of the crops in pixels."""
        return self.network.config.image_size

    @property
    def matches(self) -> bool:
        """Whether restoration uses latent AdaIN."""
        configured, requested = self.network.config.match_statistics, self.match_statistics
        return configured if requested is None else requested

    @property
    def detector_name(self) -> str | None:
        """Name of the detector, if there is one."""
        return None if self.detector is None else self.detector.name

    @property
    def upsampler(self) -> Upsampler | None:
        """The network that enlarges background or faces, if there is one."""
        return self.bg_upsampler or self.face_upsampler

    @property
    def painted_in(self) -> str:
        """The precision of painting; an exported network has it fixed in its graph."""
        if isinstance(self.network, ExportedNetwork):
            return self.network.precision
        return self.execution.precision.value

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.execution.device

    def __call__(self, photo: Photo, options: Options = Options()) -> Restoration:  # noqa: B008
        """Restores the faces of a photograph that the options select.

        Network and detector see 8 bits; pasting keeps 16. The result is exactly `options.upscale`
        times the input's size. With `options.aligned` the picture is stretched to S x S, the
        network's size, and the result is the restored face of that size.

        Raises:
            TypeError: photo or options are of another type.
            ConfigError: this pipeline is for another task, or has no detector, which all but
                pictures of aligned faces need.
        """
        return self.restoring(options)(photo)

    def inpaint(
        self,
        photo: Photo,
        holes: Holes | None = None,
        options: Options = Options(),  # noqa: B008
    ) -> Restoration:
        """Fills the holes of a photograph where they lie in crops of faces.

        Every other pixel stays as it is. The network must be one for inpainting, as
        `load_pipeline(task="inpainting")` gives it.

        Args:
            holes: (H, W) bool, true where the photograph is to be filled; None: its pure white
                pixels.
            options: as in restoration; `fidelity` is not used.
        Raises:
            ImageError: the holes do not have the photograph's size.
            ValueError: the holes are not (H, W) bool.
            TypeError, ConfigError: as `__call__`; TypeError also if the holes are no array.
        Source: the published command, which takes aligned faces only: w = 1, no AdaIN.
        """
        return self.inpainting(holes, options)(photo)

    def colorize(self, photo: Photo, options: Options = Options()) -> Restoration:  # noqa: B008
        """Gives the faces of a photograph new colours.

        The rest is unchanged: a gray photograph gets coloured faces in gray surroundings. The
        network must be one for colorization, as `load_pipeline(task="colorization")` gives it.
        `options.fidelity` is not used.

        Raises:
            TypeError, ConfigError: as `__call__`.
        Source: the published command, which takes aligned faces only: w = 0, AdaIN, no gray test.
        """
        return self.colorizing(options)(photo)

    def restoring(self, options: Options = Options()) -> Procedure:  # noqa: B008
        """Restoration as a Procedure, whose batches photographs can share; see `__call__`."""
        self._check(RESTORATION, options)
        specific: dict[str, object] = {"fidelity": options.fidelity}
        if self.matches != self.network.config.match_statistics:
            specific["match_statistics"] = self.matches
        return self._procedure(RESTORATION, self._to_restore, options, **specific)

    def inpainting(
        self,
        holes: Holes | None = None,
        options: Options = Options(),  # noqa: B008
    ) -> Procedure:
        """Inpainting as a Procedure, whose batches photographs can share; see `inpaint`."""
        self._check(INPAINTING, options)
        if not isinstance(holes, (np.ndarray, NoneType)):  # a likely mistake: the options
            raise TypeError(f"holes must be a numpy array, found {type(holes).__name__}")
        if holes is not None and (holes.ndim != 2 or holes.dtype != np.bool_):
            raise ValueError(f"holes must be (H, W) bool, found {holes.shape} {holes.dtype}")

        mask = None if holes is None else hashlib.sha256(holes.tobytes()).hexdigest()
        return self._procedure(INPAINTING, partial(self._to_fill, holes), options, mask=mask)

    def colorizing(self, options: Options = Options()) -> Procedure:  # noqa: B008
        """Colorization as a Procedure, whose batches photographs can share; see `colorize`."""
        self._check(COLORIZATION, options)
        return self._procedure(COLORIZATION, self._to_colour, options)

    def _check(self, task: Task, options: Options) -> None:
        """Raises TypeError or ConfigError if the task cannot be done with the options."""
        if not isinstance(options, Options):  # a likely mistake: w itself
            raise TypeError(f"options must be Options, found {type(options).__name__}")
        if self.task not in (None, task.name):
            raise ConfigError(
                f"this pipeline was loaded for {self.task}; "
                f"load_pipeline(task={task.name!r}) loads one for {task.name}"
            )
        if self.detector is None and not options.aligned:
            raise ConfigError("this pipeline was loaded for aligned faces, and finds none")

    def _procedure(
        self,
        task: Task,
        treat: Callable[[Options, Photo], Treatment],
        options: Options,
        **specific: object,
    ) -> Procedure:
        """Makes the procedure of a task.

        Its settings, which identify a result, leave out options that cannot change the result.

        Args:
            treat: decides what the task does with a photograph.
            specific: settings that only this task has.
        """
        batch_size = faces_at_once(options.batch_size, self.device)
        paint = Painter(
            self.network,
            fidelity=options.fidelity if task.fidelity is None else task.fidelity,
            match_statistics=task.matches(self.matches),
            batch_size=batch_size,
            execution=self.execution,
            samples=options.samples,
            temperature=options.temperature,
            seed=options.seed,
        )
        others = asdict(options)
        del others["fidelity"], others["batch_size"]
        if not options.samples:
            del others["temperature"], others["seed"]
        known = {**self.identity, "detector": self.detector_name, "turns": self.turns}
        settings = {**known, **others, "task": task.name, **specific}
        prepare = partial(self._prepare, options, partial(treat, options))
        return Procedure(
            prepare,
            paint,
            batch_size,
            options.upscale,
            settings,
            spares_processor=self.device.type != "cpu",
        )

    def _prepare(
        self,
        options: Options,
        treat: Callable[[Photo], Treatment],
        photo: Photo,
        faces: Sequence[Face] | None = None,
    ) -> Prepared:
        """The steps of every task before painting: find faces, align and choose them.

        Args:
            treat: decides what the task does with a photograph.
            faces: see Prepare.
        """
        treatment = treat(photo)
        pixels, size = to_uint8(photo.pixels), self.crop_size
        whole = _stretch(pixels, size) if options.aligned else None
        aligned = [whole] if whole else _align(pixels, self._find(pixels, options, faces), size)
        chosen = each(aligned, treatment.choose)
        return Prepared(
            tuple(face for face in chosen if isinstance(face, AlignedFace)),
            Finishing(photo, options, treatment, chosen, whole),
        )

    def _to_restore(self, options: Options, photo: Photo) -> Treatment:
        """What restoration does with a photograph."""
        gray = photo.gray or is_gray(to_uint8(photo.pixels))
        background = None
        if self.bg_upsampler is not None:
            enlarge, scale = self.bg_upsampler, options.upscale
            background = Background(photo, enlarge, scale, once=not options.samples)
        return Treatment(
            paste=partial(self._paste, options, photo, background=background),
            choose=tuple if options.aligned else partial(weigh, photo.pixels, options.max_face),
            correct=partial(corrected, config=self.network.config, gray=gray),
        )

    def _to_fill(self, holes: Holes | None, options: Options, photo: Photo) -> Treatment:
        """What inpainting does with a photograph, see Filling; raises ImageError as it does."""
        filling = Filling(
            photo,
            white_holes(photo.pixels) if holes is None else holes,
            self.crop_size,
            scale=options.upscale,
            aligned=options.aligned,
        )
        return Treatment(filling.paste, filling.choose, filling.correct, filling.remarks)

    def _to_colour(self, options: Options, photo: Photo) -> Treatment:
        """What colorization does with a photograph."""
        return Treatment(partial(self._paste, options, photo), gray_stays=False)

    def _find(
        self, pixels: NDArray[np.uint8], options: Options, faces: Sequence[Face] | None
    ) -> tuple[Face | SkippedFace, ...]:
        """All faces of the picture; those that the options exclude are SkippedFaces."""
        if faces is None:
            assert self.detector is not None
            faces = find_faces(self.detector, pixels) if self.turns else self.detector(pixels)
        largest = options.max_face if isinstance(options.max_face, int) else None
        return select_faces(faces, pixels.shape[:2], options.faces, options.min_face, largest)

    def _paste(
        self,
        options: Options,
        photo: Photo,
        faces: Sequence[RestoredFace],
        background: Background | None = None,
    ) -> Pixels:
        """The photograph with new faces pasted, each within its mask."""
        masks: Sequence[NDArray[np.float32]] | None = None
        if self.parser is not None and faces:
            masks = tuple(self.parser(np.stack([face.crop for face in faces])))
        if self.face_upsampler is not None:
            enlarge, scale = self.face_upsampler, options.upscale
            faces = [with_more_pixels(face, enlarge, scale) for face in faces]
        if masks is not None:
            masks = [resize(m, *f.crop.shape[:2]) for m, f in zip(masks, faces, strict=True)]
        return paste_faces(
            photo.pixels,
            faces,
            scale=options.upscale,
            masks=masks,
            background=None if background is None else background.take(),
        )


def load_pipeline(
    model: str | Path = "auto",
    detector: str | Path | Detector = "auto",
    device: str | torch.device = "auto",
    parser: str | Path | None = None,
    *,
    threshold: float | None = None,
    precision: str = "auto",
    code_precision: str = "auto",
    compile: bool = False,
    task: TaskName = "restoration",
    backend: str = "torch",
    aligned: bool = False,
    turns: bool | None = None,
    upsampling: Upsampling = Upsampling(),  # noqa: B008
) -> Pipeline:
    """Loads a pipeline, ready to be called.

    Args:
        model: auto (published weights if they are on this machine, else compact), published,
            compact (the ones that come with cfrestore, for restoration only), or the path of a
            weight file. Backends other than torch take exported files as well.
        detector: a name or a path, see `load_detector`; or a Detector of your own.
        device: a torch.device, or a name, see `choose_device`.
        parser: a ParseNet file; None: the published one if it is on this machine.
        threshold: score above which a face counts, see `load_detector`; not for a Detector of your
            own.
        precision: see `choose_precision`, and `choose_parsing_precision`.
        code_precision: see `choose_code_precision`.
        compile: compiles the network when it is first used, see `check_compiling`.
        task: what the weights are for.
        backend: torch, or onnx or openvino, which run on the CPU and for which weights are exported
            once, see `backends.exported`.
        aligned: every picture will be one aligned face (Options.aligned): nothing is detected or
            pasted, so neither detector nor parser is loaded.
        turns: whether photographs may be searched turned, see `find_faces`; None: unless the
            detector is your own.
        upsampling: which network enlarges what is not painted.
    Raises:
        WeightsError: a weight file is missing, or differs from the published one.
        CheckpointError: a weight file holds something else.
        ConfigError: an argument is of another type, a name is unknown, the device or the backend is
            absent, or they are incompatible.
    """
    turns = not isinstance(detector, Detector) if turns is None else turns
    check_flags(compile=compile, aligned=aligned, turns=turns)
    _check_types(model, detector, parser, upsampling)
    if isinstance(detector, Detector) and threshold is not None:
        raise ConfigError("a detector of your own has its own threshold")
    if upsampling.network and (aligned or task != "restoration"):
        raise ConfigError("only the restoration of whole photographs has up-samplers")
    execution = choose_execution(backend, str(device), precision, code_precision, compile=compile)
    kind = find_task(task)
    path, name, notes = choose_model(str(model), kind)
    network = open_network(path, kind, execution)
    finder = None if aligned else _finder(detector, execution.device, threshold)
    parses = kind.parses and not aligned
    parsing = (Path(parser) if parser else locate("parsenet")) if parses else None
    parsing_precision = choose_parsing_precision(precision, execution.device)
    if name == "published":
        fell_back = detector == "auto" and finder is not None and finder.name == "mtcnn"
        notes += _lacking(fell_back, parses and parsing is None)
    enlarge = _open_upsampler(upsampling, execution)
    face_parser = (
        FaceParser(parsing, execution.device, precision=parsing_precision) if parsing else None
    )
    files = {
        "model": path,
        **({"detector": file} if finder and (file := _file_of(detector)) else {}),
        **({"parser": parsing} if parsing else {}),
        **({"upsampler": enlarge.path} if enlarge else {}),
    }
    digests = {purpose: known_sha256(file) for purpose, file in files.items()}
    return Pipeline(
        network,
        finder,
        parser=face_parser,
        execution=execution,
        model_name=f"{name} ({network.config.image_size} px)",
        notes=notes,
        identity={
            "model": digests["model"],
            "detector_weights": digests.get("detector"),
            "threshold": None if threshold is None else float(threshold),
            "parser": digests.get("parser"),
            # As requested, not as chosen here, since machines that share the work may differ.
            "parser_precision": ("fp32" if precision == "fp32" else "auto") if parsing else None,
            "precision": execution.precision.value,
            "code_precision": execution.code_precision.value,
            "backend": backend,
            **({} if enlarge is None else _upsampling_identity(digests["upsampler"], upsampling)),
        },
        files=files,
        bg_upsampler=enlarge if upsampling.background else None,
        face_upsampler=enlarge if upsampling.faces else None,
        task=kind.name,
        turns=turns,
    )


def _open_upsampler(upsampling: Upsampling, execution: Execution) -> Upsampler | None:
    """The network that enlarges what is not painted, if there is one; raises as `load_pipeline`."""
    if not upsampling.network:
        return None
    enlarge = load_upsampler(
        upsampling.network, execution.device, upsampling.tile, execution.precision
    )
    if upsampling.faces and enlarge.network.scale == 1:
        raise ConfigError(f"{enlarge.path} enlarges nothing, so --face-upsample cannot use it")
    return enlarge


def _check_types(model: object, detector: object, parser: object, upsampling: object) -> None:
    """Raises ConfigError if an argument of `load_pipeline` has none of its declared types."""
    if not isinstance(model, (str, Path)):
        raise ConfigError(f"model must be a name or a path, found {model!r}")
    if not isinstance(detector, (str, Path, Detector)):
        raise ConfigError(f"detector must be a name, a path or a Detector, found {detector!r}")
    if not isinstance(parser, (str, Path, NoneType)) or parser == "":
        raise ConfigError(f"parser must be a path or None, found {parser!r}")
    if not isinstance(upsampling, Upsampling):
        raise ConfigError(f"upsampling must be Upsampling, found {upsampling!r}")


def _finder(
    detector: str | Path | Detector, device: torch.device, threshold: float | None
) -> Detector:
    """The detector itself, or the one that is named; raises as `load_detector`."""
    if isinstance(detector, Detector):
        return detector
    return load_detector(detector, device, threshold)


def _file_of(detector: str | Path | Detector) -> Path | None:
    """The weight file if the detector is given as a path, else None."""
    if isinstance(detector, Detector) or detector in NAMES:
        return None
    return Path(detector)


def _upsampling_identity(sha256: str, upsampling: Upsampling) -> dict[str, object]:
    return {
        "upsampler": sha256,
        "upsampled": [upsampling.background is not None, upsampling.faces],
        "tile": upsampling.tile,
    }


def _lacking(retinaface: bool, parsenet: bool) -> tuple[str, ...]:
    """A note on the substitutes for missing files that belong to the published network."""
    lacks = {}
    if retinaface:
        lacks[weight_file("retinaface").file] = "MTCNN finds the faces"
    if parsenet:
        lacks[weight_file("parsenet").file] = "a whole soft square around each face is pasted"
    return (f"Without {' and '.join(lacks)}, {' and '.join(lacks.values())}.",) if lacks else ()


def _align(
    pixels: NDArray[np.uint8], faces: Sequence[Face | SkippedFace], size: int
) -> list[Candidate]:
    aligned: list[Candidate] = []
    for face in faces:
        if isinstance(face, SkippedFace):
            aligned.append(face)
            continue
        try:
            aligned.append(align_face(pixels, face, size))
        except DegenerateFaceError as error:
            aligned.append(FailedFace(face, str(error)))
    return aligned


def _stretch(pixels: NDArray[np.uint8], size: int) -> AlignedFace:
    """The whole picture as one aligned face; as published, its aspect ratio is not kept."""
    fy, fx = (size / side for side in pixels.shape[:2])
    to_crop = np.array([[fx, 0, (fx - 1) / 2], [0, fy, (fy - 1) / 2]])  # pixel areas coincide
    landmarks = (FFHQ_TEMPLATE * (size / PUBLISHED_SIZE) - to_crop[:, 2]) / (fx, fy)
    box = np.array([0, 0, *pixels.shape[1::-1]], np.float32)
    return AlignedFace(
        resize(pixels, size, size), to_crop, Face(box, 1.0, landmarks.astype(np.float32))
    )
