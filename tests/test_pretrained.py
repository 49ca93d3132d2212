"""BigGAN-deep: the network and the loader of published weights against the package that they come from."""

import json

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import Trap
from PIL import Image

import rollnumber_04 as gan
from labs import biggan, pretrained


def noise(count):
    return torch.randn(count, 128, generator=torch.Generator().manual_seed(0))


LAYERS = {  # of the published models: the blocks' factors of the width, below 0 where a block enlarges
    128: [16, -16, 16, -8, 8, -4, 4, -2, 2, -1],
    256: [16, -16, 16, -8, 8, -8, 8, -4, 4, -2, 2, -1],
    512: [16, -16, 16, -8, 8, -8, 8, -4, 4, -2, 2, -1, 1, -1],
}


def published(size, width, directory, seed=0):
    """A folder like a published one, of the package's own network with random weights, and that network."""
    from pytorch_pretrained_biggan import BigGAN, BigGANConfig

    before = [16, *map(abs, LAYERS[size])]
    layers = [(after < 0, inputs, abs(after)) for inputs, after in zip(before, LAYERS[size], strict=False)]
    config = BigGANConfig(output_dim=size, channel_width=width, layers=layers, num_classes=12)
    torch.manual_seed(seed)
    network = BigGAN(config)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith("running_vars"):
                tensor.uniform_(0.5, 2.0)
            elif name.endswith(("running_means", "bias", "gamma")) or name == "generator.bn.weight":
                tensor.normal_(0, 0.3)
    network.train()(torch.randn(2, 128), torch.eye(12)[:2], 1.0)  # so that u and v belong to the weights
    network.eval()
    directory.mkdir()
    (directory / "config.json").write_text(config.to_json_string())
    torch.save(network.state_dict(), directory / "pytorch_model.bin")
    return network


@pytest.mark.parametrize("size", LAYERS)
def test_biggan_deep_is_that_of_its_package(tmp_path, size):
    network = published(size, 8, tmp_path / "folder")
    z, y = noise(2), torch.tensor([[0.3, 0.7, *[0] * 10], [*[0] * 11, 1]]).float()
    for truncation in (0.02, 0.5, 1.0):  # where the package picks the stored statistics that it means
        ours = pretrained.load_pretrained(tmp_path / "folder", truncation)
        with torch.no_grad():
            expected = network(z, y, truncation)
            found = ours(z, y)
        assert found.shape == (2, 3, size, size)
        assert expected.std() > 0.1
        assert (found - expected).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("size", LAYERS)
def test_biggan_deep_at_its_full_width(tmp_path, size):
    network = published(size, 128, tmp_path / "folder")
    with torch.no_grad():
        expected = network(noise(1), torch.eye(12)[:1], 0.4)
        found = pretrained.load_pretrained(tmp_path / "folder", 0.4)(noise(1), torch.eye(12)[:1])
    assert (found - expected).abs().max() < 1e-5


def test_statistics_between_two_truncations(tmp_path):
    published(128, 8, tmp_path / "folder")
    middle, low, high = (pretrained.load_pretrained(tmp_path / "folder", t) for t in (0.51, 0.50, 0.52))
    means = [network.bn.running_means for network in (middle, low, high)]
    assert torch.allclose(means[0], (means[1] + means[2]) / 2, atol=1e-5)
    assert not torch.allclose(means[1], means[2])


def test_a_pretrained_folder_is_interpolated(tmp_path, capsys):
    published(128, 8, tmp_path / "folder")
    words = [
        "interpolate",
        "--pretrained",
        str(tmp_path / "folder"),
        "--classes",
        "3,11",
        "--alphas",
        "3",
        "--rows",
        "2",
    ]
    assert biggan.main([*words, "--truncation", "0.4", "--out", str(tmp_path / "p.png")]) == 0
    assert Image.open(tmp_path / "p.png").size == (3 * 130 + 2, 2 * 130 + 2)
    generator = pretrained.load_pretrained(tmp_path / "folder", 0.4)
    z, _ = generator.inputs(0, 0, 2000)
    assert z.abs().max() <= 0.8
    assert z.std() == pytest.approx(0.4 * scipy.stats.truncnorm(-2, 2).std(), rel=0.01)
    shown = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))[2:130, 2:130]
    assert (shown == gan.draw_images(generator, z[:2], torch.eye(12)[[3, 3]])[0]).all()
    assert biggan.main([*words, "--truncation", "1.5", "--out", str(tmp_path / "q.png")]) == 2
    assert "--truncation 1.5: of a pretrained BigGAN" in capsys.readouterr().err
    assert biggan.main(["embeddings", *words[1:3], "--out", str(tmp_path / "tsne.png")]) == 0


def test_the_names_of_imagenets_classes():
    names = pretrained.class_names(1000)
    assert (len(names), names[0], names[207]) == (1000, "tench", "golden retriever")
    assert not any("," in name for name in names)
    assert pretrained.class_names(3) == ["0", "1", "2"]


def test_a_pretrained_folder_that_is_none(tmp_path, capsys):
    folder, trap = tmp_path / "folder", tmp_path / "trap"
    network = published(128, 8, folder)
    config, weights = json.loads((folder / "config.json").read_text()), network.state_dict()
    words = ["interpolate", "--pretrained", str(folder), "--classes", "1,2", "--out", str(tmp_path / "p.png")]

    def said(changed_config=config, changed_weights=weights):
        (folder / "config.json").write_text(json.dumps(changed_config))
        torch.save(changed_weights, folder / "pytorch_model.bin")
        assert biggan.main(words) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    for name, value in (
        ("z_dim", "128"),
        ("z_dim", 10**9),
        ("layers", [[True, 16]]),
        ("eps", None),
        ("layers", [[True, 8, 16]]),
    ):
        assert f"its {name} is missing or none of BigGAN-deep's" in said(config | {name: value})
    assert "its layers do not make images of 64" in said(config | {"output_dim": 64})
    assert "config.json: is no configuration of BigGAN-deep" in said([])
    assert "does not fit config.json" in said(config | {"channel_width": 16})
    assert "does not fit config.json" in said(config, {k: v for k, v in weights.items() if "gamma" not in k})
    key = "generator.conv_to_rgb.bias"
    assert "not finite" in said(config, weights | {key: weights[key] * torch.nan})
    assert "is no file of weights, or damaged" in said(config, Trap(trap))
    assert not trap.exists()
    (folder / "pytorch_model.bin").write_bytes(b"no zip")
    assert biggan.main(words) == 2
    (folder / "config.json").write_text("{")
    assert biggan.main(words) == 2
    assert not (tmp_path / "p.png").exists()
