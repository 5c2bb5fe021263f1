"""The same training by Lightning, with loss and accuracy of every step logged to a file, for `benchmarks/train.py`."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from normcore.data.dataset import Resident

WARM_STEPS = 10
"""Steps of a fit that are not counted, beside its set-up."""


class Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """The job's own batches, made as our loop makes them."""

    def __init__(self, data: Resident) -> None:
        self._data = data

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        step = 0
        while True:
            batch = self._data.batch(step)
            yield batch.inputs, batch.labels
            step += 1


class Classifier(lightning.LightningModule):
    """A model with what Lightning asks of it."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__()
        self._model, self._lr = model, lr

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Loss and accuracy, logged."""
        x, y = batch
        logits = self._model(x)
        loss = functional.cross_entropy(logits, y)
        self.log("train/loss", loss)
        self.log("train/accuracy", (logits.argmax(1) == y).float().mean())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The job's."""
        return torch.optim.SGD(self.parameters(), lr=self._lr, fused=True)


class Clock(Callback):
    """The process's CPU time of the steps after the first few."""

    def __init__(self) -> None:
        self.began, self.steps = 0.0, 0

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Begin after the warm steps."""
        self.steps = trainer.global_step - WARM_STEPS
        if self.steps == 0:
            self.began = time.process_time()

    def on_train_end(self, *_: Any) -> None:
        """Stop."""
        self.seconds = time.process_time() - self.began


def step_ms(model: nn.Module, data: Resident, lr: float, steps: int, folder: str) -> float:
    """CPU time of a step in ms: the mean over `steps` steps of one `fit`, its set-up left out."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    clock = Clock()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=WARM_STEPS + steps,
        logger=CSVLogger(folder),
        log_every_n_steps=1,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Classifier(model, lr), DataLoader(Batches(data), batch_size=None))
    return 1000 * clock.seconds / clock.steps
