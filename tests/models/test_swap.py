"""Hollow copies: shapes alone, whatever a network holds."""

import torch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode

from esd_core.models.swap import hollowed


class Keeping(nn.Module):
    """A layer that keeps what it was given, as Anima's network does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.kept = {}

    def forward(self, x):
        self.kept["x"] = x
        return self.layer(x)


def test_a_hollow_copy_has_nothing_of_the_last_pass_either():
    network, x = Keeping(), torch.ones(4, 3)
    network(x)
    with FakeTensorMode():
        hollow = hollowed(network, torch.float16)
    tensors = [hollow.layer.weight, hollow.layer.bias, hollow.kept["x"]]
    assert all(isinstance(tensor, FakeTensor) for tensor in tensors)
    assert [tensor.shape for tensor in tensors] == [(2, 3), (2,), (4, 3)]
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert network.kept["x"] is x
