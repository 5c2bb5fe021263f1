import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from api.embedded.service import Service
from api.embedded.signals import Stop, StopSignals
from api.embedded.standing import Phase, ServiceFailed
from api.embedded.supervisor import supervise

BODY = """
import os, pathlib, signal, sys, time
up = pathlib.Path(sys.argv[1])
{first}
up.write_text(str(time.time()))
{then}
"""
SERVE = "signal.pause()"
SAY_BYE = "signal.signal(signal.SIGTERM, lambda *_: (up.with_suffix('.bye').write_text(str(time.time())), sys.exit(0)))"
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


@dataclass
class Ground:
    """Where small services run: each writes a file, with the time in it, when it is up."""

    folder: Path
    signals: StopSignals
    seen: list = field(default_factory=list)

    def service(self, name, *, first="", then=SERVE, task=False, **knobs):
        command = (sys.executable, "-I", "-S", "-c", BODY.format(first=first, then=then), str(self.folder / name))
        return Service(
            name=name, command=command, is_ready=None if task else lambda life: (self.folder / name).exists(), **knobs
        )

    @contextmanager
    def supervise(self, *services):
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT)
        try:
            with supervise(
                services,
                environment={"COLOUR": "green"},
                log_dir=self.folder / "log",
                lock=lock,
                signals=self.signals,
                on_change=lambda standing: self.seen.append((standing.service.name, standing.phase, standing.note)),
                on_tick=lambda: None,
            ) as supervisor:
                yield supervisor
        finally:
            os.close(lock)

    def time(self, name):
        return float((self.folder / name).read_text())


@pytest.fixture
def ground(tmp_path):
    # Tests that run under nohup inherit its ignored hang-up, which a laboratory leaves ignored.
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with StopSignals() as signals:
        yield Ground(tmp_path, signals)
    signal.signal(signal.SIGHUP, inherited)


