// The parts of the emulation's check.
#pragma once

#include <immintrin.h>

#include "check_common.h"

namespace check {

void floats();    // check_emulated_float.cpp
void integers();  // check_emulated.cpp
void dots();      // check_emulated_dot.cpp
void tiles();

}  // namespace check
