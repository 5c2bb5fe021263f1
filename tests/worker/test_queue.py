import subprocess
import sys
from pathlib import Path

import pytest
from kombu import Queue

from worker.queue import TASK, QueueUnavailable, make_app, ping, publish, queue_of

# A worker as the real one is started, whose task writes down what it hears and takes as long as it is told to.
WORKER = """
import sys, time
from pathlib import Path
from worker.queue import TASK, make_app, queue_of
app, folder = make_app(sys.argv[1]), Path(sys.argv[2])
@app.task(name=TASK)
def run(**message):
    job_id = message["job_id"]
    note(f"start {message}")
    while job_id.startswith("slow") and not (folder / f"end {job_id}").exists():
        time.sleep(0.01)
    note(f"end {job_id}")
def note(line):
    with (folder / "log").open("a") as log:
        print(line, file=log)
(folder / "log").touch()
app.worker_main(["worker", "-Q", queue_of(sys.argv[3]), "--without-mingle", "--without-gossip", "-l", "ERROR"])
"""


@pytest.fixture
def app(broker):
    return make_app(broker.url)


class Worker:
    def __init__(self, broker, folder: Path, pool: str) -> None:
        self.folder = folder
        self.errors = (folder / "errors").open("w")
        command = [sys.executable, "-c", WORKER, broker.url, str(folder), pool]
        self.process = subprocess.Popen(command, stdout=self.errors, stderr=self.errors)

    def log(self) -> list[str]:
        return (self.folder / "log").read_text().splitlines()

    def end(self, job_id: str) -> None:
        (self.folder / f"end {job_id}").touch()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()


@pytest.fixture
def start_worker(broker, tmp_path):
    started = []

    def start(pool="cpu"):
        started.append(Worker(broker, tmp_path, pool))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


def started(job_id: str, dispatch_seq: int = 1) -> str:
    return f"start {{'job_id': '{job_id}', 'dispatch_seq': {dispatch_seq}}}"


def test_a_message_says_which_job_and_which_dispatch_and_nothing_else(app, broker):
    publish("a job", 3, via=app)
    publish("another", 1, "cuda", via=app)
    assert broker.messages("cpu") == [{"job_id": "a job", "dispatch_seq": 3}]
    assert broker.messages("cuda") == [{"job_id": "another", "dispatch_seq": 1}]
    assert all(key.startswith(b"normcore:") for key in broker.client.keys("*"))


def test_a_pool_that_cannot_be_has_no_queue(app, broker):
    with pytest.raises(ValueError, match=r"a pool's name must be such as cpu, .*, got 'tpu'"):
        publish("a job", 1, "tpu", via=app)


def test_each_number_of_devices_has_a_queue_of_its_own(app, broker, start_worker, eventually):
    worker = start_worker(pool="cpu-4")
    publish("small", 1, "cpu", via=app)
    publish("large", 1, "cpu-4", via=app)
    eventually(lambda: (worker.folder / "log").exists() and "end large" in worker.log())
    assert worker.log() == [started("large"), "end large"]
    assert broker.messages("cpu") == [{"job_id": "small", "dispatch_seq": 1}]


def test_a_queue_that_is_away_is_said_and_used_again_when_it_is_back(app, broker):
    ping(via=app)
    broker.kill()
    with pytest.raises(QueueUnavailable, match=r"the queue must answer, got .*; start Redis or set NORMCORE_REDIS_URL"):
        ping(via=app)
    with pytest.raises(QueueUnavailable, match="the queue must answer"):
        publish("lost", 1, via=app)
    broker.start()
    ping(via=app)
    publish("a job", 1, via=app)
    assert [message["job_id"] for message in broker.messages()] == ["a job"]


def test_a_busy_worker_takes_no_second_message_and_has_acknowledged_the_first(app, broker, start_worker, eventually):
    worker = start_worker()
    publish("slow", 1, via=app)
    eventually(lambda: (worker.folder / "log").exists() and worker.log() == [started("slow")])
    assert broker.client.hlen("normcore:unacked") == 0, "no timeout can deliver it again"
    publish("next", 5, via=app)
    publish("for another pool", 1, "cuda", via=app)
    ping(via=app)
    assert broker.messages() == [{"job_id": "next", "dispatch_seq": 5}], "it waits where every worker can take it"
    worker.end("slow")
    eventually(lambda: len(worker.log()) == 4)
    assert worker.log() == [started("slow"), "end slow", started("next", 5), "end next"]
    assert broker.messages() == []
    assert len(broker.messages("cuda")) == 1
    assert broker.client.keys("normcore:celery-task-meta*") == [], "no results are kept"


def test_a_message_whose_worker_was_killed_is_not_delivered_again(app, broker, start_worker, eventually):
    """The lease decides what becomes of the job, and the scheduler sends a new message."""
    worker = start_worker()
    publish("slow", 1, via=app)
    eventually(lambda: (worker.folder / "log").exists() and worker.log() == [started("slow")])
    worker.kill()
    other = start_worker()
    publish("next", 1, via=app)
    eventually(lambda: "end next" in other.log())
    assert other.log() == [started("slow"), started("next"), "end next"]


def test_a_running_task_does_not_notice_that_redis_was_away(app, broker, start_worker, eventually):
    worker = start_worker()
    publish("slow", 1, via=app)
    eventually(lambda: (worker.folder / "log").exists() and worker.log() == [started("slow")])
    broker.kill()
    broker.start()
    publish("next", 1, via=app)
    worker.end("slow")
    eventually(lambda: "end next" in worker.log())
    assert worker.log() == [started("slow"), "end slow", started("next"), "end next"]


def test_only_json_is_listened_to(app, broker, start_worker, eventually):
    with app.connection_for_write() as connection:
        producer = connection.Producer(serializer="pickle")
        name = queue_of("cpu")
        headers = {"task": TASK, "id": "1", "lang": "py"}
        body = ((), {"job_id": "pickled", "dispatch_seq": 1}, {})
        producer.publish(body, headers=headers, routing_key=name, declare=[Queue(name)])
    worker = start_worker()
    publish("a job", 1, via=app)
    eventually(lambda: (worker.folder / "log").exists() and "end a job" in worker.log())
    assert worker.log() == [started("a job"), "end a job"]
    assert worker.process.poll() is None
