"""Detectron2's ``launch``, also without CUDA."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import detectron2.engine
import torch
from detectron2.utils import comm
from torch import distributed
from torch.multiprocessing.spawn import spawn

TIMEOUT = timedelta(minutes=30)


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple[Any, ...] = (),
    timeout: timedelta = TIMEOUT,
) -> None:
    """Start ``main_func(*args)`` in all processes of this machine, as Detectron2's ``launch`` does.

    Where there is no GPU, the processes run on gloo, unlike in version 0.6 of Detectron2.

    Args:
        main_func: Function to run in each process.
        num_gpus_per_machine: Number of GPUs of each machine; without a GPU, of processes.
        num_machines: Number of machines.
        machine_rank: Number of this machine, from 0.
        dist_url: Address at which the processes meet; ``"auto"`` on one machine takes a free port.
        args: Arguments of ``main_func``.
        timeout: Time after which a collective operation fails.
    """
    world_size = num_machines * num_gpus_per_machine
    if torch.cuda.is_available() or world_size == 1:
        detectron2.engine.launch(
            main_func, num_gpus_per_machine, num_machines, machine_rank, dist_url, args, timeout
        )
        return
    if dist_url == "auto":
        with socket.socket() as free:
            free.bind(("", 0))
            dist_url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    spawn(
        _on_gloo,
        (num_gpus_per_machine, num_machines, machine_rank, dist_url, timeout, main_func, args),
        nprocs=num_gpus_per_machine,
    )


def _on_gloo(
    local_rank: int,
    processes: int,
    machines: int,
    machine: int,
    dist_url: str,
    timeout: timedelta,
    main_func: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    distributed.init_process_group(
        "gloo",
        init_method=dist_url,
        timeout=timeout,
        world_size=machines * processes,
        rank=machine * processes + local_rank,
    )
    if hasattr(comm, "create_local_process_group"):  # since version 0.6
        comm.create_local_process_group(processes)
    else:
        groups = [
            distributed.new_group(list(range(m * processes, (m + 1) * processes)))
            for m in range(machines)
        ]
        comm._LOCAL_PROCESS_GROUP = groups[machine]
    comm.synchronize()
    main_func(*args)
    distributed.destroy_process_group()
