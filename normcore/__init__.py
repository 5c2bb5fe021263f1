"""The science of Normcore: norms, noise, models, data, probes, training; knows no HTTP, queue or database.

What a notebook wants is loaded when it is first asked for, so that `normcore.spec` stays free of torch: the classes
`JobSpec` and `DataFolders`, and the modules.

    >>> import normcore
    >>> job = normcore.JobSpec.model_validate({"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}})
    >>> normcore.preview.preview(job).num_parameters
    26634
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normcore import build, preview, spec, train
    from normcore.certificate.certify import certify
    from normcore.data.folders import DataFolders
    from normcore.spec import JobSpec

__all__ = ["DataFolders", "JobSpec", "build", "certify", "preview", "spec", "train"]

_CLASSES = {
    "DataFolders": "normcore.data.folders",
    "JobSpec": "normcore.spec",
    "certify": "normcore.certificate.certify",
}


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return getattr(import_module(_CLASSES[name]), name)
    if name in __all__:
        return import_module(f"normcore.{name}")
    raise AttributeError(f"module 'normcore' has no attribute '{name}'")
