"""The labs' networks, objectives, stabilisers and presets: against their specifications, closed forms and by hand."""

import csv
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from conftest import TOY, assert_same, command, pictures, save_all
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_data import write_idx

import rollnumber_04 as gan

CPU = torch.device("cpu")
NAMES = ("ant", "bee", "cat")
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def toy_run(*words):
    options = gan.parse_options([*TOY, "--seed", "3", *words])
    return gan.make_run(options, 3, CPU, False, NAMES if options.conditional or options.multitask else ()), options


def preset_networks(*words, channels=1, size=28, classes=10):
    options = gan.parse_options(["--image-size", str(size), *words])
    names = [str(i) for i in range(classes)] if options.conditional else ()
    return tuple(gan.make_networks(options, channels, names).values())


def real_images(seed=0):
    return torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def kinds(layers):
    return [type(layer).__name__ for layer in layers]


# --------------------------------------------------------------------------------------------------------- networks


def test_the_emoji_labs_networks():
    for preset in ("emoji-ls", "emoji-ls-gp"):
        generator, discriminator = preset_networks("--preset", preset, channels=3, size=32)
        assert gan.count_parameters(generator) == 463_392
        assert gan.count_parameters(discriminator) == 1_036_096
        assert "ConvTranspose2d" not in kinds(generator.layers)
        assert kinds(generator.layers).count("Upsample") == 3
        assert {m.kernel_size for m in discriminator.modules() if isinstance(m, torch.nn.Conv2d)} == {(5, 5)}
        assert "LeakyReLU" not in kinds(discriminator.features)
    z = gan.latents(0, 0, 3000, 20, "uniform")
    assert -1 <= z.min() < -0.99
    assert 0.99 < z.max() <= 1
    assert z.square().mean().item() == pytest.approx(1 / 3, rel=0.02)


@pytest.mark.parametrize(
    ("channels", "size", "base", "last"), [(1, 28, 7, 1536), (3, 32, 8, 1536), (1, 64, 8, 128 * 16)]
)
def test_the_blocks(channels, size, base, last):
    generator, discriminator = preset_networks("--preset", "mnist-blocks", channels=channels, size=size)
    score = discriminator.score
    stages = 3 if size < 64 else 4
    assert score.weight.numel() == last
    assert score.bias.numel() == 1
    cblock = 2 * ["Conv2d", "BatchNorm2d", "LeakyReLU"] + ["Conv2d", "LeakyReLU", "Dropout"]
    assert kinds(discriminator.features) == cblock * stages
    strides = [layer.stride[0] for layer in discriminator.features if isinstance(layer, torch.nn.Conv2d)]
    assert strides == [1, 1, 2] * stages
    widths = [layer.out_channels for layer in discriminator.features if isinstance(layer, torch.nn.Conv2d)]
    assert widths == [32 * (i // 3 + 1) for i in range(3 * stages)]
    assert {layer.p for layer in discriminator.features if isinstance(layer, torch.nn.Dropout)} == {0.3}
    for before, layer in zip(discriminator.features, discriminator.features[1:], strict=False):
        if isinstance(before, torch.nn.Conv2d):
            assert (before.bias is None) == isinstance(layer, torch.nn.BatchNorm2d)

    doublings = 2 if size < 64 else 3
    assert generator.project.out_features == base * base * (64 << doublings)
    assert generator.project.bias is None
    gblock = ["Upsample"] + 2 * ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds(generator.layers) == ["Unflatten", "BatchNorm2d", "ReLU"] + gblock * doublings + ["Conv2d", "Tanh"]
    assert generator.layers[-2].kernel_size == (1, 1)
    if size == 28:
        assert 1.8e6 < gan.count_parameters(generator) < 2.2e6
    assert discriminator(generator(torch.randn(2, 100))).shape == (2,)


def test_the_fully_convolutional_networks():
    generator, discriminator = preset_networks("--preset", "mnist-conv")
    convolution = ["Conv2d", "BatchNorm2d", "LeakyReLU"]
    assert kinds(discriminator.features) == ["Conv2d", "LeakyReLU", *convolution]  # no norm in the first layer
    up = ["ConvTranspose2d", "BatchNorm2d", "LeakyReLU"]
    assert kinds(generator.layers) == ["Unflatten", "LeakyReLU", *up, "ConvTranspose2d", "Tanh"]
    for network in (generator, discriminator):
        modules = [*network.modules()]
        for module in modules:
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
    assert gan.parse_options(["--preset", "mnist-conv"]).split == "all"


def test_the_labs_settings():
    """What the handouts fix, beside the networks."""
    emoji, penalised = (gan.parse_options(["--preset", name]) for name in ("emoji-ls", "emoji-ls-gp"))
    assert (emoji.lr_g, emoji.lr_d, emoji.beta1, emoji.beta2) == (3e-4, 6e-4, 0.5, 0.999)
    assert (emoji.batch_size, emoji.iterations, emoji.sample_every, emoji.image_size) == (32, 10_000, 200, 32)
    assert (penalised.penalty, penalised.lr_g, penalised.iterations) == ("zero-gp", 3e-4, 6_000)
    wgan = gan.parse_options(["--preset", "fashion-cwgan-gp"])
    assert (wgan.penalty, wgan.penalty_weight, wgan.d_steps, wgan.norm) == ("wgan-gp", 10, 5, "batch,none")
    assert gan.parse_options(["--preset", "mnist-conv"]).iterations == 10_000


@pytest.mark.parametrize("arch", gan.ARCHITECTURES)
@pytest.mark.parametrize("upsample", gan.UPSAMPLES)
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 7])
def test_every_kernel_and_way_up_makes_every_size(arch, upsample, kernel):
    for size in (8, 20, 28, 48):
        generator = gan.Generator(size, 1, 4, 2, arch=arch, upsample=upsample, kernel=kernel, bias=True)
        discriminator = gan.Discriminator(size, 1, 2, arch=arch, kernel=kernel, classes=["a", "b"])
        images = generator(torch.randn(2, 4))
        assert images.shape == (2, 1, size, size)
        assert discriminator(images).shape == (2,)
        assert discriminator.head(discriminator.features(images)).shape == (2, 2)


