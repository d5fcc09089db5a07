"""Example 02: the Python API in 20 lines. Every part is a plain object: change a number, swap a part, run again."""

from pathlib import Path

from sds3d import Guide, Orbit, Prompts, Recipe, Stage, open_prior, run
from sds3d.export import export
from sds3d.guidance.sds import Sds
from sds3d.renderers.background import Named
from sds3d.renderers.splats import Splats
from sds3d.representations.gaussians import GaussianOptimise
from sds3d.representations.start import Blob
from sds3d.schedules import Ramp, Range

stage = Stage(
    steps=150,
    prior="playroom",
    start=Blob(count=1500, radius=0.5),
    optimise=GaussianOptimise(),
    renderer=Splats(),
    cameras=Orbit(views=4, size=64),
    background=Named(),
    guidance={"sds": Guide(Sds(t=Range(Ramp(0.5, 0.02), Ramp(0.98, 0.38))))},
)
made = run(Recipe({"shape": stage}), Prompts("a red cube"), {"playroom": open_prior("playroom")})
print(export("ply", made.rep, Path(), stage.renderer).path)
