"""The hall: order book, queue, scheduler, worker, recorder, checkpoints."""
