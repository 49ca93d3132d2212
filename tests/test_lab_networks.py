"""The networks and steps of the labs: what the handouts fix of them, and numbers worked out by hand."""

import math

import pytest
import torch
from conftest import LABS, assert_same, save_networks, toy_lab

import rollnumber_04 as gan
from labs import blocks, conv, emoji, fashion, mnist, parts

CPU = torch.device("cpu")
NAMES = ("ant", "bee", "cat")
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
PENALISED = [
    ("labs.conv", "--r1 5 --no-translation"),
    ("labs.fashion", "--n-critic 1 --lambda-gp 5"),
    ("labs.emoji", "--gradient-penalty"),
]


def layers_of(layers):
    return [type(layer).__name__ for layer in layers]


def batch_of(model, images):
    """What a step takes, of the first images of a set."""
    return model.batch(images, torch.arange(8 * model.config.d_steps).reshape(-1, 8))


def spy(layer, seen):
    """Append what a layer is given, each time."""
    layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].detach().clone()))


# --------------------------------------------------------------------------------------------------------- networks


def test_mnists_networks():
    model = mnist.MnistGAN(gan.config_from(["--seed", "1"], mnist.MnistGAN), 1)
    generator, discriminator = model.generator, model.discriminator
    assert gan.count_parameters(generator) == 907_392
    assert gan.count_parameters(discriminator) == 432_000
    convolutions = [name for name in layers_of(generator.modules()) if name.startswith("Conv")]
    assert convolutions == ["Conv2d", "ConvTranspose2d", "ConvTranspose2d"]
    assert layers_of(discriminator.features).count("Conv2d") == 3
    assert gan.count_parameters(mnist.Generator()) == 759_680  # a model of an earlier version
    assert generator(torch.randn(2, 100)).shape == (2, 1, 28, 28)
    assert discriminator(torch.randn(2, 1, 28, 28)).shape == (2,)
    assert generator.generate(3).shape == (3, 28, 28)
    for network in (generator, discriminator):
        weights = [weight for weight in network.parameters() if weight.ndim > 1]
        assert all(weight.std().item() == pytest.approx(0.02, rel=0.1) for weight in weights)


def test_the_critic_of_clothes_has_no_norm_and_its_weights_are_torchs():
    classes = [str(i) for i in range(10)]
    generator, critic = fashion.Generator(classes=classes), fashion.Critic(classes=classes)
    assert gan.count_parameters(generator) == 822_401
    assert gan.count_parameters(critic) == 87_025
    assert generator.project.in_features == 100 + 10
    assert critic.features[0].in_channels == 1 + 10
    assert {*layers_of(critic.modules())} == {"Critic", "Sequential", "Conv2d", "LeakyReLU"}
    assert generator.project.weight.std().item() == pytest.approx(0.02, rel=0.1)
    of_critic = critic.features[2].weight
    assert 0.9 < of_critic.abs().max() * math.sqrt(48 * 16) <= 1  # uniform
    assert generator.generate(2, 5).shape == (2, 28, 28)


def test_the_networks_of_emoji():
    generator, discriminator = emoji.Generator(), emoji.Discriminator()
    assert gan.count_parameters(generator) == 463_392
    assert gan.count_parameters(discriminator) == 1_036_096
    assert "ConvTranspose2d" not in layers_of(generator.layers)
    assert layers_of(generator.layers).count("Upsample") == 3
    assert {m.kernel_size for m in discriminator.modules() if isinstance(m, torch.nn.Conv2d)} == {(5, 5)}
    assert "LeakyReLU" not in layers_of(discriminator.features)
    assert discriminator(generator(torch.rand(2, 100))).shape == (2,)
    model, _ = toy_lab("labs.emoji", "", CPU)
    drawn = gan.latents(0, 0, 3000, 20, "uniform")
    assert torch.equal(*generator.inputs(5, 0, 3), gan.latents(5, 0, 3, 100, "uniform"))
    for z in (drawn, model.noise(8000)):
        assert -1 <= z.min() < -0.99
        assert 0.99 < z.max() <= 1
        assert z.square().mean().item() == pytest.approx(1 / 3, rel=0.02)


