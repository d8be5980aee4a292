"""Which part of the package may import which; checked without importing anything."""

import ast
import importlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cfrestore"

# Each room (module or sub-package) may import from those above it; data flows downwards.
ORDER = (
    "errors",
    "files",
    "extras",
    "stopping",
    "options",
    "task",
    "device",
    "checkpoint",
    "image",
    "models",
    "weights",
    "export",
    "backends",
    "network",
    "parity",
    "cascade",
    "detect",
    "select",
    "align",
    "turned",
    "recognise",
    "confidence",
    "detail",
    "exposure",
    "correction",
    "restore",
    "parse",
    "paste",
    "show",
    "holes",
    "filling",
    "upsample",
    "procedure",
    "treatment",
    "pipeline",
    "sample",
    "batch",
    "video",
    "doctor",
    "part",
    "degrade",
    "quantize",
    "lpips",
    "regularity",
    "evaluate",
    "train",
    "cli",
)
HEAVY = (
    "torch",
    "torchvision",
    "cv2",
    "numpy",
    "PIL",
    "facexlib",
    "facenet_pytorch",
    "safetensors",
)


def room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def files(*rooms: str) -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if not rooms or room(path) in rooms]


def imports(path: Path, *, types: bool = True) -> set[str]:
    """Names of the modules that a file imports, at its top or anywhere else."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types:
            skipped.update(inner for body in node.body for inner in ast.walk(body))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.add(str(node.module))
    return found


def own_rooms(path: Path) -> set[str]:
    names = imports(path, types=False)
    return {name.split(".")[1] for name in names if name.startswith("cfrestore.")}


def test_every_room_has_its_place() -> None:
    rooms = {room(path) for path in files()} - {"__init__", "__main__", "_shipped"}
    assert rooms <= set(ORDER)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_data(path: Path) -> None:
    if room(path) in ("__init__", "__main__"):
        return
    allowed = set(ORDER[: ORDER.index(room(path)) + 1])
    assert own_rooms(path) <= allowed


def test_networks_know_nothing_but_torch() -> None:
    for path in files("models"):
        outside = {name.split(".")[0] for name in imports(path)} & {*HEAVY, "rich", "typer"}
        assert outside <= {"torch"}
        assert own_rooms(path) <= {"errors", "models"}


def test_pure_rooms_have_no_torch() -> None:
    for path in files(
        "align", "select", "paste", "show", "holes", "batch", "options", "task", "errors"
    ):
        assert not any(name.split(".")[0] == "torch" for name in imports(path))


def test_only_the_command_line_talks() -> None:
    for path in files():
        names = {name.split(".")[0] for name in imports(path)}
        assert room(path) == "cli" or not names & {"typer", "rich"}, path


def test_training_needs_torch_numpy_opencv_and_pillow_alone() -> None:
    absent = ("facexlib", "facenet_pytorch", "torchvision", "typer", "rich", "basicsr")
    absent += ("safetensors", "huggingface_hub", "filelock", "certifi", "pillow_heif")
    parts = [f"cfrestore.train.{path.stem}" for path in files("train") if path.stem[0] != "_"]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import {', '.join(parts)}"
    printed_by(code)


def test_pictures_need_no_pyav(tmp_path: Path) -> None:
    words = ["examples/collins.jpg", "--dry-run", "-o", str(tmp_path / "collins.jpg")]
    code = (
        "import sys; sys.modules['av'] = None\n"
        "import cfrestore, cfrestore.video.tracks, cfrestore.cli.video\n"
        "from cfrestore.cli import main\n"
        f"raise SystemExit(main({words}))"
    )
    printed_by(code)


def test_only_one_file_speaks_of_devices() -> None:
    words = {"cuda", "mps", "inference_mode", "autocast", "bfloat16"}
    for path in files():
        if room(path) == "device":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
        assert not (names | texts) & words, path


def printed_by(code: str) -> str:
    """What code prints in a fresh interpreter, in which it must not fail."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=PACKAGE.parent, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def loaded_by(*words: str) -> set[str]:
    """The heavy modules that a fresh interpreter has loaded after running this code."""
    code = (
        "import sys\n"
        "try:\n"
        f"    {words[0]}\n"
        "except SystemExit:\n"
        "    pass\n"
        f"print('loaded', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    return set(printed_by(code).splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "words",
    [
        "import cfrestore, cfrestore.cli",
        "from cfrestore.cli import main; main(['--help'])",
        "from cfrestore.cli import main; main(['--version'])",
        "from cfrestore.cli import main; main(['photo.jpg', '--w', '2'])",
        "from cfrestore.cli import main; main(['inpaint', '--help'])",
        "from cfrestore.cli import main; main(['colorize', '--help'])",
        "from cfrestore.cli import main; main(['inpaint', 'photo.jpg', '--batch-size', '0'])",
        "from cfrestore.cli import main; main(['weights', '--help'])",
        "from cfrestore.cli import main; main(['export', '--help'])",
        "from cfrestore.cli import main; main(['export', 'a.pth'])",
        "from cfrestore.cli import main; main(['eval', '--help'])",
        "from cfrestore.cli import main; main(['eval', 'a', '--w', '1'])",
        "from cfrestore.cli import main; main(['degrade', '--help'])",
        "from cfrestore.cli import main; main(['sample', '--help'])",
        "from cfrestore.cli import main; main(['weights', 'list'])",
        "from cfrestore.cli import main; main([])",
        "from cfrestore.cli import main; main(['photo.jpg', '--upscale', '3'])",
        "import cfrestore.weights; cfrestore.weights.search_folders()",
    ],
)
def test_what_needs_no_torch_loads_none(words: str) -> None:
    assert loaded_by(words) == set()


