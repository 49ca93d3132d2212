"""What makes runs fast, and must not change them: the cache of decoded images, captured and compiled steps."""

import os
import types

import pytest
import torch
from conftest import TOY, graph_if_asked, pictures, save_all

import rollnumber_04 as gan
from extras import speed

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


# ------------------------------------------------------------------------------------------------------------ cache


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A folder of images that is large enough for the cache, and the cache's folder.

    The images are old: of two changes within a tick of the file system's clock the second would have the first's time.
    """
    monkeypatch.setattr(gan, "CACHED_FROM", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_all(pictures(6), tmp_path / "data" / "cat")
    save_all(pictures(6, seed=1), tmp_path / "data" / "dog")
    for image in (tmp_path / "data").rglob("*.png"):
        os.utime(image, (10**9, 10**9))
    return tmp_path / "data", tmp_path / "cache" / "rollnumber_04"


def no_decoding(*arguments):
    raise AssertionError("decoded again")


def test_a_set_is_decoded_once(cached, monkeypatch):
    data, folder = cached
    first = gan.load_images(data)
    assert len([*folder.glob("pixels-*.safetensors")]) == 1
    monkeypatch.setattr(gan, "decode", no_decoding)
    again = gan.load_images(data)
    assert torch.equal(again.pixels, first.pixels)
    assert torch.equal(again.labels, first.labels)
    assert again.classes == first.classes == ("cat", "dog")
    again.pixels[0] = 0  # it can be written to, as what was decoded can
    with pytest.raises(AssertionError, match="decoded again"):
        gan.load_images(data, cache=False)


def test_folders_of_one_name_are_not_taken_for_each_other(cached, tmp_path, monkeypatch):
    save_all(pictures(12, seed=5), tmp_path / "elsewhere" / "data" / "cat")
    for folder in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(folder)
        assert torch.equal(gan.load_images("data").pixels, gan.load_images("data", cache=False).pixels)


@pytest.mark.parametrize("change", ["content", "time", "name", "new", "size asked for", "damaged"])
def test_what_has_changed_is_decoded_again(cached, change):
    data, folder = cached
    gan.load_images(data)
    (file,) = folder.iterdir()
    image, size = data / "cat" / "0002.png", None
    if change == "content":
        image.write_bytes((data / "dog" / "0002.png").read_bytes())
    elif change == "time":
        os.utime(image, (1, 1))
    elif change == "name":
        image.rename(data / "cat" / "moved.png")
    elif change == "new":
        (data / "cat" / "more.png").write_bytes(image.read_bytes())
    elif change == "size asked for":
        size = 16
    else:
        file.write_bytes(file.read_bytes()[:-5])
    expected = gan.load_images(data, image_size=size, cache=False)
    assert torch.equal(gan.load_images(data, image_size=size).pixels, expected.pixels)
    assert len([*folder.iterdir()]) == (1 if change == "damaged" else 2)


def test_small_sets_and_sets_with_damage_are_not_cached(cached, monkeypatch):
    data, folder = cached
    (data / "cat" / "0001.png").write_bytes(b"no image")
    assert len(gan.load_images(data, skip_unreadable=True).pixels) == 11
    assert not folder.exists()
    (data / "cat" / "0001.png").unlink()
    monkeypatch.setattr(gan, "CACHED_FROM", 12)
    gan.load_images(data)
    assert not folder.exists()


def test_what_was_used_longest_ago_makes_room(cached, monkeypatch):
    data, folder = cached
    monkeypatch.setattr(gan, "CACHE_BYTES", 19_000)  # 12 images of 16×16 are 9,216 bytes
    gan.load_images(data, image_size=16)
    (old,) = folder.iterdir()
    os.utime(old, (1, 1))
    gan.load_images(data, image_size=14)
    assert len([*folder.iterdir()]) == 2
    gan.load_images(data, image_size=12)
    assert old not in [*folder.iterdir()]
    assert len([*folder.iterdir()]) == 2
    gan.load_images(data, image_size=32)  # over half of the room: not kept at all
    assert len([*folder.iterdir()]) == 2


def test_a_cache_that_cannot_be_written_is_a_note(cached, monkeypatch, capsys):
    data, _ = cached
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert len(gan.load_images(data).pixels) == 12
    assert "could not be written" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- captured steps


def trained(device, *words, steps=12, bf16=False):
    """A run of so many steps on 60 images, two epochs of them begun, and its rows."""
    options = gan.parse_options([*TOY, "--device", str(device), "--seed", "3", "--log-every", "4", *words])
    images = gan.Images(torch.from_numpy(pictures(60)), torch.arange(60) % 2, ("cat", "dog"))
    images = gan.on_device(images, device)
    run = gan.make_run(options, 3, device, bf16, images.classes if options.multitask or options.conditional else ())
    run.planned = 20
    if options.compile:
        speed.compile_networks(run)
    rows = []
    while run.step < steps:
        rows += gan.train_leg(run, images, min(5, steps - run.step), options)
    return run, rows


def assert_same(run, other, rtol=0.0, atol=0.0):
    for network, its in zip(run.networks.values(), other.networks.values(), strict=True):
        for weight, of_other in zip(network.parameters(), its.parameters(), strict=True):
            torch.testing.assert_close(weight, of_other, rtol=rtol, atol=atol)
    torch.testing.assert_close(
        run.averages["generator"].state_dict(), other.averages["generator"].state_dict(), rtol=rtol, atol=atol
    )
    assert (run.step, run.epoch, run.seen) == (other.step, other.epoch, other.seen)
    assert run.ticks.item() == other.ticks.item()


def test_captured_steps_are_fed_and_counted_as_plain_ones(monkeypatch):
    plain, rows = trained(CPU, "--replay", "40", "--instance-noise", "0.2")
    calls = []

    def stand_in(run, images, options):
        """What a CUDA graph does: it copies the index to where it reads it, and repeats the same work."""
        index = torch.zeros(options.d_steps, options.batch_size, dtype=torch.int64)

        def replay(other):
            index.copy_(other)
            calls.append(run.step)
            gan.iteration(run, images, index, options)

        return replay

    monkeypatch.setattr(speed, "capture", stand_in)
    monkeypatch.setattr(gan, "why_no_graph", graph_if_asked)
    captured, same_rows = trained(CPU, "--replay", "40", "--instance-noise", "0.2")
    assert calls == [*range(4 + speed.GRAPH_AFTER, 12)]  # the fifth batch of 8 fills the pool
    assert_same(plain, captured)
    without_speed = [{k: v for k, v in row.items() if k != "images_per_s"} for row in rows]
    assert without_speed == [{k: v for k, v in row.items() if k != "images_per_s"} for row in same_rows]
    calls.clear()
    trained(CPU, "--no-cuda-graph")
    assert not calls


def test_why_steps_are_not_captured(monkeypatch):
    run, _ = trained(CPU, steps=1)
    images = gan.Images(torch.from_numpy(pictures(60)), None, ())
    assert "no CUDA GPU" in gan.why_no_graph(run, images, gan.parse_options())
    run.rng = types.SimpleNamespace(device=torch.device("cuda"))
    assert "host memory" in speed.why_not_captured(run, images)
    monkeypatch.setattr(gan, "process_count", lambda: 2)
    resident = types.SimpleNamespace(pixels=types.SimpleNamespace(device=torch.device("cuda")), other=None)
    images = types.SimpleNamespace(**vars(resident) | {"other": images})
    assert "host memory" in speed.why_not_captured(run, images)
    images = resident
    assert "several processes" in speed.why_not_captured(run, images)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "words",
    [
        "",
        "--multitask --dropout 0.2",
        "--conditional --loss hinge --d-steps 2 --spectral-norm",
        "--replay 16 --instance-noise 0.2 --flip",
        "--penalty r1 --norm batch,none",
        "--augment colour,translation,cutout",
        "--lr-decay",
        "--optimizer adamw",
        "--optimizer rmsprop",
        "--optimizer sgd --lr-g 1e-3 --lr-d 1e-3",
        "--penalty wgan-gp --loss wgan --norm batch,none",
        "--arch blocks --upsample nearest --kernel 3 --dropout 0.3",
        "--compile",
        "bf16",
    ],
)
def test_a_cuda_graph_trains_as_the_plain_loop_does(words):
    device = gan.choose_device("cuda")
    bf16, words = words == "bf16", words.replace("bf16", "").split()
    plain, rows = trained(device, "--no-cuda-graph", *words, bf16=bf16)
    graph, same_rows = trained(device, *words, bf16=bf16)
    assert plain.captured is None
    assert graph.captured is not None
    assert_same(plain, graph, rtol=1e-4, atol=1e-5)
    for row, same in zip(rows, same_rows, strict=True):
        assert same["d_loss"] == pytest.approx(row["d_loss"], rel=1e-3)
    assert torch.equal(plain.rng.get_state(), graph.rng.get_state())


# ---------------------------------------------------------------------------------------------------- compiled steps


@pytest.mark.slow
def test_compiled_networks_train_as_plain_ones():
    plain, _ = trained(CPU, "--multitask", steps=3)
    make = gan.make_run
    try:
        gan.make_run = lambda *arguments: speed.compile_networks(run := make(*arguments)) or run
        compiled, _ = trained(CPU, "--multitask", steps=3)
    finally:
        gan.make_run = make
    assert_same(plain, compiled, rtol=1e-3, atol=1e-5)


def test_a_compiler_that_is_missing_is_one_sentence(monkeypatch):
    run, _ = trained(CPU, steps=1)

    def fail(*arguments):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(gan.UserError, match=r"--compile: torch.compile does not work here"):
        speed.compile_networks(run)


def test_compile_does_not_go_with_a_penalty(fails):
    assert "--compile: not with --penalty" in fails("--compile", "--penalty", "r1")
