// Launching kernels: on the GPU, or in the test executor (tests/executor/) where STITCHKERN_EXECUTOR is defined. No
// torch headers.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(STITCHKERN_EXECUTOR)

#include <executor.h>
#define STITCHKERN_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(stitchkern_executor, CPU, m)

#else

#include <cuda_runtime.h>

#include <mutex>
#include <vector>
#define STITCHKERN_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(stitchkern, CUDA, m)

// From torch's shim; weak, so that the same binary loads where torch has no CUDA.
extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#pragma weak aoti_torch_get_current_cuda_stream

#endif

namespace stitchkern {

// What launch plans depend on.
struct DeviceInfo {
  int capability;  // 90: compute capability 9.0
  int multiprocessors;
};

// Shared memory that one block may have (CUDA programming guide, technical specifications by compute capability).
inline int most_shared_bytes(int capability) {
  if (capability == 80 || capability == 87) return 163 << 10;
  if (capability >= 90 && capability < 120) return 227 << 10;
  return 99 << 10;
}

#if defined(STITCHKERN_EXECUTOR)

using Stream = void*;

inline DeviceInfo device_info(int) { return {executor::settings().capability, executor::settings().multiprocessors}; }
inline Stream current_stream(int) { return nullptr; }

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), int64_t blocks, int threads, int shared_bytes, Stream,
            const A&... args) {
  executor::launch(name, blocks, threads, shared_bytes, [&] { kernel(args...); });
}

// So that tests see what was read before it was written.
inline void poison(void* data, int64_t bytes) {
  if (bytes > 0) std::memset(data, 0xff, size_t(bytes));
}

#else

using Stream = cudaStream_t;

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Asked of the driver once per device.
inline DeviceInfo device_info(int device) {
  static std::mutex mutex;
  static std::vector<DeviceInfo> known;
  const std::lock_guard lock(mutex);
  if (device >= int(known.size())) known.resize(device + 1, DeviceInfo{0, 0});
  if (known[device].capability == 0) {
    int major = 0, minor = 0, multiprocessors = 0;
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
    check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
    check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
               "cudaDeviceGetAttribute");
    known[device] = {10 * major + minor, multiprocessors};
  }
  return known[device];
}

inline Stream current_stream(int device) {
  void* stream = nullptr;
  if (!aoti_torch_get_current_cuda_stream || aoti_torch_get_current_cuda_stream(device, &stream) != 0)
    throw std::runtime_error("torch gave no current CUDA stream: is this torch built with CUDA?");
  return static_cast<Stream>(stream);
}

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), int64_t blocks, int threads, int shared_bytes, Stream stream,
            const A&... args) {
  if (shared_bytes > 48 * 1024)
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    shared_bytes),
               name);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = stream;
  check_cuda(cudaLaunchKernelEx(&config, kernel, args...), name);
}

inline void poison(void*, int64_t) {}

#endif

}  // namespace stitchkern
