from rich.console import Console

from api.comparison_view import comparison_table
from worker.report.comparison import MEASURES, Estimate, Row


def test_measures_that_say_nothing_are_left_out():
    cells = {"test accuracy": Estimate(0.75, 0.5), "points not finite": Estimate(0.0, 0.0)}
    row = Row("batch", (0, 1), tuple(cells.get(measure.heading) for measure in MEASURES))
    console = Console(width=80)
    with console.capture() as shown:
        console.print(comparison_table([row]))
    assert [line.split() for line in shown.get().splitlines()] == [
        ["arm", "test", "accuracy"],
        ["batch", "0.750±0.500"],
    ]
