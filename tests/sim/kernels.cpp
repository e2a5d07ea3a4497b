// The kernels that a backend must bring itself; for all else there is the fallback.
#include <ATen/native/DispatchStub.h>
#include <ATen/native/transformers/attention.h>
#include <torch/library.h>

#include "fallback.h"

namespace sim {
namespace {

const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

// ---- making, viewing and copying

at::Tensor empty(
    c10::IntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
    std::optional<c10::Device>, std::optional<bool> pinned,
    std::optional<c10::MemoryFormat> format) {
  TORCH_CHECK(!pinned.value_or(false), "only memory of the CPU can be pinned");
  return at::detail::empty_generic(
      size, &Memory::get(), KEYS, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(
    c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> dtype,
    std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      size, stride, &Memory::get(), KEYS, c10::dtype_or_default(dtype));
}

at::Tensor as_strided(
    const at::Tensor& t, c10::IntArrayRef size, c10::IntArrayRef stride,
    std::optional<int64_t> offset) {
  return device_view(t, t.dtype(), size, stride, offset.value_or(t.storage_offset()));
}

at::Tensor reshape_alias(
    const at::Tensor& t, c10::IntArrayRef size, c10::IntArrayRef stride) {
  return device_view(t, t.dtype(), size, stride, t.storage_offset());
}

at::Tensor touchable(const at::Tensor& t) { return on_device(t) ? cpu_view(t) : t; }

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  touchable(to).copy_(touchable(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar(const at::Tensor& t) { return cpu_view(t).item(); }

const at::Tensor& resize(
    const at::Tensor& t, c10::IntArrayRef size, std::optional<c10::MemoryFormat> format) {
  auto* impl = t.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  if (format && *format != c10::MemoryFormat::Preserve) impl->empty_tensor_restride(*format);
  const size_t bytes = (impl->numel() + impl->storage_offset()) * impl->itemsize();
  if (bytes > t.storage().nbytes())
    at::detail::getPrivateUse1Hooks().resizePrivateUse1Bytes(t.storage(), bytes);
  return t;
}

// ---- set_: another storage for a tensor

at::Tensor& set_part(
    at::Tensor& t, c10::Storage storage, int64_t offset, c10::IntArrayRef size,
    c10::IntArrayRef stride) {
  TORCH_CHECK(
      storage.device() == DEVICE || !storage.nbytes(), "Attempted to set the storage of a tensor ",
      "on device \"", DEVICE, "\" to a storage on different device \"", storage.device(), "\"");
  auto* impl = t.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_storage_offset(offset);
  if (stride.empty() && !size.empty()) impl->set_sizes_contiguous(size);
  else impl->set_sizes_and_strides(size, stride);
  return t;
}

at::Tensor& set_whole(at::Tensor& t, c10::Storage storage) {
  const int64_t count = storage.nbytes() / t.itemsize();
  return set_part(t, std::move(storage), 0, {count}, {1});
}

at::Tensor& set_like(at::Tensor& t, const at::Tensor& other) {
  return set_part(t, other.storage(), other.storage_offset(), other.sizes(), other.strides());
}

at::Tensor& set_nothing(at::Tensor& t) {
  c10::Storage none(c10::Storage::use_byte_size_t(), 0, &Memory::get(), true);
  return set_part(t, std::move(none), 0, {0}, {1});
}

// ---- convolutions, which torch hands to a backend under names of their own

void refuse_foreign(const char* name, std::initializer_list<const at::Tensor*> tensors) {
  for (const auto* t : tensors)
    TORCH_CHECK(
        !t->defined() || on_device(*t), "Expected all tensors to be on the same device, but found ",
        "at least two devices, ", DEVICE, " and ", t->device(), "! (", name, ")");
}

at::Tensor convolution(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
    c10::IntArrayRef output_padding, int64_t groups) {
  const auto added = bias.value_or(at::Tensor());
  refuse_foreign("convolution", {&x, &weight, &added});
  const auto cpu_bias =
      added.defined() ? std::optional<at::Tensor>(cpu_view(added)) : std::nullopt;
  return to_device(at::convolution(
      cpu_view(x), cpu_view(weight), cpu_bias, stride, padding, dilation, transposed,
      output_padding, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& weight,
    c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
    c10::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> wanted) {
  refuse_foreign("convolution_backward", {&gradient, &x, &weight});
  const std::vector<int64_t> bias{weight.size(transposed ? 1 : 0) * (transposed ? groups : 1)};
  const auto [of_x, of_weight, of_bias] = at::convolution_backward(
      cpu_view(gradient), cpu_view(x), cpu_view(weight), at::OptionalIntArrayRef(bias), stride,
      padding, dilation, transposed, output_padding, groups, wanted);
  auto back = [](const at::Tensor& t) { return t.defined() ? to_device(t) : t; };
  return {back(of_x), back(of_weight), back(of_bias)};
}

// ---- attention: the kernel that the CPU would choose

int64_t attention_kernel(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const std::optional<at::Tensor>& mask, double dropout, bool causal,
    std::optional<double> scale, bool grouped) {
  const auto cpu_mask = mask ? std::optional<at::Tensor>(cpu_view(*mask)) : std::nullopt;
  return at::_fused_sdp_choice(
      cpu_view(q), cpu_view(k), cpu_view(v), cpu_mask, dropout, causal, scale, grouped);
}

}  // namespace
}  // namespace sim

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &sim::attention_kernel)
}

namespace sim {

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", as_strided);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("resize_", resize);
  m.impl("set_.source_Storage", set_whole);
  m.impl("set_.source_Storage_storage_offset", set_part);
  m.impl("set_.source_Tensor", set_like);
  m.impl("set_", set_nothing);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
  // For these torch would compose something of smaller operators, in other bits than the CPU's.
  for (const char* name :
       {"native_layer_norm", "native_group_norm", "native_batch_norm", "silu_backward",
        "gelu_backward", "_foreach_mul_.Scalar", "_fused_adamw_", "_fused_adamw_.tensor_lr"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

}  // namespace sim
