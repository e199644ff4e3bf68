# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Scans the head of a data set (PS3.5 7) for wanted top-level elements, up to group 0028, as it comes in."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

cdef enum:
    IMPLICIT = 0
    EXPLICIT = 1
    BIG_ENDIAN = 2
    MAX_DEPTH = 64
    MAX_FOUND = 512
    MAX_REMARKS = 32
    MAX_VALUE = 16384
    MAX_BLOB = 262144
    # What is read of one element
    OK = 0
    MORE = 1
    TRUNCATED = 2
    BAD_VR = 3
    TOO_DEEP = 4
    BROKEN_SEQUENCE = 5
    UNDEFINED = 0xFFFFFFFF
    ITEM = 0xFFFEE000
    ITEM_END = 0xFFFEE00D
    SEQUENCE_END = 0xFFFEE0DD
    LAST_WANTED = 0x0028FFFF

_KINDS = {
    TRUNCATED: "DATA_SET_TRUNCATED",
    BAD_VR: "BAD_VR",
    TOO_DEEP: "DATA_SET_UNREADABLE",
    BROKEN_SEQUENCE: "DATA_SET_UNREADABLE",
}

cdef struct Element:
    uint32_t tag
    uint16_t vr
    uint32_t length
    size_t value
    size_t end
    bint guessed


cdef inline uint16_t vr_code(uint8_t a, uint8_t b) noexcept nogil:
    return <uint16_t> (a << 8 | b)


cdef int vr_form(uint16_t vr) noexcept nogil:
    """2: length of 16 bits, 4: reserved and length of 32 bits, 0: no VR of the standard (PS3.5 table 7.1-1, 7.1-2)."""
    cdef uint8_t a = vr >> 8
    cdef uint8_t b = vr & 0xFF
    if a == b"O":
        return 4 if b in (b"B", b"D", b"F", b"L", b"V", b"W") else 0
    if a == b"U":
        if b in (b"C", b"N", b"R", b"T", b"V"):
            return 4
        return 2 if b in (b"I", b"L", b"S") else 0
    if a == b"S":
        if b in (b"Q", b"V"):
            return 4
        return 2 if b in (b"H", b"L", b"S", b"T") else 0
    if a == b"A":
        return 2 if b in (b"E", b"S", b"T") else 0
    if a == b"D":
        return 2 if b in (b"A", b"S", b"T") else 0
    if a == b"F":
        return 2 if b in (b"D", b"L") else 0
    if a == b"L":
        return 2 if b in (b"O", b"T") else 0
    if a == b"C":
        return 2 if b == b"S" else 0
    if a == b"I":
        return 2 if b == b"S" else 0
    if a == b"P":
        return 2 if b == b"N" else 0
    if a == b"T":
        return 2 if b == b"M" else 0
    return 0


