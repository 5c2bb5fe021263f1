"""From a spec to a model."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from normcore.precision import PRECISIONS
from normcore.refusal import Refusal
from normcore.spec import JobSpec

PARAMETER_DTYPES = {name: precision.parameters for name, precision in PRECISIONS.items()}
"""The dtype of parameters and images by the spec's precision; the halves are autocast over float32."""


def build_model(spec: JobSpec, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
    """The model of a job with its norms, its noise, its weight method and its initial weights, in training mode.

    Two specs that differ in norm, noise or anything else that leaves the linear layers alone get the same initial
    weights, bit for bit, and the global generators are left alone. A weight method is put on weights that were drawn
    without it, so what it learns from starts at the values of the other arms.

    Args:
        spec: The job.
        device: Where the model lives; on `meta` nothing is allocated or drawn.
        dtype: Of the parameters; the one of the spec's precision when not given.

    Raises:
        Refusal: A norm cannot be built for the channels of its layer, the weight method cannot work on a layer, or the
            image is too small for the model, or the model does not take what the data is.

    Example:
        >>> spec = JobSpec.model_validate({"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}})
        >>> build_model(spec).classifier
        Linear(in_features=128, out_features=10, bias=True)
    """
    if spec.data.form not in spec.model.takes:
        raise Refusal(
            "model-takes-other-data",
            f"a model must take what the data is, got model {spec.model.kind} for {_listed(spec.model.takes)} and data "
            f"{spec.data.kind} of {spec.data.form}; take other data or another model",
        )
    dtype = dtype or PARAMETER_DTYPES[spec.precision]
    # Only data of tokens need say how many there are.
    ids = {"vocabulary": getattr(spec.data, "vocabulary", None)} if spec.data.form == "tokens" else {}
    model: nn.Module = spec.model.part()(
        spec.data.shape,
        spec.data.num_outputs,
        norm=partial(spec.norm.part(), **spec.norm.knobs(), device=device, dtype=dtype),
        noise=partial(spec.noise.part(), **spec.noise.knobs()),
        seed=spec.seed,
        device=device,
        dtype=dtype,
        **ids,
        **spec.model.knobs(),
    )
    spec.weight.part()(model, **spec.weight.knobs())
    return model


def _listed(forms: frozenset[str]) -> str:
    return " or ".join(sorted(forms))
