"""Task 2: the discriminator's classification head, how it is trained, validated and used."""

import copy
import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TOY, assert_same, command, pictures, save_all, save_networks, write_cifar, write_idx
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rollnumber_04 as gan

CPU = torch.device("cpu")
NAMES = ("ant", "bee", "cat")
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def toy_gan(*words, classes=NAMES):
    """An untrained GAN of Task 2 whose step shows D the very images that it is given."""
    words = [*TOY, "--multitask", "--no-translation", *words]
    return gan.GAN(gan.config_from(words), 3, classes).on(CPU)


def train(*words):
    return gan.train(gan.config_from([*map(str, words)]))


def last(out):
    return gan.load_checkpoint(out / "checkpoints" / "last.pt")


def real_images(seed=0):
    return torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def colours(count, seed=0):
    """Images whose class shows in their colour: reddish, greenish or bluish noise, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    means = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])[labels][:, None, None]
    return np.clip(means + rng.normal(0, 40, (count, 8, 8, 3)), 0, 255).astype(np.uint8), labels


def save_classes(folder, count, seed=0):
    images, labels = colours(count, seed)
    for label, name in enumerate(NAMES):
        save_all(images[labels == label], folder / name)
    return folder


# ---------------------------------------------------------------------------------------------------------- the head


def test_the_head_is_two_fully_connected_layers_after_the_last_convolution():
    plain = gan.Discriminator()
    network = gan.Discriminator(classes=[f"class {i}" for i in range(10)])
    linear = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(128 * 4 * 4, 256), (256, 10)]
    adversarial = gan.count_parameters(network) - gan.count_parameters(network.head)
    assert adversarial == gan.count_parameters(plain) == 167_872
    images = torch.randn(5, 3, 32, 32)
    assert [part.shape for part in network.scores_and_logits(images)] == [(5,), (5, 10)]
    assert plain(images).shape == (5,)
    assert plain.scores_and_logits(images)[1] is None


@pytest.mark.parametrize("size", [8, 28, 40, 48])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_head_fits_every_size(size, channels):
    network = gan.Discriminator(size, channels, width=4, classes=NAMES)
    pixels = torch.randint(0, 256, (7, size, size, channels), dtype=torch.uint8)
    assert gan.class_logits(network, pixels).shape == (7, 3)


def test_a_seed_gives_the_other_layers_the_same_weights_with_and_without_a_head():
    with_head, without = toy_gan(), toy_gan("--no-multitask")
    assert all(torch.equal(t, with_head.generator.state_dict()[n]) for n, t in without.generator.state_dict().items())
    for name, tensor in without.discriminator.state_dict().items():
        assert torch.equal(tensor, with_head.discriminator.state_dict()[name]), name


def test_cross_entropy_by_hand():
    logits, labels = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]]), torch.tensor([0, 2])
    first = -math.log(math.exp(2) / (math.exp(2) + 1 + math.exp(-1)))
    assert gan.class_loss(logits, labels).item() == pytest.approx((first + math.log(3)) / 2)


# ----------------------------------------------------------------------------------------------------------- the step


@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("loss", ["ls", "bce"])
def test_the_step_descends_the_sum_worked_out_by_hand(loss, weight):
    model = toy_gan("--loss", loss, "--class-weight", str(weight))
    model.discriminator.head[3].p = 0.0  # dropout would draw other units for the sum below
    before = copy.deepcopy(model.generator)
    real = real_images()
    model.rng.manual_seed(4)
    fake = model.generator(model.noise(8)).detach()
    real_score, logits = model.discriminator.scores_and_logits(real)
    fake_score = model.discriminator(fake)
    if loss == "ls":
        adversarial = sum((real_score - 1) ** 2) / 16 + sum(fake_score**2) / 16
    else:
        adversarial = (
            -sum(torch.log(torch.sigmoid(real_score))) / 16 - sum(torch.log(1 - torch.sigmoid(fake_score))) / 16
        )
    exponentials = torch.exp(logits)
    class_loss = -sum(torch.log(exponentials[i, y] / exponentials[i].sum()) for i, y in enumerate(LABELS.tolist())) / 8
    expected = torch.autograd.grad(adversarial + weight * class_loss, list(model.discriminator.parameters()))

    model.rng.manual_seed(4)
    metrics = model.step(real, LABELS)
    with torch.no_grad():  # G's step left D as it was after its own
        model.rng.manual_seed(4)
        _, fresh = model.noise(8), model.noise(8)
        score = model.discriminator(before(fresh))
        of_g = ((score - 1) ** 2).mean() if loss == "ls" else -torch.log(torch.sigmoid(score)).mean()
    accuracy = (logits.argmax(1) == LABELS).float().mean()
    middle = 0.5 if loss == "ls" else 0.0
    sides = ((real_score > middle).float().mean(), (fake_score < middle).float().mean())
    by_hands = (adversarial, of_g, real_score.mean(), fake_score.mean(), *sides, class_loss, accuracy)
    for name, value, by_hand in zip(model.columns(model.config), metrics, by_hands, strict=True):
        assert value.item() == pytest.approx(by_hand.item(), rel=1e-4, abs=1e-6), name
    for parameter, gradient in zip(model.discriminator.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


def test_the_heads_gradient_does_not_come_from_fakes():
    gradients, seen = [], []
    for noise in (1, 2):  # other noise, so other fakes
        model = toy_gan()
        model.discriminator.head.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].detach()))
        model.rng.manual_seed(noise)
        torch.manual_seed(0)  # the same units dropped
        model.step(real_images(), LABELS)  # which leaves D's gradients as they were when it was updated
        gradients.append({name: p.grad.clone() for name, p in model.discriminator.named_parameters()})
    assert len(seen) == 2  # one batch each: the real one
    assert torch.equal(*seen)
    for name in gradients[0]:
        same = torch.equal(gradients[0][name], gradients[1][name])
        assert same == name.startswith("head."), name
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0].values())


def test_with_class_weight_0_the_adversarial_path_is_bit_for_bit_that_of_task_1(tmp_path):
    data = save_classes(tmp_path / "data", 48)
    same = [*TOY, "--seed", 1, "--epochs", 2, "--flip"]
    plain = train(*same, "--data", data, "--out", tmp_path / "plain")
    save_classes(tmp_path / "divided" / "train", 48)
    save_classes(tmp_path / "divided" / "test", 9, seed=1)
    words = ["--multitask", "--class-weight", 0, "--data", tmp_path / "divided"]
    headed = train(*same, *words, "--out", tmp_path / "headed")
    first, second = last(plain), last(headed)
    parts = [name for name in first["model"] if name.split(".")[0] in ("generator", "discriminator", "averages")]
    assert len(parts) > 20
    assert_same({name: first["model"][name] for name in parts}, {name: second["model"][name] for name in parts})
    assert torch.equal(*(saved["ranks"][0]["random"]["noise"] for saved in (first, second)))
    for before, after in zip(rows(plain / "log.csv"), rows(headed / "log.csv"), strict=True):
        assert all(before[name] == after[name] for name in gan.GAN.columns(gan.Config()))
    assert (plain / "samples/epoch_0002.png").read_bytes() == (headed / "samples/epoch_0002.png").read_bytes()


def test_running_averages_are_those_of_real_images():
    model = toy_gan()
    dark = real_images() * 0.1 - 0.8
    for _ in range(200):
        model.step(dark, LABELS)
    norm, convolution = model.discriminator.features[1], model.discriminator.features[0]
    with torch.no_grad():
        expected = convolution(dark).mean((0, 2, 3))
        fakes = convolution(model.generator(model.noise(64))).mean((0, 2, 3))
    assert (norm.running_mean - expected).abs().max() < 0.1 * (fakes - expected).abs().max()
    assert norm.track_running_stats
    assert norm.num_batches_tracked == 200


def test_the_average_follows_the_discriminator():
    model = toy_gan("--ema", "0")
    before = {name: tensor.clone() for name, tensor in model.averages["discriminator"].state_dict().items()}
    model.iterate(gan.Images(torch.from_numpy(pictures(8)), LABELS, NAMES), torch.arange(8)[None])
    averaged = model.averages["discriminator"].state_dict()
    for name, tensor in model.discriminator.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(averaged[name], tensor, rtol=1e-5, atol=1e-7)
            assert not torch.equal(averaged[name], before[name])
    assert [*toy_gan("--no-multitask").averages] == ["generator"]


# --------------------------------------------------------------------------------------------------------- validation


def test_validation_counts_every_image_and_leaves_no_trace():
    network = toy_gan().discriminator
    images, labels = colours(1100)
    network(real_images())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    whole = gan.Images(torch.from_numpy(images), torch.from_numpy(labels), NAMES)
    loss, accuracy, confusion = gan.validate(network, whole)
    assert network.training
    assert_same(dict(network.state_dict()), before)
    with torch.no_grad():
        network.eval()
        logits = network.head(network.features(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)).double()
    by_hand = np.zeros((3, 3), int)
    for label, logit in zip(labels, logits, strict=True):
        by_hand[label, int(logit.argmax())] += 1
    assert (confusion == by_hand).all()
    assert confusion.sum() == 1100
    assert accuracy == pytest.approx(np.trace(by_hand) / 1100)
    picked = (logits.exp() / logits.exp().sum(1, keepdim=True))[torch.arange(1100), torch.from_numpy(labels)]
    assert loss == pytest.approx(-picked.log().mean().item(), rel=1e-4)


def test_a_share_of_every_class_is_held_out():
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 10)
    pixels = torch.arange(160, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    images = gan.Images(pixels, labels[torch.randperm(160, generator=torch.Generator().manual_seed(0))], NAMES)
    kept, held = gan.hold_out(images, 0.1)
    assert [int((held.labels == label).sum()) for label in range(3)] == [10, 5, 1]
    both = [*kept.pixels.flatten().tolist(), *held.pixels.flatten().tolist()]
    assert sorted(both) == list(range(160))
    for part in (kept, held):
        assert torch.equal(part.labels, images.labels[part.pixels.flatten().long()])
    assert torch.equal(gan.hold_out(images, 0.1)[1].pixels, held.pixels)


def validation_of(data, *words):
    config = gan.config_from(["--multitask", "--data", str(data), *words])
    return gan.load_validation(config, gan.load_images(data))


def test_what_is_validated_on(tmp_path):
    whole = save_classes(tmp_path / "whole", 60)
    config, kept, held = validation_of(whole)
    assert config.validation_split == 0.1
    assert (len(kept.labels), len(held.labels)) == (54, 6)
    _, kept, held = validation_of(whole, "--validation-split", "0.5")
    assert (len(kept.labels), len(held.labels)) == (30, 30)
    save_classes(tmp_path / "divided" / "train", 60)
    save_classes(tmp_path / "divided" / "test", 9, seed=1)
    config, kept, held = validation_of(tmp_path / "divided")
    assert config.validation_split is None
    assert (len(kept.labels), len(held.labels)) == (60, 9)
    _, kept, held = validation_of(tmp_path / "divided", "--validation-split", "0.1")  # so not the test images
    assert (len(kept.labels), len(held.labels)) == (54, 6)
    images, labels = colours(60)
    np.savez(tmp_path / "all.npz", images=images, labels=labels)
    assert [len(part.labels) for part in validation_of(tmp_path / "all.npz")[1:]] == [54, 6]
    np.savez(tmp_path / "more.npz", images=images, labels=labels, test_images=images[:8], test_labels=labels[:8] + 1)
    with pytest.raises(gan.UserError, match="class 3 of its test images has no training image"):
        validation_of(tmp_path / "more.npz")
    np.savez(tmp_path / "bare.npz", images=images, labels=labels, test_images=images[:8])
    with pytest.raises(gan.UserError, match="its test images have no labels; give --validation-split"):
        validation_of(tmp_path / "bare.npz")
    with pytest.raises(gan.UserError, match="leaves none of the 60 images"):
        validation_of(whole, "--validation-split", "0.001")
    for file in (tmp_path / "divided" / "test").rglob("*.png"):
        file.write_bytes(b"damaged")
    with pytest.raises(gan.UserError, match="none of its images can be read"):
        validation_of(tmp_path / "divided", "--skip-unreadable", "--image-size", "8")


def test_channels_are_matched():
    colour = gan.Images(torch.tensor([[[[255, 0, 0]]]], dtype=torch.uint8), None, ())
    grey = gan.Images(torch.tensor([[[[90]]]], dtype=torch.uint8), None, ())
    assert gan.with_channels(colour, 1).pixels.flatten().tolist() == [76]
    assert gan.with_channels(grey, 3).pixels.flatten().tolist() == [90, 90, 90]
    assert gan.with_channels(colour, 3).pixels.flatten().tolist() == [255, 0, 0]


# ------------------------------------------------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two epochs on three colours, made by the command; its folder."""
    folder = tmp_path_factory.mktemp("multitask")
    save_classes(folder / "data" / "train", 96)
    save_classes(folder / "data" / "test", 30, seed=1)
    words = ["--data", folder / "data", "--epochs", 2, "--multitask", "--seed", 5, "--save-every", 1, "--lr-d", 0.005]
    done = command(*TOY, *words, "--out", folder / "run")
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "run", done.stdout


