/* libFuzzer as a module: run(arguments, target) calls target(memoryview) for every input and never returns. What it is given
 * is memory of exactly that size, so that AddressSanitizer sees the first byte that is read behind it. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

int LLVMFuzzerRunDriver(int *argc, char ***argv, int (*one)(const uint8_t *data, size_t size));

static PyObject *target;

static int one(const uint8_t *data, size_t size) {
    PyObject *view = PyMemoryView_FromMemory((char *)data, (Py_ssize_t)size, PyBUF_READ);
    PyObject *taken = view ? PyObject_CallOneArg(target, view) : NULL;
    /* Whoever still holds a view of it would read what is no longer there. */
    PyObject *released = taken ? PyObject_CallMethod(view, "release", NULL) : NULL;
    if (released == NULL) {
        PyErr_Print();
        abort();
    }
    Py_DECREF(released);
    Py_DECREF(taken);
    Py_DECREF(view);
    return 0;
}

static PyObject *run(PyObject *module, PyObject *args) {
    PyObject *list;
    static char *strings[256];
    char **argv = strings;
    int argc = 0;
    if (!PyArg_ParseTuple(args, "O!O", &PyList_Type, &list, &target)) return NULL;
    Py_INCREF(target);
    for (; argc < PyList_GET_SIZE(list) && argc < 255; argc++) {
        strings[argc] = (char *)PyUnicode_AsUTF8(PyList_GET_ITEM(list, argc));
        if (strings[argc] == NULL) return NULL;
    }
    Py_INCREF(list);
    exit(LLVMFuzzerRunDriver(&argc, &argv, one));
}

static PyMethodDef methods[] = {{"run", run, METH_VARARGS, "Never returns."}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "fuzz_driver", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_fuzz_driver(void) { return PyModule_Create(&module); }
