"""The examples that OpenAPI shows. A test sends each of them and holds the answer against what stands here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from api.problems import document, refuse
from api.views import Mistake
from normcore.spec import MENU, kind_of

_VGG = {"kind": "vgg", "depth": 11, "width": 0.25}
_DIGITS = {"kind": "digits"}


@dataclass(frozen=True, slots=True)
class TakenOrder:
    """A body for POST /v1/jobs and POST /v1/jobs/preview that is taken."""

    name: str
    summary: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RefusedOrder:
    """A body that is refused, the problem's code, and what is wrong."""

    name: str
    summary: str
    body: dict[str, Any]
    code: str
    mistake: Mistake

    def problem(self, instance: str) -> dict[str, Any]:
        """The problem document that the body is answered with."""
        return document(refuse(self.code, [self.mistake]), instance)


ORDERS = (
    TakenOrder("smallest", "A small VGG on handwritten digits, all else by default", {"model": _VGG, "data": _DIGITS}),
    TakenOrder(
        "noisy-batch-norm",
        "Batch norm with noise after it (Santurkar et al. 2018), the loss landscape probed",
        {
            "model": _VGG,
            "norm": {"kind": "batch"},
            "noise": {"kind": "santurkar"},
            "data": _DIGITS,
            "optimizer": {"kind": "sgd", "lr": 0.1},
            "batch_size": 128,
            "steps": 400,
            "seed": 0,
            "probes": [{"kind": "landscape", "every": 50, "low": 0.5, "high": 4.0, "points": 8}],
            "labels": {"course": "6.867"},
        },
    ),
    TakenOrder(
        "group-norm-mlp",
        "Group norm at batch size 2 in fully connected layers, with AdamW and a cosine schedule",
        {
            "model": {"kind": "mlp", "hidden": [256, 256]},
            "norm": {"kind": "group", "num_groups": 8},
            "data": {"kind": "digits", "size": 8},
            "optimizer": {"kind": "adamw", "lr": 0.001},
            "schedule": {"kind": "cosine", "warmup_steps": 100},
            "batch_size": 2,
            "epochs": 2,
        },
    ),
)

REFUSED_ORDERS = (
    RefusedOrder(
        "unknown-kind",
        "A norm that is not on the menu",
        {"model": _VGG, "data": _DIGITS, "norm": {"kind": "spectral"}},
        "invalid-spec",
        Mistake(
            code="unknown-kind",
            detail=f'there is no norm of kind "spectral"; on offer: {", ".join(map(kind_of, MENU["norm"]))}',
            pointer="/norm/kind",
        ),
    ),
    RefusedOrder(
        "foreign-knob",
        "A knob of another norm",
        {"model": _VGG, "data": _DIGITS, "norm": {"kind": "batch", "num_groups": 4}},
        "invalid-spec",
        Mistake(
            code="foreign-knob",
            detail="num_groups is a knob of group and evonorm_s0, not of batch; leave it out, or choose such a kind",
            pointer="/norm/num_groups",
        ),
    ),
    RefusedOrder(
        "groups-do-not-divide",
        "Group norm whose groups do not divide the channels",
        {"model": _VGG, "data": _DIGITS, "norm": {"kind": "group", "num_groups": 32}},
        "unbuildable",
        Mistake(
            code="groups-do-not-divide",
            detail="num_groups must divide num_features, got num_groups 32 and num_features 16; take a divisor of 16, "
            "such as 16",
            pointer="/norm/num_groups",
            layer="blocks.0.norm",
        ),
    ),
    RefusedOrder(
        "batch-of-one",
        "Batch norm on a batch of one",
        {"model": _VGG, "data": _DIGITS, "norm": {"kind": "batch"}, "batch_size": 1},
        "unbuildable",
        Mistake(
            code="batch-of-one",
            detail="batch norm needs a batch of at least 2 samples in training, got 1; take a larger batch, or a norm "
            "without batch statistics: group, layer or instance",
            pointer="/batch_size",
            layer="blocks.0.norm",
        ),
    ),
)


def request_examples() -> dict[str, Any]:
    """The bodies that are taken, as OpenAPI names them."""
    return {order.name: {"summary": order.summary, "value": order.body} for order in ORDERS}


def refusal_examples(instance: str) -> dict[str, Any]:
    """The problem documents at an address, as OpenAPI names them."""
    return {order.name: {"summary": order.summary, "value": order.problem(instance)} for order in REFUSED_ORDERS}
