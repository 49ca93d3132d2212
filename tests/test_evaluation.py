"""Evaluation: torch-fidelity's values, the cache of real features, neighbours, classes, and the best checkpoint."""

import csv
import itertools
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TOY, Trap, assert_same, pictures, save_all, save_networks
from PIL import Image

import rollnumber_04 as gan
from extras import evaluate as evaluation
from extras import judge
from labs import parts

CPU = torch.device("cpu")
NAMES = ("ant", "bee", "cat")


@pytest.fixture
def model(tmp_path):
    """A generator of 8×8 colour images whose pixels differ."""
    torch.manual_seed(0)
    generator = gan.Generator(8, 3, 4, 4)
    with torch.no_grad():
        generator.project.weight.mul_(50)
    return save_networks(tmp_path / "model.safetensors", generator=generator)


def evaluate(*words, capsys):
    assert gan.main(["evaluate", *map(str, words), "--device", "cpu"]) == 0
    return capsys.readouterr().out


def test_features_in_bfloat16_are_near(weights, monkeypatch, tmp_path):
    from torch_fidelity import utils

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images, found = torch.from_numpy(pictures(4)), {}
    library = utils.create_feature_extractor(
        "inception-v3-compat", ["2048"], cuda=False, feature_extractor_weights_path=str(weights / "random.pth")
    )
    with torch.no_grad():
        (expected,) = library(images.permute(0, 3, 1, 2))
    for precision in ("fp32", "bf16"):
        inception = evaluation.Inception(weights / "random.pth", CPU, precision)
        assert ("bfloat16" in inception.name) == (precision == "bf16")
        found[precision] = evaluation.reference_features(inception, images, "data")
        assert found[precision].dtype == torch.float32
    assert len(list(tmp_path.rglob("*.safetensors"))) == len(found)  # neither is taken for the other
    away = {name: (features - expected).abs().mean() / expected.abs().mean() for name, features in found.items()}
    assert away["fp32"] < 1e-5
    assert 1e-5 < away["bf16"] < 0.03


def train(*words):
    return gan.train(gan.config_from([*map(str, words)]))


def test_the_values_are_those_of_the_library(weights, early, model, tmp_path, capsys, monkeypatch):
    import torch_fidelity

    clock = itertools.count(100, 7.26)  # looked at when it begins and when it ends
    monkeypatch.setattr(evaluation, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    images = pictures(60, seed=1)
    data = save_all(images, tmp_path / "data")
    words = [
        model,
        "--data",
        data,
        "--samples",
        50,
        "--seed",
        3,
        "--inception-weights",
        weights / "random.pth",
        "--json",
    ]
    found = json.loads(evaluate(*words, capsys=capsys))

    class Uint8(torch.utils.data.Dataset):
        def __init__(self, array):
            self.images = torch.from_numpy(array).permute(0, 3, 1, 2)

        def __len__(self):
            return len(self.images)

        def __getitem__(self, i):
            return self.images[i]

    expected = torch_fidelity.calculate_metrics(
        input1=Uint8(gan.load_generator(model).generate(50, seed=3)),
        input2=Uint8(images),
        cuda=False, isc=True, fid=True, kid=True, prc=True, verbose=False, cache=False, save_cpu_ram=True,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights / "random.pth"),
        feature_layer_isc="192", feature_layer_fid="64", feature_layer_kid="64", feature_layer_prc="64",
        kid_subset_size=25, rng_seed=3, batch_size=50,
    )  # fmt: skip
    names = {
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "kid_std": "kernel_inception_distance_std",
        "precision": "precision",
        "recall": "recall",
        "inception_score": "inception_score_mean",
    }
    for name, long in names.items():
        assert found[name] == pytest.approx(expected[long], rel=1e-3, abs=1e-6), name
    assert found["inception_score"] - 1 == pytest.approx(expected["inception_score_mean"] - 1, rel=1e-3)
    assert found["inception_score"] > 1
    assert found["kid_subset_size"] == 25
    assert (found["n_real"], found["n_fake"], found["split"], found["seed"]) == (60, 50, "train", 3)
    assert found["grid"] == evaluation.grid(gan.load_generator(model).generate(50, seed=3), images)
    assert found["biased"]
    assert found["network"] == evaluation.NETWORK
    assert len(found["weights"]) == 16
    assert found["seconds"] == 7.3
    rounded = json.loads(evaluate(*words, "--precision", "bf16", capsys=capsys))
    assert rounded["network"] == evaluation.NETWORK + " in bfloat16"
    assert rounded["fid"] != found["fid"]
    assert rounded["fid"] == pytest.approx(found["fid"], rel=0.1)