cdef class Scanner:
    cdef int encoding
    cdef uint8_t *data
    cdef size_t length, capacity, limit, retry_at
    cdef readonly size_t position
    cdef Element *found
    cdef int found_count
    cdef uint32_t *wanted
    cdef int wanted_count
    cdef uint32_t last_tag
    cdef int failed
    cdef uint32_t failed_tag
    cdef size_t failed_offset
    cdef bint started
    cdef readonly bint complete
    cdef dict vrs
    cdef readonly list remarks

    def __cinit__(self, int encoding, dict wanted not None, *, size_t limit=4194304):
        cdef int k = 0
        if encoding not in (IMPLICIT, EXPLICIT, BIG_ENDIAN):
            raise ValueError("encoding")
        self.encoding = encoding
        self.limit = limit
        self.vrs = wanted
        self.remarks = []
        self.wanted_count = len(wanted)
        self.wanted = <uint32_t *> malloc(sizeof(uint32_t) * (self.wanted_count + 1))
        self.found = <Element *> malloc(sizeof(Element) * MAX_FOUND)
        if self.wanted == NULL or self.found == NULL:
            raise MemoryError
        for tag in sorted(wanted):
            self.wanted[k] = tag
            k += 1

    def __dealloc__(self):
        free(self.data)
        free(self.found)
        free(self.wanted)

    # -- bytes ------------------------------------------------------------------------------------------------------------

    cdef inline uint16_t u16(self, size_t i) noexcept nogil:
        cdef const uint8_t *p = self.data + i
        if self.encoding == BIG_ENDIAN:
            return <uint16_t> (p[0] << 8 | p[1])
        return <uint16_t> (p[0] | p[1] << 8)

    cdef inline uint32_t u32(self, size_t i) noexcept nogil:
        if self.encoding == BIG_ENDIAN:
            return (<uint32_t> self.u16(i) << 16) | self.u16(i + 2)
        return (<uint32_t> self.u16(i + 2) << 16) | self.u16(i)

    cdef inline uint32_t tag_at(self, size_t i) noexcept nogil:
        return (<uint32_t> self.u16(i) << 16) | self.u16(i + 2)

    cdef int plausible(self, size_t end, uint32_t tag, bint final) noexcept nogil:
        """Whether an element that ends at `end` leads to another: 1 yes, 0 no, -1 cannot be seen yet."""
        cdef uint32_t following
        if end > self.length:
            return 0 if final or end > self.limit else -1
        if end == self.length and final:
            return 1
        if end + 4 > self.length:
            return 0 if final else -1
        following = self.tag_at(end)
        return following > tag and (following >> 16) - (tag >> 16) < 0x7FE0

    # -- elements ---------------------------------------------------------------------------------------------------------

    cdef int read(self, size_t i, bint implicit, bint final, Element *e) noexcept nogil:
        """Read the element at i (its header; a value of undefined length is left to the caller)."""
        cdef int form, seen
        cdef size_t short_end, long_end
        e.guessed = False
        if i + 8 > self.length:
            return TRUNCATED if final else MORE
        e.tag = self.tag_at(i)
        if implicit or e.tag >> 16 == 0xFFFE:
            e.vr = 0
            e.length = self.u32(i + 4)
            e.value = i + 8
        else:
            e.vr = vr_code(self.data[i + 4], self.data[i + 5])
            form = vr_form(e.vr)
            if form == 2:
                e.length = self.u16(i + 6)
                e.value = i + 8
            elif form == 4:
                if i + 12 > self.length:
                    return TRUNCATED if final else MORE
                e.length = self.u32(i + 8)
                e.value = i + 12
            else:
                # No VR of the standard. Writers that forget it write the implicit form; others a code of their own.
                e.guessed = True
                e.vr = 0
                e.length = self.u32(i + 4)
                e.value = i + 8
                seen = self.plausible(e.value + e.length, e.tag, final) if e.length != UNDEFINED else 0
                if seen == 0:
                    e.length = self.u16(i + 6)
                    seen = self.plausible(e.value + e.length, e.tag, final)
                if seen == 0:
                    if i + 12 > self.length:
                        return BAD_VR if final else MORE
                    e.length = self.u32(i + 8)
                    e.value = i + 12
                    seen = self.plausible(e.value + e.length, e.tag, final)
                if seen < 0:
                    return MORE
                if seen == 0:
                    return BAD_VR
        e.end = e.value + e.length
        return OK

    cdef int skip_sequence(self, size_t i, bint implicit, bint final, size_t *end) noexcept nogil:
        """Walk a sequence of undefined length whose first item is at i; without recursion, MAX_DEPTH deep at most."""
        # What is open: 0 a sequence, 1 an item; and whether what is in it has implicit VR.
        cdef uint8_t open_item[MAX_DEPTH]
        cdef uint8_t open_implicit[MAX_DEPTH]
        cdef int depth = 1
        cdef Element e
        cdef int state
        cdef bint inner
        open_item[0] = 0
        open_implicit[0] = implicit
        while depth:
            inner = open_implicit[depth - 1]
            state = self.read(i, inner, final, &e)
            if state != OK:
                return state
            if not open_item[depth - 1]:
                if e.tag == SEQUENCE_END:
                    depth -= 1
                    i = e.value
                elif e.tag == ITEM:
                    if e.length != UNDEFINED:
                        i = e.end
                        if i > self.length:
                            return TRUNCATED if final else MORE
                    else:
                        if depth == MAX_DEPTH:
                            return TOO_DEEP
                        open_item[depth] = 1
                        open_implicit[depth] = inner
                        depth += 1
                        i = e.value
                else:
                    return BROKEN_SEQUENCE
            elif e.tag == ITEM_END:
                depth -= 1
                i = e.value
            elif e.length == UNDEFINED:
                if depth == MAX_DEPTH:
                    return TOO_DEEP
                open_item[depth] = 0
                # UN of undefined length holds Implicit VR Little Endian (PS3.5 6.2.2 note 2).
                open_implicit[depth] = inner or e.vr == vr_code(b"U", b"N")
                depth += 1
                i = e.value
            else:
                i = e.end
                if i > self.length:
                    return TRUNCATED if final else MORE
        end[0] = i
        return OK

    cdef bint is_wanted(self, uint32_t tag) noexcept nogil:
        cdef int low = 0
        cdef int high = self.wanted_count
        cdef int middle
        while low < high:
            middle = (low + high) // 2
            if self.wanted[middle] < tag:
                low = middle + 1
            else:
                high = middle
        return low < self.wanted_count and self.wanted[low] == tag

    cdef int guess_encoding(self) noexcept nogil:
        """Compare the first element with the declared encoding; return 1 if it was changed."""
        cdef uint16_t vr = vr_code(self.data[4], self.data[5])
        cdef bint explicit = vr_form(vr) != 0
        if self.encoding == EXPLICIT and not explicit and self.u32(4) < 65536:
            self.encoding = IMPLICIT
            return 1
        # As a length in Implicit VR these two letters would mean half a megabyte and more for a first element.
        if self.encoding == IMPLICIT and explicit and self.u32(4) > 65536:
            self.encoding = EXPLICIT
            return 1
        return 0

    cdef int scan(self, bint final, uint32_t *remark_tag) noexcept nogil:
        """Go on; 0 more is needed, 1 complete, 2 failed, 3 a remark on remark_tag: an element without a VR, 4: out of order,
        5: declared with another encoding."""
        cdef Element e
        cdef int state
        if not self.started:
            if self.length < 8:
                if not final:
                    return 0
            elif self.guess_encoding():
                self.started = True
                return 5
            self.started = True
        while True:
            if self.position == self.length and final:
                return 1
            if self.length - self.position >= 4 and self.tag_at(self.position) > LAST_WANTED:
                return 1
            state = self.read(self.position, self.encoding == IMPLICIT, final, &e)
            if state == OK and e.length == UNDEFINED:
                state = self.skip_sequence(
                    e.value, self.encoding == IMPLICIT or e.vr == vr_code(b"U", b"N"), final, &e.end
                )
            elif state == OK and e.end > self.length:
                state = TRUNCATED if final else MORE
            if state == MORE:
                return 0
            if state != OK:
                self.failed = state
                self.failed_tag = self.tag_at(self.position) if self.length - self.position >= 4 else self.last_tag
                self.failed_offset = self.position
                return 2
            if e.length != UNDEFINED and self.found_count < MAX_FOUND and self.is_wanted(e.tag):
                self.found[self.found_count] = e
                self.found_count += 1
            self.position = e.end
            remark_tag[0] = e.tag
            if e.guessed:
                self.last_tag = e.tag
                return 3
            if e.tag <= self.last_tag and self.last_tag:
                self.last_tag = e.tag
                return 4
            self.last_tag = e.tag

    cdef int run(self, bint final):
        cdef int outcome
        cdef uint32_t tag = 0
        while True:
            with nogil:
                outcome = self.scan(final, &tag)
            if outcome >= 3:
                name = {3: "BAD_VR", 4: "ORDER", 5: "VR_DECLARED_OTHER"}[outcome]
                if len(self.remarks) < MAX_REMARKS:
                    self.remarks.append(name if outcome == 5 else f"{name} {tag >> 16:04X},{tag & 0xFFFF:04X}")
                continue
            if outcome:
                self.complete = True
            return outcome

    # -- for Python -------------------------------------------------------------------------------------------------------

    def feed(self, bytes chunk not None):
        cdef size_t n = PyBytes_GET_SIZE(chunk)
        cdef size_t size
        cdef uint8_t *bigger
        if self.complete:
            return True
        if n > self.limit - self.length:
            n = self.limit - self.length
        if self.length + n > self.capacity:
            size = self.length + n if self.length == 0 else (self.length + n) * 2
            bigger = <uint8_t *> realloc(self.data, size)
            if bigger == NULL:
                raise MemoryError
            self.data = bigger
            self.capacity = size
        memcpy(self.data + self.length, PyBytes_AS_STRING(chunk), n)
        self.length += n
        # A long sequence is walked from its start each time: only when a good deal has come is that worth it.
        if self.length < self.retry_at and self.length < self.limit:
            return False
        if self.run(False) == 0:
            self.retry_at = self.length + (self.length - self.position) // 2
            if self.length >= self.limit:
                self.failed = BROKEN_SEQUENCE
                self.failed_tag = self.tag_at(self.position) if self.length - self.position >= 4 else 0
                self.failed_offset = self.position
                self.complete = True
        return self.complete

    def finish(self):
        if not self.complete:
            self.run(True)

    @property
    def error(self):
        if not self.failed:
            return None
        tag = self.failed_tag
        return _KINDS[self.failed], f"{tag >> 16:04X},{tag & 0xFFFF:04X}", self.failed_offset

    def value(self, uint32_t tag):
        cdef int k
        for k in range(self.found_count):
            if self.found[k].tag == tag:
                return PyBytes_FromStringAndSize(<char *> self.data + self.found[k].value, self.found[k].length)
        return None

    def header(self):
        cdef list order = sorted(range(self.found_count), key=self._tag_of)
        cdef list parts = []
        cdef Element *e
        cdef uint32_t last = 0
        cdef size_t total = 0
        cdef bytes vr
        cdef bytes value
        cdef uint16_t code
        for k in order:
            e = &self.found[<int> k]
            if e.tag == last:
                continue
            last = e.tag
            code = e.vr
            vr = self.vrs[e.tag]
            if code and code != vr_code(b"U", b"N"):
                vr = bytes((code >> 8, code & 0xFF))
            if e.length > MAX_VALUE or total + e.length + 12 > MAX_BLOB:
                self.remarks.append(f"VALUE_TOO_LONG {e.tag >> 16:04X},{e.tag & 0xFFFF:04X}")
                continue
            value = PyBytes_FromStringAndSize(<char *> self.data + e.value, e.length)
            if self.encoding == BIG_ENDIAN:
                value = _swap(value, vr)
            parts.append((e.tag >> 16).to_bytes(2, "little") + (e.tag & 0xFFFF).to_bytes(2, "little") + vr)
            if vr_form(vr_code(vr[0], vr[1])) == 2:
                parts.append(len(value).to_bytes(2, "little"))
            else:
                parts.append(b"\0\0" + len(value).to_bytes(4, "little"))
            parts.append(value)
            total += 12 + len(value)
        return b"".join(parts)

    def _tag_of(self, int k):
        return self.found[k].tag