def test_a_run_writes_the_classifiers_part_of_the_contract(trained):
    out, said = trained
    # 8×8 images and --width-d 4: one stage to 4×4×4 maps, so 64 · 256 + 256 and 256 · 3 + 3.
    assert ", its classification head 17,411" in said
    assert "validation 30 test images" in said
    assert "val_accuracy" in said
    assert list(rows(out / "log.csv")[0])[-3:] == ["class_loss", "accuracy", "images_per_s"]
    epochs = rows(out / "epochs.csv")
    assert [*epochs[0]][8:12] == ["class_loss", "accuracy", "val_class_loss", "val_accuracy"]
    network = gan.load_network(out / "discriminator.safetensors", "discriminator")
    loss, accuracy, confusion = gan.validate(network, gan.load_images(out.parent / "data", "test"))
    assert float(epochs[-1]["val_class_loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(epochs[-1]["val_accuracy"]) == pytest.approx(accuracy)
    table = list(csv.reader(open(out / "confusion_matrix.csv", encoding="utf-8")))
    assert table[0][1:] == [*NAMES]
    assert [row[0] for row in table[1:]] == [*NAMES]
    assert (np.array([row[1:] for row in table[1:]], int) == confusion).all()
    for name in ("classifier_loss", "classifier_accuracy", "confusion_matrix", "discriminator_loss"):
        with Image.open(out / "plots" / f"{name}.png") as image:
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    for tag in ("train/class_loss", "train/accuracy", "validation/class_loss", "validation/accuracy"):
        assert len(board.Scalars(tag)) == 2, tag
    assert board.Scalars("validation/accuracy")[-1].value == pytest.approx(accuracy)
    assert len(board.Images("validation/confusion_matrix")) == 1


def test_both_models_and_the_checkpoint_hold_the_same_networks(trained):
    out, _ = trained
    saved = last(out)
    for name in ("generator", "discriminator"):
        both = [gan.load_network(path, name) for path in (out / f"{name}.safetensors", out / "checkpoints" / "last.pt")]
        for key, tensor in both[0].state_dict().items():
            assert torch.equal(tensor, both[1].state_dict()[key])
            assert torch.equal(tensor, saved["model"][f"averages.{name}.{key}"])
        assert both[0].architecture == both[1].architecture
    assert both[0].architecture["classes"] == [*NAMES]


def test_a_model_may_hold_both_networks(trained, tmp_path, capsys):
    out, _ = trained
    names = ("generator", "discriminator")
    networks = {name: gan.load_network(out / "checkpoints" / "last.pt", name) for name in names}
    both = save_networks(tmp_path / "both.safetensors", **networks)
    image = next((out.parent / "data" / "test" / "bee").iterdir())
    for model in (both, out / "discriminator.safetensors"):
        assert gan.main(["classify", str(model), str(image)]) == 0
    assert len(set(capsys.readouterr().out.splitlines())) == 1
    drawn = [gan.load_generator(path).generate(3) for path in (both, out / "generator.safetensors")]
    assert (drawn[0] == drawn[1]).all()


def test_a_resumed_run_is_the_uninterrupted_run(trained, tmp_path):
    out, _ = trained
    words = ["--data", out.parent / "data", "--epochs", 1, "--multitask", "--seed", 5, "--lr-d", 0.005]
    parts = train(*TOY, *words, "--out", tmp_path / "run", "--save-every", 1)
    train("--resume", parts, "--epochs", 2)
    whole, resumed = last(out), last(parts)
    for part in ("model", "optimizers", "ranks"):  # with it the state of dropout
        assert_same(resumed[part], whole[part], part)
    for name in ("plots/classifier_loss.png", "plots/confusion_matrix.png", "confusion_matrix.csv"):
        assert (out / name).read_bytes() == (parts / name).read_bytes()


def test_resume_refuses_other_classes_and_heads(trained, tmp_path, capsys):
    out, _ = trained
    path = str(out / "checkpoints" / "last.pt")
    assert gan.main(["--resume", path, "--no-multitask", "--epochs", "3"]) == 2
    assert "--no-multitask: the checkpoint" in capsys.readouterr().err
    assert gan.main(["--resume", path, "--validation-split", "0.2", "--epochs", "3"]) == 2  # on what it was trained on
    assert f"--validation-split 0.2: the checkpoint {path} has no --validation-split" in capsys.readouterr().err
    images, labels = colours(60)
    for label, name in enumerate(("ant", "bee", "cow")):
        save_all(images[labels == label], tmp_path / "data" / name)
    assert gan.main(["--resume", path, "--data", str(tmp_path / "data"), "--epochs", "3"]) == 2
    assert "its classes are not those of the data, ant, bee, cow" in capsys.readouterr().err


def test_classify_prints_class_and_probability(trained, capsys):
    out, _ = trained
    folder = out.parent / "data" / "test"
    files = [next((folder / name).iterdir()) for name in NAMES]
    model = str(out / "discriminator.safetensors")
    assert gan.main(["classify", model, *map(str, files)]) == 0
    lines = capsys.readouterr().out.splitlines()
    network = gan.load_network(model, "discriminator")
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])
    probabilities = gan.class_logits(network, pixels).softmax(1)
    assert len(lines) == 3
    for line, file, row in zip(lines, files, probabilities, strict=True):
        name, share, path = line.split()
        assert (name, path) == (NAMES[row.argmax()], str(file))
        assert float(share.rstrip("%")) == pytest.approx(100 * row.max().item(), abs=0.06)
    assert gan.main(["classify", model, str(folder / "bee")]) == 0  # a flat folder
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == [str(file) for file in sorted((folder / "bee").iterdir())]


