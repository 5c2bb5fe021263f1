"""Weight methods on the menu."""

from __future__ import annotations

from typing import Literal

from normcore.menu.spec import Spec


class NoWeightSpec(Spec):
    """Weights as they are: no reparametrization."""

    kind: Literal["none"] = "none"


WeightSpec = NoWeightSpec
