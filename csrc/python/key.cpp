// A call's whole key as one bytes object: sgl_kernels._key.builder makes, for one op, the function that makes it.
//
// Reading dtype, device and shape of three tensors through their Python attributes costs 0.9 us; torch's C exchange
// table (DLPack's, in torch 2.10 and later) fills in the same facts for 0.09 us each. The table and the limited
// Python API are both stable, so one build serves several releases of torch and of Python.
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#include <ATen/dlpack.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr int kCapacity = 256;  // words: 28 tensors of 8 dimensions
constexpr int kHead = 2;        // the op, and the ambient state

DLPackDLTensorFromPyObjectNoSync describe = nullptr;
PyObject* is_grad_enabled = nullptr;
PyObject* is_any_autocast_enabled = nullptr;
PyObject* requires_grad = nullptr;     // the property of torch.Tensor, and what reads it: looking the name up in the
descrgetfunc read_property = nullptr;  // class each time takes twice as long
PyObject* tensor_type = nullptr;       // what is of another type has rules of its own
PyObject* parameter_type = nullptr;
PyObject* forward_ad = nullptr;  // the variables of torch.autograd.forward_ad, which holds its level in one
PyObject* level_name = nullptr;
PyObject* no_level = nullptr;     // -1: outside
PyObject* autocast_of = nullptr;  // first argument -> a number for what autocast does to it

enum Found { kPlain, kOdd, kFailed };  // kOdd: the Python form of the key decides; kFailed: an exception is set

struct Words {
  std::int64_t at[kCapacity];
  int used = kHead;

  bool room(std::int64_t n) const { return used + n <= kCapacity; }
};

Found odd() {
  PyErr_Clear();
  return kOdd;
}

Found append_tensor(PyObject* argument, bool strided, Words& words) {
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(argument));
  DLTensor t;
  if (type != tensor_type && type != parameter_type) {
    return kOdd;
  }
  if (describe(argument, &t) != 0) {  // without memory of its own: meta, nested, sparse, inside vmap or grad
    return odd();
  }
  if (!words.room(2 + t.ndim * (strided ? 2 : 1))) {
    return kOdd;
  }
  std::int64_t* out = words.at + words.used;
  *out++ = (std::int64_t{t.device.device_type} << 32) | static_cast<std::uint32_t>(t.device.device_id);
  *out++ = (std::int64_t{t.ndim} << 32) | (std::int64_t{t.dtype.lanes} << 16) | (t.dtype.bits << 8) | t.dtype.code;
  for (int d = 0; d < t.ndim; ++d) {
    *out++ = t.shape[d];
  }
  if (strided) {
    if (t.strides == nullptr && t.ndim > 0) {
      return kOdd;
    }
    for (int d = 0; d < t.ndim; ++d) {
      *out++ = t.strides[d];
    }
  }
  words.used = static_cast<int>(out - words.at);
  return kPlain;
}

// A number, a flag, a text or None, by type and value.
Found append_value(PyObject* argument, Words& words) {
  if (!words.room(2)) {
    return kOdd;
  }
  std::int64_t* out = words.at + words.used;
  if (argument == Py_None) {
    *out = -1;
    words.used += 1;
  } else if (argument == Py_True || argument == Py_False) {
    *out = argument == Py_True ? -2 : -3;
    words.used += 1;
  } else if (PyFloat_Check(argument)) {
    const double value = PyFloat_AsDouble(argument);
    out[0] = -4;
    std::memcpy(out + 1, &value, sizeof value);
    words.used += 2;
  } else if (PyLong_Check(argument)) {
    const long long value = PyLong_AsLongLong(argument);
    if (value == -1 && PyErr_Occurred()) {
      return odd();
    }
    out[0] = -5;
    out[1] = value;
    words.used += 2;
  } else if (PyUnicode_Check(argument)) {
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(argument, &size);
    if (text == nullptr) {
      return odd();
    }
    const Py_ssize_t filled = (size + 7) / 8;
    if (!words.room(1 + filled)) {
      return kOdd;
    }
    out[0] = -6 - (std::int64_t{size} << 8);
    if (filled > 0) {
      out[filled] = 0;
      std::memcpy(out + 1, text, size);
    }
    words.used += 1 + static_cast<int>(filled);
  } else {
    return kOdd;
  }
  return kPlain;
}

