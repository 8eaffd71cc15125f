"""What the compiler leaves alone, and that nobody pays for it who compiles nothing."""

import subprocess
import sys

import torch
from torch import Tensor, nn

from trivium.nn.untraced import untraced


class Table(nn.Module):
    """Multiplies by a table that is made when it is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.traced: list[bool] = []
        self.table: Tensor | None = None

    @untraced
    def make(self, count: int) -> Tensor:
        self.traced.append(torch.compiler.is_compiling())
        return torch.arange(count).float()

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = self.make(len(x))
        return x * self.table


def test_it_runs_as_it_is_within_compiled_code() -> None:
    table = Table()
    compiled = torch.compile(table, backend="eager")
    x = torch.randn(5, requires_grad=True)
    y = compiled(x)
    y.sum().backward()
    assert torch.equal(y, x * torch.arange(5))
    assert x.grad is not None and torch.equal(x.grad, torch.arange(5).float())
    assert table.traced == [False]


def test_the_engine_does_not_import_the_compiler() -> None:
    code = "import trivium.language.engine, sys; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
