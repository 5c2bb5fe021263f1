"""The worker, `python -m worker.run`: takes dispatched jobs from the queue and has them trained, one at a time.

SIGTERM drains it: a running job writes a checkpoint and goes back to the queue, at no charge, and the process ends
within the grace time. One worker per GPU; two on one machine need two names.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading

from worker.book import Book, SchemaTooNew
from worker.courier import Courier
from worker.nursery import WARM_UP_S, Nursery
from worker.pools import Pool
from worker.presence import Presence
from worker.queue import app, on_shutdown, queue_of
from worker.settings import Settings, settings
from worker.tasks import Workplace, register
from worker.tidy import tidy_all

LAST_WORDS_S = 10.0
"""How long the courier may go on when the worker ends; what it cannot send is sent by the next life."""


def main(config: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # the courier says once that MLflow is away
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until Celery, which drains, takes over
    book, draining = Book.open(config), threading.Event()
    nursery, courier = Nursery(config), Courier(book, config)
    nursery.start()
    courier.start()
    try:
        device, pool = _place(nursery, config)
        presence = Presence(
            book,
            config.worker_name,
            device,
            pool,
            heartbeat_s=config.heartbeat_s,
            draining=draining,
            beat=config.beat,
        )
        try:
            presence.announce()
        except SchemaTooNew as error:
            sys.exit(f"the worker does not start: {error}")
        presence.start()
        tidy_all(book, config.state_dir / "jobs")
        register(app, Workplace(config, book, nursery, courier, draining))
        on_shutdown(draining.set)
        app.worker_main(_arguments(config.worker_name, pool))
        draining.set()
        presence.join()
    finally:
        nursery.close()
        courier.close(LAST_WORDS_S)
        book.close()


def _place(nursery: Nursery, config: Settings) -> tuple[str, Pool]:
    """What the trainers compute on and how much of it there is; only they may touch a GPU."""
    child = nursery.take(WARM_UP_S)
    if child is None or child.ready is None:
        sys.exit(f"a trainer must become warm within {WARM_UP_S:g} s, got none; see its errors above")
    nursery.give_back(child)
    device = config.device if ":" in config.device else child.ready.device
    return device, Pool.of(device, gpus=child.ready.gpus, processes=config.devices)


def _arguments(name: str, pool: Pool) -> list[str]:
    """Celery's: one slot in a thread, and none of the chatter between workers."""
    options = ["--pool", "threads", "--concurrency", "1", "--without-mingle", "--without-gossip", "--without-heartbeat"]
    queue = ["--queues", queue_of(pool.name), "--hostname", f"{name}@%h"]
    return ["--quiet", "worker", *options, *queue, "--loglevel", "INFO"]


if __name__ == "__main__":
    main(settings())
