"""BigGAN: the networks by closed forms, classes in between, and BigGAN-deep against its own package."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch
from conftest import Trap, assert_same, pictures, save_all, whole_and_resumed
from PIL import Image

import rollnumber_04 as gan
from extras import evaluate as evaluation
from labs import between, biggan, pretrained

CPU = torch.device("cpu")
NAMES = ("ant", "bee", "cat", "dog", "eel")
SMALL = "--width-g 4 --width-d 4 --latent-dim 8 --embedding 6 --batch-size 4 --precision fp32 --device cpu --seed 3"
SMALL = SMALL.split()
SAVED = Path(biggan.__file__).parents[1] / "saved_models"


def biggan_options(*words):
    return gan.parse_options(words, biggan.RECIPE)


def noise(count=3, dim=8, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def classes_of(count, per_class=8, size=8):
    """Folders of images of one class each."""
    return {name: pictures(per_class, size, seed) for seed, name in enumerate(NAMES[:count])}


@pytest.fixture
def labelled(tmp_path):
    """Five classes of eight 8×8 images."""
    for name, images in classes_of(5).items():
        save_all(images, tmp_path / "data" / name)
    return tmp_path / "data"


@pytest.fixture
def model(tmp_path):
    """A conditional generator of 8×8 images that differ."""
    torch.manual_seed(0)
    generator = biggan.Generator(8, 3, 8, 8, 6, classes=NAMES)
    with torch.no_grad():
        generator.project.weight.mul_(20)
        generator.embed.weight.mul_(5)
    path = tmp_path / "model.safetensors"
    gan.save_model(path, {"generator": generator}, {})
    return path


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
    """By hand: 3×3 convolutions of 64² and the like, with their biases."""
    names = [f"{i}" for i in range(10)]
    told = 128 + 32
    block = 2 * (9 * 64 * 64 + 64) + (64 * 64 + 64) + 4 * told * 64
    rest = 10 * 128 + (32 * 1024 + 1024) + 2 * 64 + (9 * 64 * 3 + 3)
    assert gan.count_parameters(biggan.Generator(classes=names)) == 3 * block + rest
    first = (9 * 3 * 64 + 64) + (9 * 64 * 64 + 64) + (3 * 64 + 64)
    halving, plain = 2 * (9 * 64 * 64 + 64) + (64 * 64 + 64), 2 * (9 * 64 * 64 + 64)
    expected = first + halving + 2 * plain + 65 + 640
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
    assert torch.equal(discriminator.judge(images, labels)[0], discriminator(images, labels))


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
    generator = biggan.Generator(8, 3, 8, 4, 6, spectral_norm=of_g, init="normal", classes=NAMES)
    discriminator = biggan.Discriminator(8, 3, 4, init="normal", classes=NAMES)
    for network, expected in ((generator, of_g), (discriminator, True)):
        layers = [(n, m) for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        assert layers
        for name, layer in layers:
            largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
            is_one = largest == pytest.approx(1, abs=0.1)
            assert is_one == (expected and not (network is generator and name == "embed")), name


def test_without_classes():
    options = biggan_options(*SMALL, "--no-conditional", "--image-size", "8")
    run = gan.make_run(options, 3, CPU, False)
    images = torch.from_numpy(pictures(8))
    measures = gan.gan_step(run, gan.Images(images, None, ()), torch.arange(4)[None], options)
    assert measures.isfinite().all()
    assert run.averages["generator"].generate(3).shape == (3, 8, 8, 3)
    assert run.generator.embed is None


# --------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("preset", biggan.PRESETS)
def test_every_preset_dry_runs(labelled, tmp_path, preset, capsys):
    words = ["--preset", preset, "--data", str(labelled), "--dry-run", "--batch-size", "2", "--device", "cpu"]
    assert biggan.main([*words, "--out", str(tmp_path / "run")]) == 0
    options = json.loads((tmp_path / "run" / "options.json").read_text())
    assert all(options[name] == value for name, value in biggan.PRESETS[preset].items() if name != "batch_size")
    assert "conditional hinge" in capsys.readouterr().out
    generator = gan.load_network(tmp_path / "run" / "generator.safetensors", "generator", recipe=biggan.RECIPE)
    assert generator.architecture["classes"] == [*NAMES]
    assert any((tmp_path / "run" / "weights").glob("discriminator_*.png"))


def test_a_resumed_run_is_the_uninterrupted_run(labelled, tmp_path):
    same = [*SMALL, "--data", str(labelled), "--iterations", "6", "--sample-every", "2", "--d-steps", "2"]
    same += ["--augment", "colour,translation,cutout", "--spectral-norm-g", "--log-every", "3"]
    whole, parts = whole_and_resumed(biggan.RECIPE, same, tmp_path, crash_at=3)
    assert whole["step"] == parts["step"] == 6
    for part in ("networks", "average", "optimizers", "rng"):
        assert_same(parts[part], whole[part], part)


def test_it_learns_to_draw_the_class_that_it_is_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("blue", "green", "red")):
        images = rng.integers(0, 40, (64, 8, 8, 3), np.uint8)
        images[..., 2 - channel] += rng.integers(120, 200, (64, 1, 1)).astype(np.uint8)
        save_all(images, tmp_path / "data" / name)
    words = [*SMALL, "--data", str(tmp_path / "data"), *"--batch-size 32 --width-g 16 --width-d 16 --ema 500".split()]
    words += "--iterations 300 --lr-g 5e-4 --lr-d 1e-3 --sample-every 300 --seed 6".split()
    assert biggan.main([*words, "--out", str(tmp_path / "run")]) == 0
    generator = gan.load_network(tmp_path / "run/generator.safetensors", "generator", recipe=biggan.RECIPE)
    for label, channel in (("blue", 2), ("green", 1), ("red", 0)):
        colours = generator.generate(32, label).mean((1, 2))
        assert (colours.argmax(1) == channel).mean() > 0.9, label


def test_a_labs_model_is_for_the_labs_commands(model, tmp_path, capsys):
    assert gan.main(["generate", str(model), "--out", str(tmp_path / "x.png")]) == 2
    assert "labs have their own" in capsys.readouterr().err
    words = ["--count", "7", "--label", "cat", "--truncation", "0.5", "--out"]
    assert biggan.main(["generate", str(model), *words, str(tmp_path / "x.npz")]) == 0
    generator = gan.load_network(model, "generator", recipe=biggan.RECIPE)
    with np.load(tmp_path / "x.npz") as archive:
        assert (archive["images"] == generator.generate(7, "cat", truncation=0.5)).all()
        assert archive["labels"].tolist() == [2] * 7
    gan.save_model(tmp_path / "other.safetensors", {"generator": gan.Generator(8, width=4)}, {})
    assert biggan.main(["generate", str(tmp_path / "other.safetensors"), "--out", str(tmp_path / "y.png")]) == 2
    assert capsys.readouterr().err.startswith("labs.biggan: ")


# ----------------------------------------------------------------------------------------------- classes in between


def test_the_ends_of_a_path_are_the_two_classes(model, tmp_path):
    generator = gan.load_network(model, "generator", recipe=biggan.RECIPE)
    images = between.path_images(generator, (1, 3), 5, 4, seed=7, truncation=None)
    z = generator.noise(7, 0, 4)
    for end, label in ((0, 1), (-1, 3)):
        assert (images[end] == generator.draw(z, gan.one_hot(torch.full((4,), label), 5))).all()
    middle = generator.draw(z, (torch.eye(5)[1] + torch.eye(5)[3]).expand(4, -1) / 2)
    assert (images[2] == middle).all()
    out = tmp_path / "path.png"
    words = ["interpolate", str(model), "--classes", "bee,3", "--alphas", "5", "--rows", "4", "--seed", "7"]
    assert biggan.main([*words, "--out", str(out)]) == 0
    pixels = np.asarray(Image.open(out).convert("RGB"))
    assert pixels.shape == (4 * 66 + 2, 5 * 66 + 2, 3)
    shown = np.stack([pixels[2 + 66 * r : 66 + 66 * r : 8, 2:66:8] for r in range(4)])
    assert (shown == images[0]).all()


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
    generator = gan.load_network(model, "generator", recipe=biggan.RECIPE)
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
    generator = gan.load_network(SAVED / "cifar10-small.safetensors", "generator", recipe=biggan.RECIPE)
    names, rows = generator.architecture["classes"], generator.embeddings()
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
    generator = gan.load_network(model, "generator", recipe=biggan.RECIPE)
    images = between.path_images(generator, (3, 0), 3, 2, 0, None)
    features = (
        evaluation.Inception(weights / "random.pth", CPU).features(iter(images), 6, "")["64"].unflatten(0, (3, 2))
    )
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
    (tmp_path / "empty").mkdir()
    (tmp_path / "sub" / "t.csv").mkdir(parents=True)
    for words, said in (
        (["--data", str(labelled), "--arch", "dcgan", *out], "--arch"),
        (["--data", str(labelled), "--latent-dim", "2", "--image-size", "16", *out], "--latent-dim 2"),
        (["--data", str(save_all(pictures(8), tmp_path / "flat")), *out], "--conditional: the data has no labels"),
        (["interpolate", str(model), "--classes", "cat", *png], "--classes cat: takes two classes"),
        (["interpolate", str(model), "--classes", "cat,cow", *png], "--classes cow: is not among the classes"),
        (["interpolate", "--classes", "cat,dog", *png], "give one of MODEL and --pretrained FOLDER"),
        (
            ["interpolate", str(model), "--pretrained", "x", "--classes", "a,b", *png],
            "give one of MODEL and --pretrained",
        ),
        (
            ["interpolate", "--pretrained", str(tmp_path / "empty"), "--classes", "a,b", *png],
            "has no config.json; fetch https",
        ),
        (["embeddings", str(model), "--out", str(tmp_path / "out.gif")], "must end in .png"),
        (["paths", str(model), "--pairs", "cat,cat", *out], "--pairs cat,cat: is one class"),
        (["paths", str(model), "--pairs", "cat", *out], "--pairs cat: takes two classes"),
        (["paths", str(model), "--out", str(labelled)], "is there already"),
        (["truncation", str(model), "--pretrained", "x", *png], "unrecognized arguments: --pretrained"),
        (["paths", str(model), "--alphas", "2", *out], "--alphas: '2' is not a whole number from 3"),
        (["interpolate", str(model), "--classes", "cat,2", *png], "--classes cat,2: is one class"),
        (["interpolate", str(model), "--classes", "cat,dog", "--out", f"{model}/x.png"], "is not a folder that can be"),
        (
            ["interpolate", str(SAVED / "cifar10-ls.safetensors"), "--classes", "cat,dog", *png],
            "no model of labs.biggan",
        ),
        (["truncation", str(model), "--truncations", "0", *png], "--truncations: '0' is not"),
        (["truncation", str(model), "--out", str(tmp_path / "sub" / "t.png")], "t.csv is a folder"),
    ):
        assert biggan.main(words) == 2, words
        message = capsys.readouterr().err
        assert message.startswith("labs.biggan: "), message
        assert said in message
        assert message.count("\n") == 1
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "out.png").exists()


# ------------------------------------------------------------------------------------------------------- BigGAN-deep

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
    z, y = noise(2, 128), torch.tensor([[0.3, 0.7, *[0] * 10], [*[0] * 11, 1]]).float()
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
        expected = network(noise(1, 128), torch.eye(12)[:1], 0.4)
        found = pretrained.load_pretrained(tmp_path / "folder", 0.4)(noise(1, 128), torch.eye(12)[:1])
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
    z = generator.noise(0, 0, 2000)
    assert z.abs().max() <= 0.8
    assert z.std() == pytest.approx(0.4 * scipy.stats.truncnorm(-2, 2).std(), rel=0.01)
    shown = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))[2:130, 2:130]
    assert (shown == generator.draw(z[:2], torch.eye(12)[[3, 3]])[0]).all()
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


def test_interpolate_names_its_own_options(model, tmp_path, capsys):
    for words, said in (
        ("0,99", "--classes 99: is not among"),
        ("0,0", "--classes 0,0: is one"),
    ):
        out = tmp_path / "x.png"
        assert biggan.main(["interpolate", str(model), "--classes", words, "--out", str(out)]) == 2
        assert capsys.readouterr().err.startswith(f"labs.biggan: {said}")
        assert not out.exists()


def test_truncation_finds_out_before_it_measures_that_it_cannot_draw(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert biggan.main(["truncation", str(model), "--samples", "16", "--out", str(tmp_path / "x.png")]) == 2
    assert capsys.readouterr().err.startswith("labs.biggan: pictures need matplotlib")
    assert not [*tmp_path.glob("x.*")]
