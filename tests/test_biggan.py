"""BigGAN: the networks by closed forms, training with and without classes, and classes in between."""

import csv
import json
import sys

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch
from conftest import ROOT, assert_same, pictures, save_all, whole_and_resumed
from PIL import Image

import rollnumber_04 as gan
from benchmarks.biggan import WIDE
from labs import between, biggan

CPU = torch.device("cpu")
NAMES = ("ant", "bee", "cat", "dog", "eel")
SMALL = "--width-g 4 --width-d 4 --latent-dim 8 --embedding 6 --batch-size 4 --precision fp32 --device cpu --seed 3"
SMALL = SMALL.split()
SAVED = ROOT / "saved_models"


def noise(count=3, dim=8, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def labelled(tmp_path):
    """Five classes of eight 8×8 images."""
    for seed, name in enumerate(NAMES):
        save_all(pictures(8, 8, seed), tmp_path / "data" / name)
    return tmp_path / "data"


@pytest.fixture
def model(tmp_path):
    """A conditional generator of 8×8 images that differ."""
    words = "--image-size 8 --width-g 8 --latent-dim 8 --embedding 6 --seed 0 --device cpu".split()
    model = biggan.BigGAN(gan.config_from([*words, "--conditional"], biggan.BigGAN), 3, NAMES)
    generator = model.averages["generator"]
    with torch.no_grad():
        generator.project.weight.mul_(20)
        generator.embed.weight.mul_(5)
    run = gan.Run(model, None, None, tmp_path, {})
    gan.save_model(tmp_path / "model.safetensors", {"generator": generator}, run)
    return tmp_path / "model.safetensors"


def saved_small():
    """The saved model of CIFAR-10."""
    return gan.load_generator(SAVED / "cifar10-small.safetensors")


# --------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (20, 3), (28, 1), (32, 3), (48, 3), (64, 3), (128, 1)])
def test_every_size(size, channels):
    generator = biggan.Generator(size, channels, 16, 2, 6, classes=NAMES)
    discriminator = biggan.Discriminator(size, channels, 2, classes=NAMES)
    images = generator(noise(2, 16), torch.eye(5)[:2])
    assert images.shape == (2, channels, size, size)
    assert images.abs().max() <= 1
    assert discriminator(images, torch.tensor([0, 4])).shape == (2,)
    maps = discriminator.features(images)
    assert maps.shape[2] == ({8: 8, 20: 10, 28: 7, 32: 8, 48: 12}.get(size, 4))


def test_the_channels_of_large_images():
    assert biggan.widths(32, 256) == [256] * 4
    assert biggan.widths(28, 64) == [64] * 3
    assert biggan.widths(128, 96) == [1536, 1536, 768, 384, 192, 96]  # those of the paper at 128


def test_the_size_of_the_networks_for_cifar10():
    """By hand: 3×3 convolutions of 48² and the like, with their biases."""
    names = [f"{i}" for i in range(10)]
    told = 128 + 32
    block = 2 * (9 * 48 * 48 + 48) + (48 * 48 + 48) + 4 * told * 48
    rest = 10 * 128 + (32 * 768 + 768) + 2 * 48 + (9 * 48 * 3 + 3)
    assert gan.count_parameters(biggan.Generator(classes=names)) == 3 * block + rest == 251_939
    first = (9 * 3 * 48 + 48) + (9 * 48 * 48 + 48) + (3 * 48 + 48)
    halving, plain = 2 * (9 * 48 * 48 + 48) + (48 * 48 + 48), 2 * (9 * 48 * 48 + 48)
    expected = first + halving + 2 * plain + 49 + 480
    assert gan.count_parameters(biggan.Discriminator(classes=names)) == expected


def test_conditional_batch_norm_has_a_closed_form():
    torch.manual_seed(0)
    norm, maps, told = biggan.ConditionalNorm(3, 5), torch.randn(4, 3, 6, 7), torch.randn(4, 5)
    mean, variance = maps.mean((0, 2, 3)), maps.var((0, 2, 3), correction=0)
    scale, shift = told @ norm.scale.weight.mT, told @ norm.shift.weight.mT
    plain = (maps - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
    expected = plain * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    assert torch.allclose(norm(maps, told), expected, atol=1e-5)


def test_the_score_is_a_projection():
    torch.manual_seed(0)
    discriminator = biggan.Discriminator(8, 3, 4, classes=NAMES).eval()  # no power iterations between the two
    images, labels = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 4, 4])
    seen = discriminator.features(images).sum((2, 3))
    weight, embeddings = discriminator.score.weight[0], discriminator.embed.weight.mT
    expected = seen @ weight + discriminator.score.bias + (embeddings[labels] * seen).sum(1)
    assert torch.allclose(discriminator(images, labels), expected, atol=1e-5)