@pytest.mark.parametrize(
    "pattern", [lambda i, j: (-1) ** (i + j), lambda i, j: (-1) ** i, lambda i, j: (1, 1, -1, -1)[(i + j) % 4]]
)
def test_a_grid_is_found_and_told_how_strong(pattern):
    rng, size, height = np.random.default_rng(0), 16, 12
    images = rng.integers(64, 192, (4000, size, size, 3), dtype=np.uint8)
    others = rng.integers(64, 192, (4000, size, size, 3), dtype=np.uint8)
    assert evaluation.grid(others, images) == pytest.approx(1, abs=0.1)
    board = np.array([[pattern(i, j) for j in range(size)] for i in range(size)])
    with_grid = (others + height * board[..., None]).astype(np.uint8)
    # Noise of variance v has power v S² everywhere; the pattern's is in one frequency, or in it and its mirror image.
    noise = (128**2 - 1) / 12 / 3 * size**2 + size**2 / 12
    of_pattern = (abs(np.fft.fft2(height * board)) ** 2).max()
    assert evaluation.grid(with_grid, images) == pytest.approx(1 + of_pattern / noise, rel=0.1)
    assert evaluation.grid(with_grid[..., 0], images[..., 0]) < evaluation.grid(with_grid, images)  # more noise
    assert evaluation.grid(np.full_like(images, 9), np.full_like(images, 7)) == 1


def test_without_logits_there_is_no_inception_score(weights, early, model, tmp_path, capsys):
    data = save_all(pictures(20), tmp_path / "data")
    said = evaluate(
        model, "--data", data, "--samples", 20, "--inception-weights", weights / "no-logits.pth", capsys=capsys
    )
    assert said.startswith("FID ")
    assert "Inception score" not in said
    assert "note: FID, precision and recall of so few images are biased" in said
    assert "20 samples, seed 0, of" in said


