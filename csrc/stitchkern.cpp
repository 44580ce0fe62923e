// The front door of the extension: every op schema in one table, and the pybind11 module for what is not a tensor op.
// Backends register themselves in the last lines of their own files.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include <map>
#include <string>

#include "common/cpu.h"
#include "hsic/hsic.h"
#include "lsq/lsq.h"
#include "moments/moments_plan.h"
#include "ops.h"

namespace py = pybind11;

STABLE_TORCH_LIBRARY(stitchkern, m) {
  for (const char* schema : stitchkern::SCHEMAS) m.def(schema);
}

template <size_t N>
std::map<std::string, int> index_of(const char* const (&names)[N]) {
  std::map<std::string, int> index;
  for (size_t i = 0; i < N; ++i) index[names[i]] = int(i);
  return index;
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native part of stitchkern: build information and constants. The ops are in torch.ops.stitchkern.";
  m.def("build_info", [] {
    return std::map<std::string, std::string>{
        {"version", STITCHKERN_VERSION},
        {"compiler", __VERSION__},
        {"flags", STITCHKERN_FLAGS},
        {"torch_built_with", STITCHKERN_TORCH},
        {"torch_minimum", "2.11"},
        {"cuda", STITCHKERN_CUDA_VERSION},  // "" where no nvcc was found
        {"cuda_archs", STITCHKERN_CUDA_ARCHS},
        {"cpu_path", stitchkern::cpu_path_name(stitchkern::cpu_path())},
    };
  });
  m.def("cpu_path", [] { return stitchkern::cpu_path_name(stitchkern::cpu_path()); });
  m.def("use_cpu_path", [](const std::string& name) {  // for tests
    using stitchkern::CpuPath;
    for (CpuPath path : {CpuPath::baseline, CpuPath::avx2, CpuPath::avx512}) {
      if (name != stitchkern::cpu_path_name(path)) continue;
      if (path > stitchkern::best_cpu_path()) throw py::value_error("this CPU has no " + name);
      stitchkern::cpu_path() = path;
      return;
    }
    throw py::value_error("no such path: " + name);
  });
  m.def(
      "moments_plan",
      [](int64_t rows, int64_t p, int64_t q, bool in_float64, int precision, int capability, int multiprocessors) {
        using namespace stitchkern::moments;
        const Plan made = plan(rows, p, q, in_float64, Precision(precision), false, q > 0, capability, multiprocessors);
        py::dict d;
        d["kind"] = KIND_NAMES[int(made.kind)];
        d["pairs"] = made.pairs, d["splits"] = made.splits, d["split_rows"] = made.split_rows;
        d["norm_chunks"] = made.norm_chunks, d["workspace_bytes"] = made.workspace_bytes;
        return d;
      },
      "How a GPU would split one update of moments.", py::arg("rows"), py::arg("p"), py::arg("q"),
      py::arg("in_float64"), py::arg("precision"), py::arg("capability"), py::arg("multiprocessors"));
  m.def("force_moments_kernel",
        [](int kind) { stitchkern::moments::forced_kind() = kind; });  // for tests; -1: as planned
  m.attr("LSQ_MAX_FEATURES") =
      std::map<std::string, int>{{"cpu", stitchkern::lsq::CPU_FEATURES}, {"cuda", stitchkern::lsq::CUDA_FEATURES}};
  m.attr("LSQ_MAX_PROBES") = stitchkern::lsq::MAX_PROBES;
  m.def("hsic_kernels", [] { return index_of(stitchkern::hsic::KERNEL_NAMES); });
  m.def("precisions", [] { return index_of(stitchkern::moments::PRECISION_NAMES); });
  m.def("totals", [] { return index_of(stitchkern::moments::TOTAL_NAMES); });
}
