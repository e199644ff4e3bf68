# cython: language_level=3
"""The reversible 5/3 wavelet (T.800 annex F), one level at a time."""

from libc.stdint cimport int32_t

from radmesh_native._htj2k_layout cimport Rect

cdef void analyse(int32_t *source, int32_t *target, Py_ssize_t stride, const Rect *area) noexcept nogil
cdef void synthesise(
    const int32_t *source, int32_t *target, Py_ssize_t stride, const Rect *area, int32_t *work
) noexcept nogil
