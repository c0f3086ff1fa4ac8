import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from selfsup.report import charts


def test_a_chart_is_well_formed_and_asks_for_nothing_from_outside():
    drawn = charts.curves({"epoch": np.arange(5.0), "loss": np.arange(5.0), "spread": np.full(5, 0.5)})
    ET.fromstring(drawn)
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#|data:)", drawn)
    assert "<!DOCTYPE" not in drawn
    assert "metadata" not in drawn


def test_a_chart_takes_the_pages_colours():
    drawn = charts.curves({"epoch": np.arange(5.0), "loss": np.arange(5.0)})
    assert "currentColor" in drawn
    assert "var(--line)" in drawn
    assert "#010203" not in drawn
    assert "#000000" not in drawn


def test_text_in_a_chart_is_escaped_and_is_no_mathematics():
    hostile = "<script>alert(1)</script>--> $\\frac$"
    drawn = charts.dots([charts.Panel(hostile, "%", "percent", {"method": (0.5, 0.1)})], {"method": hostile})
    assert "<script>" not in drawn
    texts = [element.text for element in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count(hostile) == 2


def test_the_same_numbers_draw_the_same_bytes():
    columns = {"step": np.arange(9.0), "loss": np.sin(np.arange(9.0))}
    assert charts.curves(columns) == charts.curves(columns)


def test_sparse_and_empty_columns():
    gaps = np.array([np.nan, 0.5, np.nan, 0.7])
    drawn = charts.curves(
        {"epoch": np.arange(4.0), "loss": np.arange(4.0), "knn_validation": gaps, "gone": gaps * np.nan}
    )
    assert "knn validation" in drawn
    assert "gone" not in drawn
    assert charts.curves({}) is None
    assert charts.curves({"epoch": np.arange(3.0)}) is None


def ticks(drawn):
    return [float(text.replace("\u2212", "-")) for text in re.findall(r">([\u2212-]?[\d.]+)<", drawn)]


def test_spreads_end_where_accuracies_do():
    panel = charts.Panel("kNN", "top-1, %", "percent", {"method": (1.0, 0.2), "majority": (0.05, 0.2)})
    drawn = charts.dots([panel], {"method": "a", "majority": "b"})
    assert max(ticks(drawn)) <= 112 and min(ticks(drawn)) >= -12
    drawn = charts.label_curve({"method": [(10, 1.0, 0.4), (50, 0.5, 0.1)]}, {"method": "a"})
    assert not re.search(r">1[1-9]\d<", drawn)


def test_panels_of_other_units_have_axes_of_their_own():
    percent = charts.Panel("kNN", "top-1, %", "percent", {"method": (0.5, 0.1), "pixels": (0.25, 0.1)})
    none = charts.Panel("nearest image", "distance", "none", {"method": (0.31, 0.01), "pixels": (0.4, 0.01)})
    drawn = charts.dots([percent, none], {"method": "byol", "pixels": "raw pixels"})
    assert {50, 25, 0.31, 0.4} <= set(ticks(drawn))
    assert [title for title in ("kNN", "top-1, %", "nearest image", "distance") if f">{title}<" not in drawn] == []
    seconds = charts.Panel("speed", "time, seconds", "seconds", {"method": (250.0, 40.0)})
    assert 250 in ticks(charts.dots([seconds], {"method": "byol"}))


def test_points_of_equal_numbers_of_labels_are_one():
    series = {"method": [(10, 0.5, 0.1), (10, 0.5, 0.1), (50, 0.6, 0.1)], "pixels": [(10, 0.4, 0.0)]}
    drawn = charts.label_curve(series, {"method": "byol", "pixels": "raw pixels"})
    ET.fromstring(drawn)
    assert "byol" in drawn
    assert ">50<" in drawn


@pytest.mark.parametrize("classes", [0, 1, 10, 11, 20, 21, 200])
def test_palette_has_a_colour_for_every_class(classes):
    colours = charts.palette(classes)
    assert colours.shape == (classes, 3)
    assert len(np.unique(colours, axis=0)) == classes


def test_a_chart_is_read_out_by_its_title_and_its_marks_have_titles_of_their_own():
    def draw(figure):
        (line,) = figure.subplots().plot([0, 1.23456789], [0, 1])
        charts.marked(line, "row-3", 'a "b" <c>')

    root = ET.fromstring(charts.svg(draw, 2, 2, 'loss of "x" & <y>'))
    assert (root.get("role"), root.get("aria-label")) == ("img", 'loss of "x" & <y>')
    (group,) = [element for element in root.iter() if element.get("class") == "row-3"]
    assert group[0].tag.endswith("title") and group[0].text == 'a "b" <c>'
    assert not re.search(r"\.\d{3}", "".join(element.get("d", "") for element in root.iter()))
    used = set(re.findall(r"#([\w-]+)", ET.tostring(root, encoding="unicode")))
    assert {element.get("id") for element in root.iter() if element.get("id")} <= used
