"""`draw`: one image at a point between others, against what `generate` and closed forms give."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import rollnumber_04 as gan
from extras import paths
from extras.paths import Point
from labs.biggan import Generator as BigGAN

MODEL, CONDITIONAL = (ROOT / "saved_models" / f"cifar10-{name}.safetensors" for name in ("ls", "small"))


def drawn(*words, out):
    assert gan.main(["draw", *map(str, words), "--out", str(out / "new" / "image.png")]) == 0
    return np.asarray(Image.open(out / "new" / "image.png"))


def test_an_image_is_that_of_generate(tmp_path):
    assert (drawn(MODEL, "--at", "3:17", out=tmp_path) == gan.load_generator(MODEL).generate(18, seed=3)[17]).all()
    generator = gan.load_generator(CONDITIONAL)
    assert (drawn(CONDITIONAL, "--at", "3:17", out=tmp_path) == generator.generate(18, seed=3)[17]).all()
    words = [CONDITIONAL, "--at", "3:4", "--label", "cat", "--truncation", 0.5]
    expected = generator.generate(5, label="cat", seed=3, truncation=0.5)[4]
    assert (drawn(*words, out=tmp_path) == expected).all()


def test_the_ends_of_a_way_and_its_middle(tmp_path):
    first, second = (gan.load_generator(MODEL).generate(2, seed=5)[i] for i in (0, 1))
    between = [MODEL, "--at", "5:0", "--to", "5:1"]
    assert (drawn(*between, "--share", 0, out=tmp_path) == first).all()
    assert (drawn(*between, "--share", 1, "--spherical", out=tmp_path) == second).all()
    of_classes = [CONDITIONAL, "--at", "5:0", "--to", "5:9"]  # airplane and truck
    expected = gan.load_generator(CONDITIONAL).generate(10, seed=5)
    assert (drawn(*of_classes, "--share", 1, out=tmp_path) == expected[9]).all()
    assert (drawn(*of_classes, "--share", 0, out=tmp_path) == expected[0]).all()
    z = gan.latents(5, 0, 2, 100)
    middle = gan.draw_images(gan.load_generator(MODEL), z.mean(0, keepdim=True))[0]
    assert (drawn(*between, out=tmp_path) == middle).all()


def test_two_classes_are_mixed():
    generator = gan.load_generator(CONDITIONAL)
    z, y = Point((0, 3), labels=("cat", "dog"), mix=0.25).inputs(generator)
    assert torch.equal(z, gan.latents(0, 3, 1, 128))
    assert y[0].tolist() == [0, 0, 0, 0.75, 0, 0.25, 0, 0, 0, 0]


class Linear(gan.BaseGenerator):
    """Images that are a matrix times the noise: its directions are the matrix's singular vectors."""

    def __init__(self, matrix):
        super().__init__()
        self.architecture, self.matrix = {"latent_dim": matrix.shape[1]}, torch.nn.Parameter(matrix)

    def forward(self, z):
        return (z @ self.matrix.mT).reshape(len(z), 1, 4, 4)


def test_directions_are_those_along_which_images_change_most():
    matrix = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    rows = paths.directions(Linear(matrix))
    expected = torch.linalg.svd(matrix.double()).Vh
    expected *= expected.gather(1, expected.abs().argmax(1, keepdim=True)).sign()
    torch.testing.assert_close(rows.double(), expected, rtol=0, atol=1e-3)
    assert torch.equal(rows, paths.directions(Linear(matrix)))


def test_moves_go_along_them():
    generator = BigGAN(image_size=16, latent_dim=8, width=4, embedding=4, classes=("a", "b")).eval()
    rows = paths.directions(generator)
    torch.testing.assert_close(rows @ rows.mT, torch.eye(8), rtol=0, atol=1e-5)
    z, y = Point((1, 1), moves=((1, 2.0), (8, -0.5))).inputs(generator)
    torch.testing.assert_close(z, gan.latents(1, 1, 1, 8) + 2 * rows[0] - 0.5 * rows[7])
    assert y.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    "point",
    [
        Point((3, 17)),
        Point((3, 17), (5, 2), 0.4, True, ((1, -2.5), (4, 1.0)), (), 0.0, 0.7),
        Point((0, 1), (0, 2), 0.25, False, (), ("cat", "dog"), 0.6),
    ],
)
def test_the_words_of_a_point_draw_it(point, tmp_path):
    model = CONDITIONAL if point.labels else MODEL
    assert (drawn(model, *point.words(), out=tmp_path) == point.draw(gan.load_generator(model))).all()


def test_what_draw_refuses(tmp_path, fails):
    out = tmp_path / "image.png"
    for words, sentence in (
        ([MODEL, "--at", "3"], "--at: '3' is not S:I, two numbers from 0 to 2147483647, such as 3:17"),
        ([MODEL, "--at=-1:2"], "--at: '-1:2' is not S:I"),
        ([MODEL, "--at", "4294967296:0"], "--at: '4294967296:0' is not S:I"),
        ([MODEL, "--move", "1:nan"], "--move: '1:nan' is not K:X, a direction from 1 on and how far to go"),
        ([MODEL, "--move", "0:1"], "--move: '0:1' is not K:X"),
        ([CONDITIONAL, "--label", "cat,"], "--label cat,: takes one class, or two"),
        ([MODEL, "--move", "101:1"], "--move 101:1: there are 100 directions"),
        ([MODEL, "--share", "0.5"], "--share: needs --to"),
        ([MODEL, "--spherical"], "--spherical: needs --to"),
        ([CONDITIONAL, "--mix", "0.5", "--label", "cat"], "--mix: needs two classes in --label"),
        ([CONDITIONAL, "--label", "cat,dog,frog"], "--label cat,dog,frog: takes one class, or two"),
        ([CONDITIONAL, "--label", "cow"], "is not among the classes"),
        ([MODEL, "--label", "cat"], "the generator draws no class of choice"),
        ([tmp_path / "no"], "there is no such model"),
    ):
        assert sentence in fails("draw", *words, "--out", out, writes_nothing_to=out), words
    assert "must name a .png file" in fails("draw", MODEL, "--out", tmp_path / "x.jpg")
