"""An erasure made from a trained student."""

import torch
from torch import Tensor

from ..config.settings import ErasureConfig
from ..errors import ESDError
from ..files.apply import fingerprint
from ..files.erasure import Erasure, key_of
from ..files.finite import is_finite
from ..files.lora import ALPHA, DOWN, UP
from ..files.metadata import describe
from ..method.probes import ProbeReport
from ..method.terms import erasing
from ..models.denoiser import Denoiser
from ..storage.dtypes import PRECISIONS
from .student import LowRankStudent, Student


def make_erasure(
    student: Student,
    denoiser: Denoiser,
    config: ErasureConfig,
    steps: int,
    probes: ProbeReport | None,
) -> Erasure:
    """The student's change, in the config's save_dtype, with all metadata.

    Nothing in it tells of time or place: the same run makes the same bytes.

    Raises:
        ESDError: the change is not finite, in save_dtype at least.
    """
    dtype = PRECISIONS[config.training.save_dtype]
    if isinstance(student, LowRankStudent):
        tensors = _low_rank_layout(student, denoiser, dtype)
    else:
        tensors = {key_of(name): value for name, value in student.change(dtype).items()}
    if not all(map(is_finite, tensors.values())):
        raise ESDError(
            "the trained change holds values that are not finite: lower `training.learning_rate`, "
            "or set `training.save_dtype` to fp32"
        )
    measured = probes.as_dict() if probes else {}
    base = fingerprint(denoiser.parameters())
    about = describe(denoiser.architecture, config, erasing(config), steps, measured, base)
    return Erasure(tensors, about)


def _low_rank_layout(
    student: LowRankStudent, denoiser: Denoiser, dtype: torch.dtype
) -> dict[str, Tensor]:
    """LoRA's shapes: a convolution's down keeps its kernel, its up is 1x1."""
    base = denoiser.parameters()
    tensors = {}
    for key, master in student.masters.items():
        value = master.detach().cpu()
        stem, is_up = key.removesuffix(UP).removesuffix(DOWN), key.endswith(UP)
        kernel = base[f"{stem}.weight"].shape[2:]
        if kernel:
            shape = (*value.shape, 1, 1) if is_up else (len(value), -1, *kernel)
            value = value.reshape(shape)
        tensors[key] = value.to(dtype).contiguous()
        if is_up:
            # The loaders divide alpha by the rows of down, which small layers have fewer of.
            tensors[stem + ALPHA] = torch.tensor(student.alpha / student.rank * value.shape[1])
    return tensors
