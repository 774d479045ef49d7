// The part of a call's key that tensors contribute, as one bytes object: sgl_kernels._key.fingerprint.
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

DLPackDLTensorFromPyObjectNoSync describe = nullptr;
PyObject* fallback = nullptr;       // does the same through attributes, for what the table does not take
PyObject* is_grad_enabled = nullptr;
PyObject* is_any_autocast_enabled = nullptr;
PyObject* requires_grad = nullptr;  // the property of torch.Tensor, and what reads it: looking the name up in the
descrgetfunc read_property = nullptr;  // class each time takes twice as long

// Appends what is known of one argument; false when the table does not take it.
bool append(PyObject* argument, std::int64_t* words, int& used) {
  if (argument == Py_None) {
    words[used++] = -1;
    return true;
  }
  DLTensor t;
  if (describe(argument, &t) != 0) {
    PyErr_Clear();
    return false;
  }
  if (used + t.ndim + 2 > kCapacity) {
    return false;
  }
  words[used++] = (std::int64_t{t.device.device_type} << 32) | static_cast<std::uint32_t>(t.device.device_id);
  words[used++] = (std::int64_t{t.ndim} << 32) | (std::int64_t{t.dtype.lanes} << 16) | (t.dtype.bits << 8) | t.dtype.code;
  for (int d = 0; d < t.ndim; ++d) {
    words[used++] = t.shape[d];
  }
  return true;
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

PyObject* through_fallback(PyObject* const* args, Py_ssize_t count) {
  PyObject* packed = PyTuple_New(count);
  if (packed == nullptr) {
    return nullptr;
  }
  for (Py_ssize_t i = 0; i < count; ++i) {
    Py_INCREF(args[i]);
    PyTuple_SetItem(packed, i, args[i]);
  }
  PyObject* slow = PyObject_CallObject(fallback, packed);
  Py_DECREF(packed);
  return slow;
}

// fingerprint(*tensors): dtype, device and shape of each tensor or None; whether autograd will ask one of them for
// a gradient; whether autocast is on.
PyObject* fingerprint(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (describe == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "sgl_kernels._key: call connect() first");
    return nullptr;
  }
  const int watched = asked(is_grad_enabled);
  const int autocast = asked(is_any_autocast_enabled);
  if (watched < 0 || autocast < 0) {
    return nullptr;
  }
  std::int64_t words[kCapacity];
  int used = 1;
  bool grad = false;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!append(args[i], words, used)) {
      return through_fallback(args, count);
    }
    if (watched == 1 && !grad && args[i] != Py_None) {
      PyObject* flag = read_property(requires_grad, args[i], nullptr);
      if (flag == nullptr) {
        return nullptr;
      }
      grad = flag == Py_True;
      Py_DECREF(flag);
    }
  }
  words[0] = (autocast << 1) | static_cast<int>(grad);
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(words), used * sizeof(std::int64_t));
}

// connect(table, fallback, is_grad_enabled, is_any_autocast_enabled, requires_grad): torch.Tensor's exchange table,
// what to call for arguments that it does not take, torch's two questions, and the property of torch.Tensor.
PyObject* connect(PyObject*, PyObject* args) {
  PyObject *capsule, *slow, *grad, *autocast, *property;
  if (!PyArg_ParseTuple(args, "OOOOO", &capsule, &slow, &grad, &autocast, &property)) {
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
  fallback = Py_NewRef(slow);
  is_grad_enabled = Py_NewRef(grad);
  is_any_autocast_enabled = Py_NewRef(autocast);
  requires_grad = Py_NewRef(property);
  read_property = reader;
  describe = table->dltensor_from_py_object_no_sync;
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"fingerprint", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(fingerprint)), METH_FASTCALL,
     "fingerprint(*tensors) -> bytes"},
    {"connect", connect, METH_VARARGS, "connect(table, fallback, is_grad_enabled, is_any_autocast_enabled, requires_grad)"},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "sgl_kernels._key", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__key() { return PyModule_Create(&definition); }
