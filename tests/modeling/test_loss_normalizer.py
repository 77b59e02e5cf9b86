"""The normaliser of the losses in one process and over two."""

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm

from spatialflow.engine import launch
from spatialflow.modeling.loss_normalizer import mean_over_processes


@pytest.mark.parametrize(("count", "expected"), [(7, 7.0), (0, 1.0), (torch.tensor(5), 5.0)])
def test_single_process(count, expected):
    mean = mean_over_processes(count, like=torch.zeros(1))
    assert mean.item() == expected
    assert mean.dtype == torch.float32
    assert mean.shape == ()


def _losses_of_process(results):
    rank = comm.get_rank()
    values = (torch.tensor([1.0, 2, 3]), torch.tensor([10.0]))[rank]
    count = torch.tensor(float(len(values)))
    mean = mean_over_processes(count, like=values)
    assert count == len(values)
    loss = values.sum() / mean
    dist.all_reduce(loss)
    nothing = mean_over_processes(0, like=values)
    torch.save((mean, loss / 2, nothing), results / str(rank))


def test_two_processes_average_to_the_loss_of_the_whole_batch(tmp_path):
    launch(_losses_of_process, 2, args=(tmp_path,), device="cpu")
    for rank in range(2):
        mean, loss, nothing = torch.load(tmp_path / str(rank))
        assert mean == 2.0  # four values over two processes
        assert loss == (1 + 2 + 3 + 10) / 4
        assert nothing == 0.5  # one in all
