"""Several processes work out a study's methods side by side; what they find is met in the store."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from .methods import find_method
from .metrics import find_metric
from .preparing import prepare
from .store import Store
from .study import Study

_study: list[Study] = []  # a worker's own


def work_ahead(
    workers: int,
    arguments: Mapping[str, Any],
    methods: Sequence[str],
    metrics: Sequence[str],
    store: Path,
    progress: bool | None = None,
) -> None:
    """Fill the store, a method at a time and worker; the study then finds there what it would have worked out.

    Where one process cannot use all cores, as with small models or metrics that are not of torch, several are faster. The cores
    are shared out among them; each holds the model and all images. What fails is left to the study, which says why.

    Args:
        workers: processes.
        arguments: of `prepare`; a surrogate must have been fitted before.
        methods: names, as `find_method` takes them.
        metrics: likewise.
        store: the study's.
        progress: whether a bar is shown; None shows it at a terminal.
    """
    threads = max(torch.get_num_threads() // workers, 1)
    began = (dict(arguments), list(metrics), store, threads)
    disable = None if progress is None else not progress
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=began)
    try:
        tasks = [pool.submit(_work, name) for name in methods]
        for task in tqdm(as_completed(tasks), total=len(tasks), desc="methods", unit="method", disable=disable):
            task.result()
    except BrokenProcessPool:
        warnings.warn(
            f"one of {workers} workers came to an end, perhaps for want of memory; one process goes on alone",
            stacklevel=2,
        )
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(arguments: dict[str, Any], metrics: list[str], store: Path, threads: int) -> None:
    parent = parent_process()
    if parent is not None:  # killed, it could not stop its workers
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    torch.set_num_threads(threads)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process: what a model prints is said once
    prepared = prepare(**arguments, progress=False)
    _study.append(
        Study(
            prepared.subject, prepared.data, [], [find_metric(name) for name in metrics], Store(store), progress=False
        )
    )


def _work(method: str) -> None:
    _study[0].outcome(find_method(method))
