"""Names of priors, where they lie and under which licence; and the one way to open a prior.

A prior is named by a word of this table, by a local folder, or by the id of a model hub whose files have been fetched
before: opening never touches the network. ControlNets that steer it follow its name, each after a "+", and so do files
of words that were learnt for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .network import NetworkPrior
    from .sd3 import Sd3Prior

WEIGHTS = Path(__file__).parent.parent / "playroom" / "weights"
LATENT_WEIGHTS = WEIGHTS.with_name("weights-latent")
EDIT_WEIGHTS = WEIGHTS.with_name("weights-edit")
NETS = {"playroom-control": WEIGHTS.with_name("weights-control")}  # ControlNets of the package, by name


@dataclass(frozen=True)
class Entry:
    """place: a folder of the package, or a hub id. single, check_words: see `network.open_folder`."""

    place: Path | str
    licence: str
    about: str
    single: bool = False
    check_words: Callable[[str], None] | None = None


def check_playroom(prompt: str) -> None:
    """Raise ValueError for words outside the playroom; its tokenizer cannot tell a word from the end of another."""
    from ..playroom.grammar import check_words

    check_words(prompt)


def check_instruction(text: str) -> None:
    """Raise ValueError for words that neither captions nor instructions of the playroom have."""
    from ..playroom.instructions import check_words

    check_words(text)


ENTRIES: dict[str, Entry] = {
    "playroom": Entry(
        WEIGHTS, "Apache-2.0", "the embedded world, four views at once, 64 pixels", check_words=check_playroom
    ),
    "playroom-single": Entry(
        WEIGHTS,
        "Apache-2.0",
        "the same weights, one view, no camera, 64 pixels",
        single=True,
        check_words=check_playroom,
    ),
    "playroom-latent": Entry(
        LATENT_WEIGHTS,
        "Apache-2.0",
        "the embedded world in the latents of an autoencoder, four views at once, 64 pixels",
        check_words=check_playroom,
    ),
    "playroom-edit": Entry(
        EDIT_WEIGHTS,
        "Apache-2.0",
        "shown four views of the embedded world and told an instruction, it draws them edited, 64 pixels",
        check_words=check_instruction,
    ),
    "sd15": Entry(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", "CreativeML OpenRAIL-M", "Stable Diffusion 1.5, 512 pixels"
    ),
    "sd35": Entry(
        "stabilityai/stable-diffusion-3.5-medium",
        "Stability AI Community License",
        "Stable Diffusion 3.5 medium, a rectified flow, 1024 pixels",
    ),
}


def present(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries but those whose folder this package was built without; a hub model may yet be fetched."""
    return {name: entry for name, entry in entries.items() if isinstance(entry.place, str) or entry.place.is_dir()}


CATALOGUE = present(ENTRIES)


def open_prior(name: str | Path, device: torch.device | str = "cpu") -> NetworkPrior | Sd3Prior:
    """The prior of a catalogue name, a local folder, or a hub id in the local cache; "+NET" adds a ControlNet's folder,
    or hub id and perhaps its folder in there: "sd15+CrucibleAI/ControlNetMediaPipeFace/diffusion_sd15", and "+FILE" the
    learnt words of a .safetensors file.

    Raises ValueError for an unknown name (with the nearest known ones) or a folder that is not a model that we read,
    and FileNotFoundError for what is not there.
    """
    given = str(name)
    if "+" in given and not Path(given).exists():
        base, *nets = given.split("+")
        return with_nets(open_prior(base, device), nets)
    entry = CATALOGUE.get(given)
    if entry is not None:
        place = entry.place if isinstance(entry.place, Path) else cached(entry.place)
        return opened(place, device, given, entry.single, entry.check_words)
    if Path(given).exists():
        return opened(Path(given), device)
    if isinstance(name, Path) or given.startswith((".", "/", "~")) or given.count("/") > 1:
        raise FileNotFoundError(f"There is no prior folder at {given}.")
    if "/" in given:
        return opened(cached(given), device, given)
    close = difflib.get_close_matches(given, CATALOGUE, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(
        f'There is no prior "{given}".{hint} Known are: {", ".join(CATALOGUE)}; a local folder or a hub id will do too.'
    )


def with_nets(prior: NetworkPrior | Sd3Prior, parts: list[str]) -> NetworkPrior:
    """A prior under named ControlNets, and with learnt words. Raises ValueError or FileNotFoundError, in a sentence."""
    from .control import controlled
    from .network import NetworkPrior
    from .token import with_tokens

    words = [part for part in parts if part.endswith(".safetensors")]
    nets = [part for part in parts if part not in words]
    if not isinstance(prior, NetworkPrior):
        lacks = "one text encoder, so no learnt word" if words else "UNet, so no ControlNet"
        raise ValueError(f'The prior "{prior.name}" has no {lacks} that we read fits it.')
    prior = with_tokens(prior, words) if words else prior
    return controlled(prior, [net_place(net) for net in nets]) if nets else prior


def net_place(name: str) -> Path:
    """The folder of a ControlNet: the package's, a local one, or in the local cache a hub id's or one below it."""
    if name in NETS:
        return NETS[name]
    parts = name.split("/")
    if Path(name).exists() or len(parts) < 2 or name.startswith((".", "/", "~")):
        return Path(name)
    return cached("/".join(parts[:2])).joinpath(*parts[2:])


def opened(
    place: Path,
    device: torch.device | str,
    name: str | None = None,
    single: bool = False,
    check_words: Callable[[str], None] | None = None,
) -> NetworkPrior | Sd3Prior:
    """The model of a folder, of the family that it belongs to."""
    if (place / "transformer").is_dir():
        from .sd3 import open_sd3

        return open_sd3(place, device, name)
    from .network import open_folder

    return open_folder(place, device, name, single, check_words)


def cached(hub_id: str) -> Path:
    """The folder of a hub model in the local cache. Raises FileNotFoundError when it has not been fetched."""
    with_hub = "hf download " + hub_id
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except HFValidationError as error:
        raise ValueError(f'"{hub_id}" is neither a folder nor a hub id: {error}') from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{hub_id} is neither a local folder nor in the local model cache; fetch it once with `{with_hub}`."
        ) from error