@pytest.mark.parametrize(("channels", "size", "base"), [(1, 28, 7), (3, 28, 7), (1, 32, 8), (3, 32, 8)])
def test_the_blocks(channels, size, base):
    generator, critic = blocks.Generator(size, channels), blocks.Critic(channels)
    assert critic.score.weight.numel() == 1536
    assert critic.score.bias.numel() == 1
    c_block = 2 * ["Conv2d", "BatchNorm2d", "LeakyReLU"] + ["Conv2d", "LeakyReLU", "Dropout"]
    assert layers_of(critic.features) == c_block * 3
    strides = [layer.stride[0] for layer in critic.features if isinstance(layer, torch.nn.Conv2d)]
    assert strides == [1, 1, 2] * 3
    widths = [layer.out_channels for layer in critic.features if isinstance(layer, torch.nn.Conv2d)]
    assert widths == [32 * (i // 3 + 1) for i in range(9)]
    assert {layer.p for layer in critic.features if isinstance(layer, torch.nn.Dropout)} == {0.3}
    for before, layer in zip(critic.features, critic.features[1:], strict=False):
        if isinstance(before, torch.nn.Conv2d):
            assert (before.bias is None) == isinstance(layer, torch.nn.BatchNorm2d)

    assert generator.project.out_features == base * base * 256
    assert generator.project.bias is None
    g_block = ["Upsample"] + 2 * ["Conv2d", "BatchNorm2d", "ReLU"]
    assert layers_of(generator.layers) == ["Unflatten", "BatchNorm2d", "ReLU", *g_block * 2, "Conv2d", "Tanh"]
    assert generator.layers[-2].kernel_size == (1, 1)
    images = generator(torch.randn(2, 100))
    assert images.shape == (2, channels, size, size)
    assert critic(images).shape == (2,)
    if (channels, size) == (1, 28):
        assert gan.count_parameters(generator) == 1_808_705  # the handout says 2 million or so
        assert gan.count_parameters(critic) == 334_561


def test_the_fully_convolutional_networks():
    model = conv.ConvGAN(gan.config_from(["--seed", "1"], conv.ConvGAN), 1)
    generator, discriminator = model.generator, model.discriminator
    assert gan.count_parameters(generator) == 387_073
    assert gan.count_parameters(discriminator) == 286_401
    of_earlier = [name for name in conv.Generator().state_dict() if name.endswith("weight")]  # whose models still load
    assert of_earlier == ["project.weight", "layers.2.weight", "layers.3.weight", "layers.5.weight"]
    convolution = ["Conv2d", "BatchNorm2d", "LeakyReLU"]
    assert layers_of(discriminator.features) == ["Conv2d", "LeakyReLU", *convolution * 2]  # no norm in the first layer
    up = ["ConvTranspose2d", "BatchNorm2d", "LeakyReLU"]
    assert layers_of(generator.layers) == ["Unflatten", "LeakyReLU", *convolution, *up, "ConvTranspose2d", "Tanh"]
    for network in (generator, discriminator):
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.weight.mean().item() == pytest.approx(1, abs=0.01)
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.5)
                assert not module.bias.any()
            elif hasattr(module, "weight"):
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
                assert module.bias is None or not module.bias.any()
    sequence = [generator.project, *generator.layers, *discriminator.features, discriminator.score]
    for layer, after in zip(sequence, [*sequence[1:], None], strict=True):
        if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d):  # no bias beside a norm
            assert (layer.bias is None) == isinstance(after, torch.nn.BatchNorm2d)


@pytest.mark.parametrize(("name", "words"), LABS)
def test_networks_are_built_again_by_their_architecture(name, words, tmp_path):
    model, _ = toy_lab(name, words, CPU)
    for network in model.networks:
        path = save_networks(tmp_path / f"{network}.safetensors", name, **{network: getattr(model, network)})
        assert_same(gan.load_network(path, network).state_dict(), getattr(model, network).state_dict())


