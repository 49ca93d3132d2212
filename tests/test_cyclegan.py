"""CycleGAN: the networks' sizes, the losses by hand, the pool, what each step changes, resume, translation."""

import argparse
import json

import numpy as np
import pytest
import torch
from conftest import assert_same, pictures, save_all, whole_and_resumed
from PIL import Image

import rollnumber_04 as gan
from labs import cyclegan

CPU = torch.device("cpu")
TOY = "--image-size 24 --width-g 4 --width-d 4 --batch-size 4 --precision fp32 --device cpu --seed 3".split()


@pytest.fixture
def domains(tmp_path):
    """Two kinds of images, 12 and 9 of them, and test images of the first beside it."""
    save_all(pictures(12, 24), tmp_path / "red")
    save_all(pictures(9, 24, seed=1), tmp_path / "blue")
    save_all(pictures(5, 24, seed=2), tmp_path / "Test_red")
    return ["--x", str(tmp_path / "red"), "--y", str(tmp_path / "blue")]


def toy_run(*words):
    options = cyclegan_options("--x", "a", "--y", "b", *TOY, *words)
    return gan.make_run(options, 3, CPU, False), options


def cyclegan_options(*words) -> argparse.Namespace:
    return gan.parse_options(words, cyclegan.RECIPE)


def images(count=4, size=24, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def weights(run, names):
    return {name: [p.detach().clone() for p in run.networks[name].parameters()] for name in names}


def test_the_networks_are_those_of_the_lab_and_of_the_paper():
    emoji = cyclegan.make_networks(cyclegan_options("--x", "a", "--y", "b"), 3)
    assert [gan.count_parameters(emoji[name]) for name in ("xy", "yx")] == [144_448] * 2
    assert emoji["x"](images(2, 32)).shape == (2, 1, 1)
    photo = cyclegan_options("--x", "a", "--y", "b", "--preset", "photo")
    networks = cyclegan.make_networks(photo, 3)
    # Zhu et al.'s, whose instance norm has no weights: 11.4 and 2.8 million.
    assert gan.count_parameters(networks["xy"]) == 11_378_179
    assert gan.count_parameters(networks["x"]) == 2_764_737
    photo.blocks = 6
    assert gan.count_parameters(cyclegan.make_networks(photo, 3)["xy"]) == 7_837_699
    assert networks["x"](torch.zeros(1, 3, 256, 256)).shape == (1, 30, 30)
    # 70×70: a pixel's change reaches a score from 35 pixels off its centre, not from further.
    image = torch.randn(1, 3, 256, 256).requires_grad_(True)
    for layer in networks["x"].layers:
        if isinstance(layer, torch.nn.InstanceNorm2d):
            layer.forward = lambda maps: maps  # through which each score would depend on all pixels
    networks["x"](image)[0, 15, 15].backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 70


def test_both_cycles_losses_by_hand():
    run, options = toy_run("--lambda-cycle", "3", "--lambda-identity", "0.5")

    class Linear(torch.nn.Module):
        """Multiplies by one number."""

        def __init__(self, factor):
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(factor))

        def forward(self, batch):
            return self.factor * batch

    class Mean(Linear):
        """A score: one number times the image's mean."""

        def forward(self, batch):
            return self.factor * batch.mean((1, 2, 3))

    run.networks = {"xy": Linear(2.0), "yx": Linear(0.25), "x": Mean(1.0), "y": Mean(-1.0)}
    for name, members in (("translators", ("xy", "yx")), ("discriminators", ("x", "y"))):
        run.optimizers[name] = torch.optim.SGD(gan.parameters_of(run.networks, members), 1.0)
    x, y = torch.full((2, 3, 4, 4), 0.5), torch.full((2, 3, 4, 4), -1.0)
    before = {name: network.factor.item() for name, network in run.networks.items()}
    (g_loss, cycle, identity, g_xy, g_yx), fakes = cyclegan.translators_step(run, x, y, options)
    # G(x) = 1, D_y says -1: (-1 - 1)² = 4. F(y) = -0.25, D_x says -0.25: 1.25² = 1.5625.
    assert (g_xy.item(), g_yx.item()) == (4.0, 1.5625)
    assert g_loss.item() == 5.5625
    # F(G(x)) = 0.25, off by 0.25; G(F(y)) = -0.5, off by 0.5. G(y) = -2, off by 1; F(x) = 0.125, off by 0.375.
    assert (cycle.item(), identity.item()) == (0.75, 1.375)
    # d/dg of (-0.5g - 1)² = 0.5g + 1 at g = 2: 2; cycles: |0.5·g·f - 0.5|, |1 - g·f| with g·f = ½: -0.5f - f;
    # identity: |g - 1| gives 1. The total: 2 + 3·(-1.5·0.25 + 0.5·1).
    slope = 2 + 3 * (-1.5 * 0.25 + 0.5)
    assert run.networks["xy"].factor.item() == pytest.approx(before["xy"] - slope)
    # d/df of (-f - 1)² = 2·(f + 1) = 2.5; cycles -1.5·g = -3; identity |0.5f - 0.5| gives -0.5.
    assert run.networks["yx"].factor.item() == pytest.approx(before["yx"] - (2.5 + 3 * (-3 - 0.25)))
    assert [run.networks[name].factor.item() for name in ("x", "y")] == [before["x"], before["y"]]
    assert fakes["y"].unique().tolist() == [1.0]
    assert fakes["x"].unique().tolist() == [-0.25]
    d_x, d_y = cyclegan.discriminators_step(run, {"x": x, "y": y}, fakes)
    # D_x: ½·(0.5 - 1)² + ½·0.25²; D_y = -mean: of y 1, ½·0; of its fake -1, ½.
    assert (d_x.item(), d_y.item()) == (0.125 + 0.03125, 0.5)
    # d/da of ½·(0.5a - 1)² + ½·(0.25a)² = 0.25a - 0.5 + 0.0625a at 1; of ½·(-a - 1)² + ½·a² = 2a + 1 at -1.
    assert run.networks["x"].factor.item() == pytest.approx(1 - (0.25 - 0.5 + 0.0625))
    assert run.networks["y"].factor.item() == pytest.approx(-1 - (-2 + 1))


