"""The figure can be read: labels and points neither hide each other nor leave the page."""

import itertools

import matplotlib
import numpy as np
import pandas as pd
import pytest
from fake_results import captions, frame
from matplotlib.backends.backend_agg import FigureCanvasAgg

from experiments import pareto, places, report


def test_the_front_is_what_nothing_beats():
    summary = report.summarise(
        frame(
            a=[0.9, 0.9], b=[0.8, 0.8], c=[0.95, 0.95], d=[0.9, 0.9], e=[0.7, 0.7], f=[None, None]
        )
    )
    summary["executed_flops"] = [100, 200, 300, 100, 50, 1]
    assert pareto.front(summary, "executed_flops") == ["e", "a", "c"]


def crowded(rows: int) -> pd.DataFrame:
    """Returns rows of equal FLOPs and nearly equal accuracy, with names of any length."""
    rng = np.random.default_rng(rows)
    names = [f"row {n}" + " with a long name" * (n % 3) for n in range(rows)]
    return report.summarise(frame(**{name: rng.normal(0.967, 0.004, 5) for name in names}))


@pytest.mark.parametrize("rows", [1, 5, 8, 15, 40])
def test_labels_neither_overlap_nor_leave_the_page(rows):
    page = pareto.figure(crowded(rows))
    renderer = FigureCanvasAgg(page).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in page.axes[1].texts]
    assert len(boxes) == rows
    boxes.sort(key=lambda box: box.y0)
    for below, above in itertools.pairwise(boxes):
        assert below.y1 <= above.y0 + 2  # pixels: the boxes hold empty room above the letters
    everything = page.get_tightbbox(renderer)  # inches
    assert everything.x0 >= 0 and everything.y0 >= 0
    assert everything.x1 <= page.get_figwidth() and everything.y1 <= page.get_figheight()


def test_labels_stand_in_the_order_of_accuracy():
    summary = crowded(12)
    texts = pareto.figure(summary).axes[1].texts
    shown = [
        text.get_text().replace("\n", " ")
        for text in sorted(texts, key=lambda t: t.get_position()[1])
    ]
    assert shown == summary.sort_values("score")["row"].tolist()


def test_bars_are_the_intervals_and_the_band_is_the_front():
    summary = report.summarise(frame(a=[0.9, 0.91], b=[0.92, 0.925], c=[0.91, 0.912]))
    summary["executed_flops"] = [1e6, 2e6, 4e6]
    axis = pareto.figure(summary).axes[0]
    by_x = sorted(axis.containers, key=lambda container: container.lines[0].get_xdata()[0])
    for line, container in zip(summary.to_dict("records"), by_x, strict=True):
        ends = container.lines[2][0].get_segments()[0][:, 1]
        half_width = line["score_half_width"]
        assert ends.mean() == pytest.approx(line["score"])
        assert np.ptp(ends) == pytest.approx(2 * half_width)
    (band,) = (line for line in axis.lines if line.get_drawstyle() == "steps-post")
    np.testing.assert_allclose(band.get_xdata(), [1e6, 2e6])
    np.testing.assert_allclose(band.get_ydata(), [90.5, 92.25])


def test_a_table_may_name_its_costs():
    runs = frame(dense=[0.9, 0.91], window=[0.8, 0.81], topk=[0.7, 0.71])
    runs["costs.decode_state_bytes"] = [16e3] * 2 + [2e3] * 2 + [None] * 2
    summary = report.summarise(runs)
    page = pareto.figure(summary, costs=("latency_seconds", "decode_state_bytes"))
    labels = [page.axes[i].get_xlabel() for i in (0, 2)]
    assert labels == ["latency seconds, log scale", "decode state bytes, log scale"]
    assert page.axes[2].xaxis.get_major_formatter()(5000) == "5 kB"
    # A row without this cost is in the other panel only.
    drawn = [
        [
            c.lines[0].get_xdata()[0]
            for c in page.axes[i].containers
            if c.lines[0].get_xdata()[0] > 0
        ]
        for i in (0, 2)
    ]
    assert len(drawn[0]) == 3 and sorted(drawn[1]) == pytest.approx([2e3, 16e3])
    assert pareto.front(summary, "decode_state_bytes") == ["window", "dense"]
    with pytest.raises(ValueError, match="no cost is called 'stored'; choose from useful_flops"):
        pareto.figure(summary, costs=("executed_flops", "stored"))