def test_spectral_norm_bounds_each_layer():
    model, images = toy_lab("labs.emoji", "--spectral-norm --lr 0.005", CPU)
    for _ in range(30):
        model.step(*batch_of(model, images))
    layers = [m for m in model.discriminator.eval().modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(layers) == 4
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)


def test_drawing_weights_leaves_spectral_norm_as_it_was(tmp_path):
    model, _ = toy_lab("labs.emoji", "--spectral-norm", CPU)
    before = {name: t.clone() for name, t in model.discriminator.state_dict().items()}
    (tmp_path / "weights").mkdir()
    gan.plot_weights(model, 0, 0, tmp_path)
    assert len([*(tmp_path / "weights").iterdir()]) == 2
    assert all(torch.equal(before[name], t) for name, t in model.discriminator.state_dict().items())


# ----------------------------------------------------------------------------------------------------- steps by hand


@pytest.mark.parametrize(
    ("name", "words"), [("labs.mnist", "--no-translation"), ("labs.conv", "--no-translation"), ("labs.emoji", "")]
)
def test_ds_accuracy_on_real_and_fake(name, words):
    model, images = toy_lab(name, words, CPU)
    real, *_ = batch_of(model, images)
    real, middle = (real[0], 0.5) if name == "labs.emoji" else (real, 0)
    model.rng.manual_seed(1)
    with torch.no_grad():
        of_real, of_fake = model.discriminator(real), model.discriminator(model.generator(model.noise(8)))
    model.rng.manual_seed(1)
    metrics = dict(zip(model.columns(model.config), model.step(*batch_of(model, images)), strict=True))
    assert metrics["d_accuracy_real"].item() == (of_real > middle).float().mean().item()
    assert metrics["d_accuracy_fake"].item() == (of_fake < middle).float().mean().item()


@pytest.mark.parametrize(("name", "words"), PENALISED)
def test_the_step_adds_the_weighted_penalty(name, words):
    model, images = toy_lab(name, words, CPU)
    discriminator, batch = model.discriminator, batch_of(model, images)
    real, labels = {
        "labs.conv": lambda: (batch[0], ()),
        "labs.fashion": lambda: (batch[0][0][0], (batch[0][0][1],)),
        "labs.emoji": lambda: (batch[0][0], ()),
    }[name]()
    model.rng.manual_seed(7)
    with torch.no_grad():
        told = tuple(parts.one_hot(label, 2) for label in labels)
        fake = model.generator(model.noise(8), *told)
    scores = discriminator(real, *labels), discriminator(fake, *labels)
    if name == "labs.conv":
        loss, weight = gan.bce_d_loss(*scores), 5
        penalty = parts.r1(discriminator, real)
    else:
        loss, weight = (parts.wgan_d_loss(*scores), 5) if labels else (gan.ls_d_loss(*scores), 10)
        points = parts.points_between(real, fake, model.rng)
        kind = parts.wgan_gp if labels else parts.zero_gp
        penalty = kind(lambda images: discriminator(images, *labels), points)
    expected = torch.autograd.grad(loss + weight * penalty, [*discriminator.parameters()])
    model.rng.manual_seed(7)
    metrics = dict(zip(model.columns(model.config), model.step(*batch), strict=True))
    assert metrics["penalty"].item() == pytest.approx(penalty.item(), rel=1e-4)
    assert metrics["d_loss"].item() == pytest.approx(loss.item(), rel=1e-4)  # without the penalty
    for parameter, gradient in zip(discriminator.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("name", "words"), PENALISED)
def test_penalties_are_computed_in_float32(name, words):
    model, images = toy_lab(name, f"{words} --precision bf16", CPU)
    seen = []
    model.discriminator.score.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    model.step(*batch_of(model, images))
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32, torch.bfloat16]  # real, fake, penalty, G's step


