"""The statistics that evaluation normalizes by: computed anew, compared with those of training, or frozen."""

from normcore.statistics.freeze import freeze_statistics
from normcore.statistics.gap import train_eval_gap
from normcore.statistics.recompute import recompute_statistics, recomputed_statistics

__all__ = ["freeze_statistics", "recompute_statistics", "recomputed_statistics", "train_eval_gap"]