def test_each_step_changes_its_own_networks_only():
    run, options = toy_run("--pool", "8")
    x, y = images(), images(seed=1)
    for change, keep, step in (
        (("xy", "yx"), ("x", "y"), lambda: cyclegan.translators_step(run, x, y, options)),
        (("x", "y"), ("xy", "yx"), lambda: cyclegan.discriminators_step(run, {"x": x, "y": y}, {"x": y, "y": x})),
    ):
        changed, kept = weights(run, change), weights(run, keep)
        step()
        for name in keep:
            assert all(map(torch.equal, kept[name], weights(run, [name])[name])), name
        for name in change:
            pairs = zip(changed[name], weights(run, change)[name], strict=True)
            assert not all(torch.equal(old, new) for old, new in pairs), name
    assert all(parameter.requires_grad for network in run.networks.values() for parameter in network.parameters())


def test_the_pools_show_new_and_old_translations_half_and_half():
    run, _ = toy_run("--pool", "16")
    seen = {"x": [], "y": []}
    for name, shown in seen.items():
        run.networks[name].register_forward_pre_hook(
            lambda network, inputs, shown=shown: shown.append(inputs[0].detach())
        )
    old, real = {"x": 0, "y": 0}, {"x": images(), "y": images()}
    for number in range(1, 201):
        fakes = {name: torch.full((4, 3, 24, 24), sign * number) for name, sign in (("x", 1.0), ("y", -1.0))}
        cyclegan.discriminators_step(run, real, fakes)
        for name, sign in (("x", 1), ("y", -1)):
            values = seen[name][-1][:, 0, 0, 0]
            assert (sign * values > 0).all()  # each discriminator its own pool
            old[name] += int((values != sign * number).sum()) if number > 4 else 0
    assert [count / (4 * 196) for count in old.values()] == pytest.approx([0.5, 0.5], abs=0.06)