def test_class_planes_are_constant_and_the_noise_carries_the_class():
    config = toy_lab("labs.fashion", "--n-critic 1", CPU)[0].config
    model = fashion.FashionGAN(config, 3, NAMES).on(CPU)
    real, seen, drawn = torch.rand(8, 3, 28, 28), [], []
    spy(model.discriminator.features[0], seen)
    spy(model.generator.project, drawn)
    model.step([(real, LABELS)])
    assert len(seen) == 4  # real, fake, the penalty's points, and the fake of G's step
    for images in seen:
        assert images.shape == (8, 3 + 3, 28, 28)
        for image, label in zip(images, LABELS.tolist(), strict=True):
            for plane in range(3):
                assert (image[3 + plane] == (1 if plane == label else 0)).all()
    assert torch.equal(seen[0][:, :3], real)
    share = (seen[2] - seen[1])[:, :3] / (seen[0] - seen[1])[:, :3]  # of one way from a generated image to its real one
    assert share.flatten(1).std(1).max() < 0.01
    assert len(drawn) == 2
    for inputs in drawn:
        assert torch.equal(inputs[:, 8:], torch.eye(3)[LABELS])


@pytest.mark.parametrize(
    ("name", "words", "of_update"), [("labs.fashion", "--n-critic 3", 3), ("labs.emoji", "--d-train-iters 3", 2)]
)
def test_each_update_of_d_sees_new_images(name, words, of_update):
    model, images = toy_lab(name, words, CPU)
    run = gan.Run(model, images, None, None, {}, total=2)
    seen, drawn = [], []
    spy(model.discriminator, seen)
    spy(model.generator.project, drawn)
    for index in gan.batches(run):
        model.iterate(images, index)
        run.count_step()
    of_step = 3 * of_update + 1
    assert len(seen) == 2 * of_step
    real = torch.cat([batch for i, batch in enumerate(seen) if i % of_step in range(0, 3 * of_update, of_update)])
    assert len(real) == 2 * 3 * 8
    assert len(real.flatten(1).unique(dim=0)) == 48
    of_images = gan.to_range(images.pixels).flatten(1)
    assert torch.cdist(real.flatten(1), of_images).min(1)[0].max() < 0.1  # and real ones
    assert len(torch.cat(drawn).unique(dim=0)) == 8 * 8  # fresh noise in each of the eight updates
    assert (run.step, run.epoch) == (2, 1)  # for the 12 images that are left make no third step


def test_ds_metrics_are_means_over_its_updates():
    model, images = toy_lab("labs.fashion", "--n-critic 2 --lr-d 1e-9", CPU)
    scores = []
    model.discriminator.register_forward_hook(lambda network, inputs, output: scores.append(output.detach()))
    metrics = dict(zip(model.columns(model.config), model.step(*batch_of(model, images)), strict=True))
    assert len(scores) == 7
    real, fake = torch.cat([scores[0], scores[3]]), torch.cat([scores[1], scores[4]])
    assert metrics["d_real"].item() == pytest.approx(real.mean().item(), abs=1e-6)
    assert metrics["d_fake"].item() == pytest.approx(fake.mean().item(), abs=1e-6)
    assert metrics["d_loss"].item() == pytest.approx((fake.mean() - real.mean()).item(), abs=1e-6)
    assert metrics["g_loss"].item() == pytest.approx(-scores[6].mean().item(), abs=1e-6)


def test_d_learns_at_twice_the_rate_of_g():
    model, _ = toy_lab("labs.emoji", "--lr 0.003", CPU)
    for network, rate in (("generator", 0.003), ("discriminator", 0.006)):
        (group,) = model.optimizers[network].param_groups
        assert group["lr"] == pytest.approx(rate)
        assert [*map(id, group["params"])] == [*map(id, getattr(model, network).parameters())]


# ------------------------------------------------------------------------------------------------- four improvements


