// The norm, modulation, rope and activation kernels for AVX-512 F, BW, DQ and VL.
#include "rowwise/table-inl.h"