cdef bytes _swap(bytes value, bytes vr):
    cdef int size = {b"US": 2, b"SS": 2, b"AT": 2, b"OW": 2, b"UL": 4, b"SL": 4, b"FL": 4, b"FD": 8}.get(vr, 1)
    if size == 1 or len(value) % size:
        return value
    return b"".join([value[i:i + size][::-1] for i in range(0, len(value), size)])


def split_header(bytes header not None):
    """Queryable header (Explicit VR Little Endian, no undefined lengths) to {tag: (vr, value)}."""
    cdef const uint8_t *p = <const uint8_t *> PyBytes_AS_STRING(header)
    cdef size_t n = PyBytes_GET_SIZE(header)
    cdef size_t i = 0
    cdef uint32_t tag, length
    cdef int form
    cdef dict out = {}
    while i < n:
        if n - i < 8:
            raise ValueError("the header ends inside an element")
        tag = (<uint32_t> (p[i] | p[i + 1] << 8) << 16) | (p[i + 2] | p[i + 3] << 8)
        form = vr_form(vr_code(p[i + 4], p[i + 5]))
        if form == 2:
            length = p[i + 6] | p[i + 7] << 8
            vr = header[i + 4:i + 6]
            i += 8
        elif form == 4:
            if n - i < 12:
                raise ValueError("the header ends inside an element")
            length = p[i + 8] | (<uint32_t> p[i + 9] << 8) | (<uint32_t> p[i + 10] << 16) | (<uint32_t> p[i + 11] << 24)
            vr = header[i + 4:i + 6]
            i += 12
        else:
            raise ValueError("the header has an element without a VR")
        if length > n - i:
            raise ValueError("the header ends inside an element")
        out[tag] = (vr, header[i:i + length])
        i += length
    return out
