"""A page in the browser to see what a model or a run knows: samples, what lies between them, classes, translations.

    python rollnumber_04.py explore MODEL | runs/NAME | saved_models/ [--port 7860]

Each picture has beside it the command that draws it. Nothing leaves the machine, unless --share asks for a public link.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

if "gradio" not in sys.modules:  # which reads these when it is imported
    CACHE = tempfile.TemporaryDirectory(prefix="explore-")  # for copies of pictures; it goes when the program ends
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": CACHE.name}

import gradio as gr
import numpy as np
import torch
from PIL import Image
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

import rollnumber_04 as gan
from extras import folders, follow
from extras.paths import Point, directions, image_number
from rollnumber_04 import UserError

SHEET, SLIDERS, FAR = 64, 6, 4.0  # samples of a sheet; directions that have a slider, and how far these go
LOCAL = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:"
FONTS = dict(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # Gradio's own are Google's
CSS = """
.pixels img {image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain}
.pixels .grid-wrap {max-height: none; overflow: visible}
.pixels .grid-container {grid-template-columns: repeat(8, minmax(0, 1fr)) !important; gap: 4px}
@media (max-width: 640px) {.pixels .grid-container {grid-template-columns: repeat(4, minmax(0, 1fr)) !important}}
footer {display: none !important}
"""


def explore(argv: Sequence[str], program: str) -> None:
    """The command `explore`: serves the page until it is interrupted. Raises UserError."""
    parser = gan.Parser(f"{program} explore", "See in the browser what a model or a run knows.")
    parser.add_argument(
        "path", type=gan.some_path, metavar="MODEL|FOLDER", help="a model, a run's folder, or one of models"
    )
    add = parser.add_argument
    add("--port", type=gan.number_in(int, 1, 65535), default=7860, metavar="N", help="of the page's address (7860)")
    add("--share", action="store_true", help="also make a public link, by Gradio's servers")
    options = parser.parse_args(argv)
    page = build(options.path)
    for name in ("NO_PROXY", "no_proxy"):  # Gradio asks its own page whether it is there
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
    shown = [str(options.path.resolve() / name) for name in follow.SHOWN] if follow.is_run(options.path) else []
    try:
        _, address, public = page.launch(
            server_name="127.0.0.1", server_port=options.port, share=options.share, quiet=True,
            prevent_thread_lock=True, theme=gr.themes.Base(**FONTS), css=CSS,
            inbrowser=sys.stdin is not None and sys.stdin.isatty(),
            allowed_paths=shown,
            app_kwargs={} if options.share else {"middleware": MIDDLEWARE},
        )  # fmt: skip
    except OSError as error:
        if "empty port" not in str(error):
            raise
        raise UserError("is in use; give another", f"--port {options.port}") from None
    gan.say(f"{options.path}: {public or address}; Ctrl-C ends it")

    def end(number: int, frame: Any) -> None:
        raise gan.Stopped(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        while True:
            time.sleep(1)  # under Windows Ctrl-C does not end a longer wait
    finally:
        signal.signal(signal.SIGTERM, before)
        page.close(verbose=False)


async def keep_local(request: Any, answer: Callable[[Any], Any]) -> Any:
    """Tell the browser to load nothing from elsewhere, whatever the library's page asks for."""
    response = await answer(request)
    response.headers["Content-Security-Policy"] = LOCAL
    return response


# Neither may the page be asked for by the name of another machine, which a hostile page elsewhere could let it have.
MIDDLEWARE = [
    Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]),
    Middleware(BaseHTTPMiddleware, dispatch=keep_local),
]


