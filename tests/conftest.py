"""Shapes and types of public signatures are checked in every test, and nothing may reach the network."""

import os
import sys
from collections.abc import Iterator

import pytest
import tiny
import torch
from jaxtyping import config, install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
install_import_hook("sds3d", "typecheck.check")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """With the result stands what programs of others said of our files, and their versions."""
    said = getattr(sys.modules.get("judges"), "SAID", [])
    if said:
        terminalreporter.section("programs of others")
        terminalreporter.write_line("\n".join(said))


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
            ],
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that draws; the tests on a GPU are marked `gpu`."""
    return torch.device(request.param)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """What a user without the checker sees: for tests that hand over wrong types on purpose."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Random models: pixels folded by two, the same in several views, and latents with eps and with v."""
    root = tmp_path_factory.mktemp("priors")
    text = {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}
    return {
        "pixel": tiny.save(root / "pixel", channels=12),
        "views": tiny.save(root / "views", channels=12, multiview=True, prediction="v_prediction", **text),
        "latent": tiny.save(root / "latent", channels=4, vae=True, schedule="scaled_linear"),
        "latent-v": tiny.save(root / "latent-v", channels=4, vae=True, prediction="v_prediction"),
        "sample": tiny.save(root / "sample", channels=3, prediction="sample"),
    }
