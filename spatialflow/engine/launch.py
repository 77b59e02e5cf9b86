"""Starting the processes of a run: one, several of this machine, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import DEFAULT_TIMEOUT
from detectron2.engine import launch as start_processes
from detectron2.utils import comm
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing import ProcessExitedException

from spatialflow.errors import UserError
from spatialflow.utils.parallel import on_stop_signal

from .resuming import STOPPED, TrainingStopped

TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")


def launch(
    main: Callable[..., Any],
    num_gpus: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple = (),
    device: str = "cuda",
) -> None:
    """Run ``main(*args)`` in each process of the run.

    Under torchrun this process joins the group that torchrun made. Otherwise Detectron2 starts
    ``num_gpus`` processes on this machine. They talk by NCCL on CUDA and by gloo on the CPU.

    Args:
        main: a function of a module, so that started processes can import it.
        num_gpus: processes per machine, on the CPU too.
        num_machines, machine_rank, dist_url: as Detectron2's ``launch`` takes them.
        args: arguments of ``main``.
        device: MODEL.DEVICE.

    Raises:
        UserError: the machine has fewer GPUs than processes, or processes are asked for under
            torchrun as well.
        TrainingStopped: the processes were asked to stop, see :mod:`.resuming`.
    """
    on_cuda = device.startswith("cuda")
    if all(name in os.environ for name in TORCHRUN_VARIABLES):
        if num_gpus * num_machines > 1:
            raise UserError("torchrun starts the processes: leave --num-gpus and --num-machines.")
        _join_torchrun(main, args, on_cuda)
        return
    environment = {}
    if num_gpus * num_machines > 1 and on_cuda:
        _check_gpus(num_gpus, "--num-gpus")
    elif num_gpus * num_machines > 1:
        # Detectron2 takes NCCL where CUDA is there, whatever MODEL.DEVICE says.
        environment["CUDA_VISIBLE_DEVICES"] = ""
        environment["OMP_NUM_THREADS"] = os.getenv(
            "OMP_NUM_THREADS", str(max(1, _usable_cores() // num_gpus))
        )
    group = (num_gpus, num_machines, machine_rank, dist_url, (main, args))
    if num_gpus * num_machines == 1:
        start_processes(_run_together, *group)
        return
    with _environment(environment), on_stop_signal(_hand_on):
        try:
            start_processes(_run_together, *group)
        except ProcessExitedException as e:
            if e.exit_code == STOPPED:
                raise TrainingStopped from e
            raise


def _usable_cores() -> int:
    """Cores that this process may use, or, on macOS and Windows, all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run_together(main: Callable[..., Any], args: tuple) -> None:
    """Run ``main``, stay until all processes are through, and close the connections.

    The first process still evaluates when the others have nothing left to do, and gloo may abort a
    process whose peer has closed the connection, or that ends while its threads still listen.
    """
    stopped = None
    try:
        main(*args)
    except TrainingStopped as e:
        stopped = e
    comm.synchronize()
    if dist.is_initialized():
        dist.destroy_process_group()
    if stopped is not None:
        raise stopped


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for the processes that the block starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _hand_on(number: int, frame: Any) -> None:
    """Hand a signal on to the processes that this one waits for."""
    for process in active_children():
        if process.pid is not None:
            os.kill(process.pid, number)


def _join_torchrun(main: Callable[..., Any], args: tuple, on_cuda: bool) -> None:
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if on_cuda:
        _check_gpus(local_size, "--nproc-per-node")
        torch.cuda.set_device(local_rank)
    _init_process_group("nccl" if on_cuda else "gloo")
    try:
        comm.create_local_process_group(local_size)
        comm.synchronize()
        _run_together(main, args)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _init_process_group(backend: str) -> None:
    """Join torchrun's group, also one that was started again.

    torchrun keeps the store in which the processes find each other, with the addresses of those
    that have ended (PyTorch's issue 135712): processes that it starts again need another prefix.
    Several machines do not agree on the number of restarts.
    """
    shared = os.getenv("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not shared or int(os.getenv("TORCHELASTIC_MAX_RESTARTS", "0")) == 0:
        dist.init_process_group(backend, timeout=DEFAULT_TIMEOUT)
        return
    if int(os.environ["GROUP_WORLD_SIZE"]) > 1:
        raise UserError(
            "torchrun --max-restarts on several machines: processes that are started again would "
            "not find each other. Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on all machines, and "
            "take --rdzv-backend c10d."
        )
    store, rank, world_size = next(rendezvous("env://", timeout=DEFAULT_TIMEOUT))
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(f"restart_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store),
        rank=rank,
        world_size=world_size,
        timeout=DEFAULT_TIMEOUT,
    )


def _check_gpus(processes: int, option: str) -> None:
    found = torch.cuda.device_count()
    if processes > found:
        raise UserError(
            f"{option} {processes}, but torch finds {found} CUDA devices here. Ask for fewer, or "
            "append 'MODEL.DEVICE cpu' to run the processes on the CPU."
        )