def test_the_cache_holds_the_real_features_and_knows_what_of(weights, early, model, tmp_path, capsys, monkeypatch):
    data, other = save_all(pictures(20), tmp_path / "data"), save_all(pictures(20, seed=1), tmp_path / "other")
    original, computed = evaluation.Inception.features, []

    def counted(self, pieces, count, what):
        computed.append(what)
        return original(self, pieces, count, what)

    monkeypatch.setattr(evaluation.Inception, "features", counted)

    def run(*words, pth="random.pth", folder=data):
        computed.clear()
        words = [model, "--data", folder, "--samples", 16, "--json", *words, "--inception-weights", weights / pth]
        found = json.loads(evaluate(*words, capsys=capsys))
        return found["fid"], "real images" in computed

    first, fresh = run()
    assert fresh
    assert len([*early.iterdir()]) == 1
    assert run() == (first, False)  # the second time pays for the samples only
    assert run("--reference", "16")[1]
    assert run(pth="no-logits.pth")[1]
    assert run(folder=other)[1]
    assert len([*early.iterdir()]) == 4
    for file in early.iterdir():
        file.write_bytes(file.read_bytes()[:100])  # a damaged file is made anew
    assert run() == (first, True)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    words = [model, "--data", data, "--samples", 16, "--json", "--inception-weights", weights / "random.pth"]
    assert gan.main(["evaluate", *map(str, words)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["fid"] == first
    assert "could not be written" in said.err


def test_the_neighbours_picture_finds_a_planted_copy(weights, early, model, tmp_path, capsys):
    generator = gan.load_generator(model)
    images = pictures(40)
    images[17] = generator.generate(6, seed=0)[5]  # "training images" of which the model has learnt one by heart
    data = save_all(images, tmp_path / "data")
    out = tmp_path / "pictures" / "near.png"
    evaluate(
        model,
        "--data",
        data,
        "--samples",
        20,
        "--inception-weights",
        weights / "random.pth",
        "--neighbours",
        out,
        capsys=capsys,
    )
    with Image.open(out) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (16 * 66 + 2, 13 * 66 + 2, 3)  # sample, gap, 5 by pixels, gap, 5 by features
    tiles = [[pixels[2 + 66 * r : 66 + 66 * r : 8, 2 + 66 * c : 66 + 66 * c : 8] for c in range(13)] for r in range(16)]
    for row in range(16):
        assert (tiles[row][0] == generator.generate(16, seed=0)[row]).all()
        assert (tiles[row][1] == 255).all()
        copies = [(tiles[row][column] == tiles[row][0]).all() for column in range(13)]
        assert copies == [column == 0 or (row == 5 and column in (2, 8)) for column in range(13)]
        distances = [((images.astype(float) - tiles[row][0]) ** 2).sum((1, 2, 3))]
        nearest = images[np.argsort(distances[0])[:5]]
        assert all((tiles[row][2 + i] == nearest[i]).all() for i in range(5))


def test_a_grey_model(weights, early, tmp_path, capsys):
    torch.manual_seed(0)
    generator = gan.Generator(8, 1, 4, 4)
    save_networks(tmp_path / "grey.safetensors", generator=generator)
    rng, data = np.random.default_rng(0), tmp_path / "data"
    for split, count in (("train", 40), ("test", 20)):
        save_all(rng.integers(0, 256, (count, 8, 8), np.uint8), data / split)
    words = [tmp_path / "grey.safetensors", "--data", data, "--samples", 16, "--json", "--split", "all"]
    words += ["--inception-weights", weights / "no-logits.pth", "--neighbours", tmp_path / "near.png"]
    found = json.loads(evaluate(*words, capsys=capsys))
    assert (found["n_real"], found["split"]) == (60, "all")
    assert found["fid"] > 0
    with Image.open(tmp_path / "near.png") as picture:
        assert (picture.mode, picture.size) == ("L", (13 * 66 + 2, 16 * 66 + 2))


@pytest.mark.slow
def test_the_benchmark_of_quality(weights, early, model, tmp_path, monkeypatch):
    from benchmarks import quality

    for seed, split in enumerate(("train", "test")):
        smooth = np.repeat(np.repeat(pictures(24, 4, seed), 2, 1), 2, 2)  # a blur must change them little by little
        save_all(smooth, tmp_path / "data" / split)
    words = ["quality", "--data", tmp_path / "data", "--models", model, "--images", 24, "--out", tmp_path / "q.json"]
    monkeypatch.setattr(sys, "argv", [*map(str, words), "--inception-weights", str(weights / "random.pth")])
    assert quality.main() == 0
    figures = json.loads((tmp_path / "q.json").read_text())["figures"]
    assert [figure["n"] for figure in figures] == [24] * 7
    blurred = [figure["fid"] for figure in figures[1:6]]
    assert blurred[0] < blurred[-1]
    assert len({*blurred}) == 5
    flat = np.full((200, 8, 8, 3), 77, np.uint8)
    assert (np.concatenate([*quality.blurred(flat, 1.0)]) == flat).all()
    point = np.zeros((1, 8, 8, 3), np.uint8)
    point[0, 4, 4] = 255
    spread = np.concatenate([*quality.blurred(point, 1.0)])[0, ..., 0].astype(float)
    assert 0 < spread[4, 3] < spread[4, 4] < 128
    # The half that is not blurred has the features that it had: FIDs are those of the images put together by hand.
    images = {split: gan.load_images(tmp_path / "data", split) for split in ("train", "test")}
    inception = evaluation.Inception(weights / "random.pth", torch.device("cpu"))
    pixels = evaluation.real_sample(images["train"], 24)[0].numpy()
    by_hand = pixels.copy()
    by_hand[::2] = np.concatenate([*quality.blurred(pixels[::2], 0.5)])
    of_test = evaluation.reference_features(inception, *evaluation.real_sample(images["test"], 24))
    found = evaluation.quality(inception.features(iter([by_hand]), 24, ""), of_test, inception)
    assert figures[3]["fid"] == pytest.approx(found["fid"], rel=1e-3)


def test_what_a_classifier_says_of_samples(monkeypatch):
    discriminator = gan.Discriminator(8, 3, 4, classes=NAMES)
    answers = torch.tensor([0, 1, 1, 2, 1, 1, 1, 1])
    monkeypatch.setattr(gan, "class_logits", lambda network, pixels: torch.nn.functional.one_hot(answers, 3) * 50.0)
    black, asked = torch.zeros(8, 8, 8, 1, dtype=torch.uint8), np.array([0, 1, 2, 2, 0, 1, 2, 0])
    said = judge.judged(discriminator, black, asked)
    assert said["share of each class"] == {"ant": 1 / 8, "bee": 6 / 8, "cat": 1 / 8}
    assert said["share in the asked class"] == 4 / 8
    assert said["chi2"] == pytest.approx(2 * (1 - 8 / 3) ** 2 / (8 / 3) + (6 - 8 / 3) ** 2 / (8 / 3))
    assert "share in the asked class" not in judge.judged(discriminator, black.expand(-1, -1, -1, 3), None)


class Bright(parts.ConditionalGenerator):
    """Its images have the brightness of their class; the third class is drawn as the second."""

    def __init__(self):
        super().__init__()
        self.architecture, self.classes = {"image_size": 8, "channels": 3, "latent_dim": 4}, NAMES
        self.levels = torch.nn.Parameter(torch.tensor([40.0, 125.0, 125.0]) / 127.5 - 1)

    def forward(self, z, y):
        return (y @ self.levels)[:, None, None, None].expand(-1, 3, 8, 8)


def test_evaluate_trains_a_classifier_for_a_conditional_model(weights, early, tmp_path, capsys, monkeypatch):
    """Classes that differ in brightness, and a generator whose class decides the brightness, all but one as asked."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 96), ("test", 20)):
        for i, name in enumerate(NAMES):
            level = rng.normal(40 + 85 * i, 8, (count, 8, 8, 3))
            save_all(np.clip(level, 0, 255).astype(np.uint8), tmp_path / "data" / split / name)
    monkeypatch.setattr(gan, "load_generator", lambda *args: Bright())
    words = ["model", "--data", tmp_path / "data", "--samples", 30, "--reference", 30]
    words += ["--inception-weights", weights / "no-logits.pth"]
    result = json.loads(evaluate(*words, "--json", capsys=capsys))
    found = result["classes"]
    assert found["classifier_accuracy"] > 0.95
    assert found["classifier_validated_on"] == 60
    assert found["share in the asked class"] == pytest.approx(2 / 3)
    assert found["share of each class"] == pytest.approx({"ant": 1 / 3, "bee": 2 / 3, "cat": 0})
    assert found["chi2"] == pytest.approx(20)  # 10, 20, 0 against 10 each
    assert "in asked class    66.67% of 30" in evaluation.evaluation_text(result)
    assert "in asked class" not in evaluate(*words, "--no-judge", capsys=capsys)


@pytest.fixture
def scripted(monkeypatch):
    """FIDs that are told in advance, measured by nobody."""
    values = iter([50.0, 30.0, 40.0, 20.0, 25.0])
    facts = {"n_real": 16, "network": "none", "weights": "of nobody"}

    def fid_during(config, images, device):
        return (lambda generator: next(values)), facts | {"n_fake": config.evaluate_samples}

    monkeypatch.setattr(evaluation, "fid_during", fid_during)


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_best_is_the_best_of_the_curve(scripted, tmp_path):
    data = save_all(pictures(16), tmp_path / "data")
    out = train(*TOY, "--data", data, "--seed", 1, "--evaluate-every", 2, "--epochs", 6, "--out", tmp_path / "run")
    assert [row["fid"] for row in rows(out / "epochs.csv")] == ["", "50.0", "", "30.0", "", "40.0"]
    assert gan.load_checkpoint(out / "checkpoints" / "best.pt")["progress"]["epoch"] == 4
    assert (out / "plots" / "fid.png").exists()
    train("--resume", out, "--epochs", 9)  # knows what was best before
    assert [row["fid"] for row in rows(out / "epochs.csv")][6:] == ["", "20.0", "25.0"]  # the last is always measured
    assert gan.load_checkpoint(out / "checkpoints" / "best.pt")["progress"]["epoch"] == 8
    assert gan.load_generator(out / "checkpoints" / "best.pt").generate(2).shape == (2, 8, 8, 3)


def test_what_of_the_evaluation_a_resume_may_change(scripted, tmp_path, capsys):
    data = save_all(pictures(16), tmp_path / "data")
    words = [*TOY, "--data", data, "--evaluate-every", 1, "--evaluate-samples", 20, "--epochs", 2]
    out = train(*words, "--out", tmp_path / "run")
    assert gan.main(["--resume", str(out), "--epochs", "3", "--evaluate-samples", "30"]) == 2
    assert f"--evaluate-samples 30: the FIDs of {out / 'checkpoints' / 'last.pt'}" in (said := capsys.readouterr().err)
    assert "20 samples, 16 images" in said
    assert gan.main(["--resume", str(out), "--epochs", "3", "--evaluate-every", "0"]) == 0
    assert rows(out / "epochs.csv")[2]["fid"] == ""
    assert gan.config_from(["--resume", str(out), "--iterations", "20"]).evaluate_every == 0
    again = gan.config_from(["--resume", str(tmp_path / "run" / "checkpoints" / "epoch_0002.pt"), "--iterations", "20"])
    assert (again.evaluate_every, again.evaluate_samples) == (0, 2000)  # an interval in epochs says nothing of steps


def test_measuring_changes_nothing_and_goes_on_exactly(weights, early, tmp_path):
    """Dropout draws from torch's own random numbers, as the making of Inception does."""
    for i, name in enumerate(NAMES):
        save_all(pictures(16, seed=i), tmp_path / "data" / name)
    same = [*TOY, "--data", tmp_path / "data", "--seed", 1, "--multitask"]
    measured = ["--evaluate-every", 1, "--evaluate-samples", 16, "--inception-weights", weights / "random.pth"]
    runs = {
        "plain": train(*same, "--epochs", 2, "--out", tmp_path / "plain"),
        "whole": train(*same, "--epochs", 2, *measured, "--out", tmp_path / "whole"),
        "parts": train(*same, "--epochs", 1, *measured, "--out", tmp_path / "parts"),
    }
    train("--resume", runs["parts"], "--epochs", 2)
    saved = {name: gan.load_checkpoint(out / "checkpoints/last.pt") for name, out in runs.items()}
    for part in ("model", "optimizers", "ranks"):
        assert_same(saved["parts"][part], saved["whole"][part], part)
        assert_same(saved["plain"][part], saved["whole"][part], part)
    fids = [[row["fid"] for row in saved[name]["epochs"]] for name in ("whole", "parts")]
    assert fids[0] == fids[1]
    assert all(fids[0])


def test_without_evaluation_there_is_no_best(tmp_path):
    data = save_all(pictures(16), tmp_path / "data")
    out = train(*TOY, "--data", data, "--epochs", 1, "--out", tmp_path / "run")
    assert not (out / "checkpoints" / "best.pt").exists()
    assert not (out / "plots" / "fid.png").exists()
    assert rows(out / "epochs.csv")[0]["fid"] == ""


def test_a_run_measures_itself(weights, early, tmp_path):
    data = save_all(pictures(24), tmp_path / "data")
    words = [*TOY, "--data", data, "--seed", 1, "--iterations", 4, "--sample-every", 2, "--evaluate-every", 2]
    words += ["--evaluate-samples", 16, "--inception-weights", weights / "random.pth"]
    out = train(*words, "--out", tmp_path / "run")
    values = [float(row["fid"]) for row in rows(out / "epochs.csv")]
    inception = evaluation.Inception(weights / "random.pth", CPU)
    real = evaluation.reference_features(inception, *evaluation.real_sample(gan.load_images(data), 16))
    generator = gan.load_generator(out / "generator.safetensors")
    fake = inception.features(gan.stream(generator, 16, seed=1), 16, "")
    assert values[-1] == pytest.approx(evaluation.quality(fake, real, inception)["fid"], rel=1e-6)


def test_what_evaluate_refuses(weights, early, model, tmp_path, fails, monkeypatch):
    data = save_all(pictures(20), tmp_path / "data")
    nothing, text = tmp_path / "no.pth", tmp_path / "text.pth"
    text.write_text("not weights")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "code.pth")
    state = torch.load(weights / "random.pth")
    torch.save(state | {"fc.bias": state["fc.bias"] * torch.nan}, tmp_path / "nan.pth")
    for path in (nothing, text, *(tmp_path / f"{name}.pth" for name in ("other", "code", "nan"))):
        said = fails("evaluate", model, "--data", data, "--samples", 16, "--inception-weights", path)
        assert f"--inception-weights {path}: not torch-fidelity's" in said
    assert not (tmp_path / "sprung").exists()
    good = ["--inception-weights", weights / "random.pth", "--samples", 16]
    few = save_all(pictures(8), tmp_path / "few")
    assert f"--data {few}: the data has 8 images; FID needs 16" in fails("evaluate", model, "--data", few, *good)
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "x.png", "/dev/null/x.png"):
        assert f"--neighbours {Path(out).parent}:" in fails(
            "evaluate", model, "--data", data, "--neighbours", out, *good
        )
    assert "there is no such file or folder" in fails("evaluate", model, "--data", tmp_path / "none", *good)
    assert "--neighbours x.gif: must name a .png file" in fails(
        "evaluate", model, "--data", data, "--neighbours", "x.gif"
    )
    assert "--judge: the data has no classes to learn; --no-judge" in fails(
        "evaluate", model, "--data", data, "--judge", *good
    )
    assert "--samples: 1 is not a whole number from 16" in fails("evaluate", model, "--samples", "1")
    assert "--evaluate-samples: needs --evaluate-every" in fails("--data", data, "--evaluate-samples", "20")
    assert "--evaluate-every 3: must be a multiple of --sample-every 2" in fails(
        "--data", data, "--iterations", "4", "--sample-every", "2", "--evaluate-every", "3"
    )
    said = fails("--data", data, *TOY, "--epochs", "2", "--evaluate-every", "1", "--inception-weights", text)
    assert "--inception-weights" in said

    from torch_fidelity import feature_extractor_inceptionv3 as library

    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(library, "load_state_dict_from_url", unreachable)
    said = fails("evaluate", model, "--data", data, "--samples", 16)
    assert "--inception-weights: they could not be fetched (no route to host); give a file that has them" in said
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    for words in (["evaluate", model, "--data", data, *good], ["--data", data, *TOY, "--evaluate-every", "1"]):
        assert "FID needs torch-fidelity 0.4 (pip install torch-fidelity)" in fails(*words)
