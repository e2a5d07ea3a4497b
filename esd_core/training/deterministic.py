"""The same bits in every run on a GPU, whose kernels add in no fixed order by themselves."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import ESDError, first_line


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Inside, if enabled, torch takes kernels that give the same bits each time.

    Where it has none it refuses, and does not only warn: attention takes its own backward pass in
    a fixed order in that mode alone. cuBLAS has to be told by CUBLAS_WORKSPACE_CONFIG in the
    environment as well, before its first use, which is the host's to do.

    Raises:
        ESDError: there is no such kernel.
    """
    if not enabled:
        yield
        return
    cudnn, was_on = torch.backends.cudnn, torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    before = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise ESDError(
            f"the run cannot be the same each time here ({first_line(error)}): switch "
            "`training.deterministic` off"
        ) from error
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=only_warned)
        cudnn.deterministic, cudnn.benchmark = before
