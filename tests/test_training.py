"""The losses against numbers worked out by hand, and the rules that one training step keeps."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from conftest import LABS, TOY, pictures, save_all, toy_lab
from torch._subclasses.fake_tensor import FakeTensorMode

import rollnumber_04 as gan

CPU = torch.device("cpu")
CLASSES = ("circle", "ring", "square")
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2, 2])


def toy(*words):
    """An untrained GAN of toy size on the CPU."""
    config = gan.config_from([*TOY, *words])
    return gan.GAN(config, 3, CLASSES if config.multitask else ()).on(CPU)


def toy_images(count=8):
    """Images of noise with labels."""
    return gan.Images(torch.from_numpy(pictures(count)), torch.arange(count) % len(CLASSES), CLASSES)


def on_update(model, looks):
    """Let something look at a GAN after each network's update, of which it gets the name."""
    update = model.update

    def looked_at(name, loss):
        update(name, loss)
        looks(name)

    model.update = looked_at


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
    assert gan.ls_d_loss(real, fake).item() == pytest.approx(10.25 / 6)
    assert gan.ls_g_loss(fake).item() == pytest.approx(5.25 / 3)


def test_binary_cross_entropy_by_hand():
    real, fake = torch.tensor([0.0, 2.0]), torch.tensor([0.0, -1.0])

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    expected = -0.25 * (math.log(0.5) + math.log(sigmoid(2))) - 0.25 * (math.log(0.5) + math.log(1 - sigmoid(-1)))
    assert gan.bce_d_loss(real, fake).item() == pytest.approx(expected)
    expected = -0.5 * (math.log(0.5) + math.log(sigmoid(-1)))
    assert gan.bce_g_loss(fake).item() == pytest.approx(expected)
    # Logits that a sigmoid followed by a logarithm would turn into infinity.
    assert gan.bce_g_loss(torch.tensor([-200.0])).item() == pytest.approx(200)


# ------------------------------------------------------------------------------------------------------------ steps


@pytest.mark.parametrize("loss", gan.LOSSES)
def test_the_step_minimises_the_loss_of_the_scores(loss):
    model, real, scores = toy("--loss", loss, "--no-translation"), real_images(), {}
    rng = torch.Generator().manual_seed(4)
    of_d, of_g = (torch.randn(8, 8, generator=rng) for _ in range(2))
    model.rng = torch.Generator().manual_seed(4)  # so that the step draws the same z

    @torch.no_grad()
    def look(name):
        if name == "discriminator":  # G's loss is of the new D
            scores["g"] = model.discriminator(model.generator(of_g))

    with torch.no_grad():
        real_score, fake_score = model.discriminator(real), model.discriminator(model.generator(of_d))
    on_update(model, look)
    _, d_loss, g_loss, _ = gan.LOSSES[loss]
    metrics = dict(zip(model.columns(model.config), model.step(real, None), strict=True))
    assert metrics["d_loss"].item() == pytest.approx(d_loss(real_score, fake_score).item(), rel=1e-5)
    assert metrics["d_real"].item() == pytest.approx(real_score.mean().item(), rel=1e-4, abs=1e-6)
    assert metrics["d_fake"].item() == pytest.approx(fake_score.mean().item(), rel=1e-4, abs=1e-6)
    assert metrics["g_loss"].item() == pytest.approx(g_loss(scores["g"]).item(), rel=1e-4)


def test_each_update_changes_its_own_network_only():
    model, looked = toy(), []
    generator, discriminator = snapshot(model.generator), snapshot(model.discriminator)
    of_g, of_d = ({*dict(getattr(model, name).named_parameters())} for name in ("generator", "discriminator"))
    gradients = []

    def look(name):
        looked.append(name)
        if name == "discriminator":
            assert not changed(generator, model.generator) & of_g
            assert all(weight.grad is None for weight in model.generator.parameters())  # D's loss does not reach into G
            assert of_d <= changed(discriminator, model.discriminator)
            discriminator.update(snapshot(model.discriminator))
            gradients.extend(weight.grad.clone() for weight in model.discriminator.parameters())
        else:
            assert of_g <= changed(generator, model.generator)
            assert not changed(discriminator, model.discriminator) & of_d
            kept = [weight.grad for weight in model.discriminator.parameters()]
            assert all(map(torch.equal, gradients, kept))  # nor does G's loss touch D's gradients

    on_update(model, look)
    model.step(real_images(), None)
    assert looked == ["discriminator", "generator"]
    assert all(weight.requires_grad for weight in model.discriminator.parameters())