def test_smoothing_is_one_sided():
    real, fake = torch.tensor([0.3, -1.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, -0.5, -2.0])
    p = torch.sigmoid(real)
    by_hand = -(0.9 * p.log() + 0.1 * (1 - p).log()).sum() / 8 - (1 - torch.sigmoid(fake)).log().sum() / 8
    assert conv.smoothed_d_loss(real, fake, 0.1).item() == pytest.approx(by_hand.item())
    assert conv.smoothed_d_loss(real, fake, 0).item() == pytest.approx(gan.bce_d_loss(real, fake).item())
    gradients = []
    for smoothing in (0, 0.1):  # each real image moves alike, no generated one does
        scores = [t.clone().requires_grad_() for t in (real, fake)]
        gradients.append(torch.autograd.grad(conv.smoothed_d_loss(*scores, smoothing), scores))
    assert torch.allclose(gradients[1][0] - gradients[0][0], torch.full((4,), 0.1 / 8), atol=1e-6)
    assert torch.equal(gradients[0][1], gradients[1][1])


def test_the_option_smooths_the_step():
    losses = []
    for words in ("", "--label-smoothing 0.2"):
        model, images = toy_lab("labs.conv", f"{words} --no-translation", CPU)
        batch = batch_of(model, images)
        with torch.no_grad():
            score = model.discriminator(batch[0])
        model.rng.manual_seed(1)
        losses.append(model.step(*batch)[0].item())
    # -t ln σ(s) - (1 - t) ln(1 - σ(s)) = ln(1 + exp(s)) - t s
    assert losses[1] - losses[0] == pytest.approx(0.5 * 0.2 * score.mean().item(), rel=1e-3, abs=1e-6)


def test_replay_shows_d_earlier_fakes():
    model, images = toy_lab("labs.conv", "--replay 8 --no-translation", CPU)
    seen, made = [], []
    spy(model.discriminator, seen)
    model.generator.register_forward_hook(lambda layer, inputs, output: made.append(output.detach()))
    for _ in range(2):
        model.step(*batch_of(model, images))
    assert (len(seen), len(made)) == (6, 4)  # real, replayed and G's; D's and G's
    assert torch.equal(seen[1], made[0])
    old = [any(torch.equal(image, before) for before in made[0]) for image in seen[4]]
    new = [any(torch.equal(image, now) for now in made[2]) for image in seen[4]]
    assert all(a != b for a, b in zip(old, new, strict=True))
    assert any(old)
    assert any(new)
    assert torch.equal(seen[5], made[3])  # G learns from new ones


def test_instance_noise_falls_to_nothing():
    model, images = toy_lab("labs.conv", "--instance-noise 0.4 --no-translation", CPU)
    model.planned = 100
    empty = torch.zeros(50, 3, 8, 8)
    for step, deviation in ((0, 0.4), (25, 0.3), (75, 0.1)):
        model.steps.fill_(step)
        assert model.noisy(empty).std().item() == pytest.approx(deviation, rel=0.03)
    model.steps.fill_(150)  # a resumed run may be longer than planned
    assert torch.equal(model.noisy(empty), empty)
    model.steps.fill_(0)
    batch, seen = batch_of(model, images), []
    spy(model.discriminator, seen)
    model.step(*batch)
    assert (seen[0] - batch[0]).std().item() == pytest.approx(0.4, rel=0.1)
    assert len(seen) == 3
    assert all(images.abs().max() > 1 for images in seen[1:])  # the fakes of both steps, which tanh keeps within 1


@pytest.mark.parametrize(
    ("name", "words"), [("labs.conv", "--r1 1"), ("labs.emoji", "--gradient-penalty"), ("labs.mnist", "")]
)
def test_d_sees_real_and_generated_images_shifted(name, words):
    model, _ = toy_lab(name, f"{words} --translation", CPU)
    seen, ones = [], torch.ones(8, 3, model.config.image_size, model.config.image_size)
    spy(model.discriminator, seen)
    model.step(*(([ones],) if name == "labs.emoji" else (ones, None)))
    assert len(seen) == 3 + bool(words)  # real, fake, the penalty, G's step
    assert {*seen[0].unique().tolist()} == {0, 1}
    for shown in seen:
        empty = (shown == 0).all(1)
        is_shifted = empty.all(1).any(1) | empty.all(2).any(1)  # an empty row or column
        assert is_shifted.float().mean() > 0.5 or (shown is seen[2] and name == "labs.emoji")  # between two shifts