def test_initialisations():
    matrix = gan.Generator(init="orthogonal").project.weight
    assert torch.allclose(matrix.T @ matrix, torch.eye(100), atol=1e-5)
    assert gan.Generator(init="torch").project.weight.std() > 0.05  # uniform up to 1/√100


def test_spectral_norm_bounds_each_layer():
    run, options = toy_run("--spectral-norm", "--lr-d", "0.01", "--init", "torch")
    for _ in range(30):
        gan.train_step(run, [(real_images(), None)], options)
    layers = [m for m in run.discriminator.eval().modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(layers) == 2
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)


def test_drawing_weights_leaves_spectral_norm_as_it_was(tmp_path):
    run, _ = toy_run("--spectral-norm")
    before = {name: t.clone() for name, t in run.discriminator.state_dict().items()}
    (tmp_path / "weights").mkdir()
    gan.plot_weights(run.networks, ("epoch", 0, "epoch_0000"), 0, tmp_path)
    assert all(torch.equal(before[name], t) for name, t in run.discriminator.state_dict().items())


# ------------------------------------------------------------------------------------------------------- conditions


def test_class_planes_are_constant_and_the_noise_carries_the_class():
    run, options = toy_run("--conditional")
    seen, drawn = [], []
    run.discriminator.features[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].detach()))
    run.generator.project.register_forward_pre_hook(lambda layer, inputs: drawn.append(inputs[0].detach()))
    gan.train_step(run, [(real_images(), LABELS)], options)
    assert len(seen) == 3  # real, fake, and the fake of G's step
    for images in seen:
        assert images.shape == (8, 3 + 3, 8, 8)
        for image, label in zip(images, LABELS.tolist(), strict=True):
            for plane in range(3):
                assert (image[3 + plane] == (1 if plane == label else 0)).all()
    assert torch.equal(seen[0][:, :3], real_images())
    for inputs in drawn:
        assert torch.equal(inputs[:, 8:], torch.eye(3)[LABELS])


def test_a_conditional_generator_draws_what_it_is_asked():
    torch.manual_seed(0)
    generator = gan.Generator(8, 1, 4, 2, classes=NAMES)
    with torch.no_grad():
        generator.project.weight.mul_(50)
    in_turn = generator.generate(7, seed=5)
    assert in_turn.shape == (7, 8, 8)
    for i in range(7):
        for label in (NAMES[i % 3], i % 3, str(i % 3)):
            assert (generator.generate(7, label, seed=5)[i] == in_turn[i]).all()
    assert (generator.generate(7, "bee", seed=5)[0] != in_turn[0]).any()
    for label in ("dog", 3, -1, "1.0", ""):
        with pytest.raises(gan.UserError, match="--label"):
            generator.generate(1, label)
    with pytest.raises(gan.UserError, match="is not conditional"):
        gan.Generator(8, 1, 4, 2).generate(1, 0)


def test_a_conditional_critic_learns_to_ask_for_the_class(tmp_path):
    """Dark and bright images, a class each: after a short run the asked class decides how bright a sample is."""
    rng = np.random.default_rng(0)
    for name, level in (("bright", 210), ("dark", 40)):
        noisy = np.clip(rng.normal(level, 12, (128, 8, 8, 3)), 0, 255).astype(np.uint8)
        save_all(np.repeat(noisy[..., :1], 3, 3), tmp_path / "data" / name)
    words = f"--data {tmp_path / 'data'} --out {tmp_path / 'run'} --iterations 150 --seed 0 --conditional --ema 500"
    words += " --lr-g 0.002 --lr-d 0.002 --width-g 8 --width-d 8 --sample-every 150"
    out = gan.train(gan.parse_options([*TOY, *words.split()]))
    generator = gan.load_generator(out / "generator.safetensors")
    bright, dark = (generator.generate(64, name, seed=1).mean() for name in ("bright", "dark"))
    assert bright - dark > 80
    with Image.open(out / "samples" / "iteration_000150.png") as sheet:
        pixels = np.asarray(sheet, float)  # a column per class
    assert sheet.size == (2 * 66 + 2, 8 * 66 + 2)
    assert pixels[2:-2, 2:64].mean() - pixels[2:-2, 70:-4].mean() > 60


# ------------------------------------------------------------------------------------------------------- objectives


def test_hinge_and_wasserstein_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 3.0])
    assert gan.hinge_discriminator_loss(real, fake).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 4) / 3)
    assert gan.wgan_discriminator_loss(real, fake).item() == pytest.approx(1 / 3 - 0.5)
    assert gan.wgan_generator_loss(fake).item() == pytest.approx(-1 / 3)
    assert gan.LOSSES["hinge"][1] is gan.LOSSES["wgan"][1]


