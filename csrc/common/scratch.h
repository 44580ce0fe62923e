// Uninitialised memory on cache lines, kept while it is large enough: fresh pages cost more than filling them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace stitchkern {

class Scratch {
 public:
  // What an earlier call returned is no longer valid.
  template <class T>
  T* get(int64_t count) {
    const size_t bytes = (size_t(count) * sizeof(T) + 63) / 64 * 64;
    if (bytes > size_) {
      size_ = 0;
      data_.reset(std::aligned_alloc(64, bytes));
      if (!data_) throw std::bad_alloc();
      size_ = bytes;
    }
    return static_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> data_;
  size_t size_ = 0;
};

// A thread's own, kept from call to call, for the work of one task.
inline void* thread_scratch(int64_t bytes) {
  thread_local Scratch scratch;
  return scratch.get<char>(bytes);
}

}  // namespace stitchkern
