"""How many threads PyTorch takes, which it keeps per thread, with a default for later ones: both are put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def threads_kept() -> Iterator[None]:
    """PyTorch's later threads take as many as before, although some within may have taken one each."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keeps PyTorch to one thread: the work is bound by memory, or each of many threads does its share of it, and more
    of them spin on each other on busy cores."""
    with threads_kept():
        torch.set_num_threads(1)
        yield
