"""The science of Normcore: norms, noise, models, data, probes, training; knows no HTTP, queue or database.

What a notebook wants is loaded when it is first asked for, so that `normcore.spec` stays free of torch: modules,
classes and functions, all that `__all__` names.

    >>> import normcore
    >>> job = normcore.JobSpec.model_validate({"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}})
    >>> normcore.preview.preview(job).num_parameters
    26634
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normcore import build, preview, spec, statistics, train
    from normcore.attention.masked_softmax import masked_softmax
    from normcore.certificate.certify import certify
    from normcore.data.folders import DataFolders
    from normcore.probes.look import look
    from normcore.recurrent.batch_lstm import BatchLstmCell
    from normcore.recurrent.layer_lstm import LayerLstmCell
    from normcore.recurrent.lstm import Lstm
    from normcore.recurrent.lstm_cell import LstmCell
    from normcore.spec import JobSpec
    from normcore.statistics.freeze import freeze_statistics
    from normcore.statistics.gap import train_eval_gap
    from normcore.statistics.recompute import recompute_statistics, recomputed_statistics
    from normcore.surgery.convert import convert
    from normcore.surgery.fold import fold
    from normcore.surgery.onnx_export import export_onnx

__all__ = [
    "BatchLstmCell",
    "DataFolders",
    "JobSpec",
    "LayerLstmCell",
    "Lstm",
    "LstmCell",
    "build",
    "certify",
    "convert",
    "export_onnx",
    "fold",
    "freeze_statistics",
    "look",
    "masked_softmax",
    "preview",
    "recompute_statistics",
    "recomputed_statistics",
    "spec",
    "statistics",
    "train",
    "train_eval_gap",
]

_CLASSES = {
    "BatchLstmCell": "normcore.recurrent.batch_lstm",
    "DataFolders": "normcore.data.folders",
    "JobSpec": "normcore.spec",
    "LayerLstmCell": "normcore.recurrent.layer_lstm",
    "Lstm": "normcore.recurrent.lstm",
    "LstmCell": "normcore.recurrent.lstm_cell",
    "certify": "normcore.certificate.certify",
    "convert": "normcore.surgery.convert",
    "export_onnx": "normcore.surgery.onnx_export",
    "fold": "normcore.surgery.fold",
    "freeze_statistics": "normcore.statistics.freeze",
    "look": "normcore.probes.look",
    "masked_softmax": "normcore.attention.masked_softmax",
    "recompute_statistics": "normcore.statistics.recompute",
    "recomputed_statistics": "normcore.statistics.recompute",
    "train_eval_gap": "normcore.statistics.gap",
}


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return getattr(import_module(_CLASSES[name]), name)
    if name in __all__:
        return import_module(f"normcore.{name}")
    raise AttributeError(f"module 'normcore' has no attribute '{name}'")
