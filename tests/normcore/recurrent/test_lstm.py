"""Along sequences that end at different times."""

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn

from normcore.recurrent.batch_lstm import BatchLstmCell
from normcore.recurrent.layer_lstm import LayerLstmCell
from normcore.recurrent.lstm import Lstm
from normcore.recurrent.lstm_cell import LstmCell
from normcore.refusal import Refusal

DRAWS = torch.Generator().manual_seed(0)
X = torch.randn(4, 6, 3, generator=DRAWS, dtype=torch.float64)
LENGTHS = torch.tensor([6, 2, 5, 3])
CELLS = {
    "plain": lambda: LstmCell(3, 5, dtype=torch.float64),
    "layer": lambda: LayerLstmCell(3, 5, dtype=torch.float64),
    "batch": lambda: BatchLstmCell(3, 5, max_length=6, dtype=torch.float64),
}


def trained(kind: str) -> Lstm:
    """With running statistics that differ from time step to time step."""
    lstm = Lstm(CELLS[kind]())
    for _ in range(3):
        lstm(1 + 2 * torch.randn(8, 6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    return lstm


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", CELLS)
def test_a_model_that_was_cast_to_half_precision_trains(kind, dtype, lengths):
    half, twin = Lstm(CELLS[kind]()).to(dtype), Lstm(CELLS[kind]())
    outputs, (_, c) = half(X.to(dtype), lengths)
    assert outputs.dtype == c.dtype == dtype
    torch.testing.assert_close(outputs.double(), twin(X, lengths)[0], rtol=0, atol=0.05)
    outputs.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in half.parameters())


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_plain_cells_are_torch_lstm_over_packed_sequences(lengths):
    ours, theirs = Lstm(CELLS["plain"]()), nn.LSTM(3, 5, batch_first=True).double()
    with torch.no_grad():
        ours.cell.weight_ih.copy_(theirs.weight_ih_l0)
        ours.cell.weight_hh.copy_(theirs.weight_hh_l0)
        ours.cell.bias.copy_(theirs.bias_ih_l0 + theirs.bias_hh_l0)
    h, c = torch.randn(2, 4, 5, generator=DRAWS, dtype=torch.float64)
    packed = X if lengths is None else rnn.pack_padded_sequence(X, lengths, batch_first=True, enforce_sorted=False)
    expected, (end_h, end_c) = theirs(packed, (h.unsqueeze(0), c.unsqueeze(0)))
    if lengths is not None:
        expected, _ = rnn.pad_packed_sequence(expected, batch_first=True)
    outputs, end = ours(X, lengths, (h, c))
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(end, (end_h[0], end_c[0]))


@pytest.mark.parametrize(("kind", "training"), [("plain", True), ("layer", True), ("layer", False), ("batch", False)])
def test_a_padded_sequence_is_the_shorter_sequence_alone(kind, training):
    lstm = trained(kind).train(training)
    outputs, (h, c) = lstm(X, LENGTHS)
    for n, length in enumerate(LENGTHS):
        alone, end = lstm(X[n : n + 1, :length])
        torch.testing.assert_close(outputs[n : n + 1, :length], alone)
        torch.testing.assert_close((h[n : n + 1], c[n : n + 1]), end)
        assert (outputs[n, length:] == 0).all()


@pytest.mark.parametrize("kind", CELLS)
def test_what_stands_in_the_padding_has_no_influence_and_no_gradient(kind):
    """In training: not on other samples' statistics either, neither those of the batch nor the running ones."""
    clean, dirty = trained(kind), trained(kind)
    real = torch.arange(6) < LENGTHS.unsqueeze(1)
    x = torch.where(real.unsqueeze(2), X, torch.nan).requires_grad_()
    expected, _ = clean(X, LENGTHS)
    outputs, _ = dirty(x, LENGTHS)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(dirty.state_dict(), clean.state_dict())
    expected.square().sum().backward()
    outputs.square().sum().backward()
    assert (x.grad[~real] == 0).all()
    for ours, theirs in zip(dirty.parameters(), clean.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("training", [True, False])
def test_full_lengths_are_no_lengths(kind, training):
    with_lengths, without = trained(kind).train(training), trained(kind).train(training)
    torch.testing.assert_close(with_lengths(X, torch.full((4,), 6)), without(X))
    torch.testing.assert_close(with_lengths.state_dict(), without.state_dict())


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("training", [True, False])
def test_a_time_step_that_is_padding_for_all_changes_nothing(kind, training):
    longer, shorter = trained(kind).train(training), trained(kind).train(training)
    lengths = LENGTHS.clamp(max=5)
    outputs, end = longer(X, lengths)
    torch.testing.assert_close((outputs[:, :5], end), shorter(X[:, :5], lengths))
    torch.testing.assert_close(longer.state_dict(), shorter.state_dict())
    outputs.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in longer.parameters())


def test_a_sample_without_any_time_step_keeps_its_state():
    start = torch.ones(4, 5, dtype=torch.float64), torch.ones(4, 5, dtype=torch.float64)
    outputs, (h, c) = Lstm(CELLS["plain"]())(X, torch.tensor([6, 0, 5, 3]), start)
    assert (outputs[1] == 0).all()
    assert (h[1] == 1).all()
    assert (c[1] == 1).all()


@pytest.mark.parametrize("kind", CELLS)
def test_a_sequence_in_two_parts_is_the_whole_where_cells_know_no_time(kind):
    lstm = trained(kind).eval()
    whole = lstm(X)
    first, state = lstm(X[:, :4])
    second, end = lstm(X[:, 4:], state=state)
    parts = torch.cat([first, second], 1), end
    if kind == "batch":
        with pytest.raises(AssertionError, match="not close"):
            torch.testing.assert_close(parts, whole)
    else:
        torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("shape", [(4, 3), (4, 6, 2), (4, 0, 3)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(
        Refusal, match=r"\(N, T, input_size 3\) with at least one time step, got \(4, .*batch"
    ) as refused:
        Lstm(CELLS["plain"]())(torch.zeros(shape, dtype=torch.float64))
    assert refused.value.code == "sequence-differs"


@pytest.mark.parametrize(
    "lengths",
    [torch.tensor([6, 2]), torch.ones(4), torch.ones(4, 1, dtype=torch.long), torch.ones(4, dtype=torch.bool)],
)
def test_lengths_that_are_not_one_integer_a_sample_are_refused(lengths):
    with pytest.raises(Refusal, match="lengths must be 4 integers, one for each sample, got shape") as refused:
        Lstm(CELLS["plain"]())(X, lengths)
    assert refused.value.code == "lengths-differ"
