"""The cells that a Colab or Jupyter user writes, run in a real kernel without a screen."""

import base64
import io
import os
import shutil
import sys

import nbclient
import nbformat
import numpy as np
import pytest
from conftest import PATIENCE, ROOT, TOY, pictures, save_all
from PIL import Image

import rollnumber_04 as gan

WORDS = " ".join(TOY)


@pytest.fixture
def beside(tmp_path):
    """A folder with the program and a few images, as after an upload."""
    for name in ("extras", "labs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "rollnumber_04.py", tmp_path)
    save_all(pictures(24), tmp_path / "images")
    return tmp_path


def run_cells(folder, *cells):
    """The outputs of each cell, run in order by a kernel that works in a folder; an error in one is an error here."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    env = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    env["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), env["PATH"]])  # of an activated environment
    client = nbclient.NotebookClient(notebook, timeout=PATIENCE, resources={"metadata": {"path": str(folder)}})
    client.execute(env=env)
    return [cell.outputs for cell in notebook.cells]


def printed(outputs):
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


def shown(outputs):
    """The pictures that a cell shows."""
    found = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))) for picture in found]


def test_the_command_in_a_cell_and_its_sheet(beside):
    cells = (
        f"!python rollnumber_04.py --data ./images --epochs 2 --seed 1 --out runs/NAME {WORDS}",
        'from IPython.display import Image; Image("runs/NAME/samples/epoch_0002.png")',
        "!python rollnumber_04.py --data ./nowhere",
    )
    trained, sheet, refused = run_cells(beside, *cells)
    assert "epoch 2/2" in printed(trained) and "look at    runs/NAME/samples/epoch_0002.png" in printed(trained)
    expected = np.asarray(Image.open(beside / "runs" / "NAME" / "samples" / "epoch_0002.png"))
    assert len(shown(sheet)) == 1 and (shown(sheet)[0] == expected).all()
    said = printed(refused)
    assert said.count("\n") == 1 and "rollnumber_04.py:" in said and "nowhere" in said


def test_the_parts_imported_into_cells(beside):
    cells = (
        "import rollnumber_04 as gan",
        "config = gan.Config(data='images', epochs=2, seed=1, out='runs/b', image_size=8, width_g=4, width_d=4,\n"
        "                    latent_dim=8, batch_size=8, precision='fp32', device='cpu')\n"
        "out = gan.train(config)",
        "images = gan.load_generator(out / 'generator.safetensors').generate(16, seed=3)\nimages.shape",
        "gan.sheet(images)",
        "import matplotlib.pyplot as plt\nplt.imshow(images[0]); plt.show()",
    )
    _, trained, shape, sheet, drawn = run_cells(beside, *cells)
    assert "epoch 2/2" in printed(trained)
    assert shape[0]["data"]["text/plain"] == "(16, 8, 8, 3)"
    images = gan.load_generator(beside / "runs" / "b" / "generator.safetensors").generate(16, seed=3)
    assert (shown(sheet)[0] == np.asarray(gan.sheet(images))).all()  # a sheet shows itself
    assert len(shown(drawn)) == 1
