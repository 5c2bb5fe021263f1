import torch

from normcore.norms.none import NoNorm


def test_is_the_identity_without_parameters_or_buffers():
    x, norm = torch.randn(2, 3, 4, 4), NoNorm(3)
    assert norm(x) is x
    assert norm.eval()(x) is x
    assert not norm.state_dict()