def test_smoothing_is_one_sided_and_per_row():
    real, fake = torch.tensor([0.3, -1.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, -0.5, -2.0])
    smoothed = gan.ls_discriminator_loss(real, fake, 0.9)
    assert smoothed.item() == pytest.approx(((real - 0.9) ** 2).sum() / 8 + (fake**2).sum() / 8)
    p = torch.sigmoid(real)
    by_hand = -(0.9 * p.log() + 0.1 * (1 - p).log()).sum() / 8 - (1 - torch.sigmoid(fake)).log().sum() / 8
    assert gan.bce_discriminator_loss(real, fake, 0.9).item() == pytest.approx(by_hand.item())
    for loss in gan.SMOOTHABLE:  # each real row moves alike, no fake one does
        gradients = []
        for target in (1.0, 0.9):
            scores = [t.clone().requires_grad_() for t in (real, fake)]
            gradients.append(torch.autograd.grad(gan.LOSSES[loss][0](*scores, target), scores))
        difference = gradients[1][0] - gradients[0][0]
        assert torch.allclose(difference, torch.full((4,), 0.1 / (8 if loss == "bce" else 4)), atol=1e-6)
        assert torch.equal(gradients[0][1], gradients[1][1])


def test_the_option_smooths_the_step():
    values = []
    for words in ([], ["--label-smoothing", "0.2"]):
        run, options = toy_run(*words)
        with torch.no_grad():
            score = run.discriminator(real_images())
        run.rng.manual_seed(1)
        values.append(gan.discriminator_step(run, real_images(), options)[0].item())
    expected = 0.5 * ((score - 0.8).square().mean() - (score - 1).square().mean()).item()
    assert values[1] - values[0] == pytest.approx(expected, rel=1e-3)


def test_penalties_of_a_linear_discriminator_have_closed_forms():
    w = torch.randn(3 * 8 * 8, generator=torch.Generator().manual_seed(0))
    real, fake, rng = real_images(0), real_images(1), torch.Generator().manual_seed(0)

    def linear(x):
        return x.flatten(1) @ w

    norm = w.norm().item()
    assert gan.wgan_gp(linear, real, fake, rng).item() == pytest.approx((norm - 1) ** 2, rel=1e-5)
    assert gan.zero_gp(linear, real, fake, rng).item() == pytest.approx(norm**2, rel=1e-5)
    assert gan.r1(linear, real, fake, rng).item() == pytest.approx(norm**2 / 2, rel=1e-5)


def test_penalties_take_the_norm_of_each_image_on_its_own():
    real, fake, rng = real_images(0), real_images(1), torch.Generator().manual_seed(0)
    scale = torch.arange(8.0)

    def slopes(x):  # image i has the gradient (i, 0, 0 …)
        return x.flatten(1)[:, 0] * scale

    assert gan.wgan_gp(slopes, real, fake, rng).item() == pytest.approx(((scale - 1) ** 2).mean().item(), abs=1e-4)
    assert gan.zero_gp(slopes, real, fake, rng).item() == pytest.approx((scale**2).mean().item())
    assert gan.r1(slopes, real, fake, rng).item() == pytest.approx((scale**2).mean().item() / 2)


def test_where_penalties_look():
    real, fake, rng = real_images(0), real_images(1), torch.Generator().manual_seed(0)

    def half_square(x):  # whose gradient is the image itself
        return x.square().flatten(1).sum(1) / 2

    assert gan.r1(half_square, real, fake, rng).item() == pytest.approx(real.square().sum().item() / 16, rel=1e-5)
    points = gan.between(real, fake, rng)
    share = ((points - fake) / (real - fake)).flatten(1)
    assert torch.allclose(share, share[:, :1].expand_as(share), atol=1e-3)  # one share for an image
    assert (share[:, 0] > 0).all()
    assert (share[:, 0] < 1).all()
    assert share[:, 0].std() > 0.1


@pytest.mark.parametrize("penalty", gan.PENALTIES)
def test_the_penaltys_gradient_reaches_the_weights(penalty):
    """The gradient of loss and penalty, which is a gradient's gradient, against central differences in float64."""
    run, options = toy_run("--penalty", penalty, "--penalty-weight", "3", "--norm", "batch,none", "--init", "torch")
    network = run.discriminator.double()
    real, fake = real_images(0).double(), real_images(1).double()
    weight = network.features[0].weight

    def loss():
        value = gan.PENALTIES[penalty](network, real, fake, torch.Generator().manual_seed(2))
        return gan.ls_discriminator_loss(network(real), network(fake)) + options.penalty_weight * value

    (gradient,) = torch.autograd.grad(loss(), weight)
    for place in ((0, 0, 0, 0), (1, 2, 3, 1), (3, 1, 2, 2)):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[place] += step
            values.append(loss().item())
            with torch.no_grad():
                weight[place] -= step
        assert gradient[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("penalty", gan.PENALTIES)
def test_the_step_adds_the_weighted_penalty(penalty):
    run, options = toy_run("--penalty", penalty, "--penalty-weight", "5", "--norm", "batch,none", "--loss", "bce")
    rng = torch.Generator().manual_seed(7)
    run.rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        z = torch.randn(8, 8, generator=rng)
        fake = run.generator(z)
    value = gan.bce_discriminator_loss(run.discriminator(real_images()), run.discriminator(fake))
    term = gan.PENALTIES[penalty](run.discriminator, real_images(), fake, rng)
    expected = torch.autograd.grad(value + 5 * term, [*run.discriminator.parameters()])
    measures = dict(zip(run.measures, (None, *gan.discriminator_step(run, real_images(), options)), strict=False))
    assert run.measures.index("penalty") == 6
    assert measures["penalty"].item() == pytest.approx(term.item(), rel=1e-4)
    for parameter, gradient in zip(run.discriminator.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-7)


def test_penalties_are_computed_in_float32():
    options = gan.parse_options([*TOY, "--seed", "3", "--penalty", "r1", "--norm", "batch,none"])
    run = gan.make_run(options, 3, CPU, True)
    seen = []
    run.discriminator.score.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    gan.discriminator_step(run, real_images(), options)
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32]


