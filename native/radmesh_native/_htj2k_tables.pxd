# cython: language_level=3
"""The tables of T.814, and what the block coders count with."""

from libc.stdint cimport uint8_t, uint32_t


cdef extern from "htj2k_tables.h" nogil:
    ctypedef struct htj2k_vlc_row:
        uint8_t c_q, rho, u_off, e_k, e_1, word, length
    const uint8_t HTJ2K_MEL_EXPONENT[13]
    const htj2k_vlc_row HTJ2K_VLC_FIRST[444]
    const htj2k_vlc_row HTJ2K_VLC_OTHER[358]
    # Bits of x without leading zeros.
    int htj2k_bit_length(uint32_t x)
