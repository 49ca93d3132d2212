"""What people's folders and machines do: nothing is lost, nothing is guessed in silence, one sentence for a mistake."""

import json
import pickle
import struct
import subprocess
import sys
import unicodedata
import weakref
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TOY, Trap, assert_same, command, pictures, save_all, save_networks, write_idx
from PIL import Image

import rollnumber_04 as gan
from extras import evaluate as evaluation
from extras import folders, speed
from labs import cyclegan, fashion, parts

TOY_LAB = TOY[2:]  # labs.conv's images are of 28×28

########################################################################################################################
#                                            Work is not lost, nobody is misled                                        #
########################################################################################################################


def test_measuring_keeps_no_batch_of_results(weights):
    """Small tensors that stay between large ones hold the heap open: half a megabyte an image, they were."""
    inception = evaluation.Inception(weights / "random.pth", torch.device("cpu"))
    inception.batch, network, kept = 2, inception.network, []

    def watched(images):
        assert not any(result() is not None for result in kept[:-2]), "results of before the last batch are still there"
        results = [*network(images)]
        kept.extend(map(weakref.ref, results))
        return results

    inception.network = watched
    images = pictures(6, 32)
    found = inception.features(iter(np.split(images, 2)), 6, "")
    inception.network = network
    expected = [*network(torch.from_numpy(images[4:]).permute(0, 3, 1, 2))]
    for layer, values in zip((evaluation.FEATURES, evaluation.LOGITS), expected, strict=True):
        assert len(found[layer]) == 6
        torch.testing.assert_close(found[layer][4:], values)


def test_classifying_keeps_no_batch_of_results(monkeypatch):
    monkeypatch.setattr(gan, "CLASSIFY_PIXELS", 2 * 8**2)
    discriminator = gan.Discriminator(image_size=8, width=4, classes=("cat", "dog")).eval()
    pixels, kept = torch.from_numpy(pictures(5)), []
    expected = discriminator.head(discriminator.features(gan.to_range(pixels)))

    def watch(module, inputs, output):
        assert not any(result() is not None for result in kept)
        kept[:] = [weakref.ref(output)]

    discriminator.head.register_forward_hook(watch)
    torch.testing.assert_close(gan.class_logits(discriminator, pixels), expected)


STRANGE = (
    "text.usetex: True\nfigure.facecolor: black\nsavefig.dpi: 37\nfont.size: 30\nsavefig.bbox: tight\nbackend: TkAgg\n"
)


def test_a_notebooks_settings_change_no_picture(tmp_path, class_folders):
    """Colab and Jupyter set a backend that the script's Python may not have; people have a matplotlibrc."""
    (tmp_path / "matplotlibrc").write_text(STRANGE)
    strange = {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"),
    }
    for name, settings in (("plain", {}), ("strange", strange)):
        out = tmp_path / name
        words = [*TOY, "--data", class_folders, "--epochs", 1, "--seed", 1, "--multitask", "--out", out]
        done = command(*words, settings=settings)
        assert (done.returncode, done.stderr) == (0, "")
        assert "note:" not in done.stdout
    for path in (tmp_path / "plain").rglob("*.png"):
        with (
            Image.open(path) as plain,
            Image.open(tmp_path / "strange" / path.relative_to(tmp_path / "plain")) as other,
        ):
            assert plain.size == other.size, path
            assert plain.tobytes() == other.tobytes(), path


