"""Every layout and image mode comes out right, and what is wrong with a data set is said in one sentence."""

import json
import os
import pickle
import string
import struct
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import TOY, pictures, save_all, write_cifar, write_idx
from PIL import Image

import rollnumber_04 as gan
from extras import folders, formats

LABELS = np.arange(20) % 2


def write_emnist(folder, name, images, labels, zipped=False):
    """One of EMNIST's sets, its N×H×W images stored transposed; the first four are the test set, too."""
    for split, part in (("train", slice(None)), ("test", slice(4))):
        for what, array in (("images-idx3", images[part].swapaxes(1, 2)), ("labels-idx1", labels[part])):
            write_idx(folder / f"emnist-{name}-{split}-{what}-ubyte{'.gz' * zipped}", array, zipped)


def write_svhn(path, images, labels):
    """A file of SVHN, of N×32×32×3 images and of labels 1 to 10."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": labels.astype(np.uint8)[:, None]}, do_compression=True)


def as_set(images: gan.Images) -> set:
    """The images with their classes' names, in any order."""
    labels = images.labels.tolist() if images.labels is not None else [None] * len(images.pixels)
    names = [images.classes[label] if label is not None else None for label in labels]
    return {(pixels.numpy().tobytes(), name) for pixels, name in zip(images.pixels, names, strict=True)}


# ---------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    "layout", ["split", "classes", "pickles", "pickles3", "parent", "npz", "npz-nchw", "npz-split"]
)
def test_colour_layouts_hold_the_same_images(tmp_path, layout):
    images = pictures(20, 32)
    names = ["cat", "dog"]
    root = tmp_path / "data"
    if layout == "split":
        for label, name in enumerate(names):
            save_all(images[label == LABELS], root / "train" / name)
            save_all(images[:4][label == LABELS[:4]], root / "test" / name)
    elif layout == "classes":
        for label, name in enumerate(names):
            save_all(images[label == LABELS], root / name, ".bmp")
    elif layout == "parent":
        write_cifar(root / "cifar-10-batches-py", images, LABELS)
    elif layout.startswith("pickles"):
        write_cifar(root, images, LABELS, python2=layout == "pickles")
    else:
        root.mkdir()
        arrays = {
            "npz": {"images": images, "labels": LABELS, "classes": np.array(names)},
            "npz-nchw": {"x": images.transpose(0, 3, 1, 2), "y": LABELS[:, None], "classes": np.array(names)},
            "npz-split": {"x_train": images, "y_train": LABELS, "x_test": images[:4], "y_test": LABELS[:4]},
        }[layout]
        np.savez(root / "set.npz", **arrays)
        root = root / "set.npz" if layout == "npz" else root
    expected = {(image.tobytes(), names[label]) for image, label in zip(images, LABELS, strict=True)}
    if layout == "npz-split":
        expected = {(image, str(names.index(name))) for image, name in expected}
    loaded = gan.load_images(root)
    assert loaded.pixels.dtype == torch.uint8
    assert loaded.pixels.shape == (20, 32, 32, 3)
    assert as_set(loaded) == expected
    if layout in ("classes", "npz", "npz-nchw"):
        with pytest.raises(gan.UserError, match=r"not divided|found nothing"):
            gan.load_images(root, "test")
    else:
        test = gan.load_images(root, "test")
        assert len(test.pixels) == 4
        assert as_set(test) < expected


def test_flat_folder_has_no_labels(tmp_path):
    images = pictures(5)
    loaded = gan.load_images(save_all(images, tmp_path / "flat"))
    assert loaded.labels is None
    assert loaded.classes == ()
    assert (loaded.pixels.numpy() == images).all()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("folder", ["", "raw"])
def test_idx(tmp_path, zipped, folder):
    images, end = pictures(20, 28)[..., 0], ".gz" * zipped
    for split, part in (("train", slice(None)), ("t10k", slice(3, 9))):
        write_idx(tmp_path / folder / f"{split}-images-idx3-ubyte{end}", images[part], zipped)
        write_idx(tmp_path / folder / f"{split}-labels-idx1-ubyte{end}", LABELS[part].astype(np.uint8), zipped)
    for split, part in (("train", slice(None)), ("test", slice(3, 9))):
        loaded = gan.load_images(tmp_path, split)
        assert loaded.pixels.shape == (len(images[part]), 28, 28, 1)
        assert (loaded.pixels[..., 0].numpy() == images[part]).all()
        assert (loaded.labels.numpy() == LABELS[part]).all()
        assert loaded.classes == ("0", "1")