// Whether a function without arguments answers True; -1 for an exception.
int asked(PyObject* function) {
  PyObject* answer = PyObject_CallNoArgs(function);
  if (answer == nullptr) {
    return -1;
  }
  Py_DECREF(answer);
  return answer == Py_True;
}

// Whether a level of forward-mode differentiation is open, so that any tensor may carry a tangent.
bool is_forward() {
  PyObject* level = PyDict_GetItemWithError(forward_ad, level_name);  // borrowed
  if (level == nullptr) {
    PyErr_Clear();
    return true;  // another torch: the Python form knows
  }
  return level != no_level;
}

Found autocast_word(PyObject* first, std::int64_t& word) {
  PyObject* number = PyObject_CallFunctionObjArgs(autocast_of, first, nullptr);
  if (number == nullptr) {
    return odd();
  }
  word = PyLong_AsLongLong(number);
  Py_DECREF(number);
  return word == -1 && PyErr_Occurred() ? odd() : kPlain;
}

Found collect(const char* kinds, Py_ssize_t count, PyObject* backend, PyObject* arguments, Words& words) {
  if (!PyTuple_Check(arguments) || PyTuple_Size(arguments) != count || is_forward()) {
    return kOdd;
  }
  const int watched = asked(is_grad_enabled);
  const int autocast = asked(is_any_autocast_enabled);
  if (watched < 0 || autocast < 0) {
    return kFailed;
  }
  Found found = append_value(backend, words);
  bool grad = false;
  for (Py_ssize_t i = 0; i < count && found == kPlain; ++i) {
    PyObject* argument = PyTuple_GetItem(arguments, i);
    if (kinds[i] == 'v' || argument == Py_None) {
      found = append_value(argument, words);
      continue;
    }
    found = append_tensor(argument, kinds[i] == 's', words);
    if (found == kPlain && watched == 1 && !grad) {
      PyObject* flag = read_property(requires_grad, argument, nullptr);
      if (flag == nullptr) {
        return kFailed;
      }
      grad = flag == Py_True;
      Py_DECREF(flag);
    }
  }
  if (found == kPlain && autocast == 1) {
    found = autocast_word(PyTuple_GetItem(arguments, 0), words.at[1]);
  }
  words.at[1] = (words.at[1] << 1) | static_cast<int>(grad);
  return found;
}

// key(backend, arguments): everything that decides the call. `self` is (number of the op, kinds, Python form).
PyObject* key(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "key(backend, arguments) takes two arguments");
    return nullptr;
  }
  PyObject* blob = PyTuple_GetItem(self, 0);  // the number, then a character for each argument
  const char* spec = PyBytes_AsString(blob);
  Words words;
  std::memcpy(words.at, spec, sizeof(std::int64_t));
  words.at[1] = 0;
  switch (collect(spec + sizeof(std::int64_t), PyBytes_Size(blob) - sizeof(std::int64_t), args[0], args[1], words)) {
    case kFailed:
      return nullptr;
    case kOdd:
      return PyObject_CallFunctionObjArgs(PyTuple_GetItem(self, 1), args[0], args[1], nullptr);
    case kPlain:
      break;
  }
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(words.at), words.used * sizeof(std::int64_t));
}

PyMethodDef key_method = {"key", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(key)), METH_FASTCALL,
                          "key(backend, arguments) -> bytes, or what the Python form of it answers"};

