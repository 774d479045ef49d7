// Looks at values of small tensors in host memory, for callers to whom torch's operations cost more than the look.
//
// One of torch's reductions and reading its result take 3 us, whatever the size; these take 0.1 to 0.3 us and then
// 1/8 ns or so an element. They answer None where torch should be asked: other types, devices or strides, and sizes for
// which nobody should hold Python's lock. Included by key.cpp alone, inside its namespace.
#pragma once

constexpr std::int64_t kMost = 1 << 16;  // elements
constexpr std::int64_t kFloat32 = (std::int64_t{1} << 16) | (32 << 8) | kDLFloat;

std::int64_t type_of(const DLTensor& t) {
  return (std::int64_t{t.dtype.lanes} << 16) | (t.dtype.bits << 8) | t.dtype.code;
}

template <typename T>
const T* data_of(const DLTensor& t) {
  return reinterpret_cast<const T*>(static_cast<const char*>(t.data) + t.byte_offset);
}

// The tensor's memory, where it is plain, in host memory, and not too large. count: its elements.
bool look_at(PyObject* argument, DLTensor& t, std::int64_t& count) {
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(argument));
  if ((type != tensor_type && type != parameter_type) || describe == nullptr) {
    return false;
  }
  if (describe(argument, &t) != 0) {
    PyErr_Clear();
    return false;
  }
  if (t.device.device_type != kDLCPU || (t.ndim > 0 && t.strides == nullptr)) {
    return false;
  }
  count = 1;
  for (int d = 0; d < t.ndim; ++d) {
    count *= t.shape[d];
  }
  return count > 0 && count <= kMost;
}

bool is_dense(const DLTensor& t) {
  std::int64_t expected = 1;
  for (int d = t.ndim - 1; d >= 0; --d) {
    if (t.shape[d] != 1 && t.strides[d] != expected) {
      return false;
    }
    expected *= t.shape[d];
  }
  return true;
}

// Whether the `count` elements fill one run of memory, in whatever order of dimensions.
bool is_compact(const DLTensor& t, std::int64_t count) {
  std::int64_t expected = 1;
  for (int done = 0; done < t.ndim; ++done) {
    bool found = false;
    for (int d = 0; d < t.ndim && !found; ++d) {
      if (t.shape[d] != 1 && t.strides[d] == expected) {
        expected *= t.shape[d];
        found = true;
      }
    }
    if (!found) {
      break;
    }
  }
  return expected == count;
}

// is_near(mean, rstd, far): whether every product of the two is smaller than far; not where one is NaN.
PyObject* is_near(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 3) {
    PyErr_SetString(PyExc_TypeError, "is_near(mean, rstd, far) takes three arguments");
    return nullptr;
  }
  const double far = PyFloat_AsDouble(args[2]);
  if (far == -1.0 && PyErr_Occurred()) {
    return nullptr;
  }
  DLTensor mean, rstd;
  std::int64_t n = 0, m = 0;
  if (!look_at(args[0], mean, n) || !look_at(args[1], rstd, m) || n != m || type_of(mean) != kFloat32 ||
      type_of(rstd) != kFloat32 || !is_dense(mean) || !is_dense(rstd)) {
    Py_RETURN_NONE;
  }
  const float *a = data_of<float>(mean), *b = data_of<float>(rstd);
  const float limit = static_cast<float>(far);
  int beyond = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const float product = a[i] * b[i];
    beyond |= !((product < limit) & (product > -limit));
  }
  return PyBool_FromLong(!beyond);
}

template <typename T, T kExponent>
bool finite_run(const T* p, std::int64_t n) {
  T found = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    found |= static_cast<T>(static_cast<T>(p[i] & kExponent) == kExponent);
  }
  return !found;
}

template <typename T, T kExponent>
bool finite_strided(const DLTensor& t, int d, const T* p, std::int64_t inner, int outer) {
  if (d == outer) {
    return finite_run<T, kExponent>(p, inner);
  }
  for (std::int64_t i = 0; i < t.shape[d]; ++i) {
    if (!finite_strided<T, kExponent>(t, d + 1, p + i * t.strides[d], inner, outer)) {
      return false;
    }
  }
  return true;
}