def test_a_test_class_keeps_its_training_label(tmp_path):
    for name in ("ant", "bee", "cow"):
        save_all(pictures(2), tmp_path / "train" / name)
    save_all(pictures(3), tmp_path / "test" / "cow")
    assert gan.load_images(tmp_path, "test").labels.tolist() == [2, 2, 2]
    save_all(pictures(1), tmp_path / "test" / "dog")
    with pytest.raises(gan.UserError, match="class dog is not in"):
        gan.load_images(tmp_path, "test")


def test_shapes_are_ten_classes_and_always_the_same():
    first, again, other = gan.load_images(), gan.load_images(), gan.load_images(split="test", image_size=28)
    assert first.pixels.shape == (10_000, 32, 32, 3)
    assert torch.equal(first.pixels, again.pixels)
    assert other.pixels.shape == (2_000, 28, 28, 3)
    assert torch.bincount(first.labels).tolist() == [1000] * 10
    assert len(first.classes) == 10
    # Classes are told apart by shape alone: the mean covering of the centre and of the rim differs between them.
    grey = first.pixels.float().mean(3)
    contrast = (grey - grey[:, :1, :1]).abs()
    means = torch.stack([contrast[first.labels == label].mean(0) for label in range(10)])
    assert torch.cdist(means.flatten(1), means.flatten(1)).add(torch.eye(10) * 1e9).min() > 100


def test_download_uses_what_torchvision_finds(tmp_path):
    for split, count in (("train", 12), ("t10k", 4)):
        write_idx(tmp_path / f"MNIST/raw/{split}-images-idx3-ubyte", pictures(count, 28)[..., 0])
        write_idx(tmp_path / f"MNIST/raw/{split}-labels-idx1-ubyte", np.arange(count).astype(np.uint8))
    assert len(gan.load_images(formats.download("mnist", tmp_path)).pixels) == 12


EMNIST_TRAIN = "emnist-{}-train-images-idx3-ubyte"


@pytest.mark.parametrize("zipped", [False, True])
def test_emnist_comes_out_upright(tmp_path, zipped):
    images = np.zeros((6, 28, 28), np.uint8)
    images[:, 3:25, 8] = 255  # an L: a long stem, a short foot to the right
    images[:, 24, 8:16] = 200
    images[np.arange(6), 0, 27] = np.arange(6) + 1
    write_emnist(tmp_path / "gzip", "balanced", images, np.full(6, 21, np.uint8), zipped)
    (tmp_path / "gzip" / "emnist-balanced-mapping.txt").write_text("21 76\n")
    for path in (tmp_path, tmp_path / "gzip"):
        for split, count in (("train", 6), ("test", 4)):
            loaded = gan.load_images(path, split)
            assert (loaded.pixels[..., 0].numpy() == images[:count]).all()
            assert [loaded.classes[label] for label in loaded.labels] == ["L"] * count


@pytest.mark.parametrize(
    ("name", "characters"),
    [
        ("balanced", "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"),
        ("bymerge", "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"),
        ("byclass", string.digits + string.ascii_uppercase + string.ascii_lowercase),
        ("letters", string.ascii_lowercase),
        ("digits", string.digits),
        ("mnist", string.digits),
    ],
)
def test_emnist_classes_are_characters(tmp_path, name, characters):
    count, first = len(characters), 1 if name == "letters" else 0
    images = pictures(count, 28)[..., 0]
    write_emnist(tmp_path, name, images, np.arange(first, first + count, dtype=np.uint8))
    for split, expected in (("train", characters), ("test", characters[:4])):
        loaded = gan.load_images(tmp_path, split)
        assert loaded.classes == tuple(expected)  # those that occur
        assert "".join(loaded.classes[label] for label in loaded.labels) == expected


