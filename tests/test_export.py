"""What `export` writes is read by onnxruntime as a program without torch reads it."""

import json
import types

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT, toy_lab

import rollnumber_04 as gan
from extras import export

MODELS = ROOT / "saved_models"


def exported(model, *words, tmp_path):
    """The file of a model as a session, and its metadata."""
    out = tmp_path / "new" / "model.onnx"
    assert gan.main(["export", str(model), "--out", str(out), *words]) == 0
    onnx.checker.check_model(str(out), full_check=True)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    return session, session.get_modelmeta().custom_metadata_map


def noise(count, dim, seed=0):
    """The noise of `generate --seed`, as the Readme has it."""
    return np.stack([np.random.default_rng((seed, i)).standard_normal(dim, np.float32) for i in range(count)])


def assert_same_images(found, expected):
    assert found.dtype == np.uint8 and found.shape == expected.shape
    assert abs(found.astype(int) - expected).max() <= 1 and (found != expected).mean() < 0.01


def test_without_torch_it_draws_what_generate_draws(tmp_path):
    session, facts = exported(MODELS / "cifar10-ls.safetensors", "--uint8", tmp_path=tmp_path)
    for count in (1, 5):  # any number at once
        (images,) = session.run(["images"], {"z": noise(count, 100, seed=7)})
        expected = gan.load_generator(MODELS / "cifar10-ls.safetensors").generate(count, seed=7)
        assert_same_images(images, expected)
    assert facts["network"] == "generator" and facts["model"] == "cifar10-ls.safetensors"
    assert json.loads(facts["inputs"]) == {"z": "float32 batch×100, from N(0, 1)"}
    assert json.loads(facts["outputs"]) == {"images": "uint8 batch×32×32×3"}
    assert json.loads(facts["classes"]) == []


def test_classes_and_what_lies_between_them(tmp_path):
    model = MODELS / "cifar10-small.safetensors"
    session, facts = exported(model, tmp_path=tmp_path)
    y = np.zeros((4, 10), np.float32)
    y[:, 3] = (1, 0.75, 0.25, 0)
    y[:, 5] = 1 - y[:, 3]
    z = noise(4, 128)
    (images,) = session.run(None, {"z": z, "y": y})
    expected = gan.load_generator(model)(torch.from_numpy(z), torch.from_numpy(y))
    np.testing.assert_allclose(images, expected.numpy(), rtol=0, atol=1e-4)
    assert [*json.loads(facts["classes"])][3:6:2] == ["cat", "dog"]


def test_grey_images_of_a_class(tmp_path):
    model = MODELS / "fashion-cwgan-gp.safetensors"
    session, facts = exported(model, "--uint8", tmp_path=tmp_path)
    (images,) = session.run(None, {"z": noise(3, 100), "y": np.eye(10, dtype=np.float32)[[9, 9, 9]]})
    assert_same_images(images, gan.load_generator(model).generate(3, label=9))
    assert json.loads(facts["outputs"]) == {"images": "uint8 batch×28×28"}


def test_the_classifier(tmp_path):
    model = MODELS / "cifar10-multitask.safetensors"
    session, facts = exported(model, "--network", "discriminator", tmp_path=tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    images = (pixels.transpose(0, 3, 1, 2) / np.float32(127.5) - 1).astype(np.float32)
    scores, logits = session.run(["scores", "logits"], {"images": images})
    network = gan.load_network(model, "discriminator")
    np.testing.assert_allclose(logits, gan.class_logits(network, torch.from_numpy(pixels)).numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(scores, network(torch.from_numpy(images)).numpy(), rtol=0, atol=1e-4)
    assert len(json.loads(facts["classes"])) == logits.shape[1] == 10


@pytest.mark.parametrize("direction", ["xy", "yx"])
def test_the_translators(direction, tmp_path):
    model = MODELS / "emoji-apple-windows.safetensors"
    session, _ = exported(model, "--network", direction, "--uint8", "--image-size", "40", tmp_path=tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)
    images = (pixels.transpose(0, 3, 1, 2) / np.float32(127.5) - 1).astype(np.float32)
    (translated,) = session.run(["translated"], {"images": images})
    assert_same_images(translated, gan.load_network(model, direction).translate(pixels))


@pytest.mark.parametrize(
    ("lab", "words"),
    [
        ("labs.emoji", "--spectral-norm"),
        ("labs.blocks", ""),
        ("labs.conv", ""),
        ("labs.biggan", "--no-conditional --spectral-norm-g --image-size 16"),
    ],
)
def test_the_labs_generators(lab, words, tmp_path):
    model, _ = toy_lab(lab, words, torch.device("cpu"))
    generator = model.averages["generator"]
    run = types.SimpleNamespace(gan=model, epoch=0, step=0, facts={})
    gan.save_model(tmp_path / "m.safetensors", {"generator": generator}, run)
    session, facts = exported(tmp_path / "m.safetensors", tmp_path=tmp_path)
    inputs = generator.inputs(3, 0, 2)
    (images,) = session.run(None, dict(zip("zy", (part.numpy() for part in inputs), strict=False)))
    np.testing.assert_allclose(images, generator(*inputs).detach().numpy(), rtol=0, atol=1e-4)
    assert ("uniform" in facts["inputs"]) == (lab == "labs.emoji")


def test_what_export_refuses(tmp_path, fails):
    model, out = MODELS / "cifar10-ls.safetensors", tmp_path / "m.onnx"
    both, pair = MODELS / "cifar10-multitask.safetensors", MODELS / "emoji-apple-windows.safetensors"

    def refused(*words):
        return fails("export", *words, writes_nothing_to=out)

    assert "must name a .onnx file" in refused(model, "--out", tmp_path / "m.txt")
    assert "there is no such model" in refused(tmp_path / "no", "--out", out)
    assert "but no discriminator" in refused(model, "--network", "discriminator", "--out", out)
    assert "but no generator; --network xy or --network yx names one" in refused(pair, "--out", out)
    assert "--uint8: is for images that come out" in refused(
        both, "--network", "discriminator", "--uint8", "--out", out
    )
    assert "--image-size 64: is a translator's" in refused(model, "--image-size", 64, "--out", out)
    assert "--image-size 42: must be a multiple of 4" in refused(
        pair, "--network", "xy", "--image-size", 42, "--out", out
    )
    (tmp_path / "file").write_text("")
    assert "--out" in refused(model, "--out", tmp_path / "file" / "m.onnx")


def test_a_file_that_computes_something_else_is_not_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "NEAR", -1.0)
    out = tmp_path / "m.onnx"
    assert gan.main(["export", str(MODELS / "cifar10-ls.safetensors"), "--out", str(out)]) == 1
    assert "onnxruntime does not compute the same" in capsys.readouterr().err
    assert not out.exists()