def attend_until(supervisor, condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        supervisor.attend(0.02)


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_service_starts_after_what_it_needs(ground):
    with ground.supervise(
        ground.service("worker", after=("migrations", "broker")),
        ground.service("broker", first="time.sleep(0.2)"),
        ground.service("migrations", first="time.sleep(0.2)", then="", task=True),
    ) as supervisor:
        supervisor.wait_until_ready()
        assert [standing.phase for standing in supervisor.standings] == [Phase.READY, Phase.READY, Phase.DONE]
    assert ground.time("worker") > max(ground.time("broker"), ground.time("migrations"))


def test_services_stop_round_by_round(ground):
    with ground.supervise(
        ground.service("broker", first=SAY_BYE, stop_round=1),
        ground.service("worker", first="import threading;" + SAY_BYE.replace("(up.", "(time.sleep(0.3), up.")),
    ) as supervisor:
        supervisor.wait_until_ready()
        pids = [standing.pid for standing in supervisor.standings]
    assert ground.time("worker.bye") < ground.time("broker.bye")
    assert all(gone(pid) for pid in pids)
    assert [(name, phase) for name, phase, _ in ground.seen][-2:] == [
        ("broker", Phase.STOPPING),
        ("broker", Phase.STOPPED),
    ]


def test_service_has_the_environment_given_and_a_log(ground):
    with ground.supervise(
        ground.service("worker", first="print(os.environ['COLOUR'], 'HOME' in os.environ, flush=True)")
    ) as supervisor:
        supervisor.wait_until_ready()
    assert (ground.folder / "log" / "worker.log").read_text() == "green False\n"


def test_a_variable_of_its_own_is_a_services_alone(ground):
    said = "print(os.environ.get('COLOUR'), os.environ.get('SHADE'), flush=True)"
    services = (
        ground.service("a", first=said, environment={"SHADE": "dark", "COLOUR": "red"}),
        ground.service("b", first=said),
    )
    with ground.supervise(*services) as supervisor:
        supervisor.wait_until_ready()
    logs = [(ground.folder / "log" / f"{name}.log").read_text() for name in "ab"]
    assert logs == ["red dark\n", "green None\n"]


def test_dead_service_is_started_again(ground):
    with ground.supervise(ground.service("worker")) as supervisor:
        supervisor.wait_until_ready()
        (standing,) = supervisor.standings
        first = standing.pid
        (ground.folder / "worker").unlink()
        os.kill(first, signal.SIGKILL)
        attend_until(supervisor, lambda: standing.phase is Phase.DOWN)
        assert standing.note == "killed by SIGKILL, starting it again in 0.5 s"
        attend_until(supervisor, lambda: standing.phase is Phase.READY)
        assert standing.pid not in (None, first)


def test_pause_grows_while_a_service_keeps_dying(ground):
    count = "open(up.with_suffix('.lives'), 'a').write('x')"
    with ground.supervise(ground.service("worker", first=count, then="time.sleep(0.3); sys.exit(7)")) as supervisor:
        attend_until(supervisor, lambda: (ground.folder / "worker.lives").exists() and len(pauses(ground)) == 3)
    assert pauses(ground) == [
        "exit status 7, starting it again in 0.5 s",
        "exit status 7, starting it again in 1 s",
        "exit status 7, starting it again in 2 s",
    ]


def pauses(ground):
    return [note for _, phase, note in ground.seen if phase is Phase.DOWN]


def test_service_that_cannot_start_shows_the_end_of_its_log_and_the_others_are_stopped(ground):
    (ground.folder / "log").mkdir()
    (ground.folder / "log" / "mlflow.log").write_text("of an earlier life\n")
    fail = "print('line 1', flush=True); sys.exit('no such column: runs.colour')"
    with ground.supervise(ground.service("broker"), ground.service("mlflow", first=fail)) as supervisor:
        with pytest.raises(ServiceFailed) as failure:
            supervisor.wait_until_ready()
        broker = supervisor.standings[0].pid
    said = str(failure.value)
    assert said.startswith("mlflow did not start: exit status 1; the end of ")
    assert said.endswith("log/mlflow.log:\nline 1\nno such column: runs.colour")
    assert "earlier life" not in said
    assert gone(broker)


def test_task_that_fails_is_a_failure(ground):
    task = ground.service("migrations", first="sys.exit(3)", task=True)
    with (
        pytest.raises(ServiceFailed, match="migrations did not start: exit status 3"),
        ground.supervise(task) as supervisor,
    ):
        supervisor.wait_until_ready()


def test_deaf_service_is_killed_after_its_grace(ground):
    with ground.supervise(ground.service("worker", first=DEAF, stop_grace_s=0.2)) as supervisor:
        supervisor.wait_until_ready()
        (standing,) = supervisor.standings
        pid = standing.pid
    assert gone(pid)
    assert ground.seen[-1] == ("worker", Phase.STOPPED, "killed by SIGKILL")


def test_what_a_dead_service_left_of_its_group_is_killed(ground):
    fork = "child = os.fork()\nif not child: signal.pause()\nup.with_suffix('.child').write_text(str(child))"
    with ground.supervise(ground.service("mlflow", first=fork)) as supervisor:
        supervisor.wait_until_ready()
        child = int((ground.folder / "mlflow.child").read_text())
        assert not gone(child)
        os.kill(supervisor.standings[0].pid, signal.SIGKILL)
        attend_until(supervisor, lambda: supervisor.standings[0].phase is Phase.DOWN)
        attend_until(supervisor, lambda: gone(child))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_the_attending_and_the_services(ground, number):
    with ground.supervise(ground.service("worker")) as supervisor:
        supervisor.wait_until_ready()
        pid = supervisor.standings[0].pid
        os.kill(os.getpid(), number)
        with pytest.raises(Stop, match=number.name):
            supervisor.attend()
    assert gone(pid)


def test_second_signal_kills_what_takes_its_time(ground):
    with ground.supervise(ground.service("worker", first=DEAF, stop_grace_s=1000)) as supervisor:
        supervisor.wait_until_ready()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stop):
            supervisor.attend()
        ground.signals._asked_at -= 10
        os.kill(os.getpid(), signal.SIGINT)
    assert ground.seen[-1] == ("worker", Phase.STOPPED, "killed by SIGKILL")


def test_one_press_that_a_wrapper_passes_on_is_not_two(ground):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    assert (ground.signals.asked, ground.signals.forced) == (signal.SIGINT, False)