def test_classify_rates_a_labelled_folder(trained, tmp_path, capsys):
    out, _ = trained
    folder = out.parent / "data"
    model = str(out / "checkpoints" / "last.pt")
    said = []
    for data in (folder, folder / "test"):  # of a divided set the test images
        assert gan.main(["classify", model, str(data)]) == 0
        said.append(capsys.readouterr().out.replace(str(data), "DATA"))
    assert said[0] == said[1]
    accuracy = float(rows(out / "epochs.csv")[-1]["val_accuracy"])
    assert said[0].startswith(f"30 images of DATA: {accuracy:.2%} right, cross-entropy ")
    assert [line.split()[:2] for line in said[0].splitlines()[2:]] == [[name, "10"] for name in NAMES]

    images, labels = colours(30, seed=1)
    save_all(images[labels == 2], tmp_path / "cat")  # a part of the classes, so their numbers are not the model's
    save_all(images[labels == 1], tmp_path / "bee")
    assert gan.main(["classify", model, str(tmp_path)]) == 0
    table = {line.split()[0]: line.split()[2] for line in capsys.readouterr().out.splitlines()[2:]}
    whole = {line.split()[0]: line.split()[2] for line in said[0].splitlines()[2:]}
    assert table == {"bee": whole["bee"], "cat": whole["cat"]}