def test_a_notebook_that_imports_the_script_keeps_its_settings():
    code = (
        "import os; os.environ['MPLBACKEND'] = 'svg'; import rollnumber_04 as gan\n"
        "with gan.own_style():\n import matplotlib\n"
        "print(matplotlib.get_backend(), os.environ['MPLBACKEND'])\n"
        "matplotlib.rcParams['font.size'] = 30\n"
        "with gan.own_style(): print(matplotlib.rcParams['font.size'])\n"
        "print(matplotlib.rcParams['font.size'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["svg", "svg", "10.0", "30.0"]


@pytest.mark.parametrize("owner", ["matplotlib.figure.Figure.savefig", "PIL.Image.Image.save"])
def test_a_picture_that_cannot_be_drawn_costs_nothing(tmp_path, class_folders, monkeypatch, capsys, owner):
    def fail(*arguments, **settings):
        raise RuntimeError("the font is broken")

    gan.say_once.cache_clear()
    monkeypatch.setattr(owner, fail)
    out = tmp_path / owner
    assert gan.main([*TOY, "--data", str(class_folders), "--epochs", "2", "--seed", "1", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "a picture could not be drawn: RuntimeError: the font is broken" in told
    assert gan.load_checkpoint(out / "checkpoints" / "last.pt")["progress"]["epoch"] == 2
    # What was not drawn is drawn when the run is resumed.
    monkeypatch.undo()
    assert gan.main(["--resume", "--out", str(out)]) == 0
    assert {path.name for path in (out / "plots").iterdir()} == {"generator_loss.png", "discriminator_loss.png"}
    assert [*out.rglob("*_0002.png")]
    assert (out / "samples" / "epoch_0002.png").exists()
    capsys.readouterr()
    assert gan.main(["--resume", "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("nothing to do")


def test_a_run_is_saved_before_it_is_drawn(tmp_path, class_folders, monkeypatch):
    """Whatever a picture does to the process, the epoch is kept: here drawing the second epoch ends it."""
    words = [*TOY, "--data", str(class_folders), "--epochs", "3", "--seed", "1"]
    assert gan.main([*words, "--out", str(tmp_path / "whole")]) == 0
    draw = gan.draw_all

    class Killed(BaseException):
        """Stands for the end of the process."""

    def killed(run, *others):
        if run.epoch == 2:
            raise Killed
        draw(run, *others)

    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(gan, "draw_all", killed)
        with pytest.raises(Killed):
            gan.main([*words, "--out", str(out)])
    assert gan.load_checkpoint(out / "checkpoints" / "last.pt")["progress"]["epoch"] == 2
    assert not (out / "samples" / "epoch_0002.png").exists()
    assert gan.main(["--resume", "--out", str(out)]) == 0
    for path in (tmp_path / "whole").rglob("*.png"):
        with Image.open(path) as expected, Image.open(out / path.relative_to(tmp_path / "whole")) as found:
            assert found.tobytes() == expected.tobytes(), path


def test_a_picture_that_cannot_be_made_leaves_the_one_before(tmp_path):
    def fails(stream, format):
        stream.write(b"half a picture")
        raise ValueError

    path = tmp_path / "samples" / "epoch_0001.png"
    gan.save_picture(Image.fromarray(pictures(1)[0]).save, path)
    with pytest.raises(ValueError):
        gan.save_picture(fails, path)
    assert (np.asarray(Image.open(path)) == pictures(1)[0]).all()
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("library", ["matplotlib", "tensorboard"])
def test_a_library_that_is_missing_gets_a_sentence(tmp_path, class_folders, monkeypatch, capsys, library):
    for name in [name for name in sys.modules if name.split(".")[0] == library or name == "torch.utils.tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    out = tmp_path / library
    assert gan.main([*TOY, "--data", str(class_folders), "--epochs", "1", "--out", str(out)]) == 0
    told = capsys.readouterr()
    sentences = {
        "matplotlib": "note: a picture could not be drawn: pictures need matplotlib, which does not work here (",
        "tensorboard": "note: nothing more is written for TensorBoard, which does not work here (",
    }
    assert told.out.count(sentences[library]) == 1
    assert "Traceback" not in told.out + told.err
    assert (out / "samples" / "epoch_0001.png").exists()


def test_the_precision_is_the_processors_and_no_stopwatchs(monkeypatch):
    """A busy machine must not train another run: the trial by time was right in three starts of four."""
    cpu = torch.device("cpu")
    for avx512, amx in ((True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx512=avx512: avx512)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert gan.choose_precision("auto", cpu) == ("bf16" if avx512 or amx else "fp32")
        assert gan.choose_precision("bf16", cpu) == "bf16"
        assert gan.choose_precision("fp32", cpu) == "fp32"
    assert gan.choose_precision("auto", torch.device("mps")) == "fp32"


def test_a_graph_that_cannot_be_captured_costs_nothing(tmp_path, monkeypatch, capsys):
    """No run may die of an optimisation: what the attempt has changed is put back, and plain steps go on."""
    write_idx(tmp_path / "d" / "train-images-idx3-ubyte", pictures(32, 28)[..., 0])
    words = ["--data", tmp_path / "d", *TOY_LAB, "--iterations", 12, "--sample-every", 12, "--seed", 1, "--replay", 16]
    assert gan.main([*map(str, words), "--out", str(tmp_path / "plain")], "labs.conv") == 0
    attempts = []

    def broken(model, images, index):
        attempts.append(int(model.steps))
        model.discriminator.requires_grad_(False)  # as in the middle of G's step
        torch.rand(3, generator=model.rng)
        torch.rand(3)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(gan, "launcher", speed.Launcher)  # as on a GPU
    monkeypatch.setattr(speed, "why_not_captured", lambda model: "")
    monkeypatch.setattr(speed, "capture", broken)
    assert gan.main([*map(str, words), "--out", str(tmp_path / "captured")], "labs.conv") == 0
    told = capsys.readouterr().out
    assert attempts == [1 + speed.GRAPH_AFTER]  # once, after as many steps, the second of which has filled the pool
    assert told.count("no CUDA graph can be made here: operation not permitted") == 1
    plain, captured = (
        gan.load_checkpoint(tmp_path / name / "checkpoints" / "last.pt") for name in ("plain", "captured")
    )
    for part in ("model", "optimizers", "ranks"):
        assert_same(captured[part], plain[part])


########################################################################################################################
#                                                  No data is wrong in silence                                         #
########################################################################################################################


@pytest.mark.parametrize(
    ("classes", "label", "expected"),
    [
        (["01", "02", "12"], 1, 0),
        (["01", "02", "12"], "012", 2),
        (["1", "10", "11", "2"], 1, 0),
        (["1", "10", "11", "2"], "2", 3),
        (["0", "1", "2"], 2, 2),
        (["cat", "dog"], "dog", 1),
        (["cat", "dog"], 1, 1),
        (["1", "01"], "01", 1),
        (["3", "cat", "dog"], "3", 0),
        (["1", "2", "cat"], "name=2", 1),
        (["1", "2", "cat"], "number=2", 2),
        (["name=2", "2", "cat"], "name=2", 0),
        (["Zoe\u0308", "b"], "Zo\u00eb", 0),
    ],
)
def test_the_class_that_is_meant(classes, label, expected):
    assert parts.class_number(label, classes) == expected


@pytest.mark.parametrize(
    ("classes", "label", "said"),
    [
        (["2", "cat", "dog"], "2", "2: may be 2 (number 0) or dog (number 2)"),
        (["1", "01"], "001", "may be 1 (number 0) or 01 (number 1)"),
        (["01", "02"], 3, "is not among the classes 01, 02"),
        (["01", "02"], 0, "is not among the classes"),
        (["cat", "dog"], 2, "is not among the classes cat, dog"),
        (["cat", "dog"], "", "is not among the classes"),
    ],
)
def test_a_class_that_is_not_clear(classes, label, said):
    with pytest.raises(gan.UserError) as error:
        parts.class_number(label, classes)
    assert said in str(error.value)


def test_generate_says_which_class_it_drew(tmp_path, capsys, fails):
    torch.manual_seed(0)
    generator = fashion.Generator(image_size=8, width=4, latent_dim=8, classes=("01", "02", "12"))
    save_networks(tmp_path / "m.safetensors", "labs.fashion", generator=generator)
    out = tmp_path / "x.npz"
    words = ["generate", str(tmp_path / "m.safetensors"), "--count", "3", "--out", str(out), "--label"]
    assert gan.main([*words, "1"]) == 0
    assert "3 images of class 01 of " in capsys.readouterr().out
    with np.load(out) as found:
        assert found["labels"].tolist() == [0, 0, 0]
    assert "--label 3: is not among the classes" in fails(*words, "3")


def test_only_classes_with_images_are_classes(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, images=pictures(4), labels=[1, 10, 5, 10])
    images = gan.load_images(path)
    assert images.classes == ("1", "5", "10")
    assert images.labels.tolist() == [0, 2, 1, 2]
    np.savez(path, images=pictures(4), labels=[0, 2, 2, 0], classes=["cat", "cow", "dog"])
    assert gan.load_images(path).classes == ("cat", "dog")


def test_test_labels_are_the_training_classes_by_name(tmp_path, fails):
    """The test images may have fewer classes; numbers that only count what occurs would then name others."""
    path, words = tmp_path / "set.npz", [*TOY, "--dry-run", "--multitask", "--data", tmp_path / "set.npz"]
    arrays = dict(train_images=pictures(9), train_labels=[3, 5, 7] * 3, test_images=pictures(2), test_labels=[7, 5])
    np.savez(path, **arrays)
    _, _, validation = gan.load_data(gan.Config(data=path, multitask=True))
    assert validation.labels.tolist() == [2, 1]
    assert gan.load_images(path, "all").labels.tolist() == [0, 1, 2] * 3 + [2, 1]
    np.savez(path, **arrays | {"test_labels": [7, 6]})
    assert "class 6 of its test images has no training image" in fails(*words)
    both = gan.load_images(path, "all")
    assert both.classes == ("3", "5", "7", "6")
    assert both.labels.tolist()[-2:] == [2, 3]


def test_one_image_of_a_rare_class_stays_in_training(tmp_path, capsys):
    save_all(pictures(19), tmp_path / "d" / "a")
    save_all(pictures(1), tmp_path / "d" / "b")
    _, kept, held = gan.load_data(gan.Config(data=tmp_path / "d", multitask=True))
    assert torch.bincount(kept.labels).tolist() == [18, 1]
    assert torch.bincount(held.labels, minlength=2).tolist() == [1, 0]
    assert "note: without an image for validation: b" in capsys.readouterr().out


def test_what_is_left_out_is_said(tmp_path, capsys, fails):
    folder = save_all(pictures(3, 16), tmp_path / "d")
    for i in range(20):
        (folder / f"{i}.HEIC").write_bytes(b"a photograph")
    (folder / "notes").write_text("of the day")
    (folder / "Thumbs.db").write_bytes(b"Windows' own")
    assert len(gan.load_images(folder).pixels) == 3
    assert f"note: {folder}: left out 20 × .heic, 1 × no ending\n" in capsys.readouterr().out
    for path in folder.glob("*.png"):
        path.unlink()
    said = fails("--data", folder)
    assert "nothing in it is an image that is known here: 20 × .heic, 1 × no ending" in said


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_links_to_folders_are_said(tmp_path, capsys):
    for name in ("cat", "dog"):
        save_all(pictures(2), tmp_path / "d" / name)
    save_all(pictures(4), tmp_path / "elsewhere")
    (tmp_path / "d" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    assert len(gan.load_images(tmp_path / "d").pixels) == 4
    assert "left out 1 × link to a folder" in capsys.readouterr().out


def test_translation_says_what_it_leaves_out(tmp_path, capsys):
    torch.manual_seed(0)
    networks = {name: cyclegan.Translator(width=4) for name in ("xy", "yx")}
    save_networks(tmp_path / "m.safetensors", "labs.cyclegan", **networks)
    folder = save_all(pictures(2, 24), tmp_path / "d")
    (folder / "a.heic").write_bytes(b"a photograph")
    words = ["translate", str(tmp_path / "m.safetensors"), str(folder), "--out"]
    assert cyclegan.main([*words, str(tmp_path / "out")]) == 0
    assert "left out 1 × .heic" in capsys.readouterr().out
    for path in folder.glob("*.png"):
        path.unlink()
    assert cyclegan.main([*words, str(tmp_path / "other")]) == 2
    assert "1 × .heic" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["@eaDir", "$RECYCLE.BIN", "System Volume Information", ".thumbnails", "lost+found", "FOUND.001"]
)
def test_what_systems_keep_for_themselves_is_no_data(tmp_path, name):
    for label in ("a", "b"):
        save_all(pictures(2), tmp_path / "d" / label)
    save_all(pictures(5), tmp_path / "d" / "a" / name / "0000.png")
    save_all(pictures(5), tmp_path / "d" / name)
    images = gan.load_images(tmp_path / "d")
    assert images.classes == ("a", "b")
    assert torch.bincount(images.labels).tolist() == [2, 2]


def test_the_data_line_names_the_classes(tmp_path, capsys):
    for name in ("images", "masks"):
        save_all(pictures(8), tmp_path / "d" / name)
    assert gan.main([*TOY, "--data", str(tmp_path / "d"), "--dry-run", "--out", str(tmp_path / "r")]) == 0
    assert "in 2 classes: images, masks\n" in capsys.readouterr().out


def test_values_of_another_range_are_noticed(tmp_path, capsys, fails):
    for i, values in enumerate(np.random.default_rng(0).integers(0, 4096, (3, 8, 8)).astype(np.uint16)):
        (tmp_path / "d").mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / "d" / f"{i}.png")
    assert gan.load_images(tmp_path / "d").pixels.max() < 17
    assert "of the 256 values; scale images of another range to 0 … 255 first" in capsys.readouterr().out
    (tmp_path / "t").mkdir()
    Image.fromarray(np.full((8, 8), 4095, np.int32)).save(tmp_path / "t" / "0.tiff")
    assert "its pixels are whole numbers of no known range" in fails("--data", tmp_path / "t")


def test_the_first_file_does_not_decide_the_size(tmp_path, capsys):
    folder = save_all(pictures(5, 96), tmp_path / "d")
    Image.fromarray(pictures(1, 16)[0]).save(folder / "!icon.png")
    assert gan.load_images(folder).pixels.shape[1] == 96
    assert "sizes differ, 16×16 … 96×96; each is scaled and cropped to 96×96" in capsys.readouterr().out
    for i, size in enumerate((40, 50, 60)):  # no size is that of most: the median of 16, 40, 50, 60 and 96
        Image.fromarray(pictures(1, size)[0]).save(folder / f"{i:04d}.png")
    (folder / "0003.png").unlink()
    assert gan.load_images(folder).pixels.shape[1] == 48


def test_of_two_sizes_neither_is_the_first_files(tmp_path):
    Image.fromarray(pictures(1, 16)[0]).save(save_all(pictures(1, 96), tmp_path / "d") / "!icon.png")
    assert gan.load_images(tmp_path / "d").pixels.shape[1] == 56


def test_a_class_whose_images_are_all_damaged_is_none(tmp_path):
    for name in ("a", "b", "c"):
        save_all(pictures(3), tmp_path / "d" / name)
    for path in (tmp_path / "d" / "b").iterdir():
        path.write_bytes(b"no picture")
    images = gan.load_images(tmp_path / "d", skip_unreadable=True)
    assert images.classes == ("a", "c")
    assert torch.bincount(images.labels).tolist() == [3, 3]


def test_an_fid_of_few_images_is_refused_everywhere(tmp_path, fails, weights, early):
    folder = save_all(pictures(6), tmp_path / "d")
    words = [*TOY, "--data", folder, "--evaluate-every", 1, "--inception-weights", weights / "random.pth"]
    assert "--evaluate-every 1: the data has 6 images; FID needs 16" in fails(*words)
    save_networks(tmp_path / "m.safetensors", generator=gan.Generator(image_size=8, width=4))
    assert "the data has 6 images; FID needs 16" in fails("evaluate", tmp_path / "m.safetensors", "--data", folder)


def test_an_fid_says_what_the_images_were(tmp_path, capsys, weights, early):
    folder = save_all(pictures(16, 16), tmp_path / "d")
    save_networks(tmp_path / "m.safetensors", generator=gan.Generator(8, channels=1, width=4))
    words = ["evaluate", tmp_path / "m.safetensors", "--data", folder, "--samples", 16, "--no-judge"]
    words += ["--inception-weights", weights / "random.pth"]
    assert gan.main([*map(str, words), "--json"]) == 0
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert (result["images"], result["data_images"]) == ("grey images of 8×8", "colour images of 16×16")
    assert "the data has colour images of 16×16; it is measured as the model draws, grey images of 8×8" in told.err
    assert gan.main([*map(str, words)]) == 0
    assert "grey images of 8×8, from colour images of 16×16\n" in capsys.readouterr().out


def test_a_run_keeps_the_conditions_of_its_fid(tmp_path, weights, early):
    folder = save_all(pictures(20), tmp_path / "d")
    words = [*TOY, "--data", folder, "--epochs", 1, "--evaluate-every", 1, "--evaluate-samples", 18, "--seed", 3]
    assert (
        gan.main([*map(str, words), "--inception-weights", str(weights / "random.pth"), "--out", str(tmp_path / "r")])
        == 0
    )
    facts = json.loads((tmp_path / "r" / "options.json").read_text())["fid"]
    assert (facts["n_real"], facts["n_fake"], facts["seed"]) == (18, 18, 3)
    assert facts["data_images"] == "colour images of 8×8"


def test_images_that_are_all_alike(tmp_path, capsys):
    save_all(np.repeat(pictures(1), 8, 0), tmp_path / "d")
    out = tmp_path / "r"
    assert gan.main([*TOY, "--data", str(tmp_path / "d"), "--epochs", "2", "--out", str(out)]) == 0
    assert "the images are all alike; the diversity of samples cannot be told" in capsys.readouterr().out
    header, *rows = [line.split(",") for line in (out / "epochs.csv").read_text().splitlines()]
    assert [row[header.index("diversity")] for row in rows] == ["", ""]
    assert gan.main(["--resume", "--out", str(out), "--epochs", "3"]) == 0


########################################################################################################################
#                                                         Smaller                                                      #
########################################################################################################################


def test_two_runs_of_one_second_take_the_next_free_name(tmp_path, class_folders, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gan.time, "strftime", lambda form: form.replace("%Y%m%d-%H%M%S", "20260101-000000"))
    for _ in range(3):
        assert gan.main([*TOY, "--data", str(class_folders), "--dry-run"]) == 0
    names = [f"rollnumber_04-20260101-000000{end}" for end in ("", "-2", "-3")]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == names
    assert all((tmp_path / "runs" / name / "generator.safetensors").exists() for name in names)


def test_without_out_the_data_is_not_written_into(fails, class_folders, monkeypatch):
    monkeypatch.chdir(class_folders)
    assert gan.main([*TOY, "--data", ".", "--dry-run"]) == 2
    assert not (class_folders / "runs").exists()


def test_a_tilde_is_the_users_home(tmp_path, class_folders, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    class_folders.rename(tmp_path / "home" / "data")
    assert gan.main([*TOY, "--data=~/data", "--dry-run", "--out=~/r"]) == 0
    assert not Path("~").exists()
    model = tmp_path / "home" / "r" / "generator.safetensors"
    assert model.exists()
    assert gan.main(["generate", "~/r/generator.safetensors", "--count", "2", "--out=~/x.png"]) == 0
    assert (tmp_path / "home" / "x.png").exists()
    assert len(gan.load_images("~/data").pixels) == 32
    monkeypatch.setattr(gan.os.path, "expanduser", lambda path: path)  # as where no home is known
    assert gan.main([*TOY, "--dry-run", "--out=~/r"]) == 2
    assert not Path("~").exists()


def test_a_class_is_the_same_on_a_mac_and_on_linux(tmp_path):
    name = "Zo\u00eb"
    save_all(pictures(3), tmp_path / "d" / "train" / unicodedata.normalize("NFD", name))
    save_all(pictures(2), tmp_path / "d" / "test" / unicodedata.normalize("NFC", name))
    for split in ("train", "test"):
        assert gan.load_images(tmp_path / "d", split).classes == (name,)


def test_a_missing_cifar_batch_is_said(tmp_path, capsys):
    for number in (1, 2, 4, 5):
        batch = {b"data": pictures(4, 32).reshape(4, -1), b"labels": [0, 1, 2, 3]}
        (tmp_path / f"data_batch_{number}").write_bytes(pickle.dumps(batch, 2))
    assert len(gan.load_images(tmp_path).pixels) == 16
    assert (
        f"note: {tmp_path}: of CIFAR-10's files there is no data_batch_3, test_batch, batches.meta\n"
        in capsys.readouterr().out
    )


def test_a_split_within_itself(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            save_all(pictures(count), tmp_path / "d" / split / split / name)
    assert len(gan.load_images(tmp_path / "d").pixels) == 6
    found = gan.load_images(tmp_path / "d", "test")
    assert (len(found.pixels), found.classes) == (4, ("cat", "dog"))


def test_a_deep_grey_that_is_transparent_is_white(tmp_path):
    values = np.array([[0, 300 * 100, 65535], [700, 700, 257]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png", transparency=700)
    with Image.open(tmp_path / "x.png") as image:
        found = np.asarray(folders.as_rgb(image))[..., 0]
    assert found.tolist() == [[0, 117, 255], [255, 255, 1]]


def test_what_breaks_in_tensorboard_does_not_end_the_run(tmp_path, class_folders, monkeypatch, capsys):
    from torch.utils.tensorboard import SummaryWriter

    def broken(*arguments, **settings):
        raise AttributeError("module 'numpy' has no attribute 'bool8'")

    monkeypatch.setattr(SummaryWriter, "add_scalar", broken)
    assert gan.main([*TOY, "--data", str(class_folders), "--epochs", "2", "--out", str(tmp_path / "r")]) == 0
    assert capsys.readouterr().out.count("nothing more is written for TensorBoard") == 1


def test_without_matplotlib_the_numbers_are_there(tmp_path, class_folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = [*TOY, "--data", str(class_folders), "--epochs", "1", "--multitask", "--out", str(tmp_path / "r")]
    assert gan.main(words) == 0
    assert len((tmp_path / "r" / "confusion_matrix.csv").read_text().splitlines()) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_a_folder_of_runs_that_cannot_be_made(tmp_path, class_folders, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(tmp_path / "unmounted")
    assert gan.main([*TOY, "--data", str(class_folders), "--dry-run"]) == 2
    assert "--out runs: " in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_a_link_to_itself_hides_nothing(tmp_path):
    save_all(pictures(2), tmp_path / "d" / "a" / "b")
    (tmp_path / "d" / "a" / "b" / "loop").symlink_to(tmp_path / "d" / "a" / "b" / "loop")
    assert len(gan.load_images(tmp_path / "d").pixels) == 2


def test_weights_that_hold_code_get_no_dangerous_advice(tmp_path, fails, class_folders):
    torch.save({"layer": Trap(tmp_path / "trap")}, tmp_path / "weights.pth")
    save_networks(tmp_path / "m.safetensors", generator=gan.Generator(image_size=8, width=4))
    words = ["evaluate", tmp_path / "m.safetensors", "--data", class_folders]
    said = fails(*words, "--inception-weights", tmp_path / "weights.pth")
    assert "it holds more than tensors, or is damaged" in said
    assert "weights_only" not in said
    assert not (tmp_path / "trap").exists()


def test_a_longer_plan_says_what_jumps(tmp_path, capsys):
    write_idx(tmp_path / "d" / "train-images-idx3-ubyte", pictures(32, 28)[..., 0])
    words = [
        "--data",
        tmp_path / "d",
        *TOY_LAB,
        "--seed",
        1,
        "--iterations",
        8,
        "--sample-every",
        4,
        "--instance-noise",
        1,
    ]
    assert gan.main([*map(str, words), "--out", str(tmp_path / "r")], "labs.conv") == 0
    capsys.readouterr()
    assert gan.main(["--resume", "--out", str(tmp_path / "r"), "--iterations", "16"], "labs.conv") == 0
    told = capsys.readouterr().out
    assert (
        "note: the run is planned for 16 steps, not as before: the deviation of the instance noise stood at 0%" in told
    )
    assert "of its first value and goes on at 50%" in told
    path = gan.numbered_files(tmp_path / "r" / "checkpoints", "iteration", ".pt", 10**6)[0]
    assert gan.main(["--resume", str(path)], "labs.conv") == 0  # the same plan
    assert "planned" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "lie", "status"),
    [("planned", "", 0), ("planned", 0, 0), ("planned", {}, 0), ("fid", 0, 2), ("fid", {"n_real": "many"}, 2)],
)
def test_a_checkpoint_that_lies_of_its_plan_goes_on_and_one_of_its_fids_is_refused(
    tmp_path, class_folders, weights, early, capsys, part, lie, status
):
    """Both are looked at when a run is resumed, and a file of unknown origin may hold anything there."""
    words = ["--data", class_folders, *TOY_LAB, "--iterations", 4, "--sample-every", 4, "--instance-noise", 1]
    assert gan.main([*map(str, words), "--out", str(tmp_path / "r")], "labs.conv") == 0
    path = tmp_path / "r" / "checkpoints" / "last.pt"
    saved = torch.load(path, weights_only=True)
    saved["options"][part] = lie
    torch.save(saved, path)
    measuring = ["--evaluate-every", "4", "--evaluate-samples", "16", "--inception-weights"]
    words = ["--resume", str(path), "--iterations", "8", *measuring, str(weights / "random.pth")]
    assert gan.main(words, "labs.conv") == status
    assert capsys.readouterr().err == (f"labs.conv: {path}: its fid is wrong\n" if status else "")


def test_a_pause_of_the_measuring_forgets_no_condition(tmp_path, weights, early, capsys):
    folder = save_all(pictures(20), tmp_path / "d")
    out, file = tmp_path / "r", str(weights / "random.pth")
    measuring = ["--evaluate-every", "1", "--inception-weights", file, "--evaluate-samples"]
    assert gan.main([*TOY, "--data", str(folder), "--epochs", "1", *measuring, "16", "--out", str(out)]) == 0
    assert gan.main(["--resume", "--out", str(out), "--epochs", "2", "--evaluate-every", "0"]) == 0
    assert gan.main(["--resume", "--out", str(out), "--epochs", "3", *measuring, "18"]) == 2
    assert "--evaluate-samples 18: the FIDs of" in (said := capsys.readouterr().err)
    assert "16 samples, 16 images" in said
    assert gan.main(["--resume", "--out", str(out), "--epochs", "3", *measuring, "16"]) == 0


def test_a_picture_of_the_start_that_is_missing_is_drawn(tmp_path, class_folders):
    words = [*TOY, "--data", str(class_folders), "--seed", "1", "--epochs", "1", "--out", str(tmp_path / "r")]
    assert gan.main(words) == 0
    missing = tmp_path / "r" / "weights" / "discriminator_epoch_0000.png"
    expected = missing.read_bytes()
    missing.unlink()
    (tmp_path / "r" / gan.UNDRAWN).touch()  # as a kill while it was drawn leaves it
    assert gan.main(["--resume", "--out", str(tmp_path / "r")]) == 0
    assert missing.read_bytes() == expected


def test_what_was_not_falling_before_does_not_jump(tmp_path, class_folders, capsys):
    words = ["--data", class_folders, *TOY_LAB, "--iterations", 4, "--sample-every", 4, "--out", tmp_path / "r"]
    assert gan.main([*map(str, words)], "labs.conv") == 0
    more = ["--iterations", "8", "--instance-noise", "1"]
    assert gan.main(["--resume", "--out", str(tmp_path / "r"), *more], "labs.conv") == 0
    assert "stood at" not in capsys.readouterr().out


def test_what_lies_beside_the_splits_is_said(tmp_path, capsys):
    gan.say_once.cache_clear()
    for split in ("train", "test", "val", "extra"):
        save_all(pictures(3), tmp_path / "d" / split / "a")
    save_all(pictures(2), tmp_path / "d")
    assert len(gan.load_images(tmp_path / "d").pixels) == 3
    gan.load_images(tmp_path / "d", "test")
    said = capsys.readouterr().out
    assert said.count("left out 2 × .png, 1 × folder extra/, 1 × folder val/") == 1


def test_what_lies_beside_arrays_is_said(tmp_path, capsys):
    gan.say_once.cache_clear()
    np.savez(tmp_path / "set.npz", images=pictures(4))
    (tmp_path / "a.heic").write_bytes(b"a photograph")
    assert len(gan.load_images(tmp_path).pixels) == 4
    assert f"note: {tmp_path}: left out 1 × .heic\n" in capsys.readouterr().out


def png(depth: int, colour: int, rows: list[bytes], clear: bytes) -> bytes:
    """A PNG of 2 pixels a row, its transparent colour given, written by hand: Pillow writes none of these kinds."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, len(rows), depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"tRNS", clear) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("depth", "colour", "row", "clear", "expected"),
    [
        (2, 0, bytes([0b01_10_0000]), struct.pack(">H", 1), [[255] * 3, [170] * 3]),
        (4, 0, bytes([0x3C]), struct.pack(">H", 3), [[255] * 3, [204] * 3]),
        (
            16,
            2,
            struct.pack(">6H", 1000, 2000, 3000, 25700, 0, 65535),
            struct.pack(">3H", 1000, 2000, 3000),
            [[255] * 3, [100, 0, 255]],
        ),
    ],
)
def test_the_transparent_colour_of_png_of_any_depth_is_white(tmp_path, depth, colour, row, clear, expected):
    (tmp_path / "x.png").write_bytes(png(depth, colour, [row], clear))
    with Image.open(tmp_path / "x.png") as image:
        assert np.asarray(folders.as_rgb(image))[0].tolist() == expected
