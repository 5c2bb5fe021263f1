"""The sheet that probes draw on."""

from io import BytesIO
from math import inf, nan

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from normcore.probes.sheet import DARK, LIGHT, THEMES, Panel, curve, draw_panels, layer_curves
from normcore.records import Reading


def readings(*values, name="a", facts=None):
    return [Reading("x", step, {name: value}, {}, facts=facts or {}) for step, value in enumerate(values, 1)]


def lines(axes, those, theme):
    curve(axes, those, "a", theme.main)


def pixels(png):
    return matplotlib.image.imread(BytesIO(png))[:, :, :3]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn."""
    figures, save = [], Figure.savefig

    def kept(figure, *args, **knobs):
        figures.append(figure)
        save(figure, *args, **knobs)

    monkeypatch.setattr(Figure, "savefig", kept)
    return figures


def test_a_sheet_has_a_row_per_panel_and_a_column_per_training(drawn):
    panels = [Panel("loss (nats)", lines), Panel("norm", lines)]
    sizes = {}
    for count in (1, 2, 3):
        arms = {f"arm {index}": readings(1.0, 2.0) for index in range(count)}
        sizes[count] = pixels(draw_panels("title", panels, arms)).shape[:2]
        axes = drawn[-1].axes
        assert len(axes) == 2 * count
        assert [each.get_title() for each in axes[:count]] == list(arms)
        assert [axes[0].get_ylabel(), axes[count].get_ylabel()] == ["loss (nats)", "norm"]
        assert {each.get_xlabel() for each in axes[count:]} == {"step (updates)"}
    assert sizes[3][1] > sizes[2][1] > 0
    assert len({height for height, _ in sizes.values()}) == 1


def test_the_panels_of_a_row_share_their_vertical_axis_and_those_of_a_column_their_steps(drawn):
    arms = {"low": readings(1.0, 2.0), "high": [Reading("x", step, {"a": 30.0}, {}) for step in (10, 200)]}
    draw_panels("title", [Panel("a", lines), Panel("b", lines)], arms)
    (left, right), (below_left, _) = np.asarray(drawn[0].axes).reshape(2, 2)
    assert left.get_ylim() == right.get_ylim()
    low, high = left.get_ylim()
    assert low < 1
    assert high > 30
    assert left.get_xlim() == below_left.get_xlim() != right.get_xlim()


@pytest.mark.parametrize(
    ("values", "scale", "axis"),
    [
        ((1.0, 49.0), "auto", "linear"),
        ((1.0, 51.0), "auto", "log"),
        ((0.0, 51.0), "auto", "linear"),
        ((-1.0, 1e6), "auto", "linear"),
        ((1.0, nan, inf, 51.0), "auto", "log"),
        ((nan, inf), "auto", "linear"),
        ((), "auto", "linear"),
        ((1.0, 1e6), "linear", "linear"),
        ((-1.0, 1e6), "symlog", "symlog"),
    ],
)
def test_an_axis_is_logarithmic_where_all_is_positive_and_far_apart(drawn, values, scale, axis):
    draw_panels("title", [Panel("a", lines, scale=scale)], {"": readings(*values)})
    assert drawn[0].axes[0].get_yscale() == axis


def test_a_line_across_the_panel_is_no_reason_for_a_logarithmic_axis(drawn):
    def marked(axes, those, theme):
        lines(axes, those, theme)
        axes.axhline(1e6)

    draw_panels("title", [Panel("a", marked)], {"": readings(1.0, 2.0)})
    assert drawn[0].axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_a_theme_has_its_ground_and_leaves_the_callers_colours_alone(theme):
    from matplotlib import rcParams

    before = dict(rcParams)
    image = pixels(draw_panels("title", [Panel("a", lines)], {"": readings(1.0, 2.0)}, theme))
    assert image[0, 0].tolist() == pytest.approx(to_rgb(theme.ground), abs=1 / 255)
    assert dict(rcParams) == before


def luminance(colour):
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=THEMES)
def test_every_colour_can_be_seen_on_its_ground(theme):
    ground = to_rgb(theme.ground)
    assert contrast(to_rgb(theme.ink), ground) > 7
    assert contrast(to_rgb(theme.faint), ground) > 4.5
    for colour in (theme.main, theme.contrast, theme.third):
        assert contrast(to_rgb(colour), ground) > 3
    for index in range(5):
        assert contrast(theme.layer(index, 5), ground) > 1.5
    assert theme.layer(0, 1) == theme.layer(0, 5)
    assert len({theme.layer(index, 5) for index in range(5)}) == 5


def test_facts_stand_below_the_title_once_each(drawn):
    arms = {
        "one": readings(1.0, 2.0, facts={"bn_mode": "batch", "precision": "float64"}),
        "two": readings(1.0, facts={"bn_mode": "frozen"}),
    }
    draw_panels("title", [Panel("a", lines)], arms)
    assert [text.get_text() for text in drawn[0].texts][-1] == "bn_mode: batch; bn_mode: frozen; precision: float64"
    draw_panels("title", [Panel("a", lines)], {"": readings(1.0)})
    assert "bn_mode" not in " ".join(text.get_text() for text in drawn[1].texts)


@pytest.mark.parametrize("arms", [{}, {"": []}, {"one": [], "two": readings(1.0)}, {"": readings(nan)}])
def test_a_sheet_survives_trainings_without_readings(arms):
    panels = [Panel("a", lines), Panel("b", lambda axes, those, theme: layer_curves(axes, those, "b", theme))]
    if any(arms.values()):
        panels = panels[:1]
    assert pixels(draw_panels("title", panels, arms)).std() > 0


def test_layers_are_lines_from_the_first_colour_to_the_last_with_gaps_where_nothing_is_finite(drawn):
    rows = [(1.0, nan, 3.0), (2.0, 5.0, 4.0)]
    those = [Reading("x", step, {}, {"b": row}, ("in", "mid", "out")) for step, row in enumerate(rows, 1)]

    def paint(axes, those, theme):
        layer_curves(axes, those, "b", theme, legend=True)

    draw_panels("title", [Panel("b", paint)], {"": those})
    axes = drawn[0].axes[0]
    assert [line.get_color() for line in axes.lines] == [LIGHT.layer(index, 3) for index in range(3)]
    assert [list(line.get_ydata())[1] for line in axes.lines] == [2.0, 5.0, 4.0]
    assert np.isnan(axes.lines[1].get_ydata()[0])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["first layer in", "last layer out"]


def test_a_panel_with_a_horizontal_axis_of_its_own_shares_it_with_none(drawn):
    def over_depth(axes, _, theme):
        axes.plot([0, 1], [1.0, 2.0], color=theme.main)

    panels = [Panel("a", lines), Panel("b", over_depth, across="depth (layers)"), Panel("c", lines)]
    draw_panels("title", panels, {"": readings(*range(1, 101))})
    first, second, third = drawn[0].axes
    assert first.get_xlim() == third.get_xlim() != second.get_xlim()
    assert [each.get_xlabel() for each in (second, third)] == ["depth (layers)", "step (updates)"]


@pytest.mark.parametrize("steps", [(2,), (1, 2), (1, 3, 4)])
def test_steps_are_whole_numbers(drawn, steps):
    draw_panels("title", [Panel("a", lines), Panel("b", lines)], {"": [Reading("x", n, {"a": 1.0}, {}) for n in steps]})
    drawn[0].canvas.draw()
    low, high = drawn[0].axes[-1].get_xlim()
    ticks = [tick for tick in drawn[0].axes[-1].get_xticks() if low <= tick <= high]
    assert ticks
    assert all(tick == round(tick) for tick in ticks)


def test_a_legend_over_lines_has_a_ground_to_be_read_on(drawn):
    rows = [Reading("x", step, {}, {"y": tuple(map(float, range(20)))}, ("layer",) * 20) for step in range(3)]
    draw_panels(
        "t", [Panel("y", lambda *given: layer_curves(*given[:2], "y", given[2], legend=True))], {"": rows}, DARK
    )
    frame = drawn[0].axes[0].get_legend().get_frame()
    assert frame.get_visible()
    assert frame.get_alpha() >= 0.7
    assert to_rgb(frame.get_facecolor()) == to_rgb(DARK.ground)


@pytest.mark.parametrize(
    ("steps", "scale"),
    [
        ((1, 2, 5, 10, 22, 46, 100, 215, 464, 1000), "log"),
        (range(1, 101), "linear"),
        (range(10, 1001, 10), "linear"),
        ((7,), "linear"),
        ((0, 1, 2, 100), "linear"),
        ((), "linear"),
    ],
)
def test_steps_stand_on_a_logarithmic_axis_where_most_are_early(drawn, steps, scale):
    panels = [Panel("a", lines), Panel("b", lines), Panel("c", lines, across="eigenvalue")]
    draw_panels("title", panels, {"x": [Reading("x", n, {"a": 1.0}, {}) for n in steps], "y": readings(*[1.0] * 4)[:0]})
    assert [axes.get_xscale() for axes in drawn[0].axes] == [scale] * 4 + ["linear"] * 2