# ------------------------------------------------------------------------------------------------------ stabilisers


def test_the_replay_pools_statistics():
    rng = torch.Generator().manual_seed(0)
    pool = gan.ReplayPool(64, (1, 1, 1), CPU)

    def batch(first):  # images that carry their number, and a label that can be told from it
        numbers = torch.arange(first, first + 16)
        return numbers.float().reshape(-1, 1, 1, 1), numbers % 7

    ages, fresh = [], 0
    for k in range(600):
        images, labels = pool.swap(*batch(16 * k), rng)
        numbers = images.flatten().long()
        assert torch.equal(numbers % 7, labels)  # a label stays with its image
        assert len(numbers.unique()) == 16
        if k < 4:
            assert torch.equal(numbers, torch.arange(16 * k, 16 * k + 16))  # until it is full it only takes
            continue
        age = 16 * k + 15 - numbers
        fresh += int((age < 16).sum())
        ages += age[age >= 16].tolist()
        assert len(pool.images.unique()) == 64
    assert pool.filled == 64
    assert fresh / (596 * 16) == pytest.approx(0.5, abs=0.02)
    # 8 of 64 places change in a batch: an image stays 8 batches on average, so it is 128 images old when it leaves.
    assert np.mean(ages) == pytest.approx(8 * 16, rel=0.06)


def test_a_pool_that_no_batch_fills_evenly():
    rng = torch.Generator().manual_seed(0)
    pool = gan.ReplayPool(20, (1, 1, 1), CPU)
    for first in (0, 16, 32):
        pool.swap(torch.arange(first, first + 16.0).reshape(-1, 1, 1, 1), None, rng)
        assert pool.filled == min(20, first + 16)
    assert set(pool.images.flatten().tolist()) <= set(range(48))


def test_replay_shows_d_earlier_fakes():
    run, options = toy_run("--replay", "8")
    seen, made = [], []
    run.discriminator.features[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].detach()))
    run.generator.register_forward_hook(lambda layer, inputs, output: made.append(output.detach()))
    for _ in range(2):
        gan.discriminator_step(run, real_images(), options)
    assert torch.equal(seen[1], made[0])
    old = [any(torch.equal(image, before) for before in made[0]) for image in seen[3]]
    new = [any(torch.equal(image, now) for now in made[1]) for image in seen[3]]
    assert all(a != b for a, b in zip(old, new, strict=True))
    assert any(old)
    assert any(new)


def test_instance_noise_falls_to_nothing():
    run, options = toy_run("--instance-noise", "0.4")
    run.planned = 100
    images = torch.zeros(50, 3, 8, 8)
    for step, deviation in ((0, 0.4), (25, 0.3), (75, 0.1)):
        run.ticks.fill_(step)
        assert gan.instance_noise(run, images, options).std().item() == pytest.approx(deviation, rel=0.03)
    run.ticks.fill_(150)  # a resumed run may be longer than planned
    assert torch.equal(gan.instance_noise(run, images, options), images)
    run.ticks.fill_(0)
    seen = []
    run.discriminator.features[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].detach()))
    gan.train_step(run, [(real_images(), None)], options)
    assert (seen[0] - real_images()).std().item() == pytest.approx(0.4, rel=0.1)
    assert len(seen) == 3
    assert all(images.abs().max() > 1 for images in seen[1:])  # the fakes of both steps, which tanh keeps within 1


def generators(count=1, seed=4):
    return [torch.Generator().manual_seed(seed) for _ in range(count)]


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_change_as_the_paper_says(channels):
    images = torch.rand(6, channels, 8, 8, generator=generators()[0]) * 2 - 1
    ours, theirs = generators(2, 1)
    found = gan.recoloured(images, ours)
    draws = torch.rand(3, 6, generator=theirs).double().numpy()
    for image, new, brighter, purer, stronger in zip(images.double().numpy(), found, *draws, strict=True):
        image = image + brighter - 0.5
        image = image.mean(0) + 2 * purer * (image - image.mean(0))
        image = image.mean() + (0.5 + stronger) * (image - image.mean())
        assert np.allclose(new.numpy(), image, atol=1e-5)


def test_translations_move_whole_images_by_up_to_an_eighth():
    images, rng, seen = torch.rand(400, 2, 16, 8, generator=generators()[0]), generators()[0], set()
    for old, new in zip(images, gan.translated(images, rng), strict=True):
        padded = torch.nn.functional.pad(old, (1, 1, 2, 2))
        places = [(i, j) for i in range(5) for j in range(3) if torch.equal(padded[:, i : i + 16, j : j + 8], new)]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 15
    halves = gan.translated(images.bfloat16(), generators()[0])  # not rounded by the product
    assert torch.equal(halves, gan.translated(images.bfloat16().float(), generators()[0]).bfloat16())


def test_holes_are_up_to_half_the_side():
    holes = gan.cut_out(torch.ones(300, 3, 8, 12), generators()[0])
    heights = (holes == 0).any(3).any(1).sum(1)
    widths = (holes == 0).any(2).any(1).sum(1)
    assert torch.equal((holes == 0).sum((1, 2, 3)), 3 * heights * widths)  # whole rectangles, in all channels
    assert {*heights.tolist()} == {2, 3, 4}  # half, or less at a border
    assert {*widths.tolist()} == {3, 4, 5, 6}


