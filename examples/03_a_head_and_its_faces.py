"""Example 03: a head template, its expressions, what a landmark ControlNet would see of it, and a file that plays.

Nothing is trained or downloaded: the head is made of numbers. It writes head.glb and faces.png.
"""

from pathlib import Path

import torch
from PIL import Image

from sds3d.cameras import orbit
from sds3d.core import Background
from sds3d.export import glb_morph
from sds3d.landmarks import MEDIAPIPE_FACE, OPENPOSE_FACE, draw
from sds3d.renderers.raster import Raster
from sds3d.renderers.shading import Lambert
from sds3d.representations.clips import EXPRESSIONS
from sds3d.representations.head import Identity, head
from sds3d.representations.mesh import Mesh

PAINT = {"skin": (0.93, 0.75, 0.63), "lips": (0.76, 0.36, 0.33), "mouth": (0.30, 0.08, 0.08)}
for side in ("left", "right"):
    PAINT |= {
        f"{side} eye": (0.97, 0.97, 0.97),
        f"{side} iris": (0.20, 0.42, 0.62),
        f"{side} pupil": (0.03, 0.03, 0.03),
    }
FACES = [  # azimuth in degrees, and the weights of blendshapes
    (0, {}),
    (-20, {"mouthSmileLeft": 1, "mouthSmileRight": 1, "cheekSquintLeft": 0.8, "cheekSquintRight": 0.8}),
    (-40, {"jawOpen": 0.7, "browInnerUp": 1, "eyeWideLeft": 1, "eyeWideRight": 1}),
    (30, {"eyeBlinkLeft": 1, "mouthLeft": 0.7, "browDownRight": 1}),
    (-75, {"mouthFunnel": 1, "jawOpen": 0.15}),
    (180, {}),
]

template = head(Identity(nose=0.3, chin=0.3, cheeks=0.4))
mesh, light = template.mesh(PAINT), Raster(Lambert())
rows = []
for azimuth, weights in FACES:
    cameras, vertices = orbit([azimuth], 5, 512, radius=2.6), template.posed(weights)
    out = light(Mesh(vertices, template.faces, mesh.colour_logits), cameras, Background(torch.ones(1, 3)))
    seen = [out.rgb.detach()]
    for convention, points in ((MEDIAPIPE_FACE, template.contours), (OPENPOSE_FACE, template.landmarks)):
        places, normals = template.at(points, vertices)
        seen.append(draw(convention, points.ids, places, cameras, normals, out.depth.detach()))
    rows.append(torch.cat(seen, dim=1)[0])
sheet = (255 * torch.cat(rows, dim=1).clamp(0, 1)).byte().numpy()
Image.fromarray(sheet).resize((sheet.shape[1] // 2, sheet.shape[0] // 2), Image.Resampling.LANCZOS).save("faces.png")
print(glb_morph.write(Path("head.glb"), mesh, template.shapes, [EXPRESSIONS], light, {"licence": template.licence}))
