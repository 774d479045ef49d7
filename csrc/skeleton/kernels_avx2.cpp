// The skeleton for AVX2, FMA and F16C.
#include "skeleton/skeleton-inl.h"