def test_each_block_is_told_its_part_of_z_and_the_mixture_of_embeddings():
    generator, seen = biggan.Generator(16, 3, 11, 4, 6, classes=NAMES).eval(), []
    for block in generator.blocks:
        block.register_forward_pre_hook(lambda block, inputs: seen.append(inputs[1]))
    z, y = noise(3, 11), torch.tensor([[0.25, 0.75, 0, 0, 0]]).expand(3, -1)
    generator(z, y)
    r = generator.embeddings()
    assert r.shape == (5, 6)
    for told, start in zip(seen, (5, 8), strict=True):  # 11 = 5 + 3 + 3
        assert torch.allclose(told, torch.cat([(0.25 * r[0] + 0.75 * r[1]).expand(3, -1), z[:, start : start + 3]], 1))


def test_the_residual_blocks_by_hand():
    torch.manual_seed(0)
    block, maps = biggan.DownBlock(3, 4, halve=True), torch.randn(2, 3, 6, 6)
    pool, conv = torch.nn.functional.avg_pool2d, torch.nn.functional.conv2d

    def convolved(part, maps):
        return conv(maps, part.weight, part.bias, padding=part.padding)

    added = convolved(block.convs[1], convolved(block.convs[0], maps.relu()).relu())
    assert torch.allclose(block(maps), pool(added, 2) + pool(convolved(block.skip, maps), 2), atol=1e-5)
    first = biggan.DownBlock(3, 4, halve=True, first=True)
    added = convolved(first.convs[1], convolved(first.convs[0], maps).relu())
    assert torch.allclose(first(maps), pool(added, 2) + pool(convolved(first.skip, maps), 2), atol=1e-5)
    up, told = biggan.UpBlock(3, 4, 2).eval(), torch.randn(2, 2)
    large = up.norms[0](maps, told).relu().repeat_interleave(2, 2).repeat_interleave(2, 3)
    added = convolved(up.convs[1], up.norms[1](convolved(up.convs[0], large), told).relu())
    skip = convolved(up.skip, maps.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.allclose(up(maps, told), skip + added, atol=1e-5)


@pytest.mark.parametrize("of_g", [False, True])
def test_spectral_norms(of_g):
    torch.manual_seed(0)
    generator = biggan.Generator(8, 3, 8, 4, 6, spectral_norm=of_g, classes=NAMES)
    discriminator = biggan.Discriminator(8, 3, 4, classes=NAMES)
    for network, expected in ((generator, of_g), (discriminator, True)):
        layers = [(n, m) for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        assert layers
        for name, layer in layers:
            with torch.no_grad():
                for part, weight in layer.named_parameters():
                    weight.normal_() if "weight" in part else None
            for _ in range(50):  # each look at it in training mode is a power iteration
                largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
            is_one = largest == pytest.approx(1, abs=0.05)
            assert is_one == (expected and not (network is generator and name == "embed")), name


# --------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("words", [[], [*WIDE, "--width-g", "32", "--width-d", "32"]])
def test_a_dry_run_writes_every_file(labelled, tmp_path, words, capsys):
    words = [*words, "--data", str(labelled), "--dry-run", "--batch-size", "2", "--device", "cpu"]
    assert biggan.main([*words, "--out", str(tmp_path / "run")]) == 0
    options = json.loads((tmp_path / "run" / "options.json").read_text())
    assert options["conditional"] is True
    assert not {"loss", "multitask", "translation"} & options.keys()
    assert "conditional hinge" in capsys.readouterr().out
    generator = gan.load_generator(tmp_path / "run" / "generator.safetensors")
    assert generator.classes == NAMES
    with open(tmp_path / "run" / "log.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert [*row][2:-1] == ["d_loss", "g_loss", "d_real", "d_fake", "d_accuracy_real", "d_accuracy_fake"]
    assert any((tmp_path / "run" / "weights").glob("discriminator_*.png"))


@pytest.mark.parametrize("size", [8, 128])
def test_images_without_classes(tmp_path, size, capsys):
    save_all(pictures(8, size), tmp_path / "flat")
    out = tmp_path / "run"
    assert biggan.main([*SMALL, "--data", str(tmp_path / "flat"), "--iterations", "1", "--out", str(out)]) == 0
    assert "training   hinge" in capsys.readouterr().out
    generator = gan.load_generator(out / "generator.safetensors")
    assert generator.generate(3).shape == (3, size, size, 3)
    assert not generator.classes
    with pytest.raises(gan.UserError, match="--label cat: the generator draws no class of choice"):
        generator.generate(3, "cat")


def test_classes_that_are_not_to_be_told(labelled, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert biggan.main([*SMALL, "--data", str(labelled), "--no-conditional", "--iterations", "1", *out]) == 0
    assert biggan.main(["--resume", "--conditional", "--iterations", "2", *out]) == 2  # the networks are made
    assert "--conditional: the checkpoint" in capsys.readouterr().err
    assert biggan.main(["--resume", "--iterations", "2", *out]) == 0
    assert not gan.load_generator(tmp_path / "run" / "generator.safetensors").classes


def test_a_resumed_run_is_the_uninterrupted_run(labelled, tmp_path):
    same = [*SMALL, "--data", str(labelled), "--iterations", "6", "--sample-every", "2", "--d-steps", "2"]
    same += ["--augment", "colour,translation,cutout", "--spectral-norm-g"]
    whole, parts = whole_and_resumed("labs.biggan", same, tmp_path, crash_at=3)
    assert whole["progress"]["step"] == parts["progress"]["step"] == 6
    for part in ("model", "optimizers", "ranks"):
        assert_same(parts[part], whole[part], part)


def test_an_update_of_d_for_each_batch(labelled):
    """By hand: the first metric is the mean of the hinge losses of two updates, each on its own batch."""
    words = [*SMALL, "--data", str(labelled), "--d-steps", "2", "--lr-d", "1e-9", "--no-flip"]
    config, images, _ = biggan.BigGAN.load(gan.config_from(words, biggan.BigGAN))
    model = biggan.BigGAN(config, 3, images.classes).on(CPU)
    batches, seen = model.batch(images, torch.arange(8).reshape(2, 4)), []
    assert [real.shape for real, _ in batches] == [(4, 3, 8, 8)] * 2
    assert torch.cat([labels for _, labels in batches]).tolist() == images.labels[:8].tolist()
    model.discriminator.register_forward_hook(lambda network, inputs, scores: seen.append(scores.detach()))
    metrics = model.step(*batches)
    assert len(seen) == 5  # real and generated images twice, and those of G's update
    losses = [(1 - r).relu().mean() + (1 + f).relu().mean() for r, f in (seen[:2], seen[2:4])]
    assert metrics[0].item() == pytest.approx((losses[0] + losses[1]).item() / 2)
    assert metrics[1].item() == pytest.approx(-seen[4].mean().item())
    assert metrics[2].item() == pytest.approx(torch.cat([seen[0], seen[2]]).mean().item())


def test_it_learns_to_draw_the_class_that_it_is_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("blue", "green", "red")):
        images = rng.integers(0, 40, (64, 8, 8, 3), np.uint8)
        images[..., 2 - channel] += rng.integers(120, 200, (64, 1, 1)).astype(np.uint8)
        save_all(images, tmp_path / "data" / name)
    words = [*SMALL, "--data", str(tmp_path / "data"), *"--batch-size 32 --width-g 16 --width-d 16 --ema 500".split()]
    words += "--iterations 300 --lr-g 5e-4 --lr-d 1e-3 --sample-every 300 --seed 6".split()
    assert biggan.main([*words, "--out", str(tmp_path / "run")]) == 0
    generator = gan.load_generator(tmp_path / "run/generator.safetensors")
    for label, channel in (("blue", 2), ("green", 1), ("red", 0)):
        colours = generator.generate(32, label).mean((1, 2))
        assert (colours.argmax(1) == channel).mean() > 0.9, label


@pytest.mark.parametrize("main", [gan.main, biggan.main])
def test_a_model_says_itself_what_it_is(main, model, tmp_path):
    words = ["--count", "7", "--label", "cat", "--truncation", "0.5", "--out"]
    assert main(["generate", str(model), *words, str(tmp_path / "x.npz")]) == 0
    with np.load(tmp_path / "x.npz") as archive:
        assert (archive["images"] == gan.load_generator(model).generate(7, "cat", truncation=0.5)).all()
        assert archive["labels"].tolist() == [2] * 7
        assert archive["classes"].tolist() == [*NAMES]


def test_the_saved_model_draws_its_sheet():
    drawn = np.asarray(gan.sheet(saved_small().generate(80, seed=1), 10), int)
    with Image.open(SAVED / "cifar10-small.png") as sheet:
        assert np.abs(drawn - np.asarray(sheet.convert("RGB"), int)).mean() < 0.1


# ----------------------------------------------------------------------------------------------- classes in between


def test_the_ends_of_a_path_are_the_two_classes(model, tmp_path):
    generator = gan.load_generator(model)
    images = between.path_images(generator, (1, 3), 5, 4, seed=7, truncation=None)
    for end, label in ((0, 1), (-1, 3)):
        assert (images[end] == generator.generate(4, label, seed=7)).all()
    z, _ = generator.inputs(7, 0, 4)
    middle = gan.draw_images(generator, z, (torch.eye(5)[1] + torch.eye(5)[3]).expand(4, -1) / 2)
    assert (images[2] == middle).all()
    out = tmp_path / "path.png"
    words = ["interpolate", str(model), "--classes", "bee,3", "--alphas", "5", "--rows", "4", "--seed", "7"]
    assert biggan.main([*words, "--out", str(out)]) == 0
    pixels = np.asarray(Image.open(out).convert("RGB"))
    assert pixels.shape == (4 * 66 + 2, 5 * 66 + 2, 3)
    shown = np.stack([pixels[2 + 66 * r : 66 + 66 * r : 8, 2:66:8] for r in range(4)])
    assert (shown == images[0]).all()
    assert biggan.main([*words, "--out", str(tmp_path / "path.gif")]) == 0
    with Image.open(tmp_path / "path.gif") as film:
        assert film.n_frames == 5 + 3  # there and back


def test_near_and_far_classes():
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 3.0], [-1.0, 0.0]])
    distances = between.cosine_distances(rows)
    assert np.allclose(distances, scipy.spatial.distance.cdist(rows, rows, "cosine"))
    pairs = between.pairs_by_distance(distances)
    assert len(pairs) == 6
    assert (pairs[0], pairs[-1]) == ((0, 1), (0, 3))


