"""What a person sees of the services: a table that lives while they come up, and a line for whatever happens later."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from api.embedded.standing import Phase, Standing

STYLES = {Phase.READY: "green", Phase.DONE: "green", Phase.DOWN: "red", Phase.STOPPED: "red"}
SIGNS = {Phase.READY: "+", Phase.DONE: "+", Phase.DOWN: "!", Phase.STOPPED: "!", Phase.WAITING: " "}


class Board:
    """Shows changes as they happen; on a terminal, while `coming_up`, as one table in place of lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._standings: Sequence[Standing] = ()
        self._spinner = Spinner("line")

    @contextmanager
    def coming_up(self, standings: Sequence[Standing]) -> Iterator[None]:
        """Show the table while these services come up; when left, its last state stays on the screen."""
        if not self._console.is_terminal:
            yield
            return
        self._standings = standings
        with Live(console=self._console, auto_refresh=False, get_renderable=self._table) as live:
            self._live = live
            try:
                yield
            finally:
                live.refresh()
                self._live = None

    def on_change(self, standing: Standing) -> None:
        """Say what has become of a service."""
        if self._live is None and (line := _line(standing)):
            self._console.print(Text(line, style=STYLES.get(standing.phase, "")), soft_wrap=True)

    def on_tick(self) -> None:
        """Keep the table moving."""
        if self._live is not None:
            self._live.refresh()

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for standing in self._standings:
            phase = standing.phase
            sign = self._spinner.render(time.monotonic()) if phase is Phase.STARTING else SIGNS.get(phase, " ")
            table.add_row(sign, standing.service.name, Text(_words(standing), style=STYLES.get(phase, "dim")))
        return table


def _words(standing: Standing) -> str:
    match standing.phase:
        case Phase.READY:
            return f"ready in {standing.took_s:.1f} s"
        case Phase.DONE:
            return f"done in {standing.took_s:.1f} s"
        case Phase.STARTING:
            return f"starting, {standing.took_s:.0f} s"
        case phase:
            return standing.note or phase.value


def _line(standing: Standing) -> str:
    if standing.phase in (Phase.WAITING, Phase.STARTING):
        return ""
    return f"{standing.service.name}: {_words(standing)}"
