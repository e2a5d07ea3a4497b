// The pretend accelerator as torch knows a device: guard, generator, hooks, and what tests ask.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/GeneratorForPrivateuseone.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include "device.h"

namespace sim {
namespace {

c10::Stream the_stream() { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }

// One device with one stream, on which everything is done before the call returns.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return DEVICE.type(); }
  c10::Device getDevice() const override { return DEVICE; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(c10::Device) const noexcept override { return the_stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return the_stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return the_stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return the_stream(); }
  void record(void** event, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {
    *event = const_cast<Guard*>(this);  // any address: an event is over when it is recorded
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  bool isPinnedPtr(const void*) const override { return false; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  at::Device getDeviceFromPtr(void*) const override { return DEVICE; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::make_generator<Generator>(at::detail::createCPUGenerator());
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static const auto* only = new at::Generator(
        at::make_generator<Generator>(at::detail::getDefaultCPUGenerator()));
    return *only;
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto* impl = storage.unsafeGetStorageImpl();
    auto larger = Memory::get().allocate(bytes);
    const size_t kept = std::min(bytes, impl->nbytes());
    if (kept) Memory::get().copy_data(larger.get(), impl->data(), kept);
    impl->set_data_ptr_noswap(std::move(larger));
    impl->set_nbytes(bytes);
  }
};

const bool registered = [] {
  c10::SetAllocator(DEVICE.type(), &Memory::get());
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();

TORCH_LIBRARY(simdev, m) {
  m.def("allocated() -> int", [] { return int64_t(Memory::get().allocated()); });
  m.def("allocations() -> int", [] { return int64_t(Memory::get().count()); });
  m.def("peak() -> int", [] { return int64_t(Memory::get().peak()); });
  m.def("reset_peak() -> ()", [] { Memory::get().reset_peak(); });
  m.def("limit() -> int", [] { return int64_t(Memory::get().limit()); });
  m.def("set_limit(int bytes) -> ()", [](int64_t bytes) { Memory::get().set_limit(bytes); });
  m.def("fail_after(int more) -> ()", [](int64_t more) { Memory::get().fail_after(more); });
}

}  // namespace
}  // namespace sim
