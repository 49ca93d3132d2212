"""The page of `explore`, used in a real browser without a screen: what is shown is what the command beside it draws."""

import io
import random
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from conftest import PATIENCE, ROOT, TOY, pictures, save_all
from PIL import Image

import rollnumber_04 as gan
from extras import folders

MODELS = ROOT / "saved_models"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(not BROWSER, reason="there is no Chromium, such as Debian's package")
WAIT = 120_000  # milliseconds for what a page takes a moment for, on the slowest machine


def free_port():
    """A free port of those below 32768, from where no system takes one for a program that asks for any."""
    for port in random.sample(range(10_000, 32_768), 100):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@contextmanager
def served(path):
    """The address at which the real command shows a path, while it runs."""
    port = free_port()
    words = [sys.executable, "-u", ROOT / "rollnumber_04.py", "explore", path, "--port", port]
    with subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        timer = threading.Timer(PATIENCE, process.kill)
        timer.start()
        try:
            line = process.stdout.readline()
            assert f"http://127.0.0.1:{port}/; Ctrl-C ends it" in line, line
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()
            process.wait()
            timer.cancel()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"], timeout=WAIT)
        yield browser
        browser.close()


@contextmanager
def opened(browser, address, width=1280):
    """The page at an address; that it asks nothing of other machines and has no errors is checked at its end."""
    page, wrong = browser.new_page(viewport={"width": width, "height": 900}), []
    inside = (address, "data:", "blob:", address.replace("http", "ws"))
    page.on("request", lambda request: request.url.startswith(inside) or wrong.append(request.url))
    page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
    page.set_default_timeout(WAIT)
    page.goto(address)
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing hangs over the side
    page.close()
    assert not wrong


def fetched(source):
    """The picture at an address."""
    with urllib.request.urlopen(source, timeout=PATIENCE) as answer:
        return Image.open(io.BytesIO(answer.read()))


def image_of(page, element):
    """The picture that an element shows, in its own pixels."""
    source = page.locator(f"#{element} img").first.get_attribute("src")
    return np.asarray(fetched(source).convert("RGB"))


def lines_of(page, element):
    """From where to where each line of a chart goes, in pixels; Playwright calls a level one, of no height, hidden."""
    edges = "lines => lines.map(line => line.getBoundingClientRect()).map(box => [box.left, box.right])"
    return page.locator(f"#{element} .mark-line path").evaluate_all(edges)


def words_of(page, element):
    """The command that stands in an element, as words after the script's name."""
    python, script, *words = shlex.split(page.locator(f"#{element} textarea").input_value())
    assert (python, script) == ("python", "rollnumber_04.py")
    return words


def until(condition):
    """Wait for what a page takes a moment for."""
    end = time.monotonic() + WAIT / 1000
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def drawn(page, folder):
    """What the command beside the one image draws."""
    words = words_of(page, "image-command")
    words[words.index("--out") + 1] = str(folder / "drawn.png")
    assert gan.main(words) == 0
    return np.asarray(Image.open(folder / "drawn.png").convert("RGB"))


def change(page, element, value):
    """Set a number or slider as a keyboard does, and wait for the picture's command to change."""
    before = page.locator("#image-command textarea").input_value()
    field = page.locator(f"#{element} input").first
    field.fill(str(value))
    field.press("Enter")
    until(lambda: page.locator("#image-command textarea").input_value() != before)


