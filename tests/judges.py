"""Programs that nobody here wrote, which read our files: installed by npm into a folder that git ignores."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "validators"


@functools.cache
def _install() -> str:
    """Install the pinned programs and print their versions; returns why that is not possible, or nothing."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        return "node and npm are not installed"
    if not (FOLDER / "node_modules" / ".package-lock.json").exists():
        command = ["npm", "ci", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=300)
        if done.returncode:
            return f"npm cannot install what tests/validators/package.json names: {done.stderr.strip()[-300:]}"
    for name, version in json.loads((FOLDER / "package.json").read_text())["dependencies"].items():
        print(f"{name} {version}")
    return ""


def program(name: str) -> Path:
    """The path of an installed program; the test is skipped where node or the registry is missing."""
    why = _install()
    if why:
        pytest.skip(why)
    return FOLDER / "node_modules" / ".bin" / name


def validate(path: Path) -> list[dict[str, Any]]:
    """What the Khronos glTF validator has to say about a .glb: its issues, severity 0 errors to 3 hints."""
    program("")
    command = ["node", str(FOLDER / "validate.mjs"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)["issues"]["messages"]
