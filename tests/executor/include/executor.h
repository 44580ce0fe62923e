// The test executor: enough of CUDA to run kernels on the CPU, one fiber per CUDA thread, blocks one after another.
//
// It reports what a GPU would turn into a hang or silence: threads that wait at different barriers or leave while
// others wait, warp operations that some lanes do not reach. Shared arrays are separate allocations full of NaN, so
// that reading before writing shows in the result, and overruns under AddressSanitizer. Running threads in another
// order (settings().order) changes results where a barrier is missing.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __grid_constant__

namespace executor {

struct Dim3 {
  unsigned x = 0, y = 0, z = 0;
};

enum Order : int { forward, reverse, shuffled };

struct Settings {
  int order = forward;      // in which threads and blocks take turns
  int capability = 90;      // of the device that is played
  int multiprocessors = 4;  // few, so that small inputs are split too
};

Settings& settings();

// of the running fiber
extern Dim3 thread_index, block_index, block_size, grid_size;

void launch(const char* kernel, int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body);
void* shared(int offset, int bytes);
void sync_block(std::source_location where);
// Waits until all lanes of the warp called it with the same `name`, then runs `apply` once over their arguments.
void collective(const char* name, void* mine, void (*apply)(void* const* lanes));
[[noreturn]] void fail(const char* message);

inline float toward_zero(double v) {
  const float rounded = float(v);
  return std::fabs(double(rounded)) > std::fabs(v) ? std::nextafterf(rounded, 0.0f) : rounded;
}

}  // namespace executor

#define threadIdx (executor::thread_index)
#define blockIdx (executor::block_index)
#define blockDim (executor::block_size)
#define gridDim (executor::grid_size)

inline void __syncthreads(std::source_location where = std::source_location::current()) { executor::sync_block(where); }
inline void __syncwarp() {
  executor::collective("__syncwarp", nullptr, [](void* const*) {});
}
