"""What all cells owe, whatever their norms; alone and along sequences."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

from normcore.recurrent.batch_lstm import BatchLstmCell
from normcore.recurrent.cell import Cell
from normcore.recurrent.layer_lstm import LayerLstmCell
from normcore.recurrent.lstm import Lstm
from normcore.recurrent.lstm_cell import LstmCell

D, H, T = 2, 3, 3
CELLS = {
    "plain": lambda **kw: LstmCell(D, H, **kw),
    "batch": lambda **kw: BatchLstmCell(D, H, max_length=T, **kw),
    "layer": lambda **kw: LayerLstmCell(D, H, **kw),
}
DRAWS = torch.Generator().manual_seed(0)
X = torch.randn(4, T, D, generator=DRAWS, dtype=torch.float64)
START = tuple(torch.randn(2, 4, H, generator=DRAWS, dtype=torch.float64))
LENGTHS = torch.tensor([3, 2, 3, 1])

each_cell = pytest.mark.parametrize("kind", CELLS)
each_padding = pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
each_mode = pytest.mark.parametrize("training", [True, False])


def lstm(kind: str, training: bool = True, **knobs: object) -> Lstm:
    made = Lstm(CELLS[kind](**{"dtype": torch.float64, **knobs}))
    # Running statistics as a training leaves them: of every time step its own.
    with torch.no_grad():
        for name, buffer in made.named_buffers():
            if buffer.is_floating_point() and not buffer.is_meta:
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=torch.Generator().manual_seed(len(name))))
            else:
                buffer.fill_(1)
    return made.train(training)


def loss(model: Lstm, parameters: dict[str, Tensor], x: Tensor, lengths: Tensor | None) -> Tensor:
    """A number of the outputs and the last state; the running statistics move in a copy."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    outputs, (h, c) = functional_call(model, {**parameters, **buffers}, (x, lengths, START))
    return outputs.square().sum() + (h * c).sin().sum()


@each_cell
def test_the_loop_is_the_cell_step_by_step(kind):
    loop, cell = lstm(kind), lstm(kind).cell
    outputs, end = loop(X, state=START)
    state = START
    for time in range(T):
        state = cell(X[:, time], state, time=time)
        torch.testing.assert_close(outputs[:, time], state[0])
    torch.testing.assert_close(end, state)


@each_cell
@each_mode
@each_padding
def test_first_and_second_derivatives(kind, training, lengths):
    model = lstm(kind, training)
    names, values = zip(*model.named_parameters(), strict=True)

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return loss(model, dict(zip(names, parameters, strict=True)), x, lengths)

    inputs = (X.clone().requires_grad_(), *values)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@each_cell
