# cython: language_level=3
"""Which instructions the coders use."""


cdef extern from "htj2k_cpu.h" nogil:
    const char *HTJ2K_PATH_NAMES[4]
    int HTJ2K_PATHS
    int htj2k_path
    int htj2k_choose_path()
    int htj2k_use_path(int path)
