// What the device's two sources share: its memory, and its generator.
#pragma once

#include <ATen/core/Generator.h>

#include "memory.h"

namespace sim {

// A generator of the device, which draws what the CPU's would: `twin` does.
struct Generator final : c10::GeneratorImpl {
  at::Generator twin;

  explicit Generator(at::Generator cpu)
      : c10::GeneratorImpl(DEVICE, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        twin(std::move(cpu)) {}
  void set_current_seed(uint64_t seed) override { twin.set_current_seed(seed); }
  uint64_t current_seed() const override { return twin.current_seed(); }
  uint64_t seed() override { return twin.seed(); }
  void set_offset(uint64_t offset) override { twin.set_offset(offset); }
  uint64_t get_offset() const override { return twin.get_offset(); }
  void set_state(const c10::TensorImpl& state) override {
    twin.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return twin.unsafeGetGeneratorImpl()->get_state();
  }
  Generator* clone_impl() const override { return new Generator(twin.clone()); }
};

}  // namespace sim
