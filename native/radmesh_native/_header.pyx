# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Scans the head of a data set (PS3.5 7) for wanted top-level elements, up to group 0028, as it comes in."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

cdef enum:
    IMPLICIT = 0
    EXPLICIT = 1
    BIG_ENDIAN = 2
    MAX_DEPTH = 64
    MAX_REMARKS = 32
    MAX_VALUE = 16384
    MAX_HEADER = 262144
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
    # Remarks
    NO_VR = 0
    OUT_OF_ORDER = 1
    OTHER_ENCODING = 2
    TOO_LONG = 3

_REMARKS = {NO_VR: "BAD_VR", OUT_OF_ORDER: "ORDER", OTHER_ENCODING: "VR_DECLARED_OTHER", TOO_LONG: "VALUE_TOO_LONG"}
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
    # Of a found one: the VR it has in the header, and whether it is in it
    uint16_t header_vr
    bint left_out

cdef struct Remark:
    int kind
    uint32_t tag


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


cdef int number_size(uint16_t vr) noexcept nogil:
    """Bytes of the numbers that a value is made of; 1 where it is made of bytes."""
    cdef uint8_t a = vr >> 8
    cdef uint8_t b = vr & 0xFF
    if b == b"S" and (a == b"U" or a == b"S"):
        return 2
    if vr == vr_code(b"A", b"T") or vr == vr_code(b"O", b"W"):
        return 2
    if (a == b"O" or a == b"F" or a == b"S" or a == b"U") and b == b"L" or b == b"F" and a == b"O":
        return 4
    if b == b"D" and (a == b"F" or a == b"O") or b == b"V" and (a == b"O" or a == b"S" or a == b"U"):
        return 8
    return 1


cdef class Tags:
    """Which elements, in order, with the VR of each: {tag: VR}. Made once for many scans."""

    cdef uint32_t *tags
    cdef uint16_t *vrs
    cdef int count

    def __cinit__(self, dict wanted not None):
        cdef bytes vr
        self.tags = <uint32_t *> malloc(sizeof(uint32_t) * (len(wanted) + 1))
        self.vrs = <uint16_t *> malloc(sizeof(uint16_t) * (len(wanted) + 1))
        if self.tags == NULL or self.vrs == NULL:
            raise MemoryError
        for tag in sorted(wanted):
            vr = wanted[tag]
            if len(vr) != 2 or not vr_form(vr_code(vr[0], vr[1])):
                raise ValueError("wanted: a VR of the standard for each tag")
            self.tags[self.count] = tag
            self.vrs[self.count] = vr_code(vr[0], vr[1])
            self.count += 1

    def __dealloc__(self):
        free(self.tags)
        free(self.vrs)

    cdef int index_of(self, uint32_t tag) noexcept nogil:
        """Index of a tag, or -1."""
        cdef int low = 0
        cdef int high = self.count
        cdef int middle
        while low < high:
            middle = (low + high) // 2
            if self.tags[middle] < tag:
                low = middle + 1
            else:
                high = middle
        return low if low < self.count and self.tags[low] == tag else -1

    def of(self, bytes header not None):
        """A queryable header with these elements alone."""
        cdef const uint8_t *p = <const uint8_t *> PyBytes_AS_STRING(header)
        cdef size_t n = PyBytes_GET_SIZE(header)
        cdef size_t i = 0
        cdef size_t k = 0
        cdef Element e
        cdef bytes out = PyBytes_FromStringAndSize(NULL, n)
        cdef uint8_t *q = <uint8_t *> PyBytes_AS_STRING(out)
        while i < n:
            next_element(p, i, n, &e)
            if self.index_of(e.tag) >= 0:
                memcpy(q + k, p + i, e.end - i)
                k += e.end - i
            i = e.end
        return out[:k]