def test_smoothness_has_closed_forms():
    straight = torch.linspace(0, 1, 5)[:, None, None] * torch.tensor([[3.0, 4.0], [6.0, 8.0]])  # lengths 5 and 10
    found = between.smoothness(straight)
    assert found == pytest.approx({"ppl": (25 + 100) / 2, "detour": 1, "largest": 0.25})
    jump = torch.zeros(5, 1, 2)
    jump[3:] = torch.tensor([0.0, 2.0])
    assert between.smoothness(jump) == pytest.approx({"ppl": (2 * 4) ** 2 / 4, "detour": 1, "largest": 1})
    corner = torch.tensor([[0.0, 0], [0, 1], [1, 1]])[:, None]
    assert between.smoothness(corner) == pytest.approx({"ppl": 4, "detour": 2 / 2**0.5, "largest": 0.5})


def test_embeddings_are_drawn(model, tmp_path, capsys):
    assert biggan.main(["embeddings", str(model), "--out", str(tmp_path / "tsne.png")]) == 0
    said = capsys.readouterr().out
    generator = gan.load_generator(model)
    distances = scipy.spatial.distance.cdist(*[generator.embeddings()] * 2, "cosine")
    a, b = np.unravel_index((distances + 9 * np.eye(5)).argmin(), (5, 5))
    assert f"nearest   {NAMES[a]} and {NAMES[b]} {distances[a, b]:.3f}" in said
    a, b = np.unravel_index(distances.argmax(), (5, 5))
    assert f"farthest  {NAMES[a]} and {NAMES[b]} {distances[a, b]:.3f}" in said
    assert Image.open(tmp_path / "tsne.png").size == (1500, 700)
    assert biggan.main(["embeddings", str(model), "--out", str(tmp_path / "tsne.png"), "--json"]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert np.array(facts["cosine distances"]) == pytest.approx(distances, abs=1e-6)
    assert np.array(list(facts["places"].values())) == pytest.approx(between.tsne(generator.embeddings(), 0))
    assert facts["farthest"][0]["pair"] == [NAMES[a], NAMES[b]]
    assert facts["farthest"][0]["cosine distance"] == pytest.approx(distances[a, b])
    assert printed.err == said


def test_tsne_keeps_near_classes_together():
    generator = saved_small()
    names, rows = [*generator.classes], generator.embeddings()
    distances = between.cosine_distances(rows)
    for seed in range(3):
        places = between.tsne(rows, seed)
        apart = scipy.spatial.distance.cdist(places, places)
        for a, b in (("automobile", "truck"), ("cat", "dog"), ("airplane", "ship")):
            for one, other in ((a, b), (b, a)):
                assert names[np.argsort(distances[names.index(one)])[1]] == other
                assert names[np.argsort(apart[names.index(one)])[1]] == other
    assert np.isfinite(between.tsne(rows[:, :1], 0)).all()
    assert between.tsne(torch.randn(120, 3, generator=torch.Generator().manual_seed(0)), 0).shape == (120, 2)


def test_paths_are_measured(model, tmp_path, weights, early, capsys):
    words = ["paths", str(model), "--alphas", "3", "--samples", "2", "--rows", "1", "--device", "cpu"]
    words += ["--inception-weights", str(weights / "random.pth"), "--out"]
    assert biggan.main([*words, str(tmp_path / "four")]) == 0
    with open(tmp_path / "four" / "paths.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["cosine distance"]) for row in rows] == sorted(float(row["cosine distance"]) for row in rows)
    assert len(rows) == 4
    assert all(float(row["detour"]) >= 1 and 0.5 <= float(row["largest"]) <= 1 for row in rows)
    sheets = sorted((tmp_path / "four").glob("*.png"))
    assert len(sheets) == 4
    assert Image.open(sheets[0]).size == (3 * 66 + 2, 66 + 2)
    assert "rank correlation" not in capsys.readouterr().out
    assert biggan.main([*words, str(tmp_path / "all"), "--all-pairs"]) == 0
    with open(tmp_path / "all" / "paths.csv", newline="") as file:
        names = [f"{i:02}-{row['pair']}.png" for i, row in enumerate(csv.DictReader(file), 1)]
    assert sorted(path.name for path in (tmp_path / "all").glob("*.png")) == names  # ten, by their distance
    assert "rank correlation of the distance with PPL" in capsys.readouterr().out
    assert biggan.main([*words, str(tmp_path / "again"), "--all-pairs", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    with open(tmp_path / "all" / "paths.csv", newline="") as file:
        assert facts["pairs"] == [
            {k: v if k == "pair" else float(v) for k, v in row.items()} for row in csv.DictReader(file)
        ]
    ranks = [scipy.stats.rankdata([row[name] for row in facts["pairs"]]) for name in ("cosine distance", "detour")]
    assert facts["rank correlation"]["detour"]["rho"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    # By hand: the features of one pair's images.
    assert biggan.main([*words, str(tmp_path / "one"), "--pairs", "dog,ant", "ant, dog", "3,0"]) == 0
    generator = gan.load_generator(model)
    images = between.path_images(generator, (3, 0), 3, 2, 0, None)
    inception = gan.extra("evaluate").Inception(weights / "random.pth", CPU)
    features = inception.features(iter(images), 6, "")["64"].unflatten(0, (3, 2))
    with open(tmp_path / "one" / "paths.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["ppl"]) == pytest.approx(
        ((features[1:] - features[:-1]) * 2).square().sum(2).mean().item(), rel=1e-3
    )
    first, middle, last = images.reshape(3, 2, -1).astype(float)
    length = np.linalg.norm(middle - first, axis=1) + np.linalg.norm(last - middle, axis=1)
    assert float(row["pixel detour"]) == pytest.approx((length / np.linalg.norm(last - first, axis=1)).mean(), rel=1e-4)


def test_truncation_is_measured(model, labelled, tmp_path, weights, early, capsys):
    words = ["truncation", str(model), "--data", str(labelled), "--truncations", "0.1", "1", "--samples", "24"]
    words += ["--inception-weights", str(weights / "random.pth"), "--device", "cpu"]
    assert biggan.main([*words, "--out", str(tmp_path / "t.png")]) == 0
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["truncation"], row["n_fake"], row["n_real"]) for row in rows] == [
        (value, "24", "40") for value in ("0.1", "1.0", "")
    ]
    assert Image.open(tmp_path / "t.png").size == (1210, 495)
    capsys.readouterr()
    assert biggan.main([*words, "--out", str(tmp_path / "t.png"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert [(row["truncation"], row["fid"]) for row in figures[::2]] == [
        (0.1, float(rows[0]["fid"])), (None, float(rows[2]["fid"]))
    ]  # fmt: skip
    assert biggan.main(["evaluate", str(model), *words[2:4], *words[7:], "--samples", "24", "--no-judge", "--json",
                        "--truncation", "0.1"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["fid"] == pytest.approx(float(rows[0]["fid"]), rel=1e-4)


def test_mistakes_are_one_sentence(model, labelled, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    png = ["--out", str(tmp_path / "out.png")]
    flat, empty = save_all(pictures(8), tmp_path / "flat"), tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "sub" / "t.csv").mkdir(parents=True)
    for words, said in (
        (["--data", str(labelled), "--loss", "bce", *out], "unrecognized arguments: --loss bce"),
        (["--data", str(labelled), "--augment", "colour,blur", *out], "--augment: 'colour,blur' is neither none nor"),
        (["--data", str(labelled), "--latent-dim", "2", "--image-size", "16", *out], "--latent-dim 2"),
        (["--data", str(flat), "--conditional", *out], "--conditional: the data has no labels"),
        (["interpolate", str(model), "--classes", "cat", *png], "--classes cat: takes two classes"),
        (["interpolate", str(model), "--classes", "cat,cow", *png], "--classes cow: is not among the classes"),
        (["interpolate", "--classes", "cat,dog", *png], "give one of MODEL and --pretrained FOLDER"),
        (["interpolate", str(model), "--pretrained", "x", "--classes", "a,b", *png], "give one of MODEL and"),
        (["interpolate", "--pretrained", str(empty), "--classes", "a,b", *png], "has no config.json; fetch https"),
        (["embeddings", str(model), "--out", str(tmp_path / "out.gif")], "must end in .png"),
        (["paths", str(model), "--pairs", "cat,cat", *out], "--pairs cat,cat: is one class"),
        (["paths", str(model), "--pairs", "cat", *out], "--pairs cat: takes two classes"),
        (["paths", str(model), "--out", str(labelled)], "is there already"),
        (["truncation", str(model), "--pretrained", "x", *png], "unrecognized arguments: --pretrained"),
        (["paths", str(model), "--alphas", "2", *out], "--alphas: 2 is not a whole number from 3"),
        (["interpolate", str(model), "--classes", "cat,2", *png], "--classes cat,2: is one class"),
        (["interpolate", str(model), "--classes", "0,99", *png], "--classes 99: is not among"),
        (
            ["interpolate", str(model), "--classes", "0,1", "--rows", "11", "--alphas", "999", *png],
            "--alphas 999: 11 rows",
        ),
        (["interpolate", str(model), "--classes", "cat,dog", "--out", f"{model}/x.png"], "is not a folder that can be"),
        (["embeddings", str(SAVED / "cifar10-ls.safetensors"), *png], "no model of labs.biggan"),
        (["truncation", str(model), "--truncations", "0", *png], "--truncations: 0.0 is not"),
        (["truncation", str(model), "--out", str(tmp_path / "sub" / "t.png")], "t.csv is a folder"),
    ):
        assert biggan.main(words) == 2, words
        message = capsys.readouterr().err
        assert message.startswith("labs.biggan: "), message
        assert said in message
        assert message.count("\n") == 1
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "out.png").exists()


def test_truncation_finds_out_before_it_measures_that_it_cannot_draw(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert biggan.main(["truncation", str(model), "--samples", "16", "--out", str(tmp_path / "x.png")]) == 2
    assert capsys.readouterr().err.startswith("labs.biggan: pictures need matplotlib")
    assert not [*tmp_path.glob("x.*")]