// builder(number, kinds, slow): the function `key` of one op. kinds has a character for each argument: t a tensor or
// None, s the same and its strides count, v a value.
PyObject* builder(PyObject*, PyObject* args) {
  long long number = 0;
  const char* kinds = nullptr;
  PyObject* slow = nullptr;
  if (!PyArg_ParseTuple(args, "LsO", &number, &kinds, &slow)) {
    return nullptr;
  }
  if (describe == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "sgl_kernels._key: call connect() first");
    return nullptr;
  }
  const std::int64_t head = number;
  const std::size_t length = std::strlen(kinds);
  PyObject* blob = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(sizeof head + length));
  if (blob == nullptr) {
    return nullptr;
  }
  std::memcpy(PyBytes_AsString(blob), &head, sizeof head);
  std::memcpy(PyBytes_AsString(blob) + sizeof head, kinds, length);
  PyObject* self = PyTuple_Pack(2, blob, slow);
  Py_DECREF(blob);
  if (self == nullptr) {
    return nullptr;
  }
  PyObject* made = PyCFunction_NewEx(&key_method, self, nullptr);
  Py_DECREF(self);
  return made;
}

// is_plain(*tensors): whether each is None or a strided torch.Tensor with memory, outside of every transform.
PyObject* is_plain(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (describe == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "sgl_kernels._key: call connect() first");
    return nullptr;
  }
  bool plain = !is_forward();
  for (Py_ssize_t i = 0; i < count && plain; ++i) {
    if (args[i] != Py_None) {
      Words words;
      plain = append_tensor(args[i], false, words) == kPlain;
    }
  }
  return PyBool_FromLong(plain);
}

#include "looks.h"

// connect(table, is_grad_enabled, is_any_autocast_enabled, requires_grad, Tensor, Parameter, forward_ad, autocast_of)
PyObject* connect(PyObject*, PyObject* args) {
  PyObject *capsule, *grad, *autocast, *property, *tensor, *parameter, *variables, *cast;
  if (!PyArg_ParseTuple(args, "OOOOOOO!O", &capsule, &grad, &autocast, &property, &tensor, &parameter, &PyDict_Type,
                        &variables, &cast)) {
    return nullptr;
  }
  auto* table = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  if (table == nullptr) {
    return nullptr;
  }
  if (table->header.version.major != DLPACK_MAJOR_VERSION || table->dltensor_from_py_object_no_sync == nullptr) {
    PyErr_SetString(PyExc_ImportError, "torch's exchange table is of another version");
    return nullptr;
  }
  auto reader = reinterpret_cast<descrgetfunc>(PyType_GetSlot(Py_TYPE(property), Py_tp_descr_get));
  if (reader == nullptr) {
    PyErr_SetString(PyExc_ImportError, "torch.Tensor.requires_grad is no property");
    return nullptr;
  }
  // Kept for the life of the process, as the module is.
  is_grad_enabled = Py_NewRef(grad);
  is_any_autocast_enabled = Py_NewRef(autocast);
  requires_grad = Py_NewRef(property);
  read_property = reader;
  tensor_type = Py_NewRef(tensor);
  parameter_type = Py_NewRef(parameter);
  forward_ad = Py_NewRef(variables);
  level_name = PyUnicode_InternFromString("_current_level");
  no_level = PyLong_FromLong(-1);
  autocast_of = Py_NewRef(cast);
  describe = table->dltensor_from_py_object_no_sync;
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"builder", builder, METH_VARARGS, "builder(number, kinds, slow) -> key(backend, arguments)"},
    {"is_plain", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(is_plain)), METH_FASTCALL,
     "is_plain(*tensors) -> bool"},
    {"is_near", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(is_near)), METH_FASTCALL,
     "is_near(mean, rstd, far) -> bool, or None: ask torch"},
    {"is_finite", is_finite, METH_O, "is_finite(tensor) -> bool, or None: ask torch"},
    {"has_no_odd_row", has_no_odd_row, METH_O, "has_no_odd_row(tensor) -> bool, or None: ask torch"},
    {"bounds", bounds, METH_O, "bounds(tensor) -> (lowest, highest, whether one is 0), or None: ask torch"},
    {"connect", connect, METH_VARARGS,
     "connect(table, is_grad_enabled, is_any_autocast_enabled, requires_grad, Tensor, Parameter, forward_ad, "
     "autocast_of)"},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "sgl_kernels._key", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__key() { return PyModule_Create(&definition); }
