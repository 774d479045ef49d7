// The norm, modulation, rope and activation kernels for AVX-512 with BF16.
#include "kernel_table.h"
