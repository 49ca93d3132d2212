"""What makes runs fast, and must not change them: the cache of decoded images, captured and compiled steps."""

import os
import subprocess
import sys
import types

import pytest
import torch
from conftest import LABS, ROOT, TOY, assert_same, pictures, save_all, toy_lab

import rollnumber_04 as gan
from extras import cache, folders, speed
from labs.parts import Pool

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


# ------------------------------------------------------------------------------------------------------------ cache


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A folder of images that is large enough for the cache, and the cache's folder.

    The images are old: of two changes within a tick of the file system's clock the second would have the first's time.
    """
    monkeypatch.setattr(folders, "CACHED_FROM", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_all(pictures(6), tmp_path / "data" / "cat")
    save_all(pictures(6, seed=1), tmp_path / "data" / "dog")
    for image in (tmp_path / "data").rglob("*.png"):
        os.utime(image, (10**9, 10**9))
    return tmp_path / "data", tmp_path / "cache" / "rollnumber_04"


def uncached(data, **options):
    """The images as decoded anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "CACHED_FROM", 10**9)
        return gan.load_images(data, **options)


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
        uncached(data)


def test_folders_of_one_name_are_not_taken_for_each_other(cached, tmp_path, monkeypatch):
    save_all(pictures(12, seed=5), tmp_path / "elsewhere" / "data" / "cat")
    for folder in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(folder)
        assert torch.equal(gan.load_images("data").pixels, uncached("data").pixels)


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
    expected = uncached(data, image_size=size)
    assert torch.equal(gan.load_images(data, image_size=size).pixels, expected.pixels)
    assert len([*folder.iterdir()]) == (1 if change == "damaged" else 2)


def test_small_sets_and_sets_with_damage_are_not_cached(cached, monkeypatch):
    data, folder = cached
    (data / "cat" / "0001.png").write_bytes(b"no image")
    assert len(gan.load_images(data, skip_unreadable=True).pixels) == 11
    assert not folder.exists()
    (data / "cat" / "0001.png").unlink()
    monkeypatch.setattr(folders, "CACHED_FROM", 12)
    gan.load_images(data)
    assert not folder.exists()


def test_what_was_used_longest_ago_makes_room(cached, monkeypatch):
    data, folder = cached
    monkeypatch.setattr(cache, "MOST_BYTES", 19_000)  # 12 images of 16×16 are 9,216 bytes
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


class Pooled(gan.GAN):
    """With a pool of 40 earlier images, as labs have them."""

    def build(self):
        super().build()
        self.pools = {"reals": Pool(40, (3, 8, 8))}

    def step(self, real, labels):
        return super().step(*self.pools["reals"].swap(real, labels, self.rng))


def trained(device, *words, kind=gan.GAN, make_launcher=gan.launcher, steps=12):
    """A run of so many steps on 60 images, two epochs of them begun, and its launcher."""
    config = gan.config_from([*TOY, *words, "--device", str(device)])
    images = gan.Images(torch.from_numpy(pictures(60)), torch.arange(60) % 2, ("cat", "dog"))
    images = gan.on_device(images, device)
    return run_of(kind(config, 3, images.classes if config.multitask else ()).on(device), images, make_launcher, steps)


def run_of(model, images, make_launcher=gan.launcher, steps=12):
    """See `trained`."""
    run = gan.Run(model, images, None, None, {}, total=steps)
    launch = make_launcher(model)
    for index in gan.batches(run):
        launch(run.images, index)
        run.count_step()
    return run, launch


def state(run):
    """All that training has changed."""
    optimizers = {name: optimizer.state_dict()["state"] for name, optimizer in run.gan.optimizers.items()}
    own = dict(gan.rank_state(run.gan)["random"])
    return {"model": dict(run.gan.state_dict()), "optimizers": optimizers, "own": own, "at": (run.epoch, run.seen)}


