"""The refusal: an error that a preview can hand to a person before anything is queued."""

from __future__ import annotations


class Refusal(ValueError):
    """A part that does not fit what it is given: the invariant, both values and the remedy in one sentence.

    `code` is a stable word in kebab case, so that programs need not read the sentence; `layer` is the module path of
    the layer that it concerns, where who refuses knows it.

    Example:
        >>> try:
        ...     raise Refusal("batch-of-one", "batch norm needs a batch of at least 2, got 1; take more")
        ... except ValueError as refusal:
        ...     print(refusal.code, "|", refusal)
        batch-of-one | batch norm needs a batch of at least 2, got 1; take more
    """

    def __init__(self, code: str, detail: str, *, layer: str | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.layer = layer
