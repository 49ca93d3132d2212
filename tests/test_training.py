"""The losses against numbers worked out by hand, and the rules that one training step keeps."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TOY, noise_images, pictures, save_all
from torch._subclasses.fake_tensor import FakeTensorMode

import rollnumber_04 as gan

CPU = torch.device("cpu")
CLASSES = ("circle", "ring", "square")
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2, 2])


def toy_run(*words, bf16=False):
    options = gan.parse_options([*TOY, "--seed", "3", *words])
    return gan.make_run(options, 3, CPU, bf16, CLASSES if options.conditional or options.multitask else ()), options


def real_images(count=8):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def snapshot(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def changed(before, network):
    return {name for name, tensor in network.state_dict().items() if not torch.equal(before[name], tensor)}


# ----------------------------------------------------------------------------------------------------------- losses


def test_least_squares_by_hand():
    real, fake = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.5, -1.0, 2.0])
    # D: ½·(0 + 1 + 4)/3 + ½·(0.25 + 1 + 4)/3 = 5/6 + 5.25/6; G: (0.25 + 4 + 1)/3
    assert gan.ls_discriminator_loss(real, fake).item() == pytest.approx(10.25 / 6)
    assert gan.ls_generator_loss(fake).item() == pytest.approx(5.25 / 3)


def test_binary_cross_entropy_by_hand():
    real, fake = torch.tensor([0.0, 2.0]), torch.tensor([0.0, -1.0])

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    expected = -0.25 * (math.log(0.5) + math.log(sigmoid(2))) - 0.25 * (math.log(0.5) + math.log(1 - sigmoid(-1)))
    assert gan.bce_discriminator_loss(real, fake).item() == pytest.approx(expected)
    expected = -0.5 * (math.log(0.5) + math.log(sigmoid(-1)))
    assert gan.bce_generator_loss(fake).item() == pytest.approx(expected)
    # Logits that a sigmoid followed by a logarithm would turn into infinity.
    assert gan.bce_generator_loss(torch.tensor([-200.0])).item() == pytest.approx(200)


# ------------------------------------------------------------------------------------------------------------ steps


def test_the_rates_fall_over_the_second_half():
    run, options = toy_run("--lr-decay", "--lr-g", "0.001", "--lr-d", "0.002")
    run.planned = 100
    for step, share in ((0, 1), (50, 1), (75, 0.5), (99, 0.02), (120, 0)):
        run.step = step
        gan.set_rates(run, options)
        rates = [run.optimizers[name].param_groups[0]["lr"] for name in ("generator", "discriminator")]
        assert rates == pytest.approx([0.001 * share, 0.002 * share])
    images, seen = gan.Images(torch.from_numpy(pictures(64)), None, ()), []
    run, options = toy_run("--lr-decay")
    run.planned = 8
    options.recipe = replace(
        options.recipe,
        step=lambda run, *others: (
            seen.append(run.optimizers["generator"].param_groups[0]["lr"]) or gan.gan_step(run, *others)
        ),
    )
    for _ in gan.train_leg(run, images, 8, options):
        pass
    assert seen == pytest.approx([2e-4] * 5 + [1.5e-4, 1e-4, 5e-5])
    run, options = toy_run()
    for _ in gan.train_leg(run, images, 3, options):
        pass
    assert run.optimizers["generator"].param_groups[0]["lr"] == 2e-4


@pytest.mark.parametrize("loss", gan.LOSSES)
def test_the_steps_minimise_the_loss_of_the_scores(loss):
    run, options = toy_run("--loss", loss)
    real = real_images()
    z = torch.randn(8, 8, generator=torch.Generator().manual_seed(4))
    run.rng = torch.Generator().manual_seed(4)  # so that the step draws the same z
    with torch.no_grad():
        real_score, fake_score = run.discriminator(real), run.discriminator(run.generator(z))
    d_loss, g_loss = gan.LOSSES[loss]
    value, d_real, d_fake, *_ = gan.discriminator_step(run, real, options)
    assert value.item() == pytest.approx(d_loss(real_score, fake_score).item(), rel=1e-5)
    assert d_real.item() == pytest.approx(real_score.mean().item(), rel=1e-4, abs=1e-6)
    assert d_fake.item() == pytest.approx(fake_score.mean().item(), rel=1e-4, abs=1e-6)
    with torch.no_grad():
        fake_score = run.discriminator(run.generator(z))
    run.rng = torch.Generator().manual_seed(4)
    assert gan.generator_step(run, 8, options).item() == pytest.approx(g_loss(fake_score).item(), rel=1e-4)


def test_each_step_changes_its_own_network_only():
    run, options = toy_run()
    generator, discriminator = snapshot(run.generator), snapshot(run.discriminator)
    gan.discriminator_step(run, real_images(), options)
    weights = {name for name, _ in run.generator.named_parameters()}
    assert not changed(generator, run.generator) & weights
    assert all(parameter.grad is None for parameter in run.generator.parameters())  # D's step does not reach into G
    assert {name for name, _ in run.discriminator.named_parameters()} <= changed(discriminator, run.discriminator)

    discriminator = snapshot(run.discriminator)
    gradients = [parameter.grad.clone() for parameter in run.discriminator.parameters()]
    gan.generator_step(run, 8, options)
    assert weights <= changed(generator, run.generator)
    assert not changed(discriminator, run.discriminator) & {name for name, _ in run.discriminator.named_parameters()}
    kept = [parameter.grad for parameter in run.discriminator.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(gradients, kept, strict=True))  # nor does G's step touch D's gradients
    assert all(parameter.requires_grad for parameter in run.discriminator.parameters())


def test_real_and_fake_images_go_through_d_apart():
    run, options = toy_run()
    batches = []
    run.discriminator.features[0].register_forward_pre_hook(lambda layer, inputs: batches.append(inputs[0].detach()))
    real = real_images()
    gan.discriminator_step(run, real, options)
    assert [len(batch) for batch in batches] == [8, 8]
    assert torch.equal(batches[0], real)
    assert not torch.equal(batches[1], real)


def test_the_generators_step_draws_fresh_noise():
    run, options = toy_run()
    drawn = []
    run.generator.project.register_forward_pre_hook(lambda layer, inputs: drawn.append(inputs[0].clone()))
    gan.train_step(run, [(real_images(), None)], options)
    gan.train_step(run, [(real_images(), None)], options)
    assert len(drawn) == 4
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        "",
        "--penalty wgan-gp --loss wgan --norm batch,none --conditional --d-steps 2",
        "--replay 16 --instance-noise 0.5 --label-smoothing 0.1 --penalty r1 --spectral-norm --latent uniform",
    ],
)
def test_nothing_is_read_back_inside_a_step(bf16, words):
    # Fake tensors have shapes and no values, so that whatever needs a value on the host cannot be done with them.
    run, options = toy_run("--flip", *words.split(), bf16=bf16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        pixels = torch.zeros(20, 8, 8, 3, dtype=torch.uint8)
        batches = [(gan.real_batch(pixels, torch.arange(8), True, run.rng), LABELS.clone())] * options.d_steps
        for _ in range(4):  # a replay pool of two batches is full by then
            measures = gan.train_step(run, batches, options)
        assert not run.pools or run.pools["fakes"].filled == 16
        assert measures.shape == (len(run.measures),)
        for read in (measures.tolist, measures[0].item, measures.numpy):
            with pytest.raises(Exception, match=r"(?i)_local_scalar_dense|fake|data_ptr|subclass"):
                read()


def test_two_optimizers_with_their_own_rates():
    for name in gan.OPTIMIZERS:
        run, options = toy_run("--optimizer", name, "--lr-g", "0.001", "--lr-d", "0.003")
        assert run.optimizers["generator"].param_groups[0]["lr"] == 0.001
        assert run.optimizers["discriminator"].param_groups[0]["lr"] == 0.003
        groups = (
            run.optimizers["generator"].param_groups[0]["params"],
            run.optimizers["discriminator"].param_groups[0]["params"],
        )
        for group, network in zip(groups, (run.generator, run.discriminator), strict=True):
            assert [id(p) for p in group] == [id(p) for p in network.parameters()]
        before = snapshot(run.generator)
        gan.train_step(run, [(real_images(), None)], options)
        assert changed(before, run.generator)


def test_bf16_is_near_fp32():
    real = real_images()
    losses = []
    for bf16 in (False, True):
        run, options = toy_run(bf16=bf16)
        kinds = set()
        run.discriminator.features[0].register_forward_hook(lambda layer, x, y, kinds=kinds: kinds.add(y.dtype))
        losses.append(torch.stack([gan.train_step(run, [(real, None)], options) for _ in range(5)]).mean(0))
        assert kinds == {torch.bfloat16 if bf16 else torch.float32}
        assert {p.dtype for p in run.generator.parameters()} == {torch.float32}
    assert torch.allclose(*losses, atol=0.05)


# -------------------------------------------------------------------------------------------------- average and data


def test_the_averages_half_life():
    average, network = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    with torch.no_grad():
        for parameter, value in ((average.weight, 1.0), (average.bias, 1.0), (network.weight, 0), (network.bias, 0)):
            parameter.fill_(value)
    for step in range(1_000_000 // 50, 1_000_000 // 50 + 200):  # far behind the ramp: 200 steps of 50 images
        gan.update_average(average, network, gan.ema_share(torch.tensor(step), 50, half_life=5_000))
    assert average.weight.item() == pytest.approx(0.25, rel=1e-3)  # 10,000 images are two half-lives
    assert gan.ema_share(torch.tensor(10), 64, half_life=0) == 1
    # While n images have been seen, the half-life is at most 5 % of n.
    assert gan.ema_share(torch.tensor(100), 64, 50_000).item() == pytest.approx(1 - 0.5 ** (64 / 320))


def test_the_average_holds_batch_norms_statistics_and_follows_the_generator():
    run, options = toy_run("--ema", "0")
    before = snapshot(run.averages["generator"])
    gan.iteration(run, *noise_images(8, options), options)
    averaged = run.averages["generator"].state_dict()
    for name, tensor in run.generator.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(averaged[name], tensor, rtol=1e-5, atol=1e-7)
            assert not torch.equal(averaged[name], before[name]), name


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own():
    first = gan.epoch_order(100, seed=1, epoch=1)
    assert sorted(first.tolist()) == list(range(100))
    assert torch.equal(first, gan.epoch_order(100, 1, 1))
    assert not torch.equal(first, gan.epoch_order(100, 1, 2))
    assert not torch.equal(first, gan.epoch_order(100, 2, 1))


def test_a_batch_is_the_images_in_range_and_flips_mirror_half():
    pixels = torch.from_numpy(pictures(400))
    rng = torch.Generator().manual_seed(0)
    index = torch.arange(399, -1, -1)
    plain = gan.real_batch(pixels, index, False, rng)
    expected = pixels.numpy()[::-1].transpose(0, 3, 1, 2) / 127.5 - 1
    assert abs(plain.numpy() - expected).max() < 1e-6
    mixed = gan.real_batch(pixels, index, True, rng)
    mirrored = [bool((a == b.flip(2)).all()) for a, b in zip(mixed, plain, strict=True)]
    kept = [bool((a == b).all()) for a, b in zip(mixed, plain, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 150 < sum(mirrored) < 250


def test_same_seed_same_weights_other_seed_other_weights():
    runs = [toy_run("--seed", seed)[0].generator.state_dict()["project.weight"] for seed in ("1", "1", "2")]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_the_noise_is_not_the_stream_that_drew_the_weights():
    run, _ = toy_run()
    torch.manual_seed(3)
    assert not torch.equal(run.inputs(4)[0], torch.randn(4, 8))


def test_it_learns_the_colours_of_its_data(tmp_path):
    rng = np.random.default_rng(0)
    images = np.clip(np.array([220, 60, 30]) + rng.normal(0, 12, (256, 8, 8, 3)), 0, 255).astype(np.uint8)
    data = save_all(images, tmp_path / "data")
    words = ["--data", str(data), "--out", str(tmp_path / "run"), "--epochs", "12", "--seed", "0", "--lr-g", "0.002"]
    words += ["--sample-every", "12", "--width-g", "8"]
    out = gan.train(gan.parse_options([*TOY, *words]))
    mean = gan.load_generator(out / "generator.safetensors").generate(64).mean(axis=(0, 1, 2))
    assert abs(mean - (220, 60, 30)).max() < 45  # an untrained generator draws (128, 128, 128)


def test_a_number_that_is_not_finite_stops_the_run(tmp_path):
    data = save_all(pictures(16), tmp_path / "data")
    words = ["--data", str(data), "--out", str(tmp_path / "run"), "--epochs", "3", "--optimizer", "sgd", "--lr-d", "10"]
    with pytest.raises(
        gan.UserError, match=r"_loss is not finite at step \d+, epoch \d+; the last checkpoint is whole"
    ) as stop:
        gan.train(gan.parse_options([*TOY, *words, "--lr-g", "10", "--epochs", "200", "--beta1", "0.99"]))
    assert stop.value.status == 1