def test_of_several_emnist_sets_one_is_named_by_a_file(fails, tmp_path):
    raw, images, labels = tmp_path / "EMNIST" / "raw", pictures(8, 28)[..., 0], np.arange(1, 9, dtype=np.uint8)
    write_emnist(raw, "letters", images, labels)
    write_emnist(raw, "digits", 255 - images, labels, zipped=True)
    for folder in (raw, tmp_path / "EMNIST"):
        message = fails("--data", folder)
        assert "holds several sets; name a file of one of them, such as" in message
        example = message.strip().rpartition(" ")[2]
        assert gan.load_images(example).classes == tuple("12345678")
    for file in sorted(raw.glob("emnist-letters-*")):  # of any of its files
        for split, count in (("train", 8), ("test", 4)):
            loaded = gan.load_images(file, split)
            assert (loaded.pixels[..., 0].numpy() == images[:count]).all()
            assert (loaded.labels.numpy() == labels[:count] - 1).all()
    digits = gan.load_images(raw / f"{EMNIST_TRAIN.format('digits')}.gz")
    assert (digits.pixels[..., 0].numpy() == 255 - images).all()
    for split in ("train", "t10k"):  # MNIST's files of the same format are no part of the set, and not transposed
        write_idx(raw / f"{split}-images-idx3-ubyte", images)
    assert len(gan.load_images(raw / EMNIST_TRAIN.format("letters"), "test").pixels) == 4
    assert (gan.load_images(raw / "train-images-idx3-ubyte").pixels[..., 0].numpy() == images).all()
    for file in raw.glob("emnist-letters-*"):
        file.unlink()
    assert EMNIST_TRAIN.format("digits") in fails("--data", raw)


def test_an_emnist_label_without_a_character(fails, tmp_path):
    write_emnist(tmp_path / "a", "letters", pictures(5, 28)[..., 0], np.arange(5, dtype=np.uint8))
    assert "labels must be whole numbers from 0 to 25" in fails("--data", tmp_path / "a")
    write_emnist(tmp_path / "b", "balanced", pictures(5, 28)[..., 0], np.arange(43, 48, dtype=np.uint8))
    assert "labels must be whole numbers from 0 to 46" in fails("--data", tmp_path / "b")


def test_svhn(fails, tmp_path):
    images, labels = pictures(30, 32), np.arange(30) % 10 + 1
    for name, part in (("train", slice(20)), ("test", slice(20, 26)), ("extra", slice(20, 30))):
        write_svhn(tmp_path / "svhn" / f"{name}_32x32.mat", images[part], labels[part])
    for split, part in (("train", slice(20)), ("test", slice(20, 26))):
        for path in (tmp_path, tmp_path / "svhn"):
            loaded = gan.load_images(path, split)
            assert (loaded.pixels.numpy() == images[part]).all()
            assert [loaded.classes[label] for label in loaded.labels] == [str(label % 10) for label in labels[part]]
    extra = gan.load_images(tmp_path / "svhn" / "extra_32x32.mat")
    assert (extra.pixels.numpy() == images[20:]).all()
    assert extra.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    for name in ("train", "test"):
        (tmp_path / "svhn" / f"{name}_32x32.mat").unlink()
    assert len(gan.load_images(tmp_path / "svhn").pixels) == 10


