// The memory of the pretend accelerator.
//
// It is one range of pages, mapped twice. torch is given addresses in the first mapping, which
// nobody may touch: code that takes such a pointer for the CPU's dies at once, where on real
// hardware it would. The device's kernels reach the same bytes through the second mapping.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/Device.h>
#include <c10/util/Exception.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace sim {

const c10::Device DEVICE(c10::DeviceType::PrivateUse1, 0);

class Memory final : public c10::Allocator {
 public:
  static Memory& get() {
    static auto* only = new Memory;  // never destroyed: tensors may outlive any static
    return *only;
  }

  c10::DataPtr allocate(size_t bytes) override {
    if (!bytes) return {nullptr, DEVICE};
    const size_t size = rounded(bytes);
    std::lock_guard<std::mutex> lock(mutex_);
    const bool fails = fail_after_ == 0;
    if (fail_after_ >= 0) --fail_after_;
    if (fails || allocated_ + size > limit_) {
      const auto text = c10::str("SIM out of memory. Tried to allocate ", size, " bytes.");
      throw c10::OutOfMemoryError({__func__, __FILE__, __LINE__}, text);
    }
    const size_t place = take(size);
    poison(place, size);
    allocated_ += size;
    peak_ = std::max(peak_, allocated_);
    ++count_;
    char* address = shown_ + place;
    return {address, address, &release, DEVICE};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(real(to), real(from), bytes);
  }

  // Where a kernel finds what torch knows under this address.
  void* real(const void* address) const {
    if (!address) return nullptr;
    const auto* at = static_cast<const char*>(address);
    TORCH_CHECK(at >= shown_ && at < shown_ + RANGE, "sim: not an address of the device");
    return real_ + (at - shown_);
  }

  size_t allocated() const { return allocated_; }
  size_t peak() const { return peak_; }
  size_t limit() const { return limit_; }
  size_t count() const { return count_; }
  void reset_peak() { peak_ = allocated_; }
  void set_limit(size_t bytes) { limit_ = bytes; }
  // The allocation after so many more fails, once; never, for -1.
  void fail_after(int64_t more) { fail_after_ = more; }

 private:
  static constexpr size_t RANGE = size_t(1) << 38;  // of addresses: pages come when written to
  static constexpr size_t LARGE = size_t(1) << 20;

  Memory() : shown_(map(PROT_NONE)), real_(map(PROT_READ | PROT_WRITE)) {}

  static char* map(int rights) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* range = mmap(nullptr, RANGE, rights, flags, -1, 0);
    TORCH_CHECK(range != MAP_FAILED, "sim: no range of addresses that is large enough");
    return static_cast<char*>(range);
  }

  static size_t rounded(size_t bytes) {
    const size_t grain = bytes > LARGE ? size_t(1) << 16 : 512;
    return (bytes + grain - 1) / grain * grain;
  }

  // A place of that size, used before if there is one.
  size_t take(size_t size) {
    auto& free = free_[size];
    size_t place = next_;
    if (free.empty()) {
      next_ += size;
      TORCH_CHECK(next_ <= RANGE, "sim: the range of addresses is used up");
    } else {
      place = free.back();
      free.pop_back();
    }
    sizes_[place] = size;
    return place;
  }

  // NaN in every float format, -1 as an integer: what nobody wrote must not look like a zero.
  void poison(size_t place, size_t size) { std::memset(real_ + place, 0xFF, size); }

  static void release(void* address) {
    auto& memory = get();
    std::lock_guard<std::mutex> lock(memory.mutex_);
    const size_t place = static_cast<char*>(address) - memory.shown_;
    const size_t size = memory.sizes_[place];
    memory.sizes_.erase(place);
    memory.allocated_ -= size;
    if (size > LARGE) madvise(memory.real_ + place, size, MADV_DONTNEED);
    else memory.poison(place, size);  // a use after the release shows, too
    memory.free_[size].push_back(place);
  }

  char *shown_, *real_;
  size_t next_ = 0, allocated_ = 0, peak_ = 0, count_ = 0;
  size_t limit_ = size_t(64) << 30;
  int64_t fail_after_ = -1;
  std::mutex mutex_;
  std::map<size_t, std::vector<size_t>> free_;  // places by size
  std::unordered_map<size_t, size_t> sizes_;    // of what is allocated, by place
};

}  // namespace sim
