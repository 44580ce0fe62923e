// Which vector instructions the CPU kernels use. Files named *_path.cpp are compiled once per path (setup.py), each
// into its own namespace STITCHKERN_PATH; launchers pick at run time.
#pragma once

namespace stitchkern {

enum class CpuPath : int { baseline, avx2, avx512 };

inline const char* cpu_path_name(CpuPath path) {
  switch (path) {
    case CpuPath::avx512: return "avx512";
    case CpuPath::avx2: return "avx2";
    default: return "baseline";
  }
}

inline CpuPath best_cpu_path() {
#if defined(STITCHKERN_X86_PATHS)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return CpuPath::avx512;
  if (avx2) return CpuPath::avx2;
#endif
  return CpuPath::baseline;
}

// The path in use; tests lower it to reach the others.
inline CpuPath& cpu_path() {
  static CpuPath path = best_cpu_path();
  return path;
}

// Of a table that exists once per path, the one in use.
template <class Table>
const Table& for_cpu_path(const Table& baseline, const Table& avx2, const Table& avx512) {
  switch (cpu_path()) {
    case CpuPath::avx512: return avx512;
    case CpuPath::avx2: return avx2;
    default: return baseline;
  }
}

}  // namespace stitchkern

// The same by its name in the namespaces of the paths that were compiled.
#if defined(STITCHKERN_X86_PATHS)
#define STITCHKERN_FOR_CPU_PATH(table) ::stitchkern::for_cpu_path(baseline::table, avx2::table, avx512::table)
#else
#define STITCHKERN_FOR_CPU_PATH(table) (baseline::table)
#endif
