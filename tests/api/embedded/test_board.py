import io

import pytest
from rich.console import Console
from rich.text import Text

from api.embedded.board import Board
from api.embedded.service import Service
from api.embedded.standing import Phase, Standing


def standing(name, phase, note="", took_s=0.0):
    made = Standing(Service(name=name, command=()), lambda service: None, lambda standing: None)
    made.phase, made.note, made.took_s = phase, note, took_s
    return made


@pytest.fixture
def standings():
    return [
        standing("broker", Phase.READY, took_s=0.12),
        standing("migrations", Phase.DONE, took_s=0.9),
        standing("api", Phase.STARTING, took_s=1.4),
        standing("worker", Phase.WAITING),
        standing("mlflow", Phase.DOWN, "killed by SIGKILL, starting it again in 0.5 s"),
    ]


def console(*, terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, highlight=False)


def test_lines_where_there_is_no_terminal(standings):
    out = console(terminal=False)
    board = Board(out)
    with board.coming_up(standings):
        for one in standings:
            board.on_change(one)
            board.on_tick()
    assert out.file.getvalue().splitlines() == [
        "broker: ready in 0.1 s",
        "migrations: done in 0.9 s",
        "mlflow: killed by SIGKILL, starting it again in 0.5 s",
    ]


def test_table_on_a_terminal_while_coming_up_and_lines_later(standings):
    out = console(terminal=True)
    board = Board(out)
    with board.coming_up(standings):
        board.on_change(standings[0])
        board.on_tick()
    lines = Text.from_ansi(out.file.getvalue().split("\x1b[2K")[-1]).plain.split()
    assert " ".join(lines).startswith("+ broker ready in 0.1 s + migrations done in 0.9 s")
    assert "api starting, 1 s worker waiting ! mlflow killed by SIGKILL" in " ".join(lines)
    out.file.truncate(0)
    board.on_change(standings[-1])
    assert "mlflow: killed by SIGKILL, starting it again in 0.5 s" in out.file.getvalue()
