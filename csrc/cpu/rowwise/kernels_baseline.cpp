// The norm, modulation, rope and activation kernels for the baseline of the architecture (SSE2, or NEON on aarch64).
#include "rowwise/table-inl.h"
