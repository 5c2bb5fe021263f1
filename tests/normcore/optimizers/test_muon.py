"""Muon for the matrices, AdamW for the rest, each as if alone."""

import pytest
import torch
from torch import nn

from normcore.menu.optimizers import MuonSpec
from normcore.optimizers.muon import build, matrices
from normcore.refusal import Refusal


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.conv, self.hidden = nn.Embedding(5, 4), nn.Conv1d(4, 4, 1), nn.Linear(4, 3)
        self.classifier = nn.Linear(3, 2)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def give_gradients(model, number):
    torch.manual_seed(number)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def test_matrices_are_those_between_hidden_layers():
    model = net()
    assert [parameter is model.hidden.weight for parameter in matrices(model)] == [True]
    with pytest.raises(Refusal, match="muon updates matrices between hidden layers"):
        matrices(nn.Conv2d(1, 1, 3))


def test_each_part_is_torchs_own_optimizer():
    ours, theirs = net(), net()
    optimizer = build(MuonSpec(lr=0.05, adamw_lr=0.002, weight_decay=0.1), ours)
    muon = torch.optim.Muon([theirs.hidden.weight], lr=0.05, weight_decay=0.1, adjust_lr_fn="original")
    rest = [parameter for parameter in theirs.parameters() if parameter is not theirs.hidden.weight]
    adamw = torch.optim.AdamW(rest, lr=0.002, weight_decay=0.1, fused=True)
    for number in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * group["lr_multiple"]
        for model in (ours, theirs):
            give_gradients(model, number)
        optimizer.step()
        muon.step()
        adamw.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
    assert len(optimizer.state) == len(list(ours.parameters()))


def test_where_found_inf_is_one_nothing_moves_and_elsewhere_it_changes_nothing():
    flagged, plain = net(), net()
    one, other = build(MuonSpec(), flagged), build(MuonSpec(), plain)
    one.found_inf = torch.zeros(())
    for number in range(2):
        for model, optimizer in ((flagged, one), (plain, other)):
            give_gradients(model, number)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(flagged.parameters(), plain.parameters(), strict=True))
    one.found_inf.fill_(1)
    give_gradients(flagged, 2)
    flagged.hidden.weight.grad[0, 0] = torch.nan
    one.step()
    assert all(torch.equal(a, b) for a, b in zip(flagged.parameters(), plain.parameters(), strict=True))
    momentum = [o.state[m.hidden.weight]["momentum_buffer"] for o, m in ((one, flagged), (other, plain))]
    assert torch.equal(*momentum)