def test_a_damaged_svhn_file(fails, tmp_path):
    from scipy.io import savemat

    path = tmp_path / "svhn" / "train_32x32.mat"
    write_svhn(path, pictures(8, 32), np.arange(1, 9))
    whole = path.read_bytes()
    for data in (whole[:124], whole[: len(whole) // 2], whole[:1000] + bytes(16) + whole[1016:]):
        path.write_bytes(data)
        for data_path in (path, tmp_path / "svhn"):
            assert "train_32x32.mat: not an SVHN file (" in fails("--data", data_path)
    savemat(path, {"X": pictures(8, 32).transpose(1, 2, 3, 0)})
    assert "there is no 'y' in it" in fails("--data", path)
    savemat(path, {"X": pictures(8, 32)[..., 0], "y": np.ones((8, 1), np.uint8)})
    assert "train_32x32.mat: not an SVHN file (" in fails("--data", path)
    savemat(path, {"X": pictures(8, 32).transpose(1, 2, 3, 0) / 255, "y": np.ones((8, 1), np.uint8)})
    assert "expected uint8 images" in fails("--data", path)
    write_svhn(path, pictures(8, 32), np.arange(4, 12))
    assert "labels must be whole numbers from 0 to 9" in fails("--data", path)


def test_svhn_without_scipy(fails, tmp_path, monkeypatch):
    write_svhn(tmp_path / "train_32x32.mat", pictures(4, 32), np.arange(1, 5))
    monkeypatch.setitem(sys.modules, "scipy.io", None)  # what is None there cannot be imported
    path = tmp_path / "train_32x32.mat"
    assert fails("--data", path) == f"rollnumber_04.py: --data {path}: needs scipy (pip install scipy)\n"


def test_downloads_of_emnist_and_svhn(tmp_path, monkeypatch):
    from torchvision import datasets

    raw = tmp_path / "EMNIST" / "raw"
    images = pictures(8, 28)[..., 0]
    for name in ("balanced", "digits"):
        write_emnist(raw, name, images, np.arange(2, 10, dtype=np.uint8))
    loaded = gan.load_images(formats.download("emnist", tmp_path))
    assert (loaded.pixels[..., 0].numpy() == images).all()
    assert loaded.classes == tuple("23456789")
    parts = {split: ["", f"{split}_32x32.mat", None] for split in ("train", "test")}  # no sums of bytes to be met
    monkeypatch.setattr(datasets.SVHN, "split_list", parts)
    for split, count in (("train", 8), ("test", 4)):
        write_svhn(tmp_path / "SVHN" / f"{split}_32x32.mat", pictures(count, 32), np.arange(1, count + 1))
    assert [len(gan.load_images(formats.download("svhn", tmp_path), part).pixels) for part in parts] == [8, 4]


# ---------------------------------------------------------------------------------------- training and test images


def test_all_is_training_and_test_images(tmp_path, class_folders):
    for split, names, part in (("train", ("ant", "bee", "cow"), slice(0, 6)), ("test", ("bee", "cow"), slice(6, 10))):
        for i, name in enumerate(names):
            save_all(pictures(10)[part][i :: len(names)], tmp_path / "folders" / split / name)
    loaded = gan.load_images(tmp_path / "folders", "all")
    assert loaded.labels.tolist() == [0, 0, 1, 1, 2, 2, 1, 1, 2, 2]
    assert loaded.classes == ("ant", "bee", "cow")
    assert (loaded.pixels.numpy() == pictures(10)[[0, 3, 1, 4, 2, 5, 6, 8, 7, 9]]).all()
    write_cifar(tmp_path / "cifar", pictures(20, 32), LABELS)
    loaded = gan.load_images(tmp_path / "cifar", "all")
    assert (loaded.pixels.numpy() == pictures(20, 32)[[*range(20), *range(4)]]).all()
    assert loaded.labels.tolist() == [*LABELS, *LABELS[:4]]
    assert loaded.classes == ("cat", "dog")
    undivided = gan.load_images(class_folders, "all")
    assert torch.equal(undivided.pixels, gan.load_images(class_folders).pixels)
    assert undivided.labels.tolist() == [0] * 16 + [1] * 16


def test_all_of_the_built_in_shapes():
    train, test, both = (gan.load_images(split=split, image_size=8) for split in ("train", "test", "all"))
    assert both.pixels.shape == (12_000, 8, 8, 3)
    assert torch.equal(both.pixels, torch.cat([train.pixels, test.pixels]))
    assert torch.equal(both.labels, torch.cat([train.labels, test.labels]))


def test_splits_that_differ_are_merged(tmp_path):
    """In channels, size, labels and number of classes."""
    grey = np.repeat(pictures(4, 16)[..., :1], 3, axis=3)
    np.savez(tmp_path / "a.npz", x=grey, y=np.arange(4), test_x=pictures(3, 8), test_y=np.array([0, 4, 1]))
    loaded = gan.load_images(tmp_path / "a.npz", "all")
    assert loaded.pixels.shape == (7, 16, 16, 3)
    assert (loaded.pixels[:4].numpy() == grey).all()
    assert loaded.labels.tolist() == [0, 1, 2, 3, 0, 4, 1]
    assert loaded.classes == tuple("01234")
    np.savez(tmp_path / "b.npz", x=grey, y=np.arange(4), test_x=grey)
    loaded = gan.load_images(tmp_path / "b.npz", "all")
    assert loaded.pixels.shape == (8, 16, 16, 1)
    assert (loaded.labels, loaded.classes) == (None, ())


def test_a_validation_set_beside_a_test_set_is_left_aside(tmp_path):
    parts = {f"{split}_{kind}": part[i : i + 4] for i, split in enumerate(("train", "val", "test"))
             for kind, part in (("images", pictures(6)), ("labels", LABELS[:, None]))}  # fmt: skip
    np.savez(tmp_path / "medical.npz", **parts)
    for split, i in (("train", 0), ("test", 2)):
        loaded = gan.load_images(tmp_path / "medical.npz", split)
        assert (loaded.pixels.numpy() == pictures(6)[i : i + 4]).all()
        assert loaded.labels.tolist() == LABELS[i : i + 4].tolist()
    del parts["test_images"], parts["test_labels"]
    np.savez(tmp_path / "valid.npz", **parts)
    assert (gan.load_images(tmp_path / "valid.npz", "test").pixels.numpy() == pictures(6)[1:5]).all()


def test_a_share_is_held_out_of_a_divided_set_too(tmp_path, capsys):
    for split, count in (("train", 20), ("test", 10)):
        for label, name in enumerate(("cat", "dog")):
            save_all(pictures(count, seed=count + label), tmp_path / "data" / split / name)
    words, out = ["--data", str(tmp_path / "data"), *TOY], ["--out", str(tmp_path / "held")]
    assert gan.main([*words, "--dry-run", "--multitask", "--out", str(tmp_path / "whole")]) == 0
    said = capsys.readouterr().out
    assert ": 40 colour images" in said
    assert "validation 20 test images" in said
    assert gan.main([*words, *out, "--multitask", "--validation-split=.5", "--epochs", "1"]) == 0
    said = capsys.readouterr().out
    assert ": 20 colour images" in said
    assert "validation 20 images held out" in said
    assert json.loads((tmp_path / "held" / "options.json").read_bytes())["validation_split"] == 0.5
    assert gan.main(["--resume", *out, "--epochs", "2", "--validation-split", "0.25"]) == 2
    assert "held/checkpoints/last.pt has --validation-split 0.5" in capsys.readouterr().err.replace("\\", "/")
    assert gan.main(["--resume", *out, "--epochs", "2"]) == 0
    said = capsys.readouterr().out
    assert ": 20 colour images" in said
    assert "is not what the checkpoint was trained on" not in said


def test_what_lies_beside_the_images_does_not_hide_them(tmp_path):
    for name in ("bus", "car", "train"):  # a class may be called train
        save_all(pictures(3), tmp_path / "vehicles" / name)
    assert gan.load_images(tmp_path / "vehicles").classes == ("bus", "car", "train")
    np.savez(tmp_path / "vehicles" / "bus" / "features.npz", a=np.zeros(3))
    (tmp_path / "vehicles" / "notes.pkl").write_bytes(pickle.dumps([1, 2]))
    save_all(pictures(1), tmp_path / "vehicles" / "car" / ".thumbnails")
    assert len(gan.load_images(tmp_path / "vehicles").pixels) == 9


def test_the_folder_above_a_set_is_the_set_or_names_several(tmp_path, fails):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            save_all(pictures(2), tmp_path / "data" / "pets" / split / name)
    loaded = gan.load_images(tmp_path / "data")
    assert (len(loaded.pixels), loaded.classes) == (4, ("cat", "dog"))
    write_cifar(tmp_path / "data" / "cifar-10-batches-py", pictures(20, 32), LABELS)
    assert "holds several data sets; name one of them" in fails("--data", tmp_path / "data")


def test_splits_made_of_arrays(tmp_path):
    for split, part in (("training", slice(None)), ("testing", slice(0, 1))):
        (tmp_path / split).mkdir()
        np.savez(tmp_path / split / "a.npz", x=pictures(20)[part], y=LABELS[part])
    test = gan.load_images(tmp_path, "test")
    assert test.labels.tolist() == [0]
    assert test.classes == ("0", "1")


def test_idx_files_kept_both_packed_and_unpacked(tmp_path):
    for zipped in (False, True):
        name = "train-images-idx3-ubyte" + ".gz" * zipped
        write_idx(tmp_path / name, pictures(6, 28)[..., 0], zipped)
    assert len(gan.load_images(tmp_path).pixels) == 6


@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_many_chunks_keep_their_places(tmp_path, monkeypatch, capsys, platform):
    monkeypatch.setattr(gan, "DECODE_CHUNK", 4)
    monkeypatch.setattr(gan.sys, "platform", platform)  # forked workers, or threads
    images = pictures(30)
    save_all(images, tmp_path / "flat")
    (tmp_path / "flat" / "0013.png").write_bytes(b"")
    loaded = gan.load_images(tmp_path / "flat", skip_unreadable=True)
    assert (loaded.pixels.numpy() == np.delete(images, 13, axis=0)).all()
    assert "0013.png" in capsys.readouterr().out
    # Pictures that are too large for the asked size and come as an array go through the same workers.
    np.savez(tmp_path / "big.npz", np.repeat(images, 2, axis=1).repeat(2, axis=2))
    assert gan.load_images(tmp_path / "big.npz", image_size=8).pixels.shape == (30, 8, 8, 3)


# ------------------------------------------------------------------------------------------------------ image modes


def as_rgb(image: Image.Image, size: int = 8) -> np.ndarray:
    return np.asarray(folders.to_rgb(image, size))


def test_palette_transparency_and_alpha_are_composited_on_white():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, :4] = (200, 100, 0, 255)
    rgba[:, 4:] = (200, 100, 0, 0)
    half = rgba.copy()
    half[..., 3] = 128
    assert (as_rgb(Image.fromarray(rgba))[:, :4] == (200, 100, 0)).all()
    assert (as_rgb(Image.fromarray(rgba))[:, 4:] == 255).all()
    assert abs(as_rgb(Image.fromarray(half)).astype(int) - (227, 177, 127)).max() <= 1
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert (as_rgb(palette) == (10, 20, 30)).all()
    palette.info["transparency"] = 1
    assert (as_rgb(palette) == 255).all()
    assert (as_rgb(Image.new("LA", (8, 8), (40, 0))) == 255).all()


def test_deep_grey_cmyk_and_bilevel():
    ramp = (np.arange(64).reshape(8, 8) * 1040).astype(np.uint16)
    expected = np.round(ramp / 257).astype(int)
    assert (as_rgb(Image.fromarray(ramp))[..., 0] == expected).all()
    deep = Image.fromarray(ramp.astype(np.int32))
    deep.format = "PNG"  # which has no more than 16 bits, whatever Pillow keeps them in
    assert (as_rgb(deep)[..., 2] == expected).all()
    deep.format = "TIFF"
    with pytest.raises(ValueError, match="whole numbers of no known range"):
        as_rgb(deep)
    assert (as_rgb(Image.new("CMYK", (8, 8), (0, 255, 255, 0))) == (255, 0, 0)).all()
    assert (as_rgb(Image.new("1", (8, 8), 1)) == 255).all()
    assert (as_rgb(Image.new("L", (8, 8), 77)) == 77).all()
    with pytest.raises(ValueError, match="floating-point"):
        folders.to_rgb(Image.new("F", (8, 8)), 8)


def test_files_of_every_mode_through_the_loader(tmp_path):
    grey16 = np.full((8, 8), 0x8080, np.uint16)
    Image.fromarray(grey16).save(tmp_path / "deep.png")
    Image.fromarray(grey16).save(tmp_path / "deep.tif")
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "ink.tif")
    Image.new("RGBA", (8, 8), (1, 2, 3, 0)).save(tmp_path / "void.webp", lossless=True)
    Image.new("P", (8, 8)).save(tmp_path / "palette.gif")
    loaded = dict(
        zip(sorted(p.name for p in tmp_path.iterdir()), gan.load_images(tmp_path).pixels.numpy(), strict=True)
    )
    assert (loaded["deep.png"] == 128).all()
    assert (loaded["deep.tif"] == 128).all()
    assert (loaded["ink.tif"] == (0, 255, 255)).all()
    assert (loaded["void.webp"] == 255).all()
    assert (loaded["palette.gif"] == 0).all()