def test_the_gradient_passes_through_augmentations():
    run, options = toy_run("--augment", "colour,translation,cutout")
    images = real_images()[:2].double().requires_grad_(True)

    def changed_again(x):
        run.rng.manual_seed(0)
        return gan.augment(run, x, options)

    assert torch.autograd.gradcheck(changed_again, images)
    assert torch.autograd.gradgradcheck(changed_again, images)
    run.rng.manual_seed(0)
    by_hand = gan.cut_out(gan.translated(gan.recoloured(images, run.rng), run.rng), run.rng)
    assert torch.equal(by_hand, changed_again(images))


def test_d_sees_real_and_generated_images_changed_and_their_labels_as_they_are():
    run, options = toy_run("--augment", "cutout", "--conditional", "--penalty", "r1", "--norm", "batch,none")
    seen, labels = [], torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    run.discriminator.features[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].detach()))
    gan.train_step(run, [(torch.ones(8, 3, 8, 8), labels)], options)
    assert len(seen) == 4  # real, fake, the penalty, G's step
    for shown in seen:
        assert (shown[:, :3] == 0).all(1).sum((1, 2)).min() >= 4  # the least hole is 2×2
        assert torch.equal(shown[:, 3:, 0, 0].argmax(1), labels)
        assert (shown[:, 3:].sum(1) == 1).all()


def test_each_of_ds_steps_sees_new_images(tmp_path):
    run, options = toy_run("--d-steps", "3", "--iterations", "4")
    pixels = torch.from_numpy(pictures(64))
    images = gan.Images(pixels, None, ())
    seen = []
    run.discriminator.features[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].detach()))
    drawn = []
    run.generator.project.register_forward_pre_hook(lambda layer, inputs: drawn.append(inputs[0].clone()))
    list(gan.train_leg(run, images, 2, options))
    real = torch.cat([batch for i, batch in enumerate(seen) if i % 7 in (0, 2, 4)])
    assert len(real) == 2 * 3 * 8
    assert len(real.flatten(1).unique(dim=0)) == 48
    assert len(torch.cat(drawn).unique(dim=0)) == 8 * 8  # fresh noise in each of the eight steps
    assert (run.step, run.seen) == (2, 48)


def test_ds_accuracy_on_real_and_fake():
    run, options = toy_run("--loss", "bce")
    run.rng.manual_seed(1)
    with torch.no_grad():
        real = run.discriminator(real_images())
        fake = run.discriminator(run.generator(*run.inputs(8)))
    run.rng.manual_seed(1)
    measures = gan.discriminator_step(run, real_images(), options)
    assert measures[3].item() == (real > 0).float().mean().item()
    assert measures[4].item() == (fake < 0).float().mean().item()
    assert toy_run("--loss", "wgan")[0].measures == gan.MEASURES  # whose scores have no middle


# ------------------------------------------------------------------------------------------------------- iterations


def test_a_run_counted_in_iterations(tmp_path):
    data = save_all(pictures(20), tmp_path / "data")  # two batches of 8 an epoch
    words = [*TOY, "--data", str(data), "--seed", "1", "--iterations", "11", "--sample-every", "4", "--save-every", "8"]
    out = gan.train(gan.parse_options([*words, "--out", str(tmp_path / "run"), "--log-every", "3"]))
    stems = ["iteration_000004", "iteration_000008", "iteration_000011"]
    assert sorted(path.stem for path in (out / "samples").glob("*.png")) == stems
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        "iteration_000008.pt", "iteration_000011.pt", "last.pt",
    ]  # fmt: skip
    assert [int(row["step"]) for row in rows(out / "log.csv")] == [3, 4, 7, 8, 11]
    assert [(int(r["epoch"]), int(r["step"])) for r in rows(out / "epochs.csv")] == [(2, 4), (4, 8), (6, 11)]
    drawn = sorted(path.stem for path in (out / "weights").glob("generator*"))
    assert drawn == ["generator_iteration_000000", "generator_iteration_000011"]

    # From iterations to epochs, and back.
    gan.train(gan.parse_options(["--resume", str(out), "--epochs", "8"]))
    assert [path.name for path in gan.numbered(out / "samples", "epoch", ".png", 99)] == [
        "epoch_0006.png", "epoch_0007.png", "epoch_0008.png",
    ]  # fmt: skip
    step = gan.load_checkpoint(out / "checkpoints/last.pt")["step"]
    options = gan.parse_options(["--resume", str(out), "--iterations", str(step + 2)])
    assert (options.sample_every, options.save_every) == (200, 2000)
    gan.train(options)
    assert gan.load_checkpoint(out / "checkpoints/last.pt")["step"] == step + 2


def test_iterations_that_used_up_an_epoch_go_on_in_epochs(tmp_path):
    data = save_all(pictures(20), tmp_path / "data")  # two batches of 8 an epoch
    words = [*TOY, "--data", str(data), "--seed", "1", "--iterations", "4", "--out", str(tmp_path / "run")]
    out = gan.train(gan.parse_options(words))
    gan.train(gan.parse_options(["--resume", str(out), "--epochs", "3"]))
    assert [(int(r["epoch"]), int(r["step"])) for r in rows(out / "epochs.csv")] == [(2, 4), (3, 6)]


