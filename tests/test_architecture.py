"""Imports go one way, heavy packages are imported by their owner alone, and the command line starts light."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sds3d

ROOT = Path(sds3d.__file__).parent
EVERYONE = {"core", "diffusion", "learners", "schedules", "cameras", "colour"}
# What a module or a folder of the package may import of the package, besides itself.
MAY = {
    "core": set(),
    "diffusion": {"core"},
    "learners": {"core"},
    "schedules": set(),
    "cameras": {"core"},
    "colour": set(),
    "meshing": {*EVERYONE, "engine", "renderers", "representations"},
    "heads": {"core", "meshing", "renderers", "representations"},
    "opening": {"core", "export", "meshing", "renderers", "representations"},
    "files": set(),
    "prompts": {"core", "cameras"},
    "landmarks": {"core", "cameras"},
    "controls": {"core", "landmarks", "representations"},
    "losses": {"core", "schedules"},
    "priors": {*EVERYONE, "playroom"},
    "guidance": {*EVERYONE, "regions"},
    "regions": {"core", "cameras"},
    "representations": EVERYONE,
    "renderers": {*EVERYONE, "representations"},
    "export": {*EVERYONE, "files", "renderers", "representations"},
    "plugins": {"core", "engine", "terms"},
    "schema": {"plugins", "schedules"},
    "recipes": {"plugins", "schema", "engine"},
    "terms": {"core", "prompts", "schedules"},
    "choosing": {*EVERYONE, "priors", "terms"},
    "engine": {*EVERYONE, "choosing", "prompts", "losses", "terms"},
    "record": {"engine", "files"},
    "microscope": {"core", "diffusion", "priors"},
    "sheet": {"core", "microscope"},
    "watchers": {"core", "cameras", "engine", "files", "record", "terms"},
}
# A package that is heavy or optional, and where it may be imported.
OWNERS = {
    "diffusers": {"priors", "playroom"},
    "transformers": {"priors", "playroom"},
    "huggingface_hub": {"priors"},
    "gsplat": {"renderers"},
    "pytorch3d": {"renderers"},
    "av": {"export"},
    "fast_simplification": {"representations"},
    "xatlas": {"representations"},
    "kaolin": {"representations"},
    "imageio": {"export"},
    "trimesh": {"export"},
    "pxr": {"export"},
    "PIL": {"export", "watchers", "sheet", "report", "playroom", "learning"},
    "rich": {"watchers", "cli"},
    "click": {"cli", "ending"},
    "yaml": {"recipes"},
    "safetensors": {"record", "priors", "playroom"},
}


def part(file: Path) -> str:
    """The module or folder of the package that a file belongs to."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(file: Path) -> list[tuple[str, bool]]:
    """Every imported module by its full name, and whether the import is at the module's top."""
    tree = ast.parse(file.read_text())
    package = ["sds3d", *file.relative_to(ROOT).parts[:-1]]
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        top = node in tree.body
        if isinstance(node, ast.Import):
            found += [(alias.name, top) for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [(module, top)] if node.module else [(f"{module}.{alias.name}", top) for alias in node.names]
    return found


FILES = [file for file in sorted(ROOT.rglob("*.py")) if file.name != "__init__.py" or file.parent != ROOT]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file: Path) -> None:
    here = part(file)
    if here not in MAY:
        return  # The command line and what serves it may import everything.
    own = {name.split(".")[1] for name, _ in imports(file) if name.startswith("sds3d.")}
    assert own - {here} <= MAY[here], f"{here} may not import {sorted(own - {here} - MAY[here])}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_heavy_packages_have_one_owner(file: Path) -> None:
    for name, _ in imports(file):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or part(file) in owners, f"{name} belongs to {sorted(owners)}"


def test_core_and_diffusion_import_torch_alone() -> None:
    for name in ("core", "diffusion"):
        heavy = {module.split(".")[0] for module, _ in imports(ROOT / f"{name}.py")} - {"sds3d", "__future__"}
        assert heavy <= {"torch", "jaxtyping", *sys.stdlib_module_names}


@pytest.mark.parametrize("module", ["sds3d", "sds3d.cli", "sds3d.plugins"])
def test_the_command_line_starts_light(module: str) -> None:
    heavy = ["torch", "rich", "yaml", "diffusers", "transformers", "numpy", "PIL", "safetensors"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_answers_in_half_a_second() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "sds3d", "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert "generate" in done.stdout
    assert min(seconds) < 0.5


def test_the_public_names_exist() -> None:
    for name in sds3d.__all__:
        assert getattr(sds3d, name) is not None
        # A module of the same name would take the place of the name once it is imported.
        assert name.startswith("__") or not list(ROOT.glob(f"{name}*"))
    with pytest.raises(AttributeError):
        _ = sds3d.nothing


def test_importing_the_representations_opens_no_optional_package() -> None:
    code = (
        "import sys, sds3d.engine, sds3d.guidance.sds, sds3d.representations.start, sds3d.renderers.splats; "
        "print([name for name in ('diffusers', 'transformers', 'gsplat', 'av', 'rich', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
