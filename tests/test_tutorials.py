"""The tutorials run from top to bottom, and what is stored in them is a complete, clean run."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the tutorials need nbformat: pip install 'pyrovae[test]'")
nbclient = pytest.importorskip("nbclient", reason="running the tutorials needs nbclient: pip install 'pyrovae[test]'")
pytest.importorskip("ipykernel", reason="running the tutorials needs ipykernel: pip install 'pyrovae[test]'")

FOLDER = Path(__file__).parents[1] / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.ipynb"))
ABSOLUTE = re.compile(r"""(?:^|[\s"'(=:])/(?:home|root|work|tmp|usr|opt|var|mnt|Users|private)/|[A-Z]:\\\\""")

each = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def speaks(cell):
    """Whether a cell prints or draws on its top level, not only in a function it defines."""
    top = re.sub(r"^(?:def|class) .*\n(?:(?: .*)?\n)*", "", cell.source + "\n", flags=re.M)
    return re.search(r"\b(?:print|table|show|plt\.subplots)\(", top) is not None


def test_there_are_tutorials_and_the_index_names_each():
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert TUTORIALS
    assert [path.name for path in TUTORIALS if path.name not in index] == []


@each
# the kernel's client announces choices of its own surroundings (loopback transport, event loop), none of ours
@pytest.mark.filterwarnings("ignore::DeprecationWarning:(jupyter_client|nbclient|zmq|tornado|traitlets|asyncio)")
@pytest.mark.filterwarnings("ignore:Proactor event loop:RuntimeWarning")
def test_runs(path, monkeypatch, tmp_path):
    monkeypatch.setenv("PYROVAE_SMOKE", "1")
    monkeypatch.setenv("PYROVAE_OFFLINE", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "error::FutureWarning,ignore:IProgress not found")
    notebook = read(path)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    noise = [o.text for cell in code_cells(notebook) for o in cell.outputs if o.get("name") == "stderr"]
    assert noise == []


@each
def test_stored_run_is_complete_and_in_order(path):
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [cell.source for cell in cells if speaks(cell) and not cell.outputs] == []
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert any("image/png" in o.get("data", {}) for o in cells[-1].outputs), "a tutorial ends with a figure"


@each
def test_stored_run_tells_nothing_of_the_machine(path):
    notebook = read(path)
    text = [cell.source for cell in notebook.cells]
    for output in (o for cell in code_cells(notebook) for o in cell.outputs):
        text += [output.get("text", ""), output.get("data", {}).get("text/plain", "")]
    assert [line for t in text for line in t.splitlines() if ABSOLUTE.search(line)] == []
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert set(notebook.metadata.get("language_info", {})) <= {"name"}
    assert [cell.metadata for cell in notebook.cells if cell.metadata] == []


@each
def test_small_enough_to_read_online(path):
    assert path.stat().st_size < 400_000
