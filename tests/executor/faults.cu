// Kernels that are wrong on purpose: what the executor must report. Called through ctypes.
#include <cstdio>
#include <stdexcept>

#include "../../csrc/common/device.h"
#include "../../csrc/common/launch.h"

namespace {

using namespace stitchkern::device;

constexpr int THREADS = 64;
constexpr SharedArray<float> NUMBERS{0, THREADS};

// out [THREADS]: each thread's right neighbour's number, with or without the barrier that makes it so
__global__ void neighbour(float* out, bool barrier) {
  float* numbers = NUMBERS.get();
  const int i = int(threadIdx.x);
  numbers[i] = float(i);
  if (barrier) __syncthreads();
  out[i] = numbers[(i + 1) % THREADS];
}

__global__ void leaves_before_barrier() {
  if (threadIdx.x == 5) return;
  __syncthreads();
}

__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void lane_misses_shuffle(float* out) {
  if (threadIdx.x != 7) out[threadIdx.x] = shuffle_xor(1.0f, 1);
}

__global__ void too_much_shared() { NUMBERS.get()[threadIdx.x] = 0; }

__global__ void writes_at(float* out, int shared_index, int global_index) {
  float* numbers = NUMBERS.get();
  if (threadIdx.x == 0) numbers[shared_index] = 1, out[global_index] = 1;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Runs one of the kernels on out [THREADS]; the executor's complaint goes to message [256], empty when there is none.
EXPORT void run_fault(const char* name, int order, float* out, char* message) {
  using stitchkern::launch;
  const std::string kernel = name;
  const int bytes = NUMBERS.end();
  executor::settings().order = order;
  message[0] = 0;
  try {
    if (kernel == "good")
      launch(name, neighbour, 1, THREADS, bytes, nullptr, out, true);
    else if (kernel == "race")
      launch(name, neighbour, 1, THREADS, bytes, nullptr, out, false);
    else if (kernel == "leave")
      launch(name, leaves_before_barrier, 1, THREADS, 0, nullptr);
    else if (kernel == "barriers")
      launch(name, two_barriers, 1, THREADS, 0, nullptr);
    else if (kernel == "lane")
      launch(name, lane_misses_shuffle, 1, THREADS, 0, nullptr, out);
    else if (kernel == "shared")
      launch(name, too_much_shared, 1, THREADS, bytes - 4, nullptr);
    else if (kernel == "shared-overrun")
      launch(name, writes_at, 1, THREADS, bytes, nullptr, out, THREADS, 0);
    else if (kernel == "global-overrun")
      launch(name, writes_at, 1, THREADS, bytes, nullptr, out, 0, THREADS);
    else
      throw std::runtime_error("no such kernel: " + kernel);
  } catch (const std::exception& error) {
    std::snprintf(message, 256, "%s", error.what());
  }
}
