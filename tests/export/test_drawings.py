"""Pictures: what is drawn is what the circuit has, texts are only ever texts, and the files are what they say."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import networkx as nx
import pytest
from hypothesis import given, settings

from circuitsae.errors import InputError
from circuitsae.export.drawings import as_pdf, as_png, as_svg, draw
from circuitsae.graph.circuit import Circuit
from tests.graph.test_strangers import circuits
from tests.synthetic import synthetic_circuit

SVG = "{http://www.w3.org/2000/svg}"


@settings(max_examples=30)
@given(circuits())
def test_every_circuit_is_drawn_as_svg_that_parses_and_runs_nothing(circuit: Circuit) -> None:
    root = ElementTree.fromstring(as_svg(circuit))
    drawing = draw(circuit)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        *("svg", "g", "rect", "path", "circle", "polygon", "text", "title")
    }
    assert not [name for element in root.iter() for name in element.attrib if name.startswith("on") or "href" in name]
    assert len(root.findall(f".//{SVG}path")) == len(drawing.lines) == circuit.graph.number_of_edges()
    inside = [0 <= x <= drawing.width and 0 <= y <= drawing.height for x, y in (mark.at for mark in drawing.marks)]
    assert all(inside)


def test_edges_go_upwards_and_the_strongest_are_kept() -> None:
    circuit = synthetic_circuit(seed=5, n_features=40)
    drawing = draw(circuit, max_nodes=20, max_edges=15)
    assert len(drawing.lines) == 15
    assert all(line.start[1] > line.end[1] for line in drawing.lines)
    assert drawing.lines[-1].width == 4.0 == max(line.width for line in drawing.lines)
    titles = " ".join(mark.title for mark in drawing.marks)
    assert all(key in titles for key in circuit.strongest(20))
    assert circuit.strongest(21)[-1] not in [mark.title.split()[0] for mark in drawing.marks]
    notes = [text.text for text in drawing.texts if "edges" in text.text]
    assert notes and f"15 of {circuit.graph.number_of_edges():,} edges" in notes[0]
    positions = {mark.at for mark in drawing.marks}
    assert len(positions) == len(drawing.marks)  # no node hides another


def test_colour_and_dash_say_what_an_edge_does() -> None:
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_edge("blocks.0.hook_mlp_out/1@0", "metric", weight=-1.0)
    graph.add_edge("blocks.0.hook_mlp_out/2@0", "metric", weight=0.5)
    lowers, raises = draw(Circuit(graph)).lines
    assert (raises.dashed, lowers.dashed) == (False, True) and raises.colour != lowers.colour
    assert raises.width > lowers.width


def test_a_circuit_without_positions_and_labels_with_markup_are_drawn() -> None:
    graph: nx.DiGraph[str] = nx.DiGraph(prompt="<script>alert(1)</script>\x00 $x^2$")
    graph.add_node("blocks.0.hook_mlp_out/1", label="</text><script>x</script>", effect=1.0)
    graph.add_edge("blocks.0.hook_mlp_out/1", "metric", weight=1.0)
    circuit = Circuit(graph)
    svg = as_svg(circuit)
    assert "<script" not in svg and "&lt;/text&gt;" in svg
    assert as_png(circuit, dpi=40).startswith(b"\x89PNG")


def test_png_and_pdf_are_those_and_the_same_every_time(tmp_path: Path) -> None:
    circuit = synthetic_circuit(seed=5, n_features=10)
    circuit.graph.graph["tokens"][0] = "漢字 \U0001f600 $a_1$"
    (png,) = circuit.export(tmp_path / "c.png", max_nodes=8, dpi=50)
    (pdf,) = circuit.export(tmp_path / "c.pdf", max_nodes=8)
    assert png.read_bytes().startswith(b"\x89PNG\r\n") and pdf.read_bytes().startswith(b"%PDF-")
    assert as_pdf(circuit, max_nodes=8) == pdf.read_bytes()
    width = int.from_bytes(png.read_bytes()[16:20], "big")
    assert width == int(draw(circuit, max_nodes=8).width / 72 * 50)


def test_options_out_of_range_are_refused() -> None:
    circuit = synthetic_circuit(seed=5, n_features=4)
    with pytest.raises(InputError, match="expected 0 or more"):
        as_svg(circuit, max_nodes=-1)
    with pytest.raises(InputError, match="dpi is 0"):
        as_png(circuit, dpi=0)
    assert draw(circuit, max_nodes=0, max_edges=0).lines == ()