template <typename T, T kExponent>
bool finite(const DLTensor& t) {
  std::int64_t inner = 1;
  int outer = t.ndim;  // the dimensions from here on are one run
  while (outer > 0 && (t.shape[outer - 1] == 1 || t.strides[outer - 1] == inner)) {
    inner *= t.shape[--outer];
  }
  return finite_strided<T, kExponent>(t, 0, data_of<T>(t), inner, outer);
}

// is_finite(tensor): whether no element is NaN or infinite.
PyObject* is_finite(PyObject*, PyObject* argument) {
  DLTensor t;
  std::int64_t n = 0;
  if (look_at(argument, t, n)) {
    switch (type_of(t) & 0xFFFF) {
      case (32 << 8) | kDLFloat:
        return PyBool_FromLong(finite<std::uint32_t, 0x7F800000u>(t));
      case (16 << 8) | kDLBfloat:
        return PyBool_FromLong(finite<std::uint16_t, 0x7F80u>(t));
      case (16 << 8) | kDLFloat:
        return PyBool_FromLong(finite<std::uint16_t, 0x7C00u>(t));
      default:
        break;
    }
  }
  Py_RETURN_NONE;
}

// bounds(tensor): (lowest, highest, whether one is 0) of float32; (NaN, NaN, ...) where one is NaN.
PyObject* bounds(PyObject*, PyObject* argument) {
  DLTensor t;
  std::int64_t n = 0;
  if (!look_at(argument, t, n) || type_of(t) != kFloat32 || !is_compact(t, n)) {
    Py_RETURN_NONE;
  }
  const float* p = data_of<float>(t);
  float low = p[0], high = p[0];
  int zero = 0, odd = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    low = p[i] < low ? p[i] : low;
    high = p[i] > high ? p[i] : high;
    zero |= p[i] == 0.0f;
    odd |= p[i] != p[i];
  }
  if (odd) {
    low = high = __builtin_nanf("");
  }
  return Py_BuildValue("ddO", static_cast<double>(low), static_cast<double>(high), zero ? Py_True : Py_False);
}

// Whether each row (the last dimension) has an element other than 0 and no NaN.
template <typename T, T kExponent>
bool even_rows(const DLTensor& t, int d, const T* p) {
  constexpr T kSize = static_cast<T>(~T{0}) >> 1;  // all but the sign
  if (d == t.ndim - 1) {
    T found = 0, nan = 0;
    for (std::int64_t i = 0; i < t.shape[d]; ++i) {
      const T size = p[i] & kSize;
      found |= size;
      nan |= static_cast<T>(size > kExponent);
    }
    return found != 0 && nan == 0;
  }
  for (std::int64_t i = 0; i < t.shape[d]; ++i) {
    if (!even_rows<T, kExponent>(t, d + 1, p + i * t.strides[d])) {
      return false;
    }
  }
  return true;
}

// has_no_odd_row(tensor): whether no row of the last dimension is all 0 or has a NaN.
PyObject* has_no_odd_row(PyObject*, PyObject* argument) {
  DLTensor t;
  std::int64_t n = 0;
  if (look_at(argument, t, n) && t.ndim > 0 && (t.shape[t.ndim - 1] == 1 || t.strides[t.ndim - 1] == 1)) {
    switch (type_of(t) & 0xFFFF) {
      case (32 << 8) | kDLFloat:
        return PyBool_FromLong(even_rows<std::uint32_t, 0x7F800000u>(t, 0, data_of<std::uint32_t>(t)));
      case (16 << 8) | kDLBfloat:
        return PyBool_FromLong(even_rows<std::uint16_t, 0x7F80u>(t, 0, data_of<std::uint16_t>(t)));
      case (16 << 8) | kDLFloat:
        return PyBool_FromLong(even_rows<std::uint16_t, 0x7C00u>(t, 0, data_of<std::uint16_t>(t)));
      default:
        break;
    }
  }
  Py_RETURN_NONE;
}
