// Errors of arguments.

#ifndef CUSTOM_OPS_KERNELS_STATUS_H_
#define CUSTOM_OPS_KERNELS_STATUS_H_

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace perforated {

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_STATUS_H_
