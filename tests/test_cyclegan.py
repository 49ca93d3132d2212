"""CycleGAN: the networks' sizes, the losses by hand, the pool, what each step changes, resume, translation."""

import json

import numpy as np
import pytest
import torch
from conftest import assert_same, pictures, save_all, save_networks, whole_and_resumed
from PIL import Image

import rollnumber_04 as gan
from labs import cyclegan, pairs
from labs.cyclegan import Config, CycleGAN, PatchDiscriminator, Translator

CPU = torch.device("cpu")
TOY = "--image-size 24 --width-g 4 --width-d 4 --batch-size 4 --precision fp32 --device cpu --seed 3".split()


@pytest.fixture
def domains(tmp_path):
    """Two kinds of images, 12 and 9 of them, and test images of the first beside it."""
    save_all(pictures(12, 24), tmp_path / "red")
    save_all(pictures(9, 24, seed=1), tmp_path / "blue")
    save_all(pictures(5, 24, seed=2), tmp_path / "Test_red")
    return ["--x", str(tmp_path / "red"), "--y", str(tmp_path / "blue")]


def toy(*words):
    """A small CycleGAN in training on the CPU, which is planned for 10 steps."""
    model = CycleGAN(config_of(*TOY, *words), 3).on(CPU)
    model.planned = 10
    return model


def config_of(*words) -> Config:
    return gan.config_from(["--x", "a", "--y", "b", *words], CycleGAN)


