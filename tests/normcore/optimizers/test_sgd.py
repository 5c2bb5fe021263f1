"""SGD whose momentum is there before the first update."""

import torch
from torch import nn

from normcore.menu.optimizers import SgdSpec
from normcore.optimizers.sgd import build


def test_momentum_starts_as_zeros_also_where_the_first_update_is_not_made():
    torch.manual_seed(0)
    plain, model = nn.Linear(3, 2), nn.Linear(3, 2)
    model.load_state_dict(plain.state_dict())
    spec = SgdSpec(lr=0.1, momentum=0.9)
    optimizer = build(spec, model)
    reference = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for made in (False, True, True):
        x = torch.randn(4, 3)
        for net in (model, plain):
            net.zero_grad()
            net(x).square().sum().backward()
        optimizer.found_inf = torch.tensor(0.0 if made else 1.0)
        optimizer.step()
        if made:
            reference.step()
    assert torch.allclose(model.weight, plain.weight)