def build(path: Path) -> gr.Blocks:
    """The page of a model, a run's folder or a folder of models. Raises UserError."""
    if not os.path.isdir(path):
        models = {path.name: path}
        network_of(path)  # what is wrong with it is said before there is a page
    else:
        found = sorted(path.glob("*.safetensors"), key=lambda file: (file.stem != "generator", file.name))
        models = {model.name: model for model in found}
    if not models and not follow.is_run(path):
        raise UserError("holds no run, and no models (.safetensors)", path)
    with gr.Blocks(title=f"{path.name or path} · GAN", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# {path.name or path}")
        if follow.is_run(path):
            with gr.Tab("The run"):
                series = gr.State(follow.series_of(path))
                gr.Timer(follow.FOLLOW).tick(lambda: follow.series_of(path), None, series, show_progress="hidden")

                @gr.render(inputs=series)  # when the page is loaded, and when pictures of another kind have come
                def panel_of_run(series: dict[str, str]) -> None:
                    follow.run_panel(path, series)

        if models:
            with gr.Tab("The model" if len(models) == 1 else "Models"):
                several = len(models) > 1
                chosen = gr.Dropdown(
                    [*models], value=next(iter(models)), label="Model", visible=several, elem_id="model"
                )

                @gr.render(inputs=chosen)
                def panel(name: str) -> None:
                    model_panel(models[name])

    return page


@lru_cache(maxsize=8)
def loaded(path: Path, name: str, changed: int) -> Any:
    """A network of a model's file, as it was at a time."""
    return gan.load_network(path, name, gan.choose_device("auto"))


known_directions = lru_cache(maxsize=8)(directions)  # which take a moment to find


def network_of(path: Path, *names: str) -> Any:
    """The first of the networks of these names that a model's file holds now. Raises UserError if it holds none."""
    errors = []
    for name in names or ("generator", "discriminator", "xy"):
        try:
            return loaded(path, name, os.stat(path).st_mtime_ns)
        except UserError as error:
            errors.append(error)
        except OSError:
            raise UserError("there is no such model", path) from None
    raise errors[0]


def has(path: Path, name: str) -> bool:
    """Whether a model's file holds a network of a name."""
    try:
        network_of(path, name)
    except UserError:
        return False
    return True


def model_panel(path: Path) -> None:
    """All that a model's file can show."""
    tells = has(path, "discriminator") and getattr(network_of(path, "discriminator"), "head", None) is not None
    kinds = {"generator": generator_panel, "xy": translator_panel}
    panels = [panel for name, panel in kinds.items() if has(path, name)] + [classifier_panel] * tells
    for panel in panels:
        panel(path)
    if not panels:
        gr.Markdown("Nothing of this file can be shown here: it holds no generator, translators or classifier.")


def said(call: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose UserError is a sentence on the page."""

    def handler(*words: Any) -> Any:
        try:
            return call(*words)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return handler


def line(*words: object, program: str = "python rollnumber_04.py") -> str:
    """A command line of these words."""
    return f"{program} {gan.command_line(*words)}"


def own_name(file: str) -> str:
    """What a picture that was dropped on the page is called on a command line, where it is no option."""
    name = Path(file).name
    return f"./{name}" if name.startswith("-") else name


def uploaded(file: str, read: Callable[[Path], Image.Image]) -> Image.Image:
    """A picture that was dropped on the page. Raises UserError, which names it as its owner does."""
    try:
        return read(Path(file))
    except Exception as error:  # a decoder may fail in any way on a damaged file
        what = error.args[0] if isinstance(error, UserError) else gan.complaint(error)
        raise UserError(what, Path(file).name) from None


def command_box(words: str, element: str, does: str = "draws") -> gr.Textbox:
    """Where a command stands, with a button that copies it."""
    return gr.Textbox(
        words, label=f"The command that {does} this", buttons=["copy"], interactive=False, lines=2, elem_id=element
    )


def picture(image: Image.Image | None, label: str, element: str) -> gr.Image:
    """A picture in its own pixels, which the page enlarges, and a button to download it."""
    return gr.Image(
        image, label=label, format="png", type="pil", interactive=False, buttons=["download", "fullscreen"],
        elem_classes="pixels", elem_id=element, height=288,
    )  # fmt: skip


def generator_panel(path: Path) -> None:
    """A sheet of samples, and one image between and beside them."""
    generator = network_of(path, "generator")
    classes, is_normal = [*generator.classes], generator.latent == "normal"

    @said
    def draw_sheet(seed: float | None, truncation: float, label: str) -> tuple[list[Image.Image], str]:
        told = {"label": in_words(label) if label in classes else None, "truncation": truncation or None}
        images = network_of(path, "generator").generate(SHEET, seed=int(seed or 0), **told)
        words = ["generate", path, "--seed", int(seed or 0)]
        for flag, value in told.items():
            words += [f"--{flag}", value] if value is not None else []
        return [Image.fromarray(each) for each in images], line(*words, "--out", "samples.png")

    @said
    def draw_one(
        a: str, b: str, share: float, is_spherical: bool, first: str | None, second: str | None, mix: float,
        truncation: float, *far: float,
    ) -> tuple[Image.Image, str]:  # fmt: skip
        with gan.named("A"):
            at = image_number(a)
        with gan.named("B"):
            to = image_number(b) if share else None
        moves = tuple((k, x) for k, x in enumerate(far, 1) if x)
        labels = tuple(in_words(name) for name in (first, second if first else None) if name)
        point = Point(at, to, share, bool(to and is_spherical), moves, labels, mix, truncation or None)
        now = network_of(path, "generator")  # a run that goes on writes another
        image = Image.fromarray(point.draw(now, known_directions(now) if moves else None))
        return image, line("draw", path, *point.words(), "--out", "image.png")

    def hold(
        seed: float | None, label: str, which: str, a: str, b: str, first: str, event: gr.SelectData
    ) -> tuple[str, str, str]:
        new = f"{int(seed or 0)}:{event.index}"
        return (new, b, label if label in classes else "") if which == "A" else (a, new, first)

    def in_words(name: str) -> str:
        return f"number={classes.index(name)}" if "," in name else name  # which would be two

    gr.Markdown("## Samples\nSelect one to hold it as A or as B; below, one image goes from A to B.")
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, elem_id="seed")
        truncation = gr.Slider(0, 3, 0, step=0.1, label="Truncation (0: none)", visible=is_normal, elem_id="truncation")
    every = "all in turn"
    label = gr.Radio(
        [every, *classes], value=every, label="Class", visible=bool(classes), interactive=True, elem_id="class"
    )
    drawn, words = draw_sheet(0, 0, every)
    sheet = gr.Gallery(
        drawn, columns=8, allow_preview=False, format="png", label=f"{SHEET} samples", elem_classes="pixels",
        object_fit="contain", elem_id="sheet", height="auto", buttons=[], interactive=False,
    )  # fmt: skip
    sheet_command = command_box(words, "sheet-command")

    gr.Markdown("## One image")
    which = gr.Radio(["A", "B"], value="A", label="A selected sample is held as", interactive=True, elem_id="which")
    with gr.Row():
        a = gr.Textbox("0:0", label="A, as seed:number", interactive=True, elem_id="a")
        b = gr.Textbox("0:1", label="B", interactive=True, elem_id="b")
    share = gr.Slider(0, 1, 0, step=0.01, label="From A to B", elem_id="share")
    is_spherical = gr.Checkbox(False, label="along a great circle", visible=is_normal, elem_id="spherical")
    with gr.Row(visible=bool(classes)):
        first = gr.Dropdown(["", *classes], value="", label="Class", elem_id="first")
        second = gr.Dropdown(["", *classes], value="", label="Second class", elem_id="second")
    mix = gr.Slider(0, 1, 0, step=0.01, label="From the class to the second", visible=bool(classes), elem_id="mix")
    with gr.Accordion("Directions of the noise; images change most along the first", open=False):
        moves = [
            gr.Slider(-FAR, FAR, 0, step=0.1, label=f"Direction {k}", elem_id=f"direction-{k}")
            for k in range(1, SLIDERS + 1)
        ]
    drawn, words = draw_one("0:0", "0:1", 0, False, "", "", 0, 0)
    image, image_command = picture(drawn, "The image", "image"), command_box(words, "image-command")

    of_sheet = [seed, truncation, label]
    of_one = [a, b, share, is_spherical, first, second, mix, truncation, *moves]
    for parts, draw, shown in (
        (of_sheet, draw_sheet, [sheet, sheet_command]),
        (of_one, draw_one, [image, image_command]),
    ):
        triggers = [part.change for part in parts]
        gr.on(triggers, draw, parts, shown, show_progress="hidden", trigger_mode="always_last")
    sheet.select(hold, [seed, label, which, a, b, first], [a, b, first], show_progress="hidden")


def classifier_panel(path: Path) -> None:
    """Drop a picture, see its classes, as the discriminator of Task 2 tells them."""
    network = network_of(path, "discriminator")
    size, channels, classes = (network.architecture[key] for key in ("image_size", "channels", "classes"))

    @said
    def classify(file: str | None) -> tuple[Image.Image | None, dict[str, float] | None, str]:
        if not file:
            return None, None, ""
        image = uploaded(file, lambda path: folders.read_item(path, size))
        images = gan.Images(torch.from_numpy(np.array(image)[None]), None, ())
        images = gan.with_channels(images, channels).pixels
        shares = gan.class_logits(network, images).softmax(1)[0].tolist()
        seen = Image.fromarray(images[0, ..., 0].numpy() if channels == 1 else images[0].numpy())
        return seen, dict(zip(classes, shares, strict=True)), line("classify", path, own_name(file))

    gr.Markdown("## What is it?\nDrop a picture, and the discriminator says which class it is of.")
    file = gr.File(label="A picture", file_types=["image"], elem_id="to-classify", height=120)
    seen = picture(None, f"As it sees it, {size}×{size}", "seen")
    told = gr.Label(label="Classes", num_top_classes=len(classes), elem_id="classes", show_heading=False)
    words = command_box("", "classify-command", "says")
    file.change(classify, file, [seen, told, words], show_progress="hidden")


def translator_panel(path: Path) -> None:
    """Drop a picture, see it translated, and back again."""
    from labs import pairs

    size = pairs.training_of(path).get("image_size", 32)
    both = {way: network_of(path, way) for way in ("xy", "yx")}

    @said
    def translate(file: str | None, way: str) -> tuple[Any, ...]:
        if not file:
            return None, None, None, ""
        image = uploaded(file, lambda path: pairs.opened(path, size))
        there = both[way].translate(np.array(image)[None])
        back = both[way[::-1]].translate(there)
        words = [path, "--direction", way, own_name(file), "--image-size", size, "--out", "translated"]
        command = line("translate", *words, program="python -m labs.cyclegan")
        return image, Image.fromarray(there[0]), Image.fromarray(back[0]), command

    gr.Markdown("## Translate\nDrop a picture of one kind, and see it as the other, and back.")
    file = gr.File(label="A picture", file_types=["image"], elem_id="to-translate", height=120)
    way = gr.Radio(["xy", "yx"], value="xy", label="Direction", interactive=True, elem_id="way")
    with gr.Row():
        named = {"original": "The picture", "there": "Translated", "back": "And back"}
        shown = [picture(None, label, element) for element, label in named.items()]
    words = command_box("", "translate-command")
    gr.on([file.change, way.change], translate, [file, way], [*shown, words], show_progress="hidden")