def test_classify_refuses(trained, tmp_path, fails):
    out, _ = trained
    model = out / "discriminator.safetensors"
    image = next((out.parent / "data" / "test" / "bee").iterdir())
    (tmp_path / "broken.png").write_bytes(b"not an image")
    (tmp_path / "empty").mkdir()
    save_all(pictures(2), tmp_path / "other" / "dog")
    save_all(pictures(2), tmp_path / "other" / "cat")
    for words, message in (
        ([model, tmp_path / "none.png"], "none.png: there is no such image file"),
        ([model, tmp_path / "nowhere"], "nowhere: there is no such file or folder"),
        ([model, tmp_path / "broken.png"], "broken.png: not an image"),
        ([model, image, tmp_path / "broken.png"], "broken.png: not an image"),
        ([model, image, tmp_path / "empty"], "empty: is a folder; give it alone"),
        ([model, tmp_path / "empty"], "empty: this folder is empty"),
        ([model, tmp_path / "other"], "other: class dog is not one that"),
        ([tmp_path / "no.safetensors", image], "no.safetensors: there is no such model"),
        (
            [out / "generator.safetensors", image],
            "but no discriminator; a run with --multitask saves one",
        ),
        ([model], "required: IMAGE|DATA"),
    ):
        said = fails("classify", *words)
        assert message in said
        assert "--data" not in said
        assert "--skip-unreadable" not in said
    assert "holds discriminator, but no generator" in fails("generate", model, "--out", tmp_path / "x.png")


