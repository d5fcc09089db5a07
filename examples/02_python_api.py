"""Example 02: a red cube from Python. Every object is plain: change a number, swap a part, run again.

python examples/02_python_api.py [steps]
"""

import sys
from pathlib import Path

import sds3d
from sds3d.guidance.mix import Cfg
from sds3d.guidance.sds import Sds
from sds3d.renderers.background import Named
from sds3d.renderers.splats import Splats
from sds3d.representations.gaussians import GaussianOptimise
from sds3d.representations.start import Blob
from sds3d.schedules import Ramp, Range

stage = sds3d.Stage(
    steps=int(sys.argv[1]) if len(sys.argv) > 1 else 150,
    prior="playroom",
    start=Blob(count=1500, radius=0.5),
    optimise=GaussianOptimise(),
    renderer=Splats(),
    cameras=sds3d.Orbit(views=4, size=64),
    background=Named(),
    guidance={"sds": sds3d.Guide(Sds(mix=Cfg(4.0), t=Range(Ramp(0.5, 0.02), Ramp(0.98, 0.38))))},
)
priors = {"playroom": sds3d.open_prior("playroom")}
recipe = sds3d.Recipe({"shape": stage})
made = sds3d.run(recipe, sds3d.Prompts("a red cube"), priors, seed=0)

folder = Path("runs") / "python-api"
folder.mkdir(parents=True, exist_ok=True)
for name in ("ply", "mp4"):
    print(sds3d.export(name, made.rep, folder, stage.renderer))
