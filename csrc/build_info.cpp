// The Python module lpkernels._C: facts about this build, and attributes of the kernels in the op library.
// The op library itself is independent of Python; its kernel table is reached through two exported functions, whose
// addresses the caller passes in.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/kernel_table.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = LPKERNELS_VERSION;
  info["torch"] = LPKERNELS_TORCH_VERSION;
  info["cuda"] = LPKERNELS_CUDA_VERSION;  // empty: built for the CPU alone
  info["architectures"] = LPKERNELS_CUDA_ARCHITECTURES;
#if defined(__clang__)
  info["compiler"] = std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = std::string("gcc ") + __VERSION__;
#elif defined(_MSC_VER)
  info["compiler"] = "msvc " + std::to_string(_MSC_VER);
#else
  info["compiler"] = "unknown";
#endif
  return info;
}

std::vector<py::dict> kernel_attributes(uintptr_t count_address, uintptr_t attributes_address) {
  const auto count = reinterpret_cast<decltype(&lpkernels_kernel_count)>(count_address);
  const auto attributes_of = reinterpret_cast<decltype(&lpkernels_kernel_attributes)>(attributes_address);
  if (count == nullptr || attributes_of == nullptr) {
    throw std::invalid_argument("kernel_attributes: both addresses must be those of the op library's functions");
  }
  std::vector<py::dict> rows;
  for (int i = 0; i < count(); ++i) {
    lpkernels::KernelAttributes attributes{};
    if (attributes_of(i, &attributes) != 0) {
      throw std::runtime_error("kernel_attributes: there is no kernel " + std::to_string(i));
    }
    py::dict row;
    row["name"] = attributes.name;
    row["error"] = attributes.error == nullptr ? py::object(py::none()) : py::str(attributes.error);
    row["threads"] = attributes.threads;
    row["registers"] = attributes.registers;
    row["static_shared_bytes"] = attributes.static_shared_bytes;
    row["dynamic_shared_bytes"] = attributes.dynamic_shared_bytes;
    row["local_bytes"] = attributes.local_bytes;
    row["blocks_per_multiprocessor"] = attributes.blocks_per_multiprocessor;
    rows.push_back(row);
  }
  return rows;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Build facts and kernel attributes of lpkernels";
  module.def("build_info", &build_info, "Version, torch, CUDA, architectures and compiler of this build");
  module.def("kernel_attributes", &kernel_attributes, py::arg("count_address"), py::arg("attributes_address"),
             "Registers, shared memory and occupancy of every CUDA kernel on the current device");
}