def test_real_and_fake_images_go_through_d_apart():
    model, batches, real = toy("--no-translation"), [], real_images()
    model.discriminator.features[0].register_forward_pre_hook(lambda layer, inputs: batches.append(inputs[0].detach()))
    model.step(real, None)
    assert [len(batch) for batch in batches] == [8, 8, 8]  # those of D's loss, and of G's
    assert torch.equal(batches[0], real)
    assert not torch.equal(batches[1], real)


def test_each_loss_draws_fresh_noise():
    model, drawn = toy(), []
    model.generator.project.register_forward_pre_hook(lambda layer, inputs: drawn.append(inputs[0].clone()))
    for _ in range(2):
        model.step(real_images(), None)
    assert len(drawn) == 4
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def assert_nothing_is_read_back(model, images):
    """Fake tensors have shapes and no values, so that whatever needs a value on the host cannot be done with them."""
    index = torch.arange(8).expand(model.config.d_steps, 8)
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = gan.Images(torch.zeros_like(images.pixels), torch.zeros_like(images.labels), images.classes)
        for _ in range(4):  # a pool of two batches is full by then
            metrics = torch.stack(model.step(*model.batch(images, index)))
        assert all(pool.is_full for pool in model.pools.values())
        assert metrics.shape == (len(model.columns(model.config)),)
        for read in (metrics.tolist, metrics[0].item, metrics.numpy):
            with pytest.raises(Exception, match=r"(?i)_local_scalar_dense|fake|data_ptr|subclass"):
                read()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("words", ["", "--multitask --flip --translation --loss bce --optimizer rmsprop"])
def test_nothing_is_read_back_inside_a_step(precision, words):
    assert_nothing_is_read_back(toy(*words.split(), "--precision", precision), toy_images(20))


@pytest.mark.parametrize(("name", "words"), LABS)
def test_nothing_is_read_back_inside_a_labs_step(name, words):
    assert_nothing_is_read_back(*toy_lab(name, words, CPU))


@pytest.mark.parametrize("name", gan.Config.__dataclass_fields__["optimizer"].metadata["choices"])
def test_two_optimizers_with_their_own_rates(name):
    model = toy("--optimizer", name, "--lr-g", "0.001", "--lr-d", "0.003")
    for network, rate in (("generator", 0.001), ("discriminator", 0.003)):
        (group,) = model.optimizers[network].param_groups
        assert group["lr"] == rate
        assert [id(p) for p in group["params"]] == [id(p) for p in getattr(model, network).parameters()]
    before = snapshot(model.generator)
    model.step(real_images(), None)
    assert changed(before, model.generator)


def test_bf16_is_near_fp32():
    real, losses = real_images(), []
    for precision, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model, kinds = toy("--precision", precision), set()
        model.discriminator.features[0].register_forward_hook(lambda layer, x, y, kinds=kinds: kinds.add(y.dtype))
        losses.append(torch.stack([torch.stack(model.step(real, None)) for _ in range(5)]).mean(0))
        assert kinds == {kind}
        assert {p.dtype for p in model.generator.parameters()} == {torch.float32}
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
    model = toy("--ema", "0")
    before = snapshot(model.averages["generator"])
    model.iterate(toy_images(), torch.arange(8)[None])
    averaged = model.averages["generator"].state_dict()
    for name, tensor in model.generator.state_dict().items():
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


@pytest.mark.parametrize(
    ("names", "are_grey", "words", "flips"),
    [
        (("cat", "dog"), False, [], True),
        (("cat", "dog"), True, [], False),
        (("0", "1"), False, [], False),
        (("10", "11"), False, [], False),
        (("a", "b"), False, [], False),
        (("a", "dog"), False, [], True),
        (("0", "1"), False, ["--flip"], True),
        (("cat", "dog"), False, ["--no-flip"], False),
    ],
)
def test_images_are_mirrored_where_that_makes_sense(names, are_grey, words, flips, tmp_path, capsys):
    for name in names:
        images = pictures(8, seed=len(name))
        save_all(images[..., :1].repeat(3, 3) if are_grey else images, tmp_path / "data" / name)
    out = tmp_path / "run"
    assert gan.main([*TOY, *words, "--data", str(tmp_path / "data"), "--dry-run", "--out", str(out)]) == 0
    assert json.loads((out / "options.json").read_bytes())["flip"] is flips
    assert ("images mirrored and shifted at random" in capsys.readouterr().out) == flips


