"""A MODEL borrowed for training: whole, on its device, and given back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import comfy.model_management
import comfy.ops
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...esd_core.errors import ESDError
from ...esd_core.models.swap import replaced, slots_of
from ...esd_core.storage.dtypes import PRECISIONS
from ...esd_core.training.out_of_memory import oom_as_error
from .model import refuse_quantised

_WHOLE = (
    "training needs all of the MODEL's weights on the device, so start ComfyUI without --novram "
    "and --lowvram, or take a smaller model"
)


@contextmanager
def borrowed(
    model: ModelPatcher, precision: str = "auto", needed: float = 0
) -> Iterator[ModelPatcher]:
    """A clone of MODEL whose UNet can be differentiated; outside, everything is as it was.

    Upstream patches are in its weights. The host runs nodes in inference mode, whose tensors no
    graph may hold: inside, that mode is off and every parameter is a plain view of the same bytes.

    Args:
        precision: what it computes in; auto is what the host samples in.
        needed: memory to leave free on the device beside the weights, in bytes.

    Raises:
        ESDError: the weights are quantised, or do not fit the device whole.
    """
    clone = _clone(model)
    if precision != "auto" and PRECISIONS[precision] != compute_dtype(clone):
        clone.set_model_compute_dtype(PRECISIONS[precision])
    with oom_as_error(_WHOLE):
        comfy.model_management.load_models_gpu([clone], needed, force_full_load=True)
    if clone.model.model_lowvram:
        raise ESDError(f"a part of the MODEL's weights is offloaded: {_WHOLE}")
    refuse_quantised(clone)
    unet = clone.model.diffusion_model
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        _plain(unet),
        _exact(unet),
        _in_training(),
    ):
        clone.pre_run()
        try:
            yield clone
        finally:
            clone.cleanup()


def compute_dtype(model: ModelPatcher) -> torch.dtype:
    """What the UNet computes in."""
    return model.get_model_object("manual_cast_dtype") or model.model.get_dtype()


def _clone(model: ModelPatcher) -> ModelPatcher:
    """A clone that keeps its weights on the device, also where the host would stream them."""
    if not (hasattr(model, "is_dynamic") and model.is_dynamic()):  # older hosts have no such thing
        return model.clone()
    if model.cached_patcher_init is None:
        raise ESDError(
            "the loader of this MODEL cannot load it a second time, as dynamic VRAM needs for "
            "training: use a stock loader, or start ComfyUI with --disable-dynamic-vram"
        )
    return model.clone(disable_dynamic=True)


def _plain(unet: nn.Module) -> AbstractContextManager[None]:
    """Inside, frozen and plain views stand in for the parameters."""
    views = {
        name: nn.Parameter(_view(parameter), requires_grad=False)
        for name, parameter in unet.named_parameters()
    }
    return replaced(slots_of(unet), views)


@contextmanager
def _exact(unet: nn.Module) -> Iterator[None]:
    """Inside, teacher and student go through the same kernels, which have a gradient.

    With `fp8_matrix_mult` the host multiplies fp8 weights in 8 bits, and the student's are no fp8:
    the two would differ before any training. With `fp16_accumulation` sums lose digits.
    """
    layers = [m for m in unet.modules() if isinstance(m, comfy.ops.fp8_ops.Linear)]
    matmul = torch.backends.cuda.matmul
    accumulates = getattr(matmul, "allow_fp16_accumulation", False)  # older torch has no such thing
    try:
        for layer in layers:
            plain = comfy.ops.manual_cast.Linear.forward_comfy_cast_weights
            layer.forward_comfy_cast_weights = plain.__get__(layer)
        if accumulates:
            matmul.allow_fp16_accumulation = False
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward_comfy_cast_weights", None)  # the class's own shows again
        if accumulates:
            matmul.allow_fp16_accumulation = True


@contextmanager
def _in_training() -> Iterator[None]:
    """Inside, newer hosts choose kernels that have a gradient."""
    host = comfy.model_management
    before = getattr(host, "in_training", None)
    if before is None:
        yield
        return
    host.in_training = True
    try:
        yield
    finally:
        host.in_training = before


def _view(tensor: Tensor) -> Tensor:
    """The same bytes, without inference mode's mark. Storage is shared: nothing is copied."""
    plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return plain.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def differentiable_attention(_, *args: Tensor, **options) -> Tensor:  # type: ignore[no-untyped-def]
    """In the place of the host's attention, some kinds of which have no gradient."""
    return attention_pytorch(*args, **options)