def test_the_help_imports_only_what_it_shows() -> None:
    code = (
        "import sys, typer\n"
        "typers = set(sys.modules)\n"
        "import cfrestore.cli.restore\n"
        "names = ('hashlib', 'json', 'secrets', 'tempfile', 'tomllib', 'tomli', 'urllib.request')\n"
        "print(*[name for name in names if name in sys.modules.keys() - typers])"
    )
    assert printed_by(code).split() == []


def test_what_starting_makes_is_not_searched_for_garbage(tmp_path: Path) -> None:
    words = ["examples/collins.jpg", "-o", str(tmp_path / "a.png"), "--model", "compact"]
    code = (
        "import atexit, gc\n"
        "full = lambda: gc.get_stats()[-1]['collections']\n"
        "atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 100_000, full()))\n"
        "from cfrestore.cli import main\n"
        f"main({[*words, '--device', 'cpu', '--offline']})"
    )
    assert printed_by(code).split() == ["True", "True", "0"]


def test_restoring_a_photograph_imports_no_compiler_and_no_torchvision() -> None:
    code = (
        "import sys, torch\n"
        "torchs = set(sys.modules)\n"  # before 2.11, sympy among them
        "import cfrestore\n"
        "pipeline = cfrestore.load_pipeline('compact', 'mtcnn', 'cpu')\n"
        "pipeline(cfrestore.read_photo('examples/collins.jpg'))\n"
        "names = ('torchvision', 'facenet_pytorch', 'facexlib', 'torch._dynamo', 'sympy', 'onnx')\n"
        "print(*[name for name in names if name in sys.modules.keys() - torchs])"
    )
    assert printed_by(code).split() == []


def test_planning_needs_no_torch() -> None:
    assert "torch" not in loaded_by("import cfrestore.batch")


def test_public_names_are_found_where_they_are_said_to_be() -> None:
    import cfrestore

    for name in cfrestore.__all__:
        assert getattr(cfrestore, name) is not None
    assert set(cfrestore.__all__) <= set(dir(cfrestore))
    with pytest.raises(AttributeError, match="nothing"):
        _ = cfrestore.nothing


def test_every_error_of_the_library_is_public() -> None:
    import cfrestore
    from cfrestore import errors

    raised = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert raised - set(cfrestore.__all__) == {"DegenerateFaceError"}  # only align_face raises it


def test_type_checkers_see_the_public_names_and_no_others() -> None:
    import cfrestore

    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (seen,) = (node.body for node in tree.body if isinstance(node, ast.If))
    names = {alias.name for part in seen for alias in part.names}  # type: ignore[attr-defined]
    assert {*names, "__version__"} == set(cfrestore.__all__)
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert "__getattr__" not in functions  # would let any name pass


def test_the_public_names_can_be_listed_without_pyav() -> None:
    code = (
        "import sys; sys.modules['av'] = None\n"
        "import inspect, pydoc, cfrestore\n"
        "from cfrestore import *\n"
        "assert 'Options' in dict(inspect.getmembers(cfrestore))\n"
        "pydoc.render_doc(cfrestore)\n"
        "try: cfrestore.restore_video\n"
        "except ImportError as error: print(error)"
    )
    expected = 'cfrestore.restore_video needs PyAV: pip install "cfrestore[video]" brings it'
    assert printed_by(code).strip() == expected


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "tests"])
def test_what_scripts_take_from_the_package_is_there(folder: str) -> None:
    absent = []
    for path in sorted((PACKAGE.parent / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module and module.split(".")[0] == "cfrestore":
                source = importlib.import_module(module)
                for name in (alias.name for alias in node.names):
                    if not hasattr(source, name) and find_spec(f"{module}.{name}") is None:
                        absent.append(f"{path.name}: {module}.{name}")
    assert not absent