@each_mode
@each_padding
def test_hessian_vector_products_forward_over_reverse_and_reverse_over_reverse_agree(kind, training, lengths):
    model = lstm(kind, training)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    direction = torch.randn(X.shape, generator=DRAWS, dtype=torch.float64)
    gradient = grad(lambda x: loss(model, parameters, x, lengths))
    _, forward = jvp(gradient, (X,), (direction,))
    reverse = grad(lambda x: (gradient(x) * direction).sum())(X)
    torch.testing.assert_close(forward, reverse, rtol=1e-9, atol=1e-12)
    difference = (gradient(X + 1e-6 * direction) - gradient(X - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(forward, difference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("kind", "training"), [("plain", True), ("layer", True), ("batch", False)])
def test_vmap_over_samples_equals_the_batch(kind, training):
    """Where other samples do not move a sample: any cell but batch norm's in training."""
    model = lstm(kind, training)

    def one(x: Tensor, length: Tensor) -> Tensor:
        return model(x.unsqueeze(0), length.unsqueeze(0))[0].squeeze(0)

    torch.testing.assert_close(vmap(one)(X, LENGTHS), model(X, LENGTHS)[0])
    own = vmap(jacrev(one))(X, LENGTHS)
    every = jacrev(lambda x: model(x, LENGTHS)[0])(X)
    torch.testing.assert_close(own, torch.stack([every[n, :, :, n] for n in range(4)]))
    assert (torch.stack([every[n, :, :, n - 1] for n in range(4)]) == 0).all()


@pytest.mark.parametrize(("kind", "training"), [("plain", True), ("layer", True), ("batch", True), ("batch", False)])
def test_compiles_without_a_break(kind, training):
    model, twin = lstm(kind, training), lstm(kind, training)
    expected = twin(X, LENGTHS, START)
    expected[0].sum().backward()
    outputs, state = torch.compile(model, fullgraph=True, backend="aot_eager")(X, LENGTHS, START)
    outputs.sum().backward()
    torch.testing.assert_close((outputs, state), expected)
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@each_cell
def test_exports_in_evaluation(kind):
    model = lstm(kind, training=False)
    exported = torch.export.export(model, (X, LENGTHS, START)).module()
    torch.testing.assert_close(exported(X, LENGTHS, START), model(X, LENGTHS, START))


@each_cell
@each_mode
def test_exists_on_meta(kind, training):
    outputs, (h, c) = lstm(kind, training, device="meta")(X.to("meta"), LENGTHS.to("meta"))
    assert (outputs.shape, h.shape, c.shape) == ((4, T, H), (4, H), (4, H))


@each_cell
def test_a_copy_and_a_loaded_state_dict_do_what_the_original_does(kind):
    model, other = lstm(kind), Lstm(CELLS[kind](seed=1, dtype=torch.float64))
    model(X, LENGTHS)
    other.load_state_dict(model.state_dict())
    twins = [copy.deepcopy(model), other]
    expected = model(2 * X)
    for twin in twins:
        torch.testing.assert_close(twin(2 * X), expected, rtol=0, atol=0)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(twin.buffers(), model.buffers(), strict=True))


@each_cell
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_keeps_states_in_half_and_norms_in_float32(kind, dtype):
    model, exact = lstm(kind, dtype=dtype), lstm(kind, dtype=torch.float64)
    exact.load_state_dict(model.state_dict())
    x = (100 * X).to(dtype)
    outputs, (h, c) = model(x, LENGTHS)
    assert {outputs.dtype, h.dtype, c.dtype} == {dtype}
    torch.testing.assert_close(outputs.double(), exact(x.double(), LENGTHS)[0], rtol=0, atol=8 * torch.finfo(dtype).eps)
    kept = {tensor.dtype for norm in model.cell.children() for tensor in norm.state_dict().values()}
    assert kept <= {torch.float32, torch.int64}


@each_cell
def test_autocast_keeps_the_state_in_the_dtype_it_comes_in(kind):
    model = lstm(kind, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, (h, c) = model(X.float(), LENGTHS)
    assert {outputs.dtype, h.dtype, c.dtype} == {torch.float32}
    torch.testing.assert_close(outputs, lstm(kind, dtype=torch.float32)(X.float(), LENGTHS)[0], rtol=0.1, atol=0.05)


@each_cell
def test_cells_share_their_initial_weights_whatever_their_norms(kind):
    ours, plain = CELLS[kind](seed=5), CELLS["plain"](seed=5)
    for name in ("weight_ih", "weight_hh", "bias"):
        assert torch.equal(ours.get_parameter(name), plain.get_parameter(name))
    assert not torch.equal(ours.weight_hh, CELLS[kind](seed=6).weight_hh)


@pytest.mark.parametrize("sizes", [(2, 6), (30, 6)])
def test_orthogonal_weights_have_orthonormal_columns_or_rows(sizes):
    cell = LstmCell(*sizes, dtype=torch.float64)
    for weight in (cell.weight_ih, cell.weight_hh):
        tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
        eye = torch.eye(tall.shape[1], dtype=torch.float64)
        torch.testing.assert_close(tall.T @ tall, eye, rtol=0, atol=1e-6)


def test_identity_is_the_block_of_the_candidate_and_the_gates_are_orthogonal_together():
    i, f, g, o = LstmCell(2, 6, init="identity", dtype=torch.float64).weight_hh.chunk(4)
    eye = torch.eye(6, dtype=torch.float64)
    assert torch.equal(g, eye)
    gates = torch.cat([i, f, o])
    torch.testing.assert_close(gates.T @ gates, eye, rtol=0, atol=1e-6)


def test_a_cell_remembers_at_first():
    """The forget gate's bias is 1, the others are 0."""
    assert LstmCell(2, 3).bias.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    LstmCell(2, 3, init="identity")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_way_of_c_goes_through_no_norm():
    """dc'/dc at fixed gates is the forget gate, for every cell: here open, so 1 from end to end."""
    for make in CELLS.values():
        cell: Cell = make(dtype=torch.float64)
        nn.init.constant_(cell.bias[H : 2 * H], 100.0)
        c = START[1].clone().requires_grad_()
        _, new_c = cell(X[:, 0], (START[0], c))
        (dc,) = torch.autograd.grad(new_c.sum(), c)
        torch.testing.assert_close(dc, torch.ones_like(dc))
