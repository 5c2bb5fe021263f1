"""The Hessian of the training loss: eigenvalues, trace, spectral density, sharpness along the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from normcore.menu.probe import BnMode
from normcore.probes.hessian import Hessian, hessian_of, is_held
from normcore.probes.lanczos import Krylov, density, lanczos, largest, smallest
from normcore.probes.moment import Moment
from normcore.probes.probe import Sees
from normcore.records import Reading

GRID = 256
"""Points at which the spectral density is told."""

STEPS_PER_PRODUCT = 3.5
"""Training steps that a product with the Hessian takes: 2 to 2.5 of a VGG without a norm, 3.4 to 4.2 with batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvatureProbe:
    """How the loss of the training batch bends at the weights of a step, in which and in how many directions.

    H is the matrix of second derivatives of the loss L, and g its gradient, at theta, on the training batch with its
    noise and dropout; P is the number of parameters, lr the learning rate of the step.

    - `eigenvalues`, the algebraically largest of H, falling, by Lanczos' iteration from random vectors; and
      `eigenvalue_errors`, how far each is at most from an eigenvalue. They come from below: `eigenvalue_max` is the
      first, `eigenvalue_min` the smallest, which comes from above and is negative at a saddle.
    - `trace`, the sum of all eigenvalues, by Hutchinson (1990): the mean of z^T H z over vectors z of random signs,
      which are `trace_samples`; `trace_error` is the standard error of that mean.
    - `density`, the share of the eigenvalues per unit at the points `density_grid`, by stochastic Lanczos quadrature
      (Ghorbani et al. 2019, arXiv:1901.10159), each eigenvalue smoothed to 0.01 of the distance from the smallest to
      the largest; see `normcore.probes.lanczos.density`. The points are others at each reading.
    - `sharpness`, g^T H g / ||g||^2, the curvature along the gradient; and `gradient_curvature`, ||H g|| / ||g||, which
      is what the effective beta of the probe `landscape` becomes as its step sizes go to zero.

    `eigenvalue_max_times_lr`, `eigenvalues_times_lr` and `sharpness_times_lr` have no unit: plain gradient descent on a
    quadratic is stable up to 2, and training with it settles near that edge (Cohen et al. 2021, arXiv:2103.00065). That
    is a statement about plain SGD. With momentum m, not Nesterov's, the edge is 2 (1 + m); adaptive optimizers have it
    in the Hessian after their preconditioner (Cohen et al. 2022, arXiv:2207.14484), which this probe does not measure.

    A scalar that is not finite is not given, nor the sharpness where the gradient is zero; arrays hold NaN there, and
    where there are fewer parameters than eigenvalues asked for.

    It is always computed in the parameters' dtype, never in half precision, as a plain graph, uncompiled; `float64`
    computes in that. With `bn_mode` batch statistics of the batch are part of the function, and differentiated; it is
    this function that trains. With `frozen` layers with running statistics normalize by these as they stand, which is
    what PyHessian and others measure. Both stand in the facts of a reading. Norms whose backward pass is by design not
    that of their forward pass (batch renormalization, power norm) have a Hessian only with what they remember held
    still, and the facts then say so; see `normcore.probes.hessian.is_held`.

    Costs `iterations density_samples + samples - density_samples + 1` products with H, each about 3.5 training steps,
    or 100 steps as it comes; the graphs of a forward and a backward pass, of all micro-batches at once; and
    `iterations` copies of the parameters.

    Args:
        eigenvalues: How many of the largest.
        iterations: Of Lanczos.
        samples: Random vectors for the trace.
        density_samples: How many of these Lanczos' iteration starts from, for the density and the eigenvalues.
        bn_mode: Statistics that layers with running ones normalize by: those of the batch, as in training, or the
            running ones as they stand.
        precision: What is computed in.

    Example:
        >>> from normcore.probes.look import look
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> reading = look(CurvatureProbe(eigenvalues=2), model, lambda: 0.5 * model(x).square().sum(), lr=0.5)
        >>> [round(value, 4) for value in reading.arrays["eigenvalues"]]
        [4.0, 1.0]
        >>> round(reading.scalars["trace"], 4), round(reading.scalars["eigenvalue_max_times_lr"], 4)
        (5.0, 2.0)
    """

    kind: ClassVar[str] = "curvature"
    sees: ClassVar[Sees] = "step"
    evaluates: ClassVar[bool] = False

    eigenvalues: int = 3
    iterations: int = 20
    samples: int = 8
    density_samples: int = 1
    bn_mode: BnMode = "batch"
    precision: Literal["training", "float64"] = "training"

    def read(self, moment: Moment) -> Reading:
        """Measure at a step, between its backward pass and its update."""
        with hessian_of(moment, bn_mode=self.bn_mode, precision=self.precision) as hessian:
            g = hessian.gradient
            image = hessian.product(g)
            spaces = [self._space(hessian, moment, number) for number in range(self.samples)]
            along = torch.stack([g @ image / (g @ g), image.norm() / g.norm()]).tolist()
            facts = self._facts(moment.model, g.dtype)
        deep = spaces[: self.density_samples]
        values, errors = largest(deep, self.eigenvalues)
        # Of random signs z each has the square 1, so ||z||^2 is P.
        traces = torch.stack([space.diagonal[0] for space in spaces]) * hessian.size
        grid, share = density(deep, GRID)
        arrays = {
            "eigenvalues": values,
            "eigenvalue_errors": errors,
            "eigenvalues_times_lr": values * moment.lr,
            "trace_samples": traces,
            "trace_error": traces.std(correction=1) / sqrt(self.samples),
            "gradient_curvature": torch.tensor(along[1], dtype=torch.float64),
            "density_grid": grid,
            "density": share,
        }
        scalars = {
            "eigenvalue_max": float(values[0]),
            "eigenvalue_max_times_lr": float(values[0]) * moment.lr,
            "eigenvalue_min": smallest(deep),
            "trace": float(traces.mean()),
            "sharpness": along[0],
            "sharpness_times_lr": along[0] * moment.lr,
        }
        finite = {name: value for name, value in scalars.items() if isfinite(value)}
        return Reading(self.kind, moment.step, finite, _as_tuples(arrays), facts=facts)

    def cost(self, model: nn.Module) -> float:  # noqa: ARG002
        """So many steps per product, and the graph of the gradient."""
        products = 1 + self.samples + (self.iterations - 1) * self.density_samples
        return 1 + STEPS_PER_PRODUCT * products

    def _space(self, hessian: Hessian, moment: Moment, number: int) -> Krylov:
        """What is seen from a vector of random signs."""
        generator = moment.generator(self.kind, number)
        signs = torch.randint(0, 2, (hessian.size,), generator=generator, dtype=torch.int8).to(hessian.gradient) * 2 - 1
        iterations = self.iterations if number < self.density_samples else 1
        return lanczos(hessian.product, signs, iterations, generator)

    def _facts(self, model: nn.Module, dtype: torch.dtype) -> dict[str, str]:
        facts = {"bn_mode": self.bn_mode, "precision": str(dtype).removeprefix("torch.")}
        if self.bn_mode == "batch" and any(map(is_held, model.modules())):
            facts["held"] = "what norms remember of earlier batches"
        return facts


def _as_tuples(arrays: Mapping[str, Tensor]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(values.reshape(-1).tolist()) for name, values in arrays.items()}
