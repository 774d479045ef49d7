// The linear layer for AVX-512 F, BW, DQ and VL.
#pragma GCC diagnostic ignored "-Wunused-function"  // the headers also hold the kernels of rowwise/kernels_avx512.cpp
#include "linear/tile-inl.h"