def test_a_damaged_checkpoint_of_a_run_in_iterations(tmp_path, capsys):
    data = save_all(pictures(20), tmp_path / "data")
    words = [*TOY, "--data", str(data), "--iterations", "4", "--sample-every", "2", "--save-every", "2"]
    out = gan.train(gan.parse_options([*words, "--out", str(tmp_path / "run")]))
    (out / "checkpoints" / "last.pt").write_bytes(b"PK\3\4")
    (out / "checkpoints" / "iteration_000004.pt").unlink()
    assert gan.parse_options(["--resume", str(out)]).resume.name == "iteration_000002.pt"
    assert "trying iteration_000002.pt" in capsys.readouterr().out


def test_what_a_resume_may_change(tmp_path, capsys):
    data = save_all(pictures(20), tmp_path / "data")
    words = [*TOY, "--data", str(data), "--iterations", "4", "--sample-every", "2", "--replay", "8"]
    out = gan.train(gan.parse_options([*words, "--out", str(tmp_path / "run")]))
    for change, message in (
        ("--penalty r1", "--penalty r1: the log of"),
        ("--loss wgan", "--loss wgan: the log of"),
        ("--dropout 0.3", "--dropout 0.3: the checkpoint"),
        ("--init torch", "--init torch: the checkpoint"),
        ("--kernel 3", "--kernel 3: the checkpoint"),
        ("--preset mnist-bce", "--preset: does not go with --resume"),
    ):
        assert gan.main(["--resume", str(out), "--iterations", "6", *change.split()]) == 2, change
        assert message in capsys.readouterr().err
    options = gan.parse_options(["--resume", str(out), "--iterations", "9", "--sample-every", "3", "--loss", "hinge"])
    assert (options.sample_every, options.save_every) == (3, 30)
    gan.train(options)
    gan.train(gan.parse_options(["--resume", str(out), "--iterations", "11", "--replay", "16"]))
    saved = gan.load_checkpoint(out / "checkpoints/last.pt")
    assert (saved["step"], saved["pools"]["fakes"]["filled"]) == (11, 16)


def test_iterations_over_fewer_images_than_the_ds_steps_take(tmp_path):
    data = save_all(pictures(20), tmp_path / "data")
    words = [*TOY, "--data", str(data), "--d-steps", "5", "--iterations", "3", "--seed", "1", "--out"]
    out = gan.train(gan.parse_options([*words, str(tmp_path / "run")]))
    saved = gan.load_checkpoint(out / "checkpoints/last.pt")
    assert (saved["step"], saved["options"]["batch_size"]) == (3, 4)


def resumed_like_whole(tmp_path, words, monkeypatch):
    """A run that Ctrl-C stops after step 7, within an epoch and between two rows of each table, and one whole."""
    images = pictures(78)  # nine batches of 8
    for i, name in enumerate(NAMES):
        save_all(images[26 * i : 26 * i + 26], tmp_path / "data" / name)
    same = [*TOY, "--data", str(tmp_path / "data"), "--seed", "1", "--sample-every", "6", "--log-every", "4"]
    same += ["--iterations", "10", *words.split(), "--out"]
    gan.train(gan.parse_options([*same, str(tmp_path / "whole")]))
    original = gan.train_step

    def interrupted(run, *arguments):
        if run.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return original(run, *arguments)

    monkeypatch.setattr(gan, "train_step", interrupted)
    with pytest.raises(gan.UserError, match="interrupted at step 7") as stop:
        gan.train(gan.parse_options([*same, str(tmp_path / "parts")]))
    assert stop.value.status == 130
    monkeypatch.setattr(gan, "train_step", original)
    saved = gan.load_checkpoint(tmp_path / "parts/checkpoints/last.pt")
    assert (saved["step"], saved["waiting"]) == (7, 1)
    assert 0 < saved["seen"] < 72
    gan.train(gan.parse_options(["--resume", str(tmp_path / "parts")]))
    return [gan.load_checkpoint(tmp_path / name / "checkpoints/last.pt") for name in ("whole", "parts")]


