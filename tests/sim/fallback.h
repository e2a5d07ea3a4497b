// Runs a CPU kernel on the device's tensors, as any backend without a kernel of its own might;
// but first it refuses what CUDA refuses.
#pragma once

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>

#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "device.h"

namespace sim {

inline bool on_device(const at::Tensor& t) { return t.defined() && t.device() == DEVICE; }

// ---- views of one memory

// The same bytes as a tensor of the CPU, by the mapping that may be touched.
inline at::Tensor cpu_view(const at::Tensor& t) {
  const auto& storage = t.storage();
  c10::Storage bytes(
      c10::Storage::use_byte_size_t(), storage.nbytes(),
      c10::DataPtr(Memory::get().real(storage.data()), c10::Device(c10::kCPU)),
      c10::GetCPUAllocator(), /*resizable=*/true);
  auto view = at::detail::make_tensor<c10::TensorImpl>(
      std::move(bytes), c10::DispatchKeySet(c10::DispatchKey::CPU), t.dtype());
  auto* impl = view.unsafeGetTensorImpl();
  impl->set_storage_offset(t.storage_offset());
  impl->set_sizes_and_strides(t.sizes(), t.strides());
  if (t.is_conj()) view._set_conj(true);
  if (t.is_neg()) view._set_neg(true);
  return view;
}

// A tensor of the device with the storage of `base`.
inline at::Tensor device_view(
    const at::Tensor& base, caffe2::TypeMeta dtype, c10::IntArrayRef size,
    c10::IntArrayRef stride, int64_t offset) {
  auto view = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(base.storage()), base.key_set(), dtype);
  view.unsafeGetTensorImpl()->set_storage_offset(offset);
  view.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  return view;
}

inline at::Tensor to_device(const at::Tensor& cpu) {
  at::Tensor made = at::detail::empty_strided_generic(
      cpu.sizes(), cpu.strides(), &Memory::get(),
      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), cpu.scalar_type());
  if (cpu.numel()) cpu_view(made).copy_(cpu);
  return made;
}

// ---- what CUDA refuses

// Copies between devices, and storages set for what has no device yet.
inline bool may_mix(const std::string& name) {
  static const std::set<std::string> names{
      "aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize", "aten::set_"};
  return names.count(name);
}

// CUDA moves an index by itself.
inline bool is_index(const std::string& name, const std::string& argument) {
  static const std::set<std::string> names{
      "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"};
  return argument == "indices" && names.count(name);
}

// Whether the tensor may not stand beside those of the device. CUDA takes scalars of the CPU, but
// not in lists.
inline bool is_foreign(const at::Tensor& t, bool in_list) {
  if (!t.defined() || on_device(t)) return false;
  return !t.device().is_cpu() || t.dim() > 0 || in_list;
}

inline void refuse_mixed(
    const c10::FunctionSchema& schema, const torch::jit::Stack& stack, size_t first) {
  const auto& name = schema.name();
  if (may_mix(name)) return;
  bool any = false, cpu_generator = false;
  std::string foreign;
  for (size_t i = first; i < stack.size(); ++i) {
    const auto& value = stack[i];
    const auto& argument = schema.arguments()[i - first].name();
    auto look = [&](const at::Tensor& t, bool in_list) {
      any |= on_device(t);
      if (is_foreign(t, in_list) && !is_index(name, argument)) foreign = argument;
    };
    if (value.isTensor()) {
      look(value.toTensor(), false);
    } else if (value.isTensorList()) {
      for (const at::Tensor t : value.toTensorList()) look(t, true);
    } else if (value.isOptionalTensorList()) {
      for (const std::optional<at::Tensor> t : value.toOptionalTensorList())
        if (t) look(*t, true);
    } else if (value.isGenerator()) {
      cpu_generator = value.toGenerator().device().is_cpu();
    }
  }
  if (!any) return;
  TORCH_CHECK(
      foreign.empty(),
      "Expected all tensors to be on the same device, but found at least two devices, ", DEVICE,
      " and cpu! (argument ", foreign, " of ", name, ")");
  TORCH_CHECK(
      !cpu_generator, "Expected a '", DEVICE, "' device type for generator but found 'cpu' (",
      name, ")");
}

// ---- the call

class Call {
 public:
  at::Tensor to_cpu(const at::Tensor& t) {
    if (!on_device(t)) return t;
    for (const auto& [own, cpu] : pairs_)
      if (own.is_same(t)) return cpu;
    pairs_.emplace_back(t, cpu_view(t));
    return pairs_.back().second;
  }

  // An argument as the CPU's kernel takes it.
  c10::IValue argument(const c10::IValue& value) {
    if (value.isTensor()) return to_cpu(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor t : value.toTensorList()) list.push_back(to_cpu(t));
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor> t : value.toOptionalTensorList())
        list.push_back(t ? std::optional<at::Tensor>(to_cpu(*t)) : std::nullopt);
      return list;
    }
    if (value.isDevice() && value.toDevice().type() == DEVICE.type()) {
      makes_ = true;
      return c10::Device(c10::kCPU);
    }
    if (value.isGenerator() && value.toGenerator().device() == DEVICE)
      return static_cast<Generator*>(value.toGenerator().unsafeGetGeneratorImpl())->twin;
    return value;
  }

  // Takes over what the kernel did to sizes and storages of its arguments (`out=`, resize).
  void settle() {
    for (const auto& [own, cpu] : pairs_) {
      auto* impl = own.unsafeGetTensorImpl();
      if (cpu.storage().data() != Memory::get().real(own.storage().data())) {
        const size_t bytes = cpu.storage().nbytes();
        at::detail::getPrivateUse1Hooks().resizePrivateUse1Bytes(own.storage(), bytes);
        std::memcpy(Memory::get().real(own.storage().data()), cpu.storage().data(), bytes);
      } else if (cpu.sizes() == own.sizes() && cpu.strides() == own.strides()) {
        continue;
      }
      impl->set_storage_offset(cpu.storage_offset());
      impl->set_sizes_and_strides(cpu.sizes(), cpu.strides());
    }
  }

  c10::IValue result(const c10::IValue& value) {
    if (value.isTensor()) return to_own(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<at::Tensor> list;
    for (const at::Tensor t : value.toTensorList()) list.push_back(to_own(t));
    return list;
  }

 private:
  // One of the arguments, a view of one, or a new tensor.
  at::Tensor to_own(const at::Tensor& t) {
    if (!t.defined()) return t;
    for (const auto& [own, cpu] : pairs_)
      if (cpu.is_same(t)) return own;
    if (t.has_storage() && t.storage().data())
      for (const auto& [own, cpu] : pairs_)
        if (cpu.storage().data() == t.storage().data())
          return device_view(own, t.dtype(), t.sizes(), t.strides(), t.storage_offset());
    return makes_ || !pairs_.empty() ? to_device(t) : t;
  }

  std::vector<std::pair<at::Tensor, at::Tensor>> pairs_;  // the device's, the CPU's view of it
  bool makes_ = false;                                    // the device was asked for by name
};

inline void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t first = stack->size() - schema.arguments().size();
  refuse_mixed(schema, *stack, first);
  Call call;
  for (size_t i = first; i < stack->size(); ++i) (*stack)[i] = call.argument((*stack)[i]);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.settle();
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i)
    (*stack)[i] = call.result((*stack)[i]);
}

}  // namespace sim