@needs_browser
def test_each_control_changes_the_image_and_the_command_draws_it(browser, tmp_path):
    with served(MODELS) as address, opened(browser, address) as page:
        page.locator("#model input").click()
        page.get_by_role("option", name="cifar10-small.safetensors").click()
        page.locator("#class label", has_text="horse").wait_for()
        seen = [image_of(page, "image")]
        assert (seen[0] == drawn(page, tmp_path)).all()

        def shows_another():
            until(lambda: (image_of(page, "image") != seen[-1]).any())
            until(lambda: (image_of(page, "image") == drawn(page, tmp_path)).all())  # its command comes with it
            seen.append(image_of(page, "image"))

        page.locator("#sheet button.thumbnail-item").nth(5).click()  # held as A
        shows_another()
        assert words_of(page, "image-command")[2:4] == ["--at", "0:5"]
        page.locator("#which label", has_text="B").click()
        page.locator("#sheet button.thumbnail-item").nth(9).click()
        for element, value in (("share", 0.4), ("truncation", 0.7)):
            change(page, element, value)
            shows_another()
        page.locator("#spherical input").check()
        shows_another()
        for element, name in (("first", "cat"), ("second", "horse")):
            page.locator(f"#{element} input").click()
            page.locator("[role=option]:visible", has_text=name).last.click()
            until(lambda name=name: name in " ".join(words_of(page, "image-command")))
        change(page, "mix", 0.6)
        shows_another()
        page.get_by_text("Directions of the noise").click()
        change(page, "direction-1", 2.5)
        shows_another()
        words = words_of(page, "image-command")
        assert words[words.index("--move") :][:2] == ["--move", "1:2.5"]
        assert words[words.index("--to") :][:5] == ["--to", "0:9", "--share", "0.4", "--spherical"]
        assert len({image.tobytes() for image in seen}) == len(seen)
        with page.expect_download() as download:
            page.locator("#image").get_by_label("Download").click()
        assert (np.asarray(Image.open(download.value.path()).convert("RGB")) == seen[-1]).all()


@needs_browser
def test_the_sheet_is_that_of_generate_and_its_samples_are_held(browser, tmp_path):
    model = MODELS / "fashion-cwgan-gp.safetensors"
    with served(model) as address, opened(browser, address, width=390) as page:
        page.locator("#class label", has_text="9").wait_for()
        before = page.locator("#sheet-command textarea").input_value()
        page.locator("#seed input").fill("3")
        until(lambda: page.locator("#sheet-command textarea").input_value() != before)
        before = page.locator("#sheet-command textarea").input_value()
        page.locator("#class label", has_text="9").click()
        until(lambda: page.locator("#sheet-command textarea").input_value() != before)
        words = words_of(page, "sheet-command")
        assert words[:6] == ["generate", str(model), "--seed", "3", "--label", "9"]
        expected = gan.load_generator(model).generate(64, label="9", seed=3)

        def shows(i):
            sources = page.locator("#sheet img").evaluate_all("images => images.map(image => image.src)")
            return len(sources) == 64 and (np.asarray(fetched(sources[i]).convert("L")) == expected[i]).all()

        for i in (0, 17, 63):
            until(lambda i=i: shows(i))
        page.locator("#sheet button.thumbnail-item").nth(17).click()
        until(lambda: words_of(page, "image-command")[2:6] == ["--at", "3:17", "--label", "9"])
        until(lambda: (image_of(page, "image")[..., 0] == expected[17]).all())
        assert (drawn(page, tmp_path)[..., 0] == expected[17]).all()


