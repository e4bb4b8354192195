"""Keeps the stack that a thread's signals run on."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["keeping_signal_stack"]


class _Stack(ctypes.Structure):
    """``stack_t`` of Linux (sigaltstack(2))."""

    _fields_ = [
        ("address", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("size", ctypes.c_size_t),
    ]


@contextmanager
def keeping_signal_stack() -> Iterator[None]:
    """Put this thread's alternate stack for signals back at the end of a ``with`` block.

    OpenVINO's processor plugin brings a stack with it and frees it as it goes
    (openvinotoolkit/openvino, ``SigAltStackSetup`` in ``src/plugins/intel_cpu/src/plugin.cpp``).
    Of two plugins that go in the order in which they came, or in another thread, a stack that is
    gone stays the thread's. Python's handlers run on it: the next Ctrl-C, or the next process of a
    loader that ends, kills the program without a word.
    """
    if sys.platform != "linux":
        yield
        return
    change = ctypes.CDLL(None).sigaltstack
    before = _Stack()
    change(None, ctypes.byref(before))
    try:
        yield
    finally:
        change(ctypes.byref(before), None)
