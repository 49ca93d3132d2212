"""Sizes and parameter counts of the networks, and the generator's promise: image i of a seed is always the same."""

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import ROOT
from PIL import Image

import rollnumber_04 as gan


def test_the_assignments_networks():
    generator, discriminator = gan.Generator(), gan.Discriminator()
    assert gan.count_parameters(generator) == 370_624
    assert gan.count_parameters(discriminator) == 167_872
    stages = []
    for network in (generator.layers, discriminator.features):
        for layer in network:
            layer.register_forward_hook(lambda layer, x, y: stages.append((type(layer).__name__, tuple(y.shape[1:]))))
    assert discriminator(generator(torch.randn(2, 100))).shape == (2,)
    sizes = [shape for kind, shape in stages if "Conv" in kind or kind == "Unflatten"]
    assert sizes == [(128, 4, 4), (64, 8, 8), (32, 16, 16), (3, 32, 32), (32, 16, 16), (64, 8, 8), (128, 4, 4)]


@pytest.mark.parametrize("size", [8, 28, 32, 40, 48, 64, 96, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_size(size, channels):
    generator = gan.Generator(size, channels, latent_dim=10, width=4)
    images = generator(torch.randn(2, 10))
    assert images.shape == (2, channels, size, size)
    assert images.abs().max() <= 1
    scores = gan.Discriminator(size, channels, width=4)(images)
    assert scores.shape == (2,)
    scores.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())
    assert generator.generate(3).shape == ((3, size, size) if channels == 1 else (3, size, size, 3))


@pytest.fixture
def generator():
    torch.manual_seed(0)
    network = gan.Generator(16, 3, latent_dim=6, width=4).train()
    network(torch.randn(64, 6))  # batch norm has seen something
    return network


def test_image_i_of_a_seed_does_not_depend_on_how_many_are_drawn(generator):
    images = generator.generate(300, seed=7)
    assert images.dtype == np.uint8
    assert images.shape == (300, 16, 16, 3)
    for n in (1, 2, 127, 128, 129, 256):
        assert (generator.generate(n, seed=7) == images[:n]).all()
    assert (np.concatenate([*gan.stream(generator, 130, seed=7)]) == images[:130]).all()
    assert len(np.unique(images.reshape(300, -1), axis=0)) == 300
    assert (generator.generate(8, seed=8) != images[:8]).any(axis=(1, 2, 3)).all()


def test_generating_leaves_the_network_as_it_was(generator):
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    generator.generate(5)
    assert generator.training
    assert all(torch.equal(before[name], tensor) for name, tensor in generator.state_dict().items())


def test_generating_uses_the_running_averages(generator):
    z = gan.latents(3, 0, 5, 6)
    with torch.no_grad():
        expected = ((generator.eval()(z) + 1) / 2 * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert abs(generator.generate(5, seed=3).astype(int) - expected.astype(int)).max() <= 1


def test_pixels_are_mapped_by_a_fixed_rule():
    values = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, -2.0])
    assert gan.to_uint8(values).tolist() == [0, 64, 128, 191, 255, 255, 0]


def test_noise_is_normal_and_each_image_has_its_own():
    z = gan.latents(seed=5, start=0, count=2000, dim=50)
    assert abs(z.mean()) < 0.01
    assert abs(z.std() - 1) < 0.01
    assert torch.equal(gan.latents(5, 700, 10, 50), z[700:710])
    correlation = np.corrcoef(z[:60].numpy()) - np.eye(60)
    assert abs(correlation).max() < 0.7


@pytest.mark.parametrize("truncation", [0.02, 0.5, 2.0, 10.0])
def test_truncated_noise_is_the_normal_distributions_middle(truncation):
    z = gan.latents(5, 0, 1000, 20, truncation=truncation)
    assert z.abs().max() <= truncation
    expected = scipy.stats.truncnorm(-truncation, truncation)
    assert scipy.stats.kstest(z.double().flatten(), expected.cdf).pvalue > 1e-3
    assert torch.equal(gan.latents(5, 700, 10, 20, truncation=truncation), z[700:710])


def test_weights_are_drawn_with_the_papers_deviation():
    torch.manual_seed(0)
    for network in (gan.Generator(), gan.Discriminator()):
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                assert parameter.std().item() == pytest.approx(0.02, rel=0.08), name
                assert abs(parameter.mean()) < 0.002, name


def kernels_of_3x3(layer):
    """The 3×3 kernels whose sums over four shifts are a layer's of 4×4, found one element after the other."""
    drawn = torch.nn.functional.pad(layer.weight.detach(), (1, 0, 1, 0))
    for i in range(1, 5):
        for j in range(1, 5):
            drawn[..., i, j] -= drawn[..., i - 1, j] + drawn[..., i, j - 1] + drawn[..., i - 1, j - 1]
    assert drawn[..., 4, :].abs().max() < 1e-6 and drawn[..., 4].abs().max() < 1e-6  # nothing is left over
    return drawn[..., 1:4, 1:4]


def test_transposed_convolutions_begin_as_nearest_enlargement_and_a_convolution_of_3x3():
    torch.manual_seed(0)
    layer = next(m for m in gan.Generator().double().modules() if isinstance(m, torch.nn.ConvTranspose2d))
    drawn, maps = kernels_of_3x3(layer), torch.randn(2, layer.in_channels, 5, 5, dtype=torch.float64)
    enlarged = torch.nn.functional.interpolate(maps, scale_factor=2, mode="nearest")
    expected = torch.nn.functional.conv2d(enlarged, drawn.flip(2, 3).transpose(0, 1), padding=1)
    torch.testing.assert_close(layer(maps), expected, rtol=0, atol=1e-5)
    assert drawn.std().item() == pytest.approx(0.02 / 1.5, rel=0.02)


def test_ds_convolutions_begin_as_convolutions_of_3x3_and_the_sum_of_each_2x2():
    torch.manual_seed(0)
    discriminator = gan.Discriminator().double()
    layers = [layer for layer in discriminator.features if isinstance(layer, torch.nn.Conv2d)]
    assert len(layers) == 3
    for layer in layers:
        drawn, maps = kernels_of_3x3(layer), torch.randn(2, layer.in_channels, 8, 8, dtype=torch.float64)
        convolved = torch.nn.functional.conv2d(maps, drawn, padding=1)
        expected = torch.nn.functional.avg_pool2d(convolved, 2, divisor_override=1)
        torch.testing.assert_close(layer(maps), expected, rtol=0, atol=1e-5)
    assert drawn.std().item() == pytest.approx(0.02 / 1.5, rel=0.02)
    with pytest.raises(AssertionError):
        kernels_of_3x3(discriminator.score)  # whose kernels are drawn freely


@pytest.mark.parametrize("name", ["cifar10-ls", "cifar10-multitask"])
def test_a_saved_model_draws_the_pictures_beside_it(name):
    path = ROOT / "saved_models" / f"{name}.safetensors"
    generator = gan.load_generator(path)
    assert gan.count_parameters(generator) == 370_624
    drawn = np.asarray(gan.sheet(generator.generate(64, seed=1)), dtype=int)
    with Image.open(path.with_suffix(".png")) as beside:
        differences = abs(drawn - np.asarray(beside, dtype=int))
    assert differences.max() <= 1  # another machine may round otherwise
    assert (differences > 0).mean() < 0.01
    if name == "cifar10-multitask":
        discriminator = gan.load_network(path, "discriminator")
        assert gan.count_parameters(discriminator) - gan.count_parameters(discriminator.head) == 167_872
        assert len(discriminator.architecture["classes"]) == 10
