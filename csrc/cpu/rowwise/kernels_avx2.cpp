// The norm, modulation, rope and activation kernels for AVX2, FMA and F16C.
#include "rowwise/table-inl.h"