def test_classify_needs_a_head(tmp_path, fails):
    data = save_classes(tmp_path / "data", 24)
    out = train(*TOY, "--data", data, "--epochs", 1, "--out", tmp_path / "run")
    assert not (out / "discriminator.safetensors").exists()
    image = next((data / "bee").iterdir())
    assert "its discriminator tells no classes" in fails("classify", out / "checkpoints" / "last.pt", image)


def test_hostile_discriminators(trained, tmp_path, fails):
    out, _ = trained
    with safe_open(out / "discriminator.safetensors", "pt") as file:
        weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    good = json.loads(metadata["architecture"])["discriminator"]
    assert good == {"image_size": 8, "channels": 3, "width": 4, "classes": [*NAMES]}
    not_made, path = "its discriminator is not one that is made here", tmp_path / "hostile.safetensors"
    for change, message in (
        *(({"classes": x}, not_made) for x in ("abc", [1, 2, 3], 3, None, ["a", "b", "\x1b[31m"])),
        ({"classes": ["x"] * 10**5}, "its discriminator.head.4.weight has not the shape"),
        ({"classes": ["a"]}, "its discriminator.head.4.weight has not the shape"),
        ({"negative_slope": "much"}, not_made),
        ({"negative_slope": 2}, not_made),
        ({"width": 2048}, "its discriminator.features.0.weight has not the shape"),
        ({"width": 10**30}, not_made),
        ({"width": "4"}, not_made),
        ({"more": 1}, not_made),
        ({"width": 1024, "image_size": 1792}, "its discriminator holds other parts"),  # half a terabyte
    ):
        save_file(weights, path, metadata | {"architecture": json.dumps({"discriminator": good | change})})
        assert f"hostile.safetensors: {message}" in fails("classify", path, tmp_path / "x.png")