def test_crops_are_squares_of_their_images():
    batch = torch.arange(2 * 3 * 10 * 12).reshape(2, 3, 10, 12).float()
    rng, places = torch.Generator().manual_seed(0), set()
    for _ in range(100):
        cropped = cyclegan.crops(batch, 8, rng)
        assert cropped.shape == (2, 3, 8, 8)
        for image, crop in zip(batch, cropped, strict=True):
            top, left = divmod(int(crop[0, 0, 0] - image[0, 0, 0]), 12)
            assert torch.equal(crop, image[:, top : top + 8, left : left + 8])
            places.add((top, left))
    assert places == {(top, left) for top in range(3) for left in range(5)}
    assert torch.equal(cyclegan.crops(batch[..., :10], 10, rng), batch[..., :10])


# ------------------------------------------------------------------------------------------------------------- runs


def test_a_run_writes_its_folder_and_resumes_exactly(domains, tmp_path, capsys):
    same = [
        *TOY,
        *domains,
        "--pool",
        "4",
        "--flip",
        "--lr-decay",
        "--load-size",
        "26",
        "--sample-every",
        "2",
        "--log-every",
        "3",
    ]
    # In the middle of a leg, after a save there.
    whole, parts = whole_and_resumed(cyclegan.RECIPE, [*same, "--iterations", "6"], tmp_path, crash_at=3)
    said = capsys.readouterr().out
    assert "two translators of" in said
    assert "--y" in said
    assert "has no test images" in said
    out = tmp_path / "whole"
    for name in ("samples/iteration_000006.png", "samples/y_to_x/iteration_000004.png", "plots/cycle_loss.png"):
        assert (out / name).is_file(), name
    assert (out / "log.csv").read_text().splitlines()[0].startswith("step,epoch,d_loss,g_loss,cycle_loss,identity_loss")
    # 24 pixels are shown as 48, with gaps of 2; rows of three times image, translation, reconstruction and a gap.
    assert Image.open(out / "samples/iteration_000006.png").size == (12 * 50 + 2, 2 * 50 + 2)

    assert whole["step"] == parts["step"] == 6
    assert without_speed(whole["history"]) == without_speed(parts["history"])
    for part in ("networks", "average", "optimizers", "pools", "rng"):
        assert_same(parts[part], whole[part], part)


def without_speed(history):
    return {
        name: [{k: v for k, v in row.items() if k not in ("images_per_s", "seconds")} for row in rows]
        for name, rows in history.items()
    }


def test_it_learns_to_swap_colours(tmp_path):
    """Red and blue squares on grey: the only thing that differs between the kinds is which channel they are in."""
    draw = np.random.default_rng(0)
    for channel, name in ((0, "red"), (2, "blue"), (0, "Test_red"), (2, "Test_blue")):
        batch = np.full((64, 24, 24, 3), 128, np.uint8)
        for image in batch:
            top, left = draw.integers(0, 12, 2)
            image[top : top + 12, left : left + 12] = 0
            image[top : top + 12, left : left + 12, channel] = draw.integers(160, 256)
        save_all(batch, tmp_path / name)
    words = [*"--image-size 24 --width-g 8 --width-d 8 --batch-size 16 --iterations 150 --seed 1 --device cpu".split()]
    words += ["--precision", "fp32", "--ema", "0", "--lr-g", "0.002", "--lr-d", "0.002", "--sample-every", "150"]
    words += ["--x", str(tmp_path / "red"), "--y", str(tmp_path / "blue"), "--out", str(tmp_path / "run")]
    assert cyclegan.main(words) == 0
    pixels = gan.load_images(tmp_path / "Test_red", image_size=24).pixels
    translated = cyclegan.load_translator(tmp_path / "run/translators.safetensors", "xy").translate(pixels)
    true = pixels.numpy()[..., ::-1].astype(float)  # the same squares in blue
    before, after = (np.abs(given - true).mean() for given in (pixels.numpy().astype(float), translated))
    assert after < 0.6 * before
    square = pixels[..., 0].numpy() != 128
    assert translated[square][:, 2].mean() > translated[square][:, 0].mean() + 40


