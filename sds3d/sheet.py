"""A labelled contact sheet: one row for each view, one column for each kind of picture, as one PNG."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .core import Image
from .microscope import EXACT, Answer, Explanation

CELL, GAP, MARGIN, LINE = 128, 8, 16, 15  # pixels
SHOWN = 4  # views at most: one joint group
INK, FAINT, PAPER = (24, 24, 28), (120, 120, 128), (255, 255, 255)
RAMP = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # nothing to the most, evenly spaced


@dataclass(frozen=True)
class Column:
    """A heading, a line under it, and its pictures [B, H, W, 3]; None where there is no picture."""

    heading: str
    below: str
    pictures: Image | None


def picture(explanation: Explanation, about: str = "") -> bytes:
    """An explanation as a PNG file: what was seen, asked, answered, aimed at, and how strongly each part pulls.

    about: what to say first, for example the prompt.
    """
    numbers = explanation.numbers()
    notes = [f"forwards {numbers['forwards']}   " + "   ".join(f"rms {k} {v:.3g}" for k, v in numbers["rms"].items())]
    if numbers["cosines"]:
        notes.append("   ".join(f"cos({pair}) {value:+.3f}" for pair, value in numbers["cosines"].items()))
    notes.append(aim(explanation))
    step = explanation.step
    where = f'step {step.index} of stage "{step.stage}", progress {step.progress:.3f}'
    return png(f"{about}, {where}" if about else where, explanation.method, columns(explanation), notes)


def aim(explanation: Explanation) -> str:
    """In a sentence, what the step pulls toward."""
    if explanation.residual is None:
        return "There is no target: this gradient is not of the form k (x - X), so no picture is what it pulls toward."
    if explanation.residual > EXACT:
        return (
            f"The method names a target that its gradient does not pull toward: k (x - X) is off by "
            f"{explanation.residual:.1e} of the largest gradient."
        )
    pull = float(explanation.guided.pull().mean())
    return (
        f"The gradient is that of k / 2 |x - X|^2 toward the target X, k = {pull:.3g} on average, exact to "
        f"{explanation.residual:.1e}."
    )


def columns(explanation: Explanation) -> list[Column]:
    """Everything worth a picture, in the order in which a step makes it."""
    shown = [Column("render", "what the prior sees", explanation.render)]
    if explanation.source is not None:
        shown.append(Column("source", "the frozen original", explanation.source))
    answers = last_of_each(explanation.answers)
    noised: list[Answer] = []
    for answer, _ in answers:
        if not any(torch.equal(answer.z_t, other.z_t) for other in noised):
            noised.append(answer)
    for answer in noised:
        shown.append(Column("x_t", f"t {spread(answer.t)}, of {answer.name}", explanation.decode(answer.z_t)))
    for answer, times in answers:
        below = f"t {spread(answer.t)}" + (f", asked {times} times" if times > 1 else "")
        shown.append(Column(f"X({answer.name})", below, explanation.decode(answer.x0)))
    if explanation.target is None:
        shown.append(Column("target X", "none", None))
    else:
        shown.append(Column("target X", "k (x - X)", explanation.decode(explanation.target)))
    maps = {"|gradient|": explanation.gradient, **{f"|{name}|": part for name, part in explanation.parts.items()}}
    for name, values in maps.items():
        strength = values[:SHOWN].norm(dim=-1)
        most = float(strength.max())
        if most > 0 or values is explanation.gradient:
            # Each map has its own scale: parts that nearly cancel would leave the gradient black on theirs.
            shown.append(Column(name, f"up to {most:.2g}", heat(strength / most if most > 0 else strength)))
    return shown


def last_of_each(answers: Sequence[Answer]) -> list[tuple[Answer, int]]:
    """The last answer to each name, and how often that was asked: an inversion asks one name many times."""
    last = {answer.name: answer for answer in answers}
    return [(answer, sum(other.name == name for other in answers)) for name, answer in last.items()]


def spread(t: Float[Tensor, "N"]) -> str:
    """The times of the rows in a word."""
    low, high = float(t.min()), float(t.max())
    return f"{low:.2f}" if high - low < 5e-3 else f"{low:.2f} to {high:.2f}"


def heat(share: Float[Tensor, "B H W"]) -> Image:
    """Numbers in [0, 1] as colours; by their square root, so that a tenth of the most is still seen."""
    ramp = torch.tensor(RAMP, dtype=torch.float32, device=share.device) / 255
    place = share.float().clamp(0, 1).sqrt() * (len(RAMP) - 1)
    low = place.long().clamp(max=len(RAMP) - 2)
    return torch.lerp(ramp[low], ramp[low + 1], (place - low)[..., None])


def png(title: str, method: str, shown: Sequence[Column], notes: Sequence[str]) -> bytes:
    """The sheet as a PNG file."""
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(11)
    rows = min(SHOWN, max(len(column.pictures) for column in shown if column.pictures is not None))
    width = 2 * MARGIN + len(shown) * CELL + (len(shown) - 1) * GAP
    # The built-in letters of size 11 are about 5.6 pixels wide.
    words = [line for text in (method, *notes) for line in textwrap.wrap(text, int((width - 2 * MARGIN) / 5.6))]
    wrapped = textwrap.wrap(method, int((width - 2 * MARGIN) / 5.6))
    top = MARGIN + LINE * (len(wrapped) + 1) + GAP
    grid = top + 2 * LINE + 4
    below = grid + rows * (CELL + GAP)
    sheet = Pillow.new("RGB", (width, below + LINE * (len(words) - len(wrapped)) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate((title, *wrapped)):
        draw.text((MARGIN, MARGIN + i * LINE), line, INK if i == 0 else FAINT, font)
    for i, column in enumerate(shown):
        left = MARGIN + i * (CELL + GAP)
        draw.text((left, top), column.heading, INK, font)
        draw.text((left, top + LINE), column.below, FAINT, font)
        for row in range(rows):
            place = (left, grid + row * (CELL + GAP))
            if column.pictures is None:
                draw.rectangle((*place, place[0] + CELL - 1, place[1] + CELL - 1), outline=FAINT)
                draw.text((place[0] + GAP, place[1] + CELL // 2 - LINE // 2), "no target", FAINT, font)
                continue
            values = (column.pictures[row].detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
            tile = Pillow.fromarray(values.numpy())
            sheet.paste(tile.resize((CELL, CELL), Pillow.Resampling.NEAREST), place)
    for i, line in enumerate(words[len(wrapped) :]):
        draw.text((MARGIN, below + i * LINE), line, INK, font)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