@pytest.mark.parametrize(
    "words",
    [
        "--conditional --loss wgan --penalty wgan-gp --norm batch,none --d-steps 3 --bias --init torch",
        "--replay 12 --instance-noise 0.3 --spectral-norm --dropout 0.2 --label-smoothing 0.1 --augment cutout,colour",
        "--arch blocks --upsample nearest --kernel 3 --multitask --loss hinge --penalty r1 --spectral-norm",
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="Windows sends itself no signals")
def test_resume_is_exact_with_every_stabiliser(tmp_path, words, monkeypatch):
    whole, parts = resumed_like_whole(tmp_path, words, monkeypatch)

    for part in ("networks", "average", "optimizers", "rng", "pools"):
        assert_same(parts[part], whole[part], part)
    for table in ("log", "epochs"):
        times = ("images_per_s", "seconds")
        for first, second in zip(whole["history"][table], parts["history"][table], strict=True):
            assert {k: v for k, v in first.items() if k not in times} == {
                k: v for k, v in second.items() if k not in times
            }


# ---------------------------------------------------------------------------------------------------------- presets


@pytest.fixture(scope="module")
def real_formats(tmp_path_factory):
    """A few dozen images in the formats of the labs' data: MNIST's files, and palette images on transparency."""
    root, rng = tmp_path_factory.mktemp("labs"), np.random.default_rng(0)
    for name in ("MNIST", "FashionMNIST"):
        for split, count in (("train", 340), ("t10k", 20)):
            folder = root / name / "raw"
            folder.mkdir(parents=True, exist_ok=True)
            write_idx(folder / f"{split}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28), np.uint8))
            write_idx(folder / f"{split}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    (root / "emoji").mkdir()
    for i in range(40):
        image = Image.fromarray(rng.integers(0, 256, (72, 72, 4), np.uint8), "RGBA").quantize(32)
        image.save(root / "emoji" / f"{i:04d}.png")
    return root


@pytest.mark.parametrize("preset", gan.PRESETS)
def test_every_preset_dry_runs(real_formats, tmp_path, preset):
    name = {"emoji": "emoji", "fashion": "FashionMNIST"}.get(preset.partition("-")[0], "MNIST")
    data = real_formats / name
    out = gan.train(
        gan.parse_options(["--preset", preset, "--data", str(data), "--dry-run", "--out", str(tmp_path / "r")])
    )
    options = json.loads((out / "options.json").read_text())
    assert options["preset"] == preset
    assert all(options[name] == value for name, value in gan.PRESETS[preset].items())
    (row,) = rows(out / "log.csv")
    assert ("d_accuracy_real" in row) == (options["loss"] != "wgan")
    assert all(math.isfinite(float(value)) for value in row.values())
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    assert board.Tags()["images"] == ["samples/fixed_noise"]
    generator = gan.load_generator(out / "generator.safetensors")
    size = (32, 32, 3) if name == "emoji" else (28, 28)
    assert generator.generate(3).shape == (3, *size)
    assert (out / "samples" / ("iteration_000001.png" if options["iterations"] else "epoch_0001.png")).exists()


def test_a_flag_that_is_given_wins_over_the_preset():
    options = gan.parse_options("--preset fashion-cwgan-gp --loss ls --no-conditional --d-steps 1 --epochs 3".split())
    assert (options.loss, options.conditional, options.d_steps, options.epochs) == ("ls", False, 1, 3)
    options = gan.parse_options("--preset emoji-ls --epochs 3".split())
    assert (options.iterations, options.epochs, options.sample_every, options.save_every) == (None, 3, 1, 10)
    options = gan.parse_options("--preset emoji-ls --iterations 500 --sample-every 50".split())
    assert (options.iterations, options.sample_every, options.save_every) == (500, 50, 500)
    options = gan.parse_options("--preset mnist-bce --iterations 700".split())
    assert (options.iterations, options.sample_every, options.save_every) == (700, 200, 2000)


def test_the_saved_models_of_an_older_version_still_draw():
    for name in ("cifar10-ls", "cifar10-multitask"):
        assert gan.load_generator(f"saved_models/{name}.safetensors").generate(2).shape == (2, 32, 32, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--multitask --conditional",
            "--multitask: not with --conditional: D is told the classes that its head is to tell",
        ),
        ("--loss wgan --label-smoothing 0.1", "--label-smoothing: --loss wgan has no target for real images"),
        ("--loss hinge --label-smoothing 0.1", "--label-smoothing: --loss hinge has no target"),
        ("--replay 10", "--replay 10: must hold at least a batch, --batch-size 64"),
        ("--penalty-weight 3", "--penalty-weight: needs --penalty"),
        ("--iterations 10 --epochs 3", "--iterations: does not go with --epochs"),
        ("--iterations 10 --sample-every 4 --save-every 6", "--save-every 6: must be a multiple of --sample-every 4"),
        ("--norm batch,none,none", "--norm: 'batch,none,none' is not one of batch"),
        ("--norm layer", "--norm: 'layer' is not one of batch"),
        ("--augment mirror", "--augment: 'mirror' is neither none nor colour,translation,cutout"),
        ("--kernel 0", "--kernel: '0' is not a whole number from 1 to 15"),
        ("--label-smoothing 0.6", "--label-smoothing: '0.6' is not a number from 0 to 0.5"),
        ("--preset mnist", "--preset: invalid choice: 'mnist'"),
    ],
)
def test_what_does_not_go_together_is_refused(fails, words, message):
    assert message in fails(*words.split())


def test_conditional_needs_labels(fails, tmp_path):
    data = save_all(pictures(16), tmp_path / "data")
    assert "--conditional: the data has no labels" in fails("--data", data, "--conditional")
    assert "training needs at least 10 images (--d-steps), found 6" in fails(
        "--data", save_all(pictures(6), tmp_path / "few"), "--d-steps", "5"
    )


# --------------------------------------------------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A conditional model whose images say what went in, and one without classes."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, classes in (("conditional", NAMES), ("plain", ())):
        generator = gan.Generator(8, 3, 4, 2, classes=classes)
        with torch.no_grad():
            generator.project.weight.mul_(50)
        gan.save_model(folder / f"{name}.safetensors", {"generator": generator}, {})
    return folder


def tiles(path, columns):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return np.stack([
        np.stack([pixels[2 + 66 * r : 66 + 66 * r : 8, 2 + 66 * c : 66 + 66 * c : 8] for c in range(columns)])
        for r in range(pixels.shape[0] // 66)
    ])  # fmt: skip


def test_generate_with_labels(models, tmp_path, fails):
    model = models / "conditional.safetensors"
    assert gan.main(["generate", str(model), "--count", "9", "--out", str(tmp_path / "all.npz"), "--seed", "4"]) == 0
    with np.load(tmp_path / "all.npz") as archive:
        assert archive["labels"].tolist() == [0, 1, 2] * 3
        assert archive["classes"].tolist() == [*NAMES]
        images = archive["images"]
    assert (images == gan.load_generator(model).generate(9, seed=4)).all()
    loaded = gan.load_images(tmp_path / "all.npz")  # as a labelled set it can be classified, or trained on
    assert loaded.classes == NAMES
    words = ["--label", "bee", "--count", "5", "--seed", "4", "--out"]
    assert gan.main(["generate", str(model), *words, str(tmp_path / "bees.npz")]) == 0
    with np.load(tmp_path / "bees.npz") as archive:
        assert archive["labels"].tolist() == [1] * 5
        assert (archive["images"][1] == images[1]).all()
    assert gan.main(["generate", str(model), "--count", "9", "--seed", "4", "--out", str(tmp_path / "all.png")]) == 0
    assert (tiles(tmp_path / "all.png", 3).reshape(9, 8, 8, 3) == images).all()  # a column per class
    out = tmp_path / "no.png"
    for path, label in ((model, "dog"), (model, "3"), (models / "plain.safetensors", "cat")):
        assert f"--label {label}: " in fails("generate", path, "--label", label, "--out", out, writes_nothing_to=out)


@pytest.mark.parametrize("name", ["plain", "conditional"])
@pytest.mark.parametrize("spherical", [False, True])
def test_a_path_between_noises(models, tmp_path, name, spherical):
    model = models / f"{name}.safetensors"
    words = ["--rows", "4", "--steps", "5", "--seed", "9", *(["--spherical"] if spherical else []), "--out"]
    assert gan.main(["interpolate", str(model), *words, str(tmp_path / "path.png")]) == 0
    sheet, generator = tiles(tmp_path / "path.png", 5), gan.load_generator(model)
    assert sheet.shape == (4, 5, 8, 8, 3)
    z = gan.latents(9, 0, 8, 4)
    y = None if name == "plain" else torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    assert (sheet[:, 0] == generator.draw(z[::2], y)).all()
    assert (sheet[:, -1] == generator.draw(z[1::2], y)).all()
    middle = (z[::2] + z[1::2]) / 2
    if spherical:  # the middle of the arc has the direction of the sum of the unit vectors, near enough for these
        angle = torch.arccos(torch.cosine_similarity(z[::2], z[1::2]))[:, None]
        middle = (z[::2] + z[1::2]) / (2 * torch.cos(angle / 2))
    assert abs(sheet[:, 2].astype(int) - generator.draw(middle, y).astype(int)).max() <= 1


def test_a_path_between_classes(models, tmp_path):
    model = models / "conditional.safetensors"
    words = ["--rows", "3", "--steps", "5", "--labels", "cat,0", "--out"]
    assert gan.main(["interpolate", str(model), *words, str(tmp_path / "path.png")]) == 0
    sheet, generator = tiles(tmp_path / "path.png", 5), gan.load_generator(model)
    for column, label in ((0, "cat"), (4, "ant")):
        assert (sheet[:, column] == generator.generate(3, label, seed=0)).all()
    half = torch.tensor([[0.5, 0, 0.5]] * 3)
    assert (sheet[:, 2] == generator.draw(gan.latents(0, 0, 3, 4), half)).all()
    assert gan.main(["interpolate", str(model), *words, str(tmp_path / "path.gif")]) == 0
    with Image.open(tmp_path / "path.gif") as gif:
        assert gif.n_frames == 8  # there and back, the ends once
        assert gif.size == (2 * 66 + 2, 2 * 66 + 2)


def test_interpolate_refuses(models, tmp_path, fails):
    out = tmp_path / "no.png"
    for words, message in (
        (["--labels", "cat"], "--labels cat: takes two classes"),
        (["--labels", "cat,dog"], "--labels dog: is not among the classes ant, bee, cat"),
        (["--labels", "cat,ant", "--spherical"], "--spherical: is a path of z, not of classes"),
        (["--steps", "1"], "--steps: '1' is not a whole number from 2"),
        (["--steps", "1000", "--rows", "11"], "--steps 1000: 11 rows of them are more than 10,000 images"),
    ):
        model = models / "conditional.safetensors"
        assert message in fails("interpolate", model, *words, "--out", out, writes_nothing_to=out)
    plain = models / "plain.safetensors"
    assert "is not conditional" in fails("interpolate", plain, "--labels", "a,b", "--out", out, writes_nothing_to=out)
    wrong = tmp_path / "no.txt"
    assert "must end in .png or .gif" in fails("interpolate", plain, "--out", wrong, writes_nothing_to=wrong)


def test_interpolate_as_a_user_types_it(models, tmp_path):
    done = command(
        "interpolate", models / "plain.safetensors", "--rows", 2, "--steps", 3, "--out", tmp_path / "a" / "p.png"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("2 paths of 3 images of ")


def test_the_shares_of_the_classes(tmp_path, capsys):
    torch.manual_seed(0)
    discriminator = gan.Discriminator(8, 3, 4, classes=NAMES)
    with torch.no_grad():  # every image is a bee
        discriminator.head[-1].bias.copy_(torch.tensor([0.0, 50.0, 0.0]))
    gan.save_model(tmp_path / "d.safetensors", {"discriminator": discriminator}, {})
    data = save_all(pictures(20), tmp_path / "data")
    assert gan.main(["classify", str(tmp_path / "d.safetensors"), str(data), "--shares"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"20 images of {data}: mean probability 1.0000"
    expected = [["ant", "0.00%"], ["bee", "100.00%"], ["cat", "0.00%"]]
    assert [line.split() for line in said[1:]] == expected
    np.savez(tmp_path / "labelled.npz", images=pictures(20), labels=np.arange(20) % 3, classes=np.array(NAMES))
    assert gan.main(["classify", str(tmp_path / "d.safetensors"), str(tmp_path / "labelled.npz"), "--shares"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == expected
