// The linear layer for AVX2, FMA and F16C.
#pragma GCC diagnostic ignored "-Wunused-function"  // the headers also hold the kernels of rowwise/kernels_avx2.cpp
#include "linear/tile-inl.h"
