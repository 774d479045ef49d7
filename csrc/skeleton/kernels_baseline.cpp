// The skeleton for the baseline of the architecture: SSE2, or NEON on aarch64.
#include "skeleton/skeleton-inl.h"