def test_exif_orientation(tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    assert (gan.load_images(tmp_path).pixels[0, 4:] == 255).all()


def test_resizing_is_antialiased_and_centred(tmp_path):
    stripes = np.zeros((256, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    stripes[:, :128] = stripes[:, 384:] = (255, 0, 0)
    resized = as_rgb(Image.fromarray(stripes), 8).astype(int)
    assert abs(resized[:, 1:-1] - 127).max() < 8  # a nearest-pixel resize would give 0 or 255
    save_all(stripes[None], tmp_path)
    assert gan.load_images(tmp_path, image_size=16).pixels.shape == (1, 16, 16, 3)


@pytest.mark.parametrize(("own", "expected"), [(28, 28), (32, 32), (72, 64), (30, 28), (96, 96), (200, 64), (5, 8)])
def test_size_when_none_is_asked_for(tmp_path, own, expected):
    np.savez(tmp_path / "a.npz", pictures(2, own))
    assert gan.load_images(tmp_path).pixels.shape[1] == expected


def test_a_set_that_is_grey_in_every_pixel_has_one_channel(tmp_path):
    grey = np.repeat(pictures(3)[..., :1], 3, axis=3)
    assert gan.load_images(save_all(grey, tmp_path / "grey")).pixels.shape == (3, 8, 8, 1)
    save_all(np.concatenate([grey, pictures(1)]), tmp_path / "grey")
    assert gan.load_images(tmp_path / "grey").pixels.shape == (4, 8, 8, 3)


# -------------------------------------------------------------------------------------------------------- bad input


def test_bad_folders(fails, tmp_path, class_folders):
    assert "no-such: there is no such file" in fails("--data", tmp_path / "no-such")
    (tmp_path / "empty").mkdir()
    assert "empty: this folder is empty" in fails("--data", tmp_path / "empty")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no pictures here")
    assert "text: nothing in it is an image that is known here: 1 × .txt" in fails("--data", tmp_path / "text")
    assert "notes.txt: neither a folder nor" in fails("--data", tmp_path / "text" / "notes.txt")
    (class_folders / "eel").mkdir()
    assert "eel: this class folder has no image" in fails("--data", class_folders)
    (class_folders / "eel").rmdir()
    save_all(pictures(1), class_folders)
    assert "0000.png lie beside its class folders" in fails("--data", class_folders)
    save_all(pictures(1), tmp_path / "one")
    assert "training needs at least 2 images, found 1" in fails("--data", tmp_path / "one")


@pytest.mark.skipif(os.name != "posix", reason="links and pipes are POSIX's")
def test_links_and_pipes(fails, class_folders, tmp_path):
    (class_folders / "cat" / "self").symlink_to("..")
    (class_folders / "cat" / "linked.png").symlink_to("0000.png")
    os.mkfifo(class_folders / "cat" / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    assert len(gan.load_images(class_folders).pixels) == 33
    assert "pipe: neither a folder nor a file" in fails("--data", tmp_path / "pipe")
    for folder in (class_folders, class_folders / "dog"):
        (class_folders / "dog" / "lost.png").symlink_to("nowhere.png")
        assert "lost.png: No such file or directory; --skip-unreadable" in fails("--data", folder)
        (class_folders / "dog" / "lost.png").unlink()


def test_a_picture_that_unpacks_to_gigabytes_is_refused(fails, tmp_path):
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">2I5B", 10_000, 10_000, 8, 2, 0, 0, 0))
    save_all(pictures(2), tmp_path / "data")
    (tmp_path / "data" / "z.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    assert "decompression bomb" in fails("--data", tmp_path / "data")


def test_a_test_set_alone(fails, tmp_path):
    save_all(pictures(2), tmp_path / "data" / "test" / "cat")
    assert "has no train/ beside its test/" in fails("--data", tmp_path / "data")


def test_paths_that_cannot_be_read(fails, tmp_path, class_folders):
    assert "File name too long" in fails("--data", tmp_path / ("x" * 300))
    (class_folders / "cat").chmod(0)
    if os.name == "posix" and os.geteuid():  # root may read anything
        assert "cat: Permission denied" in fails("--data", class_folders)
    (class_folders / "cat").chmod(0o755)


def test_a_download_that_fails(fails, tmp_path, monkeypatch):
    from torchvision import datasets

    def refuse(root, download):
        raise RuntimeError("no mirror answers")

    monkeypatch.setattr(datasets, "CIFAR10", refuse)
    message = fails("--download", "cifar10", "--data", tmp_path / "here", "--device", "cpu")
    assert "--download cifar10: could not be fetched into" in message


def test_damaged_images_are_named_or_skipped(fails, capsys, tmp_path, class_folders):
    whole = (class_folders / "cat" / "0003.png").read_bytes()
    (class_folders / "cat" / "0003.png").write_bytes(whole[: len(whole) // 2])
    assert "cat/0003.png: " in fails("--data", class_folders).replace("\\", "/")
    (class_folders / "dog" / "0000.png").write_text("not a picture")
    (class_folders / "dog" / "0001.png").write_bytes(b"")
    message = fails("--data", class_folders)
    assert "(and 2 more); --skip-unreadable" in message
    loaded = gan.load_images(class_folders, skip_unreadable=True)
    assert loaded.labels.tolist() == [0] * 15 + [1] * 14
    assert (loaded.pixels.numpy() == np.delete(pictures(32), [3, 16, 17], axis=0)).all()
    told = capsys.readouterr().out
    assert "skipped 3 unreadable images" in told
    assert all(name in told for name in ("0003.png", "0000.png: not an image", "0001.png"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    assert "none of its images can be read" in fails("--data", tmp_path / "bad", "--skip-unreadable")
    assert "a.png: not an image" in fails("--data", tmp_path / "bad")


@pytest.mark.parametrize("classes", [np.array("cat"), np.array([["cat"], ["dog"]])])
def test_names_of_classes_that_are_no_list(fails, tmp_path, classes):
    np.savez(tmp_path / "a.npz", x=pictures(6), y=np.arange(6) % 2, classes=classes)
    assert "expected train images N×H×W[×3] and at most labels N, found x" in fails("--data", tmp_path / "a.npz")


def test_labels_and_images_that_differ_in_number(fails, tmp_path):
    np.savez(tmp_path / "a.npz", x=pictures(6), y=np.arange(5))
    assert "a.npz: 6 train images but 5 labels" in fails("--data", tmp_path / "a.npz")
    write_idx(tmp_path / "idx" / "train-images-idx3-ubyte", pictures(6)[..., 0])
    write_idx(tmp_path / "idx" / "train-labels-idx1-ubyte", np.arange(7).astype(np.uint8))
    assert "6 train images but 7 labels" in fails("--data", tmp_path / "idx")
    write_cifar(tmp_path / "cifar", pictures(20, 32), LABELS, changes={"labels": [0, 1]})
    assert "data_batch_1: not a CIFAR batch (10 images but 2 labels)" in fails("--data", tmp_path / "cifar")


def test_damaged_arrays(fails, tmp_path):
    write_idx(tmp_path / "idx" / "train-images-idx3-ubyte", pictures(6)[..., 0])
    path = tmp_path / "idx" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    assert "its header says 384 values, it holds only 383" in fails("--data", tmp_path / "idx")
    path.write_bytes(path.read_bytes() + b"ab")
    assert "it holds more" in fails("--data", tmp_path / "idx")
    path.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**31) + b"tiny")
    assert "train-images-idx3-ubyte: " in fails("--data", tmp_path / "idx")
    (tmp_path / "a.npz").write_bytes(b"PK\3\4 and then nothing")
    assert "a.npz: not a readable .npz" in fails("--data", tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=pictures(6).astype(np.float32))
    assert "expected uint8 images" in fails("--data", tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", x=np.array([{"an": "object"}]))
    assert "c.npz: not a readable .npz" in fails("--data", tmp_path / "c.npz")
    np.savez(tmp_path / "e.npz", x=pictures(4), y=np.eye(4))
    assert "found x (4, 8, 8, 3), y (4, 4)" in fails("--data", tmp_path / "e.npz")  # not taken for unlabelled
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        archive.writestr("0.png", b"a picture")
    assert "f.zip: a zip of files, not of arrays" in fails("--data", tmp_path / "f.zip")
    np.savez(tmp_path / "d.npz", x=pictures(2), y=np.array([0, -1]))
    assert "labels must be whole numbers" in fails("--data", tmp_path / "d.npz")


class Exploit:
    """A pickle that would run a command when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


def test_a_pickle_runs_no_code(fails, tmp_path):
    write_cifar(tmp_path / "cifar", pictures(20, 32), LABELS, changes={"extra": Exploit(tmp_path / "ran")})
    message = fails("--data", tmp_path / "cifar")
    assert "which no CIFAR file needs" in message
    assert not (tmp_path / "ran").exists()


def test_a_pickle_that_claims_a_huge_array_allocates_nothing(fails, tmp_path):
    write_cifar(tmp_path / "cifar", pictures(20, 32), LABELS)
    path = tmp_path / "cifar" / "data_batch_1"
    claim = b"K\x0aM\x00\x0c"  # 10 rows of 3072 bytes
    lie = b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f"  # 2^31-1 rows of as many bytes
    assert claim in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(claim, lie))
    assert "data_batch_1: not a CIFAR batch" in fails("--data", tmp_path / "cifar")


@pytest.mark.parametrize("size", [7, 9, 30, 33, 100])
def test_a_size_that_the_networks_cannot_make(fails, size):
    message = fails("--image-size", size)
    assert f"--image-size {size}: must be 4, 5, 6 or 7 times 2, 4, 8, 16" in message


def test_bad_data_as_a_user_sees_it(tmp_path):
    from conftest import command

    done = command("--data", tmp_path / "missing", "--out", tmp_path / "run", *TOY)
    assert done.returncode == 2
    assert done.stderr == f"rollnumber_04.py: --data {tmp_path / 'missing'}: there is no such file or folder\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("turned", [False, True])
def test_a_large_jpeg_is_decoded_at_less_than_its_size(tmp_path, turned, monkeypatch):
    """In a fraction of the time; what training sees hardly differs from the whole image, scaled."""
    smooth = Image.fromarray(pictures(1, 16)[0]).resize((640, 512), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1  # a quarter turn
    smooth.save(tmp_path / "large.jpg", quality=95, exif=exif)
    whole = gan.fitted(smooth.transpose(Image.Transpose.ROTATE_270) if turned else smooth, 32)
    decoded = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda image: decoded.append(image.size) or load(image))
    for read in (folders.read_item, gan.read_image):
        decoded.clear()
        found = np.asarray(read(tmp_path / "large.jpg", 32), dtype=int)
        assert abs(found - np.asarray(whole, dtype=int)).max() <= 12
        assert max(max(size) for size in decoded) <= 160
