"""What `import circuitsae` and the names behind it cost, and bring."""

import subprocess
import sys

import circuitsae


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_brings_neither_torch_nor_networkx() -> None:
    loaded = _python("import sys, circuitsae; print(*sys.modules)").split()
    assert "circuitsae" in loaded
    assert not {"torch", "networkx", "numpy", "gradio"} & set(loaded)


def test_every_public_name_is_where_the_table_says() -> None:
    assert set(circuitsae._HOMES) | {"__version__"} == set(circuitsae.__all__)
    for name in circuitsae.__all__:
        assert getattr(circuitsae, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    try:
        circuitsae.trce  # noqa: B018
    except AttributeError as error:
        assert "trce" in str(error)
    else:
        raise AssertionError("circuitsae.trce should not exist")


def test_dir_lists_the_public_names() -> None:
    assert set(circuitsae.__all__) <= set(dir(circuitsae))