def images(count=4, size=24, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def weights_of(model, names):
    return {name: [p.detach().clone() for p in getattr(model, name).parameters()] for name in names}


def test_the_networks_are_those_of_the_lab_and_of_the_paper():
    emoji = CycleGAN(config_of("--seed", "0"), 3)
    assert [gan.count_parameters(getattr(emoji, name)) for name in ("xy", "yx")] == [144_448] * 2
    assert emoji.x(images(2, 32)).shape == (2, 1, 1)
    photo = CycleGAN(config_of("--style", "photo", "--seed", "0"), 3)
    # Zhu et al.'s, whose instance norm has no weights: 11.4 and 2.8 million.
    assert gan.count_parameters(photo.xy) == 11_378_179
    assert gan.count_parameters(photo.x) == 2_764_737
    assert gan.count_parameters(Translator("photo", width=64, blocks=6)) == 7_837_699
    assert photo.x(torch.zeros(1, 3, 256, 256)).shape == (1, 30, 30)
    for network in (photo.xy, photo.y):
        assert all(not p.any() for name, p in network.named_parameters() if name.endswith("bias"))
    # 70×70: a pixel's change reaches a score from 35 pixels off its centre, not from further.
    image = torch.randn(1, 3, 256, 256).requires_grad_(True)
    for layer in photo.x.layers:
        if isinstance(layer, torch.nn.InstanceNorm2d):
            layer.forward = lambda maps: maps  # through which each score would depend on all pixels
    photo.x(image)[0, 15, 15].backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 70


def test_the_style_decides_the_defaults_and_a_flag_is_above_it():
    emoji, photo = config_of(), config_of("--style", "photo")
    assert (emoji.image_size, emoji.batch_size, emoji.iterations, emoji.epochs) == (32, 32, 5000, None)
    assert (emoji.lr_g, emoji.beta1, emoji.flip, emoji.pool, emoji.lambda_identity) == (3e-4, 0.3, False, 0, 0.0)
    assert (photo.image_size, photo.batch_size, photo.iterations, photo.epochs) == (256, 1, None, 200)
    assert (photo.lr_g, photo.beta1, photo.flip, photo.pool, photo.lambda_identity) == (2e-4, 0.5, True, 50, 0.5)
    assert (photo.width_g, photo.width_d, photo.blocks, photo.lr_decay, photo.ema) == (64, 64, 9, True, 0)
    assert (emoji.loaded_size, photo.loaded_size) == (32, 286)
    assert config_of("--style", "photo", "--no-crop").loaded_size == 256
    assert config_of("--load-size", "40").loaded_size == 40
    other = config_of("--style", "photo", *"--no-flip --pool 0 --iterations 7 --lambda-identity 0 --blocks 0".split())
    assert (other.flip, other.pool, other.lambda_identity, other.blocks) == (False, 0, 0.0, 0)
    assert (other.iterations, other.epochs) == (7, None)
    assert config_of("--epochs", "3").iterations is None


def test_both_cycles_losses_by_hand():
    model = toy("--lambda-cycle", "3", "--lambda-identity", "0.5")

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

    model.xy, model.yx, model.x, model.y = Linear(2.0), Linear(0.25), Mean(1.0), Mean(-1.0)
    for name, (members, _) in model.optimized().items():
        factors = [getattr(model, member).factor for member in members]
        model.optimizers[name] = torch.optim.SGD(factors, 1.0)
    x, y = torch.full((2, 3, 4, 4), 0.5), torch.full((2, 3, 4, 4), -1.0)
    before = {name: getattr(model, name).factor.item() for name in model.networks}
    fakes, (g_xy, g_yx, cycle, identity) = model.update_translators(x, y)
    # G(x) = 1, D_y says -1: (-1 - 1)² = 4. F(y) = -0.25, D_x says -0.25: 1.25² = 1.5625.
    assert (g_xy.item(), g_yx.item()) == (4.0, 1.5625)
    # F(G(x)) = 0.25, off by 0.25; G(F(y)) = -0.5, off by 0.5. G(y) = -2, off by 1; F(x) = 0.125, off by 0.375.
    assert (cycle.item(), identity.item()) == (0.75, 1.375)
    # d/dg of (-0.5g - 1)² = 0.5g + 1 at g = 2: 2; cycles: |0.5·g·f - 0.5|, |1 - g·f| with g·f = ½: -0.5f - f;
    # identity: |g - 1| gives 1. The total: 2 + 3·(-1.5·0.25 + 0.5·1).
    slope = 2 + 3 * (-1.5 * 0.25 + 0.5)
    assert model.xy.factor.item() == pytest.approx(before["xy"] - slope)
    # d/df of (-f - 1)² = 2·(f + 1) = 2.5; cycles -1.5·g = -3; identity |0.5f - 0.5| gives -0.5.
    assert model.yx.factor.item() == pytest.approx(before["yx"] - (2.5 + 3 * (-3 - 0.25)))
    assert (model.x.factor.item(), model.y.factor.item()) == (before["x"], before["y"])
    assert fakes["y"].unique().tolist() == [1.0]
    assert fakes["x"].unique().tolist() == [-0.25]
    d_x, d_y = model.update_discriminators({"x": x, "y": y}, fakes)
    # D_x: ½·(0.5 - 1)² + ½·0.25²; D_y = -mean: of y 1, ½·0; of its fake -1, ½.
    assert (d_x.item(), d_y.item()) == (0.125 + 0.03125, 0.5)
    # d/da of ½·(0.5a - 1)² + ½·(0.25a)² = 0.25a - 0.5 + 0.0625a at 1; of ½·(-a - 1)² + ½·a² = 2a + 1 at -1.
    assert model.x.factor.item() == pytest.approx(1 - (0.25 - 0.5 + 0.0625))
    assert model.y.factor.item() == pytest.approx(-1 - (-2 + 1))


def test_each_step_changes_its_own_networks_only():
    model, x, y = toy("--pool", "8"), images(), images(seed=1)
    for change, keep, step in (
        (("xy", "yx"), ("x", "y"), lambda: model.update_translators(x, y)),
        (("x", "y"), ("xy", "yx"), lambda: model.update_discriminators({"x": x, "y": y}, {"x": y, "y": x})),
    ):
        changed, kept = weights_of(model, change), weights_of(model, keep)
        step()
        for name in keep:
            assert all(map(torch.equal, kept[name], weights_of(model, [name])[name])), name
        for name in change:
            pairs = zip(changed[name], weights_of(model, change)[name], strict=True)
            assert not all(torch.equal(old, new) for old, new in pairs), name
    assert all(p.requires_grad for name in model.networks for p in getattr(model, name).parameters())


def test_the_metrics_are_the_losses():
    model, x, y = toy(), images(), images(seed=1)
    metrics = dict(zip(model.columns(model.config), model.step(x, y), strict=True))
    assert metrics["g_loss"] == metrics["g_xy"] + metrics["g_yx"]
    assert metrics["d_loss"] == metrics["d_x"] + metrics["d_y"]
    assert metrics["cycle_loss"] > 0
    assert metrics["identity_loss"] == 0  # which is not measured where it has no weight
    assert not any(metric.requires_grad for metric in metrics.values())


@pytest.mark.parametrize("as_tensors", [False, True])
def test_rates_fall_to_0_in_the_second_half(as_tensors):
    model, x, y = toy("--lr-decay", "--lr-g", "0.5", "--lr-d", "0.25"), images(), images(seed=1)
    groups = [model.optimizers[name].param_groups[0] for name in ("translators", "discriminators")]
    if as_tensors:  # as on a GPU, where a captured step must find the same tensors changed
        for group in groups:
            group["lr"] = torch.tensor(group["lr"])
    first, rates = [group["lr"] for group in groups], []
    for done in range(10):
        model.steps.fill_(done)
        model.step(x, y)
        rates.append([float(group["lr"]) for group in groups])
    assert np.array(rates) == pytest.approx(np.outer([1] * 6 + [0.8, 0.6, 0.4, 0.2], [0.5, 0.25]))
    assert not as_tensors or all(group["lr"] is tensor for group, tensor in zip(groups, first, strict=True))


def test_a_resumed_run_says_that_its_rates_jump():
    model = toy("--lr-decay")
    assert model.jumps(8, {"planned": 10, "lr_decay": True}) == []
    (said,) = model.jumps(8, {"planned": 16, "lr_decay": True})
    assert said == "the learning rates stood at 100% of their first value and go on at 40%"
    for strange in ({}, {"planned": "16", "lr_decay": True}, {"planned": 0, "lr_decay": True}, {"planned": 16}):
        assert model.jumps(8, strange) == []


def test_the_pools_show_new_and_old_translations_half_and_half():
    model = toy("--pool", "16")
    seen = {"x": [], "y": []}
    for name, shown in seen.items():
        getattr(model, name).register_forward_pre_hook(
            lambda network, inputs, shown=shown: shown.append(inputs[0].detach())
        )
    old, real = {"x": 0, "y": 0}, {"x": images(), "y": images()}
    for number in range(1, 201):
        fakes = {name: torch.full((4, 3, 24, 24), sign * number) for name, sign in (("x", 1.0), ("y", -1.0))}
        model.update_discriminators(real, fakes)
        for name, sign in (("x", 1), ("y", -1)):
            values = seen[name][-1][:, 0, 0, 0]
            assert (sign * values > 0).all()  # each discriminator its own pool
            old[name] += int((values != sign * number).sum()) if number > 4 else 0
    assert [count / (4 * 196) for count in old.values()] == pytest.approx([0.5, 0.5], abs=0.06)


def test_crops_are_squares_of_their_images():
    batch = torch.arange(2 * 3 * 10 * 12).reshape(2, 3, 10, 12).float()
    rng, places = torch.Generator().manual_seed(0), set()
    for _ in range(100):
        cropped = pairs.crops(batch, 8, rng)
        assert cropped.shape == (2, 3, 8, 8)
        for image, crop in zip(batch, cropped, strict=True):
            top, left = divmod(int(crop[0, 0, 0] - image[0, 0, 0]), 12)
            assert torch.equal(crop, image[:, top : top + 8, left : left + 8])
            places.add((top, left))
    assert places == {(top, left) for top in range(3) for left in range(5)}
    assert torch.equal(pairs.crops(batch[..., :10], 10, rng), batch[..., :10])


# ------------------------------------------------------------------------------------------------------------- runs


def test_a_run_writes_its_folder_and_resumes_exactly(domains, tmp_path, capsys):
    same = [*TOY, *domains, *"--pool 4 --flip --lr-decay --load-size 26 --sample-every 2 --iterations 6".split()]
    # After a save, in the middle of an interval, with pools that are full.
    whole, resumed = whole_and_resumed("labs.cyclegan", same, tmp_path, crash_at=3)
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

    assert whole["progress"]["step"] == resumed["progress"]["step"] == 6
    for part in ("model", "optimizers", "ranks"):
        assert_same(resumed[part], whole[part], part)
    for rows in ("log", "epochs"):
        assert without_speed(resumed[rows]) == without_speed(whole[rows])


def without_speed(rows):
    return [{k: v for k, v in row.items() if k not in ("images_per_s", "seconds")} for row in rows]


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
    translated = gan.load_network(tmp_path / "run/translators.safetensors", "xy").translate(pixels)
    true = pixels.numpy()[..., ::-1].astype(float)  # the same squares in blue
    before, after = (np.abs(given - true).mean() for given in (pixels.numpy().astype(float), translated))
    assert after < 0.6 * before
    square = pixels[..., 0].numpy() != 128
    assert translated[square][:, 2].mean() > translated[square][:, 0].mean() + 40


@pytest.mark.parametrize("style", cyclegan.STYLES)
@pytest.mark.parametrize(("height", "width"), [(28, 28), (32, 64), (45, 31), (256, 200), (3, 5), (1, 1)])
def test_translate_keeps_the_size_of_each_image(tmp_path, height, width, style):
    networks = {name: Translator(style, width=4) for name in ("xy", "yx")}
    model = str(save_networks(tmp_path / "m.safetensors", "labs.cyclegan", **networks))
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    save_all(image[None], tmp_path / "in")
    save_all(pictures(1), tmp_path / "out" / "another")  # a folder that is there already
    words = ["translate", model, str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert cyclegan.main([*words, "--direction", "yx"]) == 0
    (file,) = (tmp_path / "out").glob("*.png")
    assert Image.open(file).size == (width, height)
    expected = networks["yx"].eval().translate(image[None])[0]
    assert np.abs(np.asarray(Image.open(file)).astype(int) - expected).max() <= 1


def test_photo_networks_train_and_translate():
    words = "--style photo --width-g 4 --width-d 4 --image-size 32 --blocks 1 --batch-size 2 --seed 0 --precision fp32"
    model = CycleGAN(config_of(*words.split()), 3).on(CPU)
    model.planned = 2
    pair = pairs.Pairs(torch.from_numpy(pictures(4, 36)), None, (), other_pixels=torch.from_numpy(pictures(3, 40)))
    model.iterate(pair, torch.tensor([[0, 3]]))
    metrics = dict(zip(model.columns(model.config), model.sums, strict=True))
    assert all(metric.isfinite() for metric in metrics.values())
    assert metrics["identity_loss"] > 0
    assert model.averages["xy"].translate(pictures(1, 30)).shape == (1, 30, 30, 3)
    for network in (Translator, PatchDiscriminator):
        with pytest.raises(ValueError, match="of style sketch"):
            network("sketch")


def test_reflected_borders_are_not_deterministic_on_a_gpu(domains, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    words = [*domains, "--style", "photo", "--deterministic", "--out", str(tmp_path / "run")]
    assert cyclegan.main(words) == 2
    assert "--deterministic: on a GPU torch cannot" in capsys.readouterr().err
    assert gan.config_from([*words, "--device", "cpu"], CycleGAN).deterministic


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
        ([*domains, "--image-size", "20"], "--image-size: 20 is not"),
        ([*domains, "--style", "sketch"], "--style: 'sketch' is not emoji or photo"),
        ([*domains, "--data", "a"], "--data"),
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
    other = str(save_networks(tmp_path / "g.safetensors", generator=gan.Generator(8, width=4)))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bad.png").write_bytes(b"no image")
    networks = {name: Translator(width=4) for name in ("xy", "yx")}
    model = str(save_networks(tmp_path / "m.safetensors", "labs.cyclegan", **networks))
    picture = str(tmp_path / "red" / "0001.png")
    for words, said in (
        ([other, picture], "is of rollnumber_04 and holds generator, but no xy"),
        ([model, str(tmp_path / "broken")], "bad.png: not an image"),
        ([model, str(tmp_path / "none.png")], "none.png"),
        ([model, picture, picture], "would be written over"),
        ([model, str(tmp_path)], "no image is in this folder"),
    ):
        assert cyclegan.main(["translate", *words, *out]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    words = ["translate", model, picture, "--out", str(tmp_path / "blue")]  # which has images of these names
    before = (tmp_path / "blue" / "0001.png").read_bytes()
    assert cyclegan.main(words) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "blue" / "0001.png").read_bytes() == before
    assert cyclegan.main([*words[:3], "--out", picture]) == 2
    assert "must name a folder" in capsys.readouterr().err


def test_a_resumed_run_keeps_its_networks(domains, tmp_path, capsys):
    same = [*TOY, *domains, "--iterations", "2", "--out", str(tmp_path / "run")]
    assert cyclegan.main(same) == 0
    capsys.readouterr()
    assert cyclegan.main(["--resume", "--out", str(tmp_path / "run"), "--width-g", "8"]) == 2
    assert "--width-g 8: the checkpoint" in capsys.readouterr().err
    assert cyclegan.main(["--resume", "--out", str(tmp_path / "run"), "--iterations", "3", "--lambda-cycle", "2"]) == 0
    assert "--lambda-cycle 10.0 in the checkpoint, 2.0 now" in capsys.readouterr().out
    assert gan.load_checkpoint(tmp_path / "run/checkpoints/last.pt")["progress"]["step"] == 3
    assert gan.main(["--resume", "--out", str(tmp_path / "run"), "--iterations", "4"]) == 2
    assert "is of labs.cyclegan; rollnumber_04.py cannot go on with it" in capsys.readouterr().err
    # Neither program takes the other's files.
    last = str(tmp_path / "run/checkpoints/last.pt")
    assert gan.main(["generate", last, "--out", str(tmp_path / "sheet.png")]) == 2
    assert "is of labs.cyclegan and holds xy, yx, x, y, but no generator" in capsys.readouterr().err


def test_sizes_and_pools_that_only_the_lab_has(domains, tmp_path, monkeypatch, capsys):
    """36 pixels are no size of the script's networks, and a pool may be smaller than the batch that times a step."""
    words = [*domains, *"--image-size 36 --pool 4 --batch-size 4 --width-g 4 --width-d 4 --device cpu --seed 1".split()]
    out = ["--out", str(tmp_path / "run")]
    assert cyclegan.main([*words, "--iterations", "1", *out]) == 0
    assert cyclegan.main(["--resume", "--iterations", "2", *out]) == 0
    assert gan.load_checkpoint(tmp_path / "run/checkpoints/last.pt")["progress"]["step"] == 2
    capsys.readouterr()
    save_all(pictures(1, 72), tmp_path / "large")
    translate = ["translate", str(tmp_path / "run/translators.safetensors"), str(tmp_path / "large"), "--out"]
    assert cyclegan.main([*translate, str(tmp_path / "a")]) == 0
    assert "note: the model has learnt at 36 pixels" in capsys.readouterr().out
    assert cyclegan.main([*translate, str(tmp_path / "b"), "--image-size", "36"]) == 0
    assert "note" not in capsys.readouterr().out
    assert Image.open(tmp_path / "b" / "0000.png").size == (36, 36)
    Image.new("RGB", (20_000, 1)).save(tmp_path / "line.png")
    line = [*translate[:2], str(tmp_path / "line.png"), "--image-size", "36"]
    assert cyclegan.main([*line, "--out", str(tmp_path / "c")]) == 2
    assert "line.png: its 20000×1 would be scaled to 720000×36" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
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
        trained, held = pairs.held_out_files(tmp_path / folder, 0.2)
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
    trained, held = pairs.held_out_files(tmp_path / "x", 0.3)
    words = ["--x", str(tmp_path / "x"), "--y", str(tmp_path / "y"), *TOY, "--dry-run", "--held-out", "0.3"]
    assert cyclegan.main([*words, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert f"/x: {len(trained)} colour images" in said
    assert f"validation {len(held)} and {len(held)} test images" in said
    assert pairs.training_of(tmp_path / "run" / "translators.safetensors")["held_out"] == 0.3
    for extra, complaint in (
        (["--x-test", str(tmp_path / "Test_x")], "--held-out: does not go with --x-test"),
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

    monkeypatch.setattr(gan, "load_network", lambda *arguments: Negative())
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