def test_rows_that_differ_in_their_last_number_are_one_curve():
    rows = {"a, H=16": 0.9, "b": 0.95, "a, H=4": 0.7, "a, H=8": 0.8, "c, H=8": 0.6}
    summary = report.summarise(frame(**{name: [mean] for name, mean in rows.items()}))
    summary["executed_flops"] = [4e6, 3e6, 1e6, 2e6, 5e6]
    page = pareto.figure(summary)
    lines = [line for line in page.axes[0].lines if len(line.get_xdata()) == 3]
    (curve,) = (line for line in lines if line.get_drawstyle() == "default")
    np.testing.assert_allclose(curve.get_xdata(), [1e6, 2e6, 4e6])
    np.testing.assert_allclose(curve.get_ydata(), [70, 80, 90])
    points = [container.lines[0] for container in page.axes[0].containers]  # by accuracy
    assert len({point.get_marker() for point in points}) == 5
    colours = [point.get_color() for point in points]
    assert colours[1:4] == [curve.get_color()] * 3 and len(set(colours)) == 3
    assert "A line joins rows" in captions(page)
    assert "A line joins rows" not in captions(pareto.figure(crowded(3)))


def test_points_of_equal_cost_are_told_apart():
    page = pareto.figure(crowded(8))
    for axis in (page.axes[0], page.axes[2]):
        points = [container.lines[0].get_xdata()[0] for container in axis.containers]
        pixels = np.sort(axis.transData.transform(np.c_[points, np.full(8, 96.7)])[:, 0])
        assert np.diff(pixels).min() > 6
        assert pixels.min() > axis.bbox.x0 and pixels.max() < axis.bbox.x1
    colours = [c.lines[0].get_color() for c in page.axes[0].containers]
    assert colours == [c.lines[0].get_color() for c in page.axes[2].containers]
    looks = {(c.lines[0].get_color(), c.lines[0].get_marker()) for c in page.axes[0].containers}
    assert len(looks) == 8 == len(set(colours))


def test_a_collapsed_row_does_not_flatten_the_others():
    page = pareto.figure(
        report.summarise(
            frame(dense=[0.96, 0.97, 0.96], window=[0.95, 0.952, 0.95], broken=[0.1] * 3)
        )
    )
    low, high = page.axes[0].get_ylim()
    assert low > 90 and high < 100
    assert "broken ↓ 10.0%" in [text.get_text() for text in page.axes[1].texts]
    assert "↓ marks a row" in captions(page)


def test_an_axis_has_no_negative_shares_and_shows_the_sign_of_other_scores():
    runs = frame(dense=[0.9, 0.91, 0.9], lucky=[0.1, 0.9, 0.2])
    low, high = pareto.figure(report.summarise(runs)).axes[0].get_ylim()
    assert -10 < low < 0 and 100 < high < 110
    for higher, told in ((True, ["−1", "0"]), (False, ["1", "0"])):
        for field, value in (("name", "loss"), ("higher", higher), ("percent", False)):
            runs[f"metric.{field}"] = value
        runs["metrics.test_loss"] = [x if higher else -x for x in (-1.1, -1, -1, 0, 0.1, 0.1)]
        axis = pareto.figure(report.summarise(runs)).axes[0]
        shown = dict(zip(axis.get_yticks(), axis.get_yticklabels(), strict=True))
        found = [shown[y].get_text().replace("-", "−") for y in (-1, 0)]
        assert found == told


def test_spreading_keeps_places_that_are_free():
    sizes = np.full(3, 1.0)
    np.testing.assert_allclose(places.spread([0.0, 2.0, 5.0], sizes, -9, 9), [0, 2, 5])
    np.testing.assert_allclose(places.spread([0.0, 0.0, 0.0], sizes, -9, 9), [-1, 0, 1])
    np.testing.assert_allclose(places.spread([0.0, 0.0, 0.0], sizes, 0, 9), [0.5, 1.5, 2.5])


def test_drawing_leaves_the_backend_alone():
    with matplotlib.rc_context({"backend": "svg"}):
        pareto.figure(crowded(2))
        assert matplotlib.rcParams["backend"] == "svg"


def test_a_metric_is_written_as_its_field_does():
    runs = frame(dense=[0.3] * 5, window=[0.2] * 5)
    runs["metrics.test_rougeL"] = runs["metrics.test_accuracy"]
    for field, value in (("name", "rougeL"), ("higher", True), ("percent", True)):
        runs[f"metric.{field}"] = value
    summary = report.summarise(runs)
    text = report.markdown(summary)
    assert "| test ROUGE-L, % |" in " ".join(text.split()) and "- ROUGE-L: mean over n=5" in text
    page = pareto.figure(summary)
    assert page.axes[0].get_ylabel() == "test ROUGE-L, %"
    assert page.texts[0].get_text().startswith("Test ROUGE-L against cost")
