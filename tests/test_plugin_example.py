"""The example package: built and installed as any other, found by its entry point, and held to the laws."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sds3d import recipes

EXAMPLE = Path(__file__).parent.parent / "examples" / "plugin_guidance"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with the example package installed beside this one; nothing is fetched."""
    source, site = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "install", *offline, "--target", site, source], check=True)
    return {**os.environ, "PYTHONPATH": str(site)}


def python_m(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_it_is_listed_with_the_built_in_ones(installed: dict[str, str]) -> None:
    done = python_m(installed, "sds3d", "list", "guidance")
    assert [line.split() for line in done.stdout.splitlines()][-1] == ["reconstruct", "sds3d_reconstruct:Reconstruct"]
    assert "reconstruct" not in python_m(dict(os.environ), "sds3d", "list", "guidance").stdout


BUILD = """
import json
from sds3d import recipes, schema

data = recipes.read("gaussians")
data["stages"]["shape"]["guidance"] = {"main": {"kind": "reconstruct", "scale": 2}}
print(json.dumps(schema.to_data(recipes.build(data))["stages"]["shape"]["guidance"]["main"]))
"""


def test_a_recipe_can_say_it(installed: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", BUILD], env=installed, capture_output=True, text=True, check=True)
    main = json.loads(done.stdout)
    assert (main["kind"], main["scale"], main["level"]["from"]) == ("reconstruct", 2.0, 0.98)
    data = recipes.read("gaussians")
    data["stages"]["shape"]["guidance"] = {"main": {"kind": "reconstruct"}}
    with pytest.raises(ValueError, match='no guidance "reconstruct"'):
        recipes.build(data)


def test_its_own_tests_pass(installed: dict[str, str]) -> None:
    done = python_m(installed, "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE), f"--rootdir={EXAMPLE}")
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout and int(done.stdout.split(" passed")[0].split()[-1]) >= 20