def test_same_seed_same_weights_other_seed_other_weights():
    weights = [toy("--seed", seed).generator.project.weight for seed in ("1", "1", "2")]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_noise_is_not_the_stream_that_drew_the_weights():
    model = toy()
    torch.manual_seed(3)
    assert not torch.equal(model.noise(4), torch.randn(4, 8))


def test_it_learns_the_colours_of_its_data(tmp_path):
    rng = np.random.default_rng(0)
    images = np.clip(np.array([220, 60, 30]) + rng.normal(0, 12, (256, 8, 8, 3)), 0, 255).astype(np.uint8)
    data = save_all(images, tmp_path / "data")
    words = ["--data", str(data), "--out", str(tmp_path / "run"), "--epochs", "12", "--seed", "0", "--lr-g", "0.002"]
    words += ["--sample-every", "12", "--width-g", "8"]
    out = gan.train(gan.config_from([*TOY, *words]))
    mean = gan.load_generator(out / "generator.safetensors").generate(64).mean(axis=(0, 1, 2))
    assert abs(mean - (220, 60, 30)).max() < 45  # an untrained generator draws (128, 128, 128)


def test_a_number_that_is_not_finite_stops_the_run(tmp_path):
    data = save_all(pictures(16), tmp_path / "data")
    words = ["--data", str(data), "--out", str(tmp_path / "run"), "--epochs", "3", "--optimizer", "sgd", "--lr-d", "10"]
    with pytest.raises(
        gan.UserError, match=r"_loss is not finite at step \d+, epoch \d+; the last checkpoint is whole"
    ) as stop:
        gan.train(gan.config_from([*TOY, *words, "--lr-g", "10", "--epochs", "200", "--beta1", "0.99"]))
    assert stop.value.status == 1


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def divided(folder, count, of_test):
    """Class folders, divided into train/ and test/; returns the folder."""
    for split, number in (("train", count), ("test", of_test)):
        for label, name in enumerate(("cat", "dog")):
            save_all(pictures(number // 2, seed=10 * label + number), folder / split / name)
    return folder


@pytest.mark.parametrize("words", [(), ("--multitask",), ("--loss", "bce")])
def test_d_is_tried_on_images_that_it_has_seen_and_on_others(words, tmp_path, monkeypatch):
    monkeypatch.setattr(gan, "FEWEST_TRIED", 16)
    data, out = divided(tmp_path / "data", 40, 16), tmp_path / "run"
    assert gan.main([*TOY, *words, "--data", str(data), "--epochs", "3", "--seed", "1", "--out", str(out)]) == 0
    saved = gan.load_checkpoint(out / "checkpoints" / "last.pt")
    discriminator = gan.Discriminator(**saved["architecture"]["discriminator"])
    of_d = [(key, value) for key, value in saved["model"].items() if key.startswith("discriminator.")]
    discriminator.load_state_dict({key.removeprefix("discriminator."): value for key, value in of_d})
    last = read_rows(out / "epochs.csv")[-1]
    for name, split in (("seen", "train"), ("unseen", "test")):
        pixels = gan.load_images(data, split).pixels
        order = gan.epoch_order(len(pixels), 0, 0)
        batches = (pixels[index].permute(0, 3, 1, 2) / 127.5 - 1 for index in order.split(8))  # by batch statistics
        rng = torch.Generator().manual_seed(0)
        batches = (gan.translated(batch, rng) for batch in batches)
        with torch.no_grad():
            scores = torch.cat([discriminator(batch) for batch in batches])
        right = (scores > (0.0 if "bce" in words else 0.5)).double().mean().item()
        assert float(last[f"d_accuracy_{name}"]) == pytest.approx(right)


def test_trying_d_changes_nothing():
    model, images = toy("--translation"), toy_images(20)
    before, noise = snapshot(model), model.rng.get_state()
    assert model.share_real(images) == model.share_real(images)
    assert not changed(before, model)
    assert torch.equal(model.rng.get_state(), noise)
    assert all(module.training for module in model.discriminator.modules())


def test_of_a_large_set_the_same_images_are_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(gan, "TRIED", 6)
    monkeypatch.setattr(gan, "FEWEST_TRIED", 6)
    data = divided(tmp_path / "data", 40, 16)
    config, images, validation = gan.load_data(gan.config_from(["--data", str(data)]))
    whole = gan.load_images(data, "test")
    assert (len(images.pixels), len(validation.pixels)) == (40, 6)
    known = {image.tobytes(): label for image, label in zip(whole.pixels.numpy(), whole.labels.tolist(), strict=True)}
    assert [known[image.tobytes()] for image in validation.pixels.numpy()] == validation.labels.tolist()
    assert torch.equal(gan.load_data(config)[2].pixels, validation.pixels)
    seen, score = [], gan.GAN.score
    monkeypatch.setattr(gan.GAN, "score", lambda self, real, *of: seen.append(len(real)) or score(self, real, *of))
    assert gan.main([*TOY, "--data", str(data), "--dry-run", "--out", str(tmp_path / "run")]) == 0
    assert seen == [6, 6]  # a batch each


@pytest.mark.parametrize("flat", [True, False])
def test_a_share_can_be_held_out_to_try_d_on(flat, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gan, "FEWEST_TRIED", 10)
    data = tmp_path / "data"
    save_all(pictures(40), data if flat else data / "cat")
    out = tmp_path / "run"
    assert gan.main([*TOY, "--data", str(data), "--epochs", "1", "--out", str(out)]) == 0
    assert "validation" not in capsys.readouterr().out
    (row,) = read_rows(out / "epochs.csv")
    assert row["d_accuracy_unseen"] == ""
    assert row["d_accuracy_seen"] != ""
    words = [*TOY, "--data", str(data), "--epochs", "1", "--validation-split", "0.25", "--out", str(tmp_path / "held")]
    assert gan.main(words) == 0
    said = capsys.readouterr().out
    assert ": 30 colour images" in said
    assert "validation 10 images held out" in said
    assert 0 <= float(read_rows(tmp_path / "held" / "epochs.csv")[0]["d_accuracy_unseen"]) <= 1
    assert gan.main(["--resume", "--epochs", "2", "--out", str(tmp_path / "held")]) == 0
    assert ": 30 colour images" in capsys.readouterr().out


def test_few_images_say_nothing_of_d(tmp_path):
    data = divided(tmp_path / "data", 100, 98)
    assert gan.main([*TOY, "--data", str(data), "--dry-run", "--out", str(tmp_path / "run")]) == 0
    (row,) = read_rows(tmp_path / "run" / "epochs.csv")
    assert row["d_accuracy_seen"] != ""
    assert row["d_accuracy_unseen"] == ""


@pytest.mark.parametrize("stray", [False, True])
@pytest.mark.parametrize(("name", "is_tried"), [("rollnumber_04", True), ("labs.biggan", False)])
def test_only_a_d_that_is_told_classes_needs_those_of_test_images(name, is_tried, stray, tmp_path, monkeypatch):
    monkeypatch.setattr(gan, "FEWEST_TRIED", 8)
    parts = {"images": pictures(20), "labels": np.arange(20) % 2, "test_images": pictures(8, seed=1)}
    np.savez(tmp_path / "data.npz", **parts, **({"test_labels": np.arange(8) % 3} if stray else {}))
    words = ["--width-g", "4", "--width-d", "4", "--latent-dim", "8", "--batch-size", "8", "--device", "cpu"]
    words += ["--data", str(tmp_path / "data.npz"), "--dry-run", "--out", str(tmp_path / "run")]
    assert gan.main(words, name) == 0
    (row,) = read_rows(tmp_path / "run" / "epochs.csv")
    assert (row["d_accuracy_unseen"] != "") == is_tried


@pytest.mark.parametrize("harm", ["damaged", "class"])
def test_a_run_of_task_1_needs_no_test_images(harm, tmp_path, capsys):
    data = divided(tmp_path / "data", 40, 16)
    if harm == "damaged":
        next((data / "test" / "cat").iterdir()).write_bytes(b"no image")
    else:
        (data / "test" / "cat").rename(data / "test" / "cow")
    assert gan.main([*TOY, "--data", str(data), "--dry-run", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "D is not tried on images that it has not seen" in said
    assert ("class cow" if harm == "class" else "test/cat/") in said.replace("\\", "/")
    assert read_rows(tmp_path / "run" / "epochs.csv")[0]["d_accuracy_unseen"] == ""