def assert_near(run, other, rtol, atol):
    """Two runs have about the same weights, averages and sums of metrics, and the same counters."""
    found, expected = dict(run.gan.state_dict()), dict(other.gan.state_dict())
    torch.testing.assert_close(found.pop("sums"), expected.pop("sums"), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    assert (run.step, run.epoch, run.seen) == (other.step, other.epoch, other.seen)


def test_captured_steps_are_fed_and_counted_as_plain_ones(monkeypatch):
    plain, _ = trained(CPU, kind=Pooled)
    calls = []

    def stand_in(model, images, index):
        """What a CUDA graph does: it copies the index to where it reads it, and repeats the same work."""
        of_graph = torch.zeros_like(index)

        def replay(other):
            of_graph.copy_(other)
            calls.append(int(model.steps))
            model.iterate(images, of_graph)

        return replay

    monkeypatch.setattr(speed, "capture", stand_in)
    monkeypatch.setattr(speed, "why_not_captured", lambda model: "")
    captured, _ = trained(CPU, kind=Pooled, make_launcher=speed.Launcher)
    assert calls == [*range(4 + speed.GRAPH_AFTER, 12)]  # the fifth batch of 8 fills the pool
    assert_same(state(captured), state(plain))


def test_a_graph_that_cannot_be_made_costs_nothing(monkeypatch, capsys):
    plain, _ = trained(CPU, "--multitask", "--flip")
    tries = []

    def fail(model, images, index):
        """Break off where a real capture would: with noise drawn, and D's weights without gradients."""
        tries.append(int(model.steps))
        model.noise(8)
        torch.rand(3)
        model.discriminator.requires_grad_(False)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(speed, "capture", fail)
    monkeypatch.setattr(speed, "why_not_captured", lambda model: "")
    run, _ = trained(CPU, "--multitask", "--flip", make_launcher=speed.Launcher)
    assert tries == [speed.GRAPH_AFTER]  # and not again
    assert_same(state(run), state(plain))
    said = capsys.readouterr().out
    assert said.count("one kernel at a time, for no CUDA graph can be made here: operation not permitted") == 1


def test_who_launches_the_steps(monkeypatch):
    on_gpu = types.SimpleNamespace(device=torch.device("cuda"))

    def launched(launch, sums, there_is=True):
        monkeypatch.setattr(speed, "Launcher", lambda model: "launcher")
        monkeypatch.setattr(gan, "extra", lambda name, is_needed: speed if there_is else None)
        model = types.SimpleNamespace(config=gan.Config(launch=launch), sums=sums, iterate="iterate")
        return gan.launcher(model)

    assert launched("graph", on_gpu) == "launcher"
    assert launched("graph", torch.zeros(1)) == "iterate"
    assert launched("graph", on_gpu, there_is=False) == "iterate"
    assert launched("kernels", on_gpu) == "iterate"
    assert launched("compiled", torch.zeros(1)) == "launcher"


def test_why_steps_are_not_captured(monkeypatch):
    run, _ = trained(CPU, steps=1)
    assert "no CUDA GPU" in speed.why_not_captured(run.gan)
    run.gan.rng = types.SimpleNamespace(device=torch.device("cuda"))
    assert speed.why_not_captured(run.gan) == ""
    monkeypatch.setattr(gan, "process_count", lambda: 2)
    assert "several processes" in speed.why_not_captured(run.gan)


def kernel_by_kernel(model):
    """The launcher that never makes a graph."""
    launch = speed.Launcher(model)
    launch.may_capture = False
    return launch


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "words",
    [
        "",
        "--multitask",
        "--loss bce --flip --translation",
        "--optimizer adamw",
        "--optimizer rmsprop",
        "--optimizer sgd --lr-g 1e-3 --lr-d 1e-3",
        "--launch compiled",
        "--precision bf16",
    ],
)
@pytest.mark.parametrize("kind", [gan.GAN, Pooled])
def test_a_cuda_graph_trains_as_the_plain_loop_does(kind, words):
    device = gan.choose_device("cuda")
    plain, _ = trained(device, *words.split(), kind=kind, make_launcher=kernel_by_kernel)
    graph, launch = trained(device, *words.split(), kind=kind)
    assert launch.captured is not None
    assert_near(graph, plain, rtol=1e-4, atol=1e-5)
    assert torch.equal(plain.gan.rng.get_state(), graph.gan.rng.get_state())


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("name", "words"), LABS)
def test_a_cuda_graph_trains_a_lab_as_the_plain_loop_does(name, words):
    device = gan.choose_device("cuda")
    plain, _ = run_of(*toy_lab(name, words, device), kernel_by_kernel)
    graph, launch = run_of(*toy_lab(name, words, device))
    assert launch.captured is not None
    assert_near(graph, plain, rtol=1e-4, atol=1e-5)
    assert torch.equal(plain.gan.rng.get_state(), graph.gan.rng.get_state())


# ---------------------------------------------------------------------------------------------------- compiled steps


@pytest.mark.slow
def test_compiled_networks_train_as_plain_ones():
    plain, _ = trained(CPU, "--multitask", steps=3)
    compiled, launch = trained(CPU, "--multitask", "--launch", "compiled", steps=3)
    assert isinstance(launch, speed.Launcher)
    assert_near(compiled, plain, rtol=1e-3, atol=1e-5)


def test_a_compiler_that_is_missing_is_one_sentence(monkeypatch, fails):
    def fail(*arguments):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", fail)
    assert "--launch compiled: torch.compile does not work here (no C++ compiler)" in fails("--launch", "compiled")


def test_training_leaves_the_compiler_out_until_it_is_asked_for(tmp_path):
    """In a process of its own, for this one may have imported it."""
    words = [*TOY, "--iterations", "2", "--seed", "1", "--out", str(tmp_path / "run")]
    code = (
        "import sys, torch, rollnumber_04 as gan\n"
        f"assert gan.main({words}) == 0\n"
        "heavy = [name for name in ('torch._inductor', 'sympy', 'torch._dynamo') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
        "import torch._dynamo.config as before\n"
        "doubled = torch.compile(lambda x: 2 * x, backend='eager')\n"
        "assert doubled(torch.ones(3)).tolist() == [2, 2, 2]\n"
        "import torch._dynamo.utils\n"
        "assert torch._dynamo is sys.modules['torch._dynamo'] and torch._dynamo.__file__\n"
        "assert torch._dynamo.eval_frame.config is before\n"
        "from extras import speed\n"
        "with speed.without_compiler(): assert torch._dynamo.__file__\n"
        "print('compiled')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["compiled"], done.stderr