def test_class_names_that_are_no_text(tmp_path, capsys):
    names = [b"caf\xe9", b"$x_1", b"\x1b[31mred"]
    images, labels = colours(30)
    for label, name in enumerate(names):
        folder = os.fsencode(tmp_path) + b"/data/" + name
        try:
            os.makedirs(folder)
        except OSError:
            pytest.skip("the file system takes only UTF-8")
        save_all(images[labels == label], Path(os.fsdecode(folder)))
    words = ["--data", str(tmp_path / "data"), "--epochs", "1", "--multitask", "--out", str(tmp_path / "run")]
    assert gan.main([*TOY, *words]) == 0
    known = gan.load_network(tmp_path / "run/discriminator.safetensors", "discriminator").architecture["classes"]
    assert sorted(known) == sorted(["caf\\udce9", "$x_1", "\\x1b[31mred"])
    assert gan.main(["classify", str(tmp_path / "run/discriminator.safetensors"), str(tmp_path / "data")]) == 0
    one = os.fsdecode(os.fsencode(tmp_path) + b"/data/" + names[2])  # a flat folder: its images' names are printed
    assert gan.main(["classify", str(tmp_path / "run/discriminator.safetensors"), one]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out
    assert said.err == ""


def test_what_cannot_be_multitask_gets_one_sentence(tmp_path, fails):
    flat = save_all(pictures(8), tmp_path / "flat")
    save_all(pictures(8), tmp_path / "one" / "cat")
    assert "--multitask: the data has no labels" in fails("--multitask", "--data", flat)
    assert "--multitask: the data has one class only" in fails("--multitask", "--data", tmp_path / "one")
    assert "--class-weight: needs --multitask" in fails("--class-weight", "2")
    for value in ("0", "0.95", "-1", "nan"):
        assert "--validation-split: " in fails("--multitask", "--validation-split", value)
    assert "--class-weight: " in fails("--multitask", "--class-weight", "-1")


@pytest.mark.parametrize("layout", ["idx", "npz", "cifar"])
def test_every_labelled_layout_trains_with_a_head(tmp_path, layout):
    images, labels = pictures(24, 32), np.arange(24) % 2
    data, classes, size = tmp_path / "data", ["0", "1"], ["--image-size", "8"]
    if layout == "idx":
        for split in ("train", "t10k"):
            write_idx(data / f"{split}-images-idx3-ubyte", images[..., 0])
            write_idx(data / f"{split}-labels-idx1-ubyte", labels.astype(np.uint8))
    elif layout == "npz":
        data.mkdir()
        np.savez(data / "set.npz", images=images, labels=labels)
    else:
        write_cifar(data, images, labels)
        classes = ["cat", "dog"]
    words = ["--data", data, "--epochs", 1, "--multitask", "--loss", "bce", "--out", tmp_path / "run"]
    out = train(*TOY, *words, *size)
    network = gan.load_network(out / "discriminator.safetensors", "discriminator")
    assert network.architecture["classes"] == classes
    assert network.architecture["channels"] == (1 if layout == "idx" else 3)
    assert len(list(csv.reader(open(out / "confusion_matrix.csv", encoding="utf-8")))) == 3


def test_a_head_learns_the_shapes(tmp_path):
    words = "--multitask --iterations 150 --image-size 16 --width-d 16 --width-g 8 --lr-d 0.002 --seed 0"
    out = train(*words.split(), "--batch-size", 64, "--precision", "fp32", "--device", "cpu", "--out", tmp_path / "run")
    assert float(rows(out / "epochs.csv")[-1]["val_accuracy"]) > 0.9  # 2,000 images of ten classes
