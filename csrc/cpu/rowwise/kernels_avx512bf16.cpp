// The norm, modulation, rope and activation kernels for AVX-512 with BF16.
#include "rowwise/table-inl.h"