cdef class Scanner:
    cdef int encoding
    cdef uint8_t *data
    cdef size_t length, capacity, limit, retry_at
    cdef readonly size_t position
    # In order of tags, each once: the first of several counts.
    cdef Element *found
    cdef int found_count
    cdef size_t header_size
    cdef Tags wanted
    cdef uint32_t last_tag
    cdef int failed
    cdef uint32_t failed_tag
    cdef size_t failed_offset
    cdef Remark marks[MAX_REMARKS]
    cdef int mark_count
    cdef bint started
    cdef readonly bint complete

    def __cinit__(self, int encoding, wanted not None, *, size_t limit=4194304):
        if encoding not in (IMPLICIT, EXPLICIT, BIG_ENDIAN):
            raise ValueError("encoding")
        self.encoding = encoding
        self.limit = limit
        self.wanted = wanted if isinstance(wanted, Tags) else Tags(wanted)
        self.found = <Element *> malloc(sizeof(Element) * (self.wanted.count + 1))
        if self.found == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.data)
        free(self.found)

    # Bytes

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

    cdef int begins_sequence(self, size_t i, bint final) noexcept nogil:
        """Whether what a sequence begins with is at i, an item or its end: 1 yes, 0 no, -1 cannot be seen yet."""
        if i + 4 > self.length:
            return 0 if final else -1
        return self.tag_at(i) == ITEM or self.tag_at(i) == SEQUENCE_END

    cdef int plausible(self, size_t end, uint32_t tag, bint with_vr, bint nested, bint final) noexcept nogil:
        """Whether an element that ends at `end` leads to another (`with_vr`: with a VR): 1 yes, 0 no, -1 unseen yet."""
        cdef uint32_t following
        if end > self.length:
            return 0 if final or end > self.limit else -1
        if end == self.length and final:
            return 1
        if end + 6 > self.length:
            return 0 if final else -1
        following = self.tag_at(end)
        if nested and (following == ITEM or following == ITEM_END or following == SEQUENCE_END):
            return 1
        if with_vr and vr_form(vr_code(self.data[end + 4], self.data[end + 5])) == 0:
            return 0
        return following > tag and (following >> 16) - (tag >> 16) < 0x7FE0

    cdef int looks_explicit(self, size_t i, bint nested, bint final) noexcept nogil:
        """Whether what is at i, where Implicit VR is due, is Explicit VR: 1 yes, 0 no, -1 cannot be seen yet."""
        cdef int form
        if i + 8 > self.length:
            return 0 if final else -1
        form = vr_form(vr_code(self.data[i + 4], self.data[i + 5]))
        if form == 0:
            return 0
        if form == 2:
            return self.plausible(i + 8 + self.u16(i + 6), self.tag_at(i), True, nested, final)
        if i + 12 > self.length:
            return 0 if final else -1
        if self.u32(i + 8) == UNDEFINED:
            return self.begins_sequence(i + 12, final)
        return self.plausible(i + 12 + self.u32(i + 8), self.tag_at(i), True, nested, final)

    cdef int looks_implicit(self, bint final) noexcept nogil:
        """Whether a data set that is due to have Explicit VR begins with two elements without; as looks_explicit."""
        cdef size_t end
        cdef int seen
        if vr_form(vr_code(self.data[4], self.data[5])):
            return 0
        if self.u32(4) == UNDEFINED:
            return self.begins_sequence(8, final)
        end = 8 + <size_t> self.u32(4)
        seen = self.plausible(end, self.tag_at(0), False, False, final)
        if seen != 1:
            return seen
        if end + 6 > self.length:
            return 0 if final else -1
        # One element without a VR is one of those; two are another encoding.
        return vr_form(vr_code(self.data[end + 4], self.data[end + 5])) == 0

    # Elements

    cdef int read(self, size_t i, bint implicit, bint nested, bint final, Element *e) noexcept nogil:
        """Read the element at i (its header; a value of undefined length is left to the caller)."""
        cdef int form, seen
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
                seen = self.guess(i, True, nested, final, e)
                if seen == 0:
                    seen = self.guess(i, False, nested, final, e)
                if seen <= 0:
                    return MORE if seen else BAD_VR
        e.end = e.value + e.length
        return OK

    cdef int guess(self, size_t i, bint with_vr, bint nested, bint final, Element *e) noexcept nogil:
        """Read the header of an element whose VR is none, by what it leads to; as plausible.

        Writers that forget it write the implicit form; others a code of their own, with a length of 16 or 32 bits.
        """
        cdef int seen, form
        e.guessed = True
        e.vr = 0
        for form in range(3):
            e.value = i + 8
            if form == 0:
                e.length = self.u32(i + 4)
            elif form == 1:
                e.length = self.u16(i + 6)
            elif i + 12 > self.length:
                return 0 if final else -1
            else:
                e.length = self.u32(i + 8)
                e.value = i + 12
            if e.length == UNDEFINED:
                seen = self.begins_sequence(e.value, final)
            else:
                seen = self.plausible(e.value + e.length, e.tag, with_vr, nested, final)
            if seen:
                return seen
        return 0

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
            state = self.read(i, inner, True, final, &e)
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
                        if inner:
                            # Some writers leave out VRs of sequences only where their own dictionary ends.
                            state = self.looks_explicit(e.value, True, final)
                            if state < 0:
                                return MORE
                            inner = state == 0
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
                open_implicit[depth] = inner or e.guessed or e.vr == vr_code(b"U", b"N")
                depth += 1
                i = e.value
            else:
                i = e.end
                if i > self.length:
                    return TRUNCATED if final else MORE
        end[0] = i
        return OK

    cdef int place_of(self, uint32_t tag) noexcept nogil:
        """Index of the first found element whose tag is not below this one."""
        cdef int k = self.found_count
        while k and self.found[k - 1].tag >= tag:
            k -= 1
        return k

    cdef void remark(self, int kind, uint32_t tag) noexcept nogil:
        if self.mark_count < MAX_REMARKS:
            self.marks[self.mark_count].kind = kind
            self.marks[self.mark_count].tag = tag
            self.mark_count += 1

    cdef void keep(self, Element *e) noexcept nogil:
        """Keep an element if it is wanted."""
        cdef int wanted = self.wanted.index_of(e.tag)
        cdef int place
        if wanted < 0:
            return
        place = self.place_of(e.tag)
        if place < self.found_count and self.found[place].tag == e.tag:
            return
        e.header_vr = e.vr if e.vr and e.vr != vr_code(b"U", b"N") else self.wanted.vrs[wanted]
        # What is not wanted as a sequence is none, whatever it says.
        e.left_out = e.header_vr == vr_code(b"S", b"Q")
        if e.length > MAX_VALUE or self.header_size + e.length + 12 > MAX_HEADER:
            e.left_out = True
            self.remark(TOO_LONG, e.tag)
        if not e.left_out:
            self.header_size += e.length + (8 if vr_form(e.header_vr) == 2 else 12)
        memmove(self.found + place + 1, self.found + place, sizeof(Element) * (self.found_count - place))
        self.found[place] = e[0]
        self.found_count += 1

    cdef int guess_encoding(self, bint final) noexcept nogil:
        """Compare the first element with the declared encoding; -1 if it cannot be seen yet."""
        cdef int seen = 0
        if self.encoding == IMPLICIT:
            seen = self.looks_explicit(0, False, final)
        elif self.encoding == EXPLICIT:
            seen = self.looks_implicit(final)
        if seen == 1:
            self.encoding = EXPLICIT if self.encoding == IMPLICIT else IMPLICIT
            self.remark(OTHER_ENCODING, 0)
        return seen

    cdef int scan(self, bint final) noexcept nogil:
        """Go on; 0 more is needed, 1 complete, 2 failed."""
        cdef Element e
        cdef uint32_t tag
        cdef int state
        if not self.started:
            if self.length < 8 and not final:
                return 0
            if self.length >= 8 and self.guess_encoding(final) < 0:
                return 0
            self.started = True
        while True:
            if self.position == self.length and final:
                return 1
            if self.length - self.position >= 8:
                tag = self.tag_at(self.position)
                if tag > LAST_WANTED and tag != ITEM_END and tag != SEQUENCE_END:
                    if tag != ITEM or self.u32(self.position + 4) == UNDEFINED:
                        return 1
            elif self.length - self.position >= 4 and LAST_WANTED < self.tag_at(self.position) < ITEM:
                return 1
            state = self.read(self.position, self.encoding == IMPLICIT, False, final, &e)
            if state == OK and e.length == UNDEFINED:
                state = self.skip_sequence(
                    e.value, self.encoding == IMPLICIT or e.guessed or e.vr == vr_code(b"U", b"N"), final, &e.end
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
            if e.guessed:
                self.remark(NO_VR, e.tag)
            self.position = e.end
            if e.tag > LAST_WANTED:
                # The rest of a sequence whose own header was lost (fo-dicom issue 364).
                self.remark(OUT_OF_ORDER, e.tag)
                continue
            if e.tag <= self.last_tag and self.last_tag:
                self.remark(OUT_OF_ORDER, e.tag)
            if e.length != UNDEFINED:
                self.keep(&e)
            self.last_tag = e.tag

    cdef int run(self, bint final):
        cdef int outcome
        with nogil:
            outcome = self.scan(final)
        self.complete = outcome != 0
        return outcome

    # For Python

    def feed(self, bytes chunk not None):
        cdef size_t n = PyBytes_GET_SIZE(chunk)
        cdef size_t size
        cdef uint8_t *bigger
        if self.complete or n == 0:
            return self.complete
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

    @property
    def remarks(self):
        cdef list out = []
        cdef int k
        for k in range(self.mark_count):
            name = _REMARKS[self.marks[k].kind]
            tag = self.marks[k].tag
            out.append(name if self.marks[k].kind == OTHER_ENCODING else f"{name} {tag >> 16:04X},{tag & 0xFFFF:04X}")
        return out

    def value(self, uint32_t tag):
        cdef int k = self.place_of(tag)
        if k == self.found_count or self.found[k].tag != tag:
            return None
        return PyBytes_FromStringAndSize(<char *> self.data + self.found[k].value, self.found[k].length)

    def header(self):
        cdef bytes out = PyBytes_FromStringAndSize(NULL, self.header_size)
        cdef uint8_t *p = <uint8_t *> PyBytes_AS_STRING(out)
        cdef Element *e
        cdef int k, swap
        for k in range(self.found_count):
            e = &self.found[k]
            if not e.left_out:
                swap = number_size(e.header_vr) if self.encoding == BIG_ENDIAN else 1
                p = put_element(p, e, self.data + e.value, swap)
        return out


cdef uint8_t *put_element(uint8_t *p, const Element *e, const uint8_t *value, int swap) noexcept nogil:
    """Write an element in Explicit VR Little Endian; return what follows it."""
    cdef uint32_t i
    p[0] = (e.tag >> 16) & 0xFF
    p[1] = e.tag >> 24
    p[2] = e.tag & 0xFF
    p[3] = (e.tag >> 8) & 0xFF
    p[4] = e.header_vr >> 8
    p[5] = e.header_vr & 0xFF
    if vr_form(e.header_vr) == 2:
        p[6] = e.length & 0xFF
        p[7] = e.length >> 8
        p += 8
    else:
        p[6] = 0
        p[7] = 0
        p[8] = e.length & 0xFF
        p[9] = (e.length >> 8) & 0xFF
        p[10] = 0
        p[11] = 0
        p += 12
    if swap == 1 or e.length % swap:
        memcpy(p, value, e.length)
    else:
        # The sizes are powers of two.
        for i in range(e.length):
            p[i] = value[i ^ <uint32_t> (swap - 1)]
    return p + e.length


cdef int next_element(const uint8_t *p, size_t i, size_t n, Element *e) except -1:
    """Read the element at i of a queryable header (Explicit VR Little Endian, no undefined lengths)."""
    cdef int form
    if n - i < 8:
        raise ValueError("the header ends inside an element")
    e.tag = (<uint32_t> (p[i] | p[i + 1] << 8) << 16) | (p[i + 2] | p[i + 3] << 8)
    e.vr = vr_code(p[i + 4], p[i + 5])
    form = vr_form(e.vr)
    if form == 2:
        e.length = p[i + 6] | p[i + 7] << 8
        e.value = i + 8
    elif form == 4:
        if n - i < 12:
            raise ValueError("the header ends inside an element")
        e.length = p[i + 8] | (<uint32_t> p[i + 9] << 8) | (<uint32_t> p[i + 10] << 16) | (<uint32_t> p[i + 11] << 24)
        e.value = i + 12
    else:
        raise ValueError("the header has an element without a VR")
    if e.length > n - e.value:
        raise ValueError("the header ends inside an element")
    e.end = e.value + e.length
    return 0


def split_header(bytes header not None):
    """Queryable header to {tag: (vr, value)}."""
    cdef const uint8_t *p = <const uint8_t *> PyBytes_AS_STRING(header)
    cdef size_t n = PyBytes_GET_SIZE(header)
    cdef size_t i = 0
    cdef Element e
    cdef dict out = {}
    while i < n:
        next_element(p, i, n, &e)
        out[e.tag] = (header[i + 4:i + 6], header[e.value:e.end])
        i = e.end
    return out