@needs_browser
def test_a_picture_is_classified_and_a_broken_one_gets_a_sentence(browser, tmp_path, capsys):
    model = MODELS / "cifar10-multitask.safetensors"
    picture = gan.load_generator(MODELS / "cifar10-small.safetensors").generate(1, label="automobile")[0]
    Image.fromarray(picture).resize((96, 64)).save(tmp_path / "car.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with served(model) as address, opened(browser, address) as page:
        page.locator("#to-classify input[type=file]").set_input_files(tmp_path / "car.png")
        page.locator("#classes").get_by_text("%").first.wait_for()
        said = page.locator("#classes").inner_text().split()
        page.locator("#seen").scroll_into_view_if_needed()  # pictures load when they come into sight
        page.locator("#seen img").wait_for()
        assert (image_of(page, "seen") == np.asarray(folders.read_item(tmp_path / "car.png", 32))).all()
        words = words_of(page, "classify-command")
        assert words[-1] == "car.png"
        capsys.readouterr()
        assert gan.main([*words[:-1], str(tmp_path / "car.png")]) == 0
        best, share = capsys.readouterr().out.split()[:2]
        assert best in said and f"{round(float(share.rstrip('%')))}%" in said
        page.locator("#to-classify").get_by_label("Clear").or_(
            page.locator("#to-classify").get_by_label("Remove")
        ).first.click()
        page.locator("#to-classify input[type=file]").set_input_files(tmp_path / "broken.png")
        page.get_by_text("broken.png: ").first.wait_for()


@needs_browser
def test_a_picture_is_translated_and_back(browser, tmp_path):
    model = MODELS / "emoji-apple-windows.safetensors"
    Image.fromarray(pictures(1, 32)[0]).save(tmp_path / "face.png")
    with served(model) as address, opened(browser, address) as page:
        page.locator("#to-translate input[type=file]").set_input_files(tmp_path / "face.png")
        page.locator("#back img").wait_for()
        there = gan.load_network(model, "xy").translate(pictures(1, 32))
        assert (image_of(page, "original") == pictures(1, 32)[0]).all()
        assert (image_of(page, "there") == there[0]).all()
        assert (image_of(page, "back") == gan.load_network(model, "yx").translate(there)[0]).all()
        before = image_of(page, "there")
        page.locator("#way label", has_text="yx").click()
        until(lambda: (image_of(page, "there") != before).any())
        assert "--direction yx face.png --image-size 32" in page.locator("#translate-command textarea").input_value()


@needs_browser
def test_a_run_whose_files_are_damaged_or_gone(browser, tmp_path):
    out = tmp_path / "a run"
    assert gan.main([*TOY, "--iterations", "2", "--out", str(out)]) == 0
    header = (out / "epochs.csv").read_text(encoding="utf-8").splitlines()[0]
    (out / "epochs.csv").write_text(f"{header}\n", encoding="utf-8")  # of a run that has only begun
    with served(out) as address, opened(browser, address) as page:
        page.get_by_text("the run has only begun").wait_for()
    (out / "epochs.csv").write_text("epoch,step\n1,x\n", encoding="utf-8")
    shutil.rmtree(out / "weights")
    with served(out) as address, opened(browser, address) as page:
        page.get_by_text("There is no row in epochs.csv that can be read").wait_for()
        assert page.get_by_text("Weights of generator").count() == 0
        shutil.rmtree(out)
        page.get_by_text("The folder is gone.").wait_for()
    with served(MODELS) as address:
        asked = urllib.request.Request(address, headers={"Host": "elsewhere.example"})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(asked, timeout=PATIENCE)


@needs_browser
def test_a_run_is_shown_and_followed(browser, tmp_path):
    save_all(pictures(40), tmp_path / "data" / "a")
    save_all(pictures(40, seed=1), tmp_path / "data" / "b")
    out = tmp_path / "run"
    words = [*TOY, "--data", str(tmp_path / "data"), "--multitask", "--epochs", "3", "--out", str(out)]
    assert gan.main(words) == 0
    with served(out) as address, opened(browser, address) as page:
        page.get_by_text("epoch 3, step ").wait_for()
        for epoch in (1, 3):
            page.locator("#pictures-0-number input").first.fill(str(epoch))
            page.locator("#pictures-0-number input").first.press("Enter")
            expected = np.asarray(Image.open(out / "samples" / f"epoch_{epoch:04d}.png").convert("RGB"))
            until(lambda expected=expected: np.array_equal(image_of(page, "pictures-0"), expected))
        page.get_by_text("Weights of generator").wait_for()
        for element in ("g_loss", "d_loss", "accuracy"):
            page.locator(f"#{element} canvas, #{element} svg").first.wait_for()
        assert page.locator("#confusion img").count() == 1
        with opened(browser, address, width=390) as phone:
            for element in ("g_loss", "d_loss", "accuracy"):
                until(lambda element=element: any(b - a > 150 and b < 390 for a, b in lines_of(phone, element)))
        assert gan.main(["--resume", "--out", str(out), "--epochs", "4"]) == 0  # the page follows
        page.get_by_text("epoch 4, step ").wait_for()
        expected = np.asarray(Image.open(out / "samples" / "epoch_0004.png").convert("RGB"))
        until(lambda: np.array_equal(image_of(page, "pictures-0"), expected))
        newest = pictures(1, 64)[0]  # which comes after the numbers that the page has seen
        gan.save_picture(Image.fromarray(newest).save, out / "plots" / "confusion_matrix.png")
        until(lambda: np.array_equal(image_of(page, "confusion"), newest))


def test_what_explore_refuses(tmp_path, fails):
    pytest.importorskip("gradio")
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    for words, sentence in (
        ([tmp_path / "no"], "there is no such model"),
        ([tmp_path / "empty"], "holds no run, and no models"),
        ([tmp_path / "junk.safetensors"], "neither a .safetensors model nor a checkpoint"),
        ([MODELS, "--port", "0"], "--port: 0 is not a whole number from 1"),
    ):
        assert sentence in fails("explore", *words)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port}: is in use" in fails("explore", MODELS, "--port", port)
