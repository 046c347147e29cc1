/* A module that makes SIGINT come at the n-th place where the interpreter looks for signals, counted from arm().
 *
 * Places are the ends of the instructions that look (calls, starts of functions, jumps back), in any Python function of this
 * thread, and the returns of C functions: those are between C's return and the assignment of the result. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <frameobject.h>

static long seen, wanted;
static unsigned char looks[256];

static void place(void)
{
	if (++seen == wanted)
		PyErr_SetInterrupt();
}

static int trace(PyObject *self, PyFrameObject *frame, int what, PyObject *arg)
{
	(void)self;
	(void)arg;
	if (what == PyTrace_CALL) {
		if (PyObject_SetAttrString((PyObject *)frame, "f_trace_opcodes", Py_True) < 0 ||
		    PyObject_SetAttrString((PyObject *)frame, "f_trace_lines", Py_False) < 0)
			return -1;
	} else if (what == PyTrace_OPCODE) {
		PyCodeObject *code = PyFrame_GetCode(frame);
		PyObject *bytes = PyCode_GetCode(code);
		int at = PyFrame_GetLasti(frame);

		if (bytes && at >= 0 && at < PyBytes_GET_SIZE(bytes) && looks[(unsigned char)PyBytes_AS_STRING(bytes)[at]])
			place();
		Py_XDECREF(bytes);
		Py_DECREF(code);
	}
	return 0;
}

static int profile(PyObject *self, PyFrameObject *frame, int what, PyObject *arg)
{
	(void)self;
	(void)frame;
	(void)arg;
	if (what == PyTrace_C_RETURN)
		place();
	return 0;
}

static PyObject *arm(PyObject *self, PyObject *args)
{
	const char *codes;
	Py_ssize_t n;

	(void)self;
	if (!PyArg_ParseTuple(args, "ly#", &wanted, &codes, &n))
		return NULL;
	seen = 0;
	memset(looks, 0, sizeof(looks));
	for (Py_ssize_t i = 0; i < n; i++)
		looks[(unsigned char)codes[i]] = 1;
	PyEval_SetTrace(trace, NULL);
	PyEval_SetProfile(profile, NULL);
	Py_RETURN_NONE;
}

static PyObject *disarm(PyObject *self, PyObject *args)
{
	(void)self;
	(void)args;
	PyEval_SetProfile(NULL, NULL);
	PyEval_SetTrace(NULL, NULL);
	return PyLong_FromLong(seen);
}

static PyMethodDef methods[] = {
	{ "arm", arm, METH_VARARGS, NULL },
	{ "disarm", disarm, METH_NOARGS, NULL },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef definition = { PyModuleDef_HEAD_INIT, "interrupt", NULL, -1, methods, NULL, NULL, NULL, NULL };

PyMODINIT_FUNC PyInit_interrupt(void)
{
	return PyModule_Create(&definition);
}
