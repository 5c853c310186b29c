"""Training on a processor gives the same bytes however many threads add up its gradients."""

from collections.abc import Iterator

import pytest
import torch

from psychocounsel.training.runtime import prepare_processor


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(was_deterministic, warn_only=True)


@pytest.mark.usefixtures("two_threads")
def test_gradients_of_rows_picked_many_times_are_the_same_every_time() -> None:
    prepare_processor()
    torch.manual_seed(0)
    rows = torch.randn(50, 64, requires_grad=True)
    picked = torch.randint(0, 50, (40_000,))
    weights = torch.randn(40_000, 64)
    first = _gradient(rows, picked, weights)
    assert all(torch.equal(_gradient(rows, picked, weights), first) for _ in range(5))


def _gradient(rows: torch.Tensor, picked: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    (gradient,) = torch.autograd.grad((rows[picked] * weights).sum(), rows)
    return gradient
