"""The README's code runs, in its order, and it names every part."""

import re
from pathlib import Path

import pytest

import pyrovae as pv
from pyrovae.config import parts

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # what a reader's session would only print
def test_the_code_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    namespace = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    printed = capsys.readouterr().out
    assert "log p(x) =" in printed
    assert "latent dimensions active" in printed


def test_every_part_has_a_row():
    text = README.read_text(encoding="utf-8")
    for role, table in parts().items():
        if role != "activation":
            for name in table:
                assert f"`{name}" in text, f"{role} {name}"


def test_the_program_is_the_one_in_the_package():
    """The block that is not run must be what the class says, up to docstrings and annotations."""
    import ast
    import inspect
    import textwrap

    shown = re.search(r"```python skip\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    for function in ast.parse(shown[1]).body:
        real = ast.parse(textwrap.dedent(inspect.getsource(getattr(pv.VAE, function.name)))).body[0]
        assert [ast.unparse(s) for s in function.body] == [ast.unparse(s) for s in real.body[1:]]