@pytest.mark.parametrize("style", cyclegan.STYLES)
@pytest.mark.parametrize(("height", "width"), [(28, 28), (32, 64), (45, 31), (256, 200), (3, 5), (1, 1)])
def test_translate_keeps_the_size_of_each_image(tmp_path, height, width, style):
    networks = {name: cyclegan.Translator(style, width=4) for name in ("xy", "yx")}
    gan.save_model(tmp_path / "m.safetensors", networks, {})
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    save_all(image[None], tmp_path / "in")
    words = ["translate", str(tmp_path / "m.safetensors"), str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert cyclegan.main([*words, "--direction", "yx"]) == 0
    (file,) = (tmp_path / "out").iterdir()
    assert Image.open(file).size == (width, height)
    expected = networks["yx"].eval().translate(image[None])[0]
    assert np.abs(np.asarray(Image.open(file)).astype(int) - expected).max() <= 1


def test_photo_networks_train_and_translate(tmp_path):
    options = cyclegan_options("--x", "a", "--y", "b", "--preset", "photo", "--width-g", "4", "--width-d", "4")
    options.image_size, options.blocks, options.batch_size = 32, 1, 2
    run = gan.make_run(options, 3, CPU, False)
    pair = gan.Images(
        torch.from_numpy(pictures(4, 36)), None, (), gan.Images(torch.from_numpy(pictures(3, 40)), None, ())
    )
    measures = cyclegan.step(run, pair, torch.tensor([[0, 3]]), options)
    assert measures.isfinite().all()
    assert measures[3] > 0  # the identity loss
    assert run.averages["xy"].translate(pictures(1, 30)).shape == (1, 30, 30, 3)


def test_reflected_borders_are_not_deterministic_on_a_gpu(domains, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    words = [*domains, "--preset", "photo", "--deterministic", "--out", str(tmp_path / "run")]
    assert cyclegan.main(words) == 2
    assert "--deterministic: on a GPU torch cannot" in capsys.readouterr().err
    options = gan.parse_options([*words, "--device", "cpu"], cyclegan.RECIPE)
    assert options.deterministic


def test_mistakes_are_one_sentence(domains, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    for words, said in (
        (domains[:2], "--y: is missing"),
        (["--x", str(tmp_path / "nothing"), *domains[2:]], "--x"),
        ([*domains[:2], "--y", str(tmp_path / "nothing")], "--y"),
        ([*domains, "--image-size", "30"], "--image-size 30"),
        ([*domains, "--image-size", "32", "--load-size", "28"], "--load-size 28"),
        ([*domains[:2], "--y", domains[1]], "--y"),
        ([*domains, "--lambda-cycle", "0", "--lambda-identity", "1"], "--lambda-identity: needs --lambda-cycle"),
        ([*domains, "--save-every", "300"], "--save-every 300: must be a multiple of --sample-every 200"),
        ([*domains, "--pool", "8"], "--pool 8"),
        ([*domains, "--image-size", "20"], "--image-size: '20' is not"),
    ):
        assert cyclegan.main([*words, *out]) == 2, words
        message = capsys.readouterr().err
        assert message.startswith("labs.cyclegan: ")
        assert said in message
        assert message.count("\n") == 1
        assert not (tmp_path / "run").exists()
    inside = str(tmp_path / "blue" / "run")
    assert cyclegan.main([*domains, "--out", inside]) == 2
    assert "lies inside the data" in capsys.readouterr().err
    gan.save_model(tmp_path / "g.safetensors", {"generator": gan.Generator(8, width=4)}, {})
    (tmp_path / "bad.png").write_bytes(b"no image")
    networks = {name: cyclegan.Translator(width=4) for name in ("xy", "yx")}
    gan.save_model(tmp_path / "m.safetensors", networks, {})
    picture = str(tmp_path / "red" / "0001.png")
    for words, said in (
        ([str(tmp_path / "g.safetensors"), picture], "holds no xy"),
        ([str(tmp_path / "m.safetensors"), str(tmp_path / "bad.png")], "bad.png: not an image"),
        ([str(tmp_path / "m.safetensors"), str(tmp_path / "none.png")], "none.png"),
        ([str(tmp_path / "m.safetensors"), picture, picture], "would be written over"),
    ):
        assert cyclegan.main(["translate", *words, *out]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    assert cyclegan.main(["translate", str(tmp_path / "m.safetensors"), picture, "--out", str(tmp_path)]) == 2


def test_a_resumed_run_keeps_its_networks(domains, tmp_path, capsys):
    same = [*TOY, *domains, "--iterations", "2", "--out", str(tmp_path / "run")]
    assert cyclegan.main(same) == 0
    capsys.readouterr()
    assert cyclegan.main(["--resume", "--out", str(tmp_path / "run"), "--width-g", "8"]) == 2
    assert "--width-g 8: the checkpoint" in capsys.readouterr().err
    assert cyclegan.main(["--resume", "--out", str(tmp_path / "run"), "--iterations", "3", "--lambda-cycle", "2"]) == 0
    assert "--lambda-cycle" in capsys.readouterr().out
    assert gan.load_checkpoint(tmp_path / "run/checkpoints/last.pt")["step"] == 3
    assert gan.main(["--resume", "--out", str(tmp_path / "run"), "--iterations", "4"]) == 2
    assert "holds xy, yx, x, y: it is no run of this program" in capsys.readouterr().err
    # Neither program takes the other's files.
    last = str(tmp_path / "run/checkpoints/last.pt")
    assert gan.main(["generate", last, "--out", str(tmp_path / "sheet.png")]) == 2
    assert "does not say what generator" in capsys.readouterr().err


def test_sizes_and_pools_that_only_the_lab_has(domains, tmp_path, monkeypatch, capsys):
    """36 pixels are no size of the script's networks, and a pool may be smaller than the batch that times a step."""
    words = [*domains, *"--image-size 36 --pool 4 --batch-size 4 --width-g 4 --width-d 4 --device cpu --seed 1".split()]
    out = ["--out", str(tmp_path / "run")]
    assert cyclegan.main([*words, "--iterations", "1", *out]) == 0
    assert cyclegan.main(["--resume", "--iterations", "2", *out]) == 0
    assert gan.load_checkpoint(tmp_path / "run/checkpoints/last.pt")["step"] == 2
    capsys.readouterr()
    save_all(pictures(1, 72), tmp_path / "large")
    translate = ["translate", str(tmp_path / "run/translators.safetensors"), str(tmp_path / "large"), "--out"]
    assert cyclegan.main([*translate, str(tmp_path / "a")]) == 0
    assert "note: the model has learnt at 36 pixels" in capsys.readouterr().out
    assert cyclegan.main([*translate, str(tmp_path / "b"), "--image-size", "36"]) == 0
    assert "note" not in capsys.readouterr().out
    assert Image.open(tmp_path / "b" / "0000.png").size == (36, 36)
    monkeypatch.chdir(tmp_path / "red")
    assert cyclegan.main([*TOY, "--x", ".", *domains[2:], "--iterations", "1", "--out", str(tmp_path / "here")]) == 0


# ---------------------------------------------------------------------------------------------------------- pairs


def test_what_is_held_out_depends_on_the_name_alone(tmp_path):
    for folder, names in (("x", range(300)), ("y", range(100, 400))):
        (tmp_path / folder).mkdir()
        for number in names:
            (tmp_path / folder / f"emoji-{number}.png").touch()
    parts = {}
    for folder in ("x", "y"):
        trained, held = cyclegan.held_out_files(tmp_path / folder, 0.2)
        assert len(trained) + len(held) == 300
        assert not {file.stem for file in trained} & {file.stem for file in held}
        assert len(held) == pytest.approx(60, abs=25)  # 3.6 deviations
        parts[folder] = {file.stem for file in held}
    common = {f"emoji-{number}" for number in range(100, 300)}
    assert parts["x"] & common == parts["y"] & common


def test_a_run_with_held_out_images_trains_on_the_others(tmp_path, capsys):
    for seed, folder in enumerate(("x", "y")):
        save_all(pictures(30, 24, seed), tmp_path / folder)
        save_all(pictures(3, 24, seed), tmp_path / f"Test_{folder}")  # which are not looked at
    trained, held = cyclegan.held_out_files(tmp_path / "x", 0.3)
    words = ["--x", str(tmp_path / "x"), "--y", str(tmp_path / "y"), *TOY, "--dry-run", "--held-out", "0.3"]
    assert cyclegan.main([*words, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert f"/x: {len(trained)} colour images" in said
    assert f"validation {len(held)} and {len(held)} test images" in said
    assert cyclegan.training_of(tmp_path / "run" / "translators.safetensors")["held_out"] == 0.3
    for extra, complaint in (
        (["--x-test", str(tmp_path / "Test_x")], "--held-out: not with --x-test"),
        (["--held-out", "0.0001"], "--held-out 0.0001 leaves 30 of its images for training and 0 for tests"),
    ):
        assert cyclegan.main([*words, *extra, "--out", str(tmp_path / "other")]) == 2
        assert complaint in capsys.readouterr().err


def test_the_measure_of_pairs_by_hand(tmp_path, monkeypatch, capsys, weights, early):
    """Negatives, translated by what makes negatives: each is its own counterpart."""
    images = pictures(5, 16)
    save_all(images, tmp_path / "x")
    save_all(255 - images, tmp_path / "y", ".bmp")  # the same names but for the suffix
    (tmp_path / "x" / "0004.png").rename(tmp_path / "x" / "alone.png")

    class Negative:
        """A perfect translator."""

        def translate(self, pixels):
            return 255 - pixels.numpy()

    monkeypatch.setattr(cyclegan, "load_translator", lambda *arguments: Negative())
    words = ["measure", "m", "--x", str(tmp_path / "x"), "--y", str(tmp_path / "y"), "--image-size", "16"]
    words += ["--device", "cpu", "--inception-weights", str(weights / "random.pth")]
    assert cyclegan.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pairs"] == 4
    given = images[:4].astype(float) / 127.5 - 1
    apart = np.array([[np.abs(a - (-b)).mean() for b in given] for a in given])
    others = apart[~np.eye(4, dtype=bool)].mean()
    assert found["untranslated, l1"] == pytest.approx({"own counterpart": apart.trace() / 4, "another's": others})
    among = np.array([[np.abs(a - b).mean() for b in given] for a in given])
    assert found["translated, l1"]["own counterpart"] == 0
    assert found["translated, l1"]["another's"] == pytest.approx(among.sum() / 12)
    assert found["translated, features"]["own counterpart"] == pytest.approx(0, abs=1e-3)
    assert found["translated, features"]["another's"] > 0.01
    assert found["untranslated, features"]["own counterpart"] > 0.01
    assert cyclegan.main(words) == 0
    assert "4 pairs at 16×16, xy" in capsys.readouterr().out
    (tmp_path / "none").mkdir()
    save_all(pictures(2, 16), tmp_path / "none" / "inner")
    (tmp_path / "none" / "inner" / "0001.png").rename(tmp_path / "none" / "inner" / "b.png")
    assert cyclegan.main([*words[:4], "--y", str(tmp_path / "none" / "inner"), *words[6:]]) == 2
    assert "1 of its files have a name that one of --x has" in capsys.readouterr().err
