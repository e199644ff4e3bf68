# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The loop of the DICOM upper layer (PS3.8 9.3): reads PDUs, assembles commands, hands out data set bytes in chunks.

The GIL is held only to make what is handed out. Every length is checked before anything is allocated for it.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset


cdef extern from "Python.h":
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *, Py_ssize_t)
    void Py_CLEAR(PyObject *)

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long nfds, int timeout)
    enum: POLLIN, POLLOUT

cdef extern from "sys/uio.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "sys/socket.h" nogil:
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t recvmsg(int fd, msghdr *message, int flags)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    int setsockopt(int fd, int level, int name, const void *value, unsigned int length)
    enum: MSG_DONTWAIT, MSG_NOSIGNAL

cdef extern from "netinet/in.h" nogil:
    enum: IPPROTO_TCP

cdef extern from "netinet/tcp.h" nogil:
    enum: TCP_NODELAY, TCP_QUICKACK

cdef extern from "time.h" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *time)
    enum: CLOCK_MONOTONIC

PDU = 1
COMMAND = 2
DATA = 3
TIMEOUT = 4
CLOSED = 5
INVALID = 6
WOKEN = 7

# What `advance` returns beside the event it stopped at.
cdef enum:
    E_MORE = 0
    E_PDU = 1
    E_COMMAND = 2
    E_DATA = 3
    E_TIMEOUT = 4
    E_CLOSED = 5
    E_INVALID = 6
    E_WOKEN = 7
    E_NEED_CHUNK = 8
    E_NEED_BODY = 9

cdef enum:
    IN_SIZE = 65536
    AHEAD = 4096
    # What one sendmsg takes at most (IOV_MAX is 1024), and the PDUs that are framed for it
    IOV_BATCH = 512
    PDU_BATCH = 256
    # The longest PDU that we send, whatever the peer takes
    MOST_SENT = 1048576
    MOST_COMMAND = 65536
    # A row of a query, and all that are sent at once
    MOST_ROW = 16777216
    MOST_ROWS = 67108864
    # A-ABORT reasons of the service provider (PS3.8 9.3.8)
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    INVALID_PARAMETER = 6


cdef int64_t now_ms() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t> t.tv_sec * 1000 + t.tv_nsec // 1000000


cdef int wait_ms(int64_t left) noexcept nogil:
    """What poll takes; whoever waits longer comes back and looks at the clock."""
    return <int> left if left < 3600000 else 3600000


cdef uint32_t be32(const uint8_t *p) noexcept nogil:
    return (<uint32_t> p[0] << 24) | (<uint32_t> p[1] << 16) | (<uint32_t> p[2] << 8) | p[3]


cdef void put32(uint8_t *p, uint32_t v) noexcept nogil:
    p[0] = v >> 24
    p[1] = (v >> 16) & 0xFF
    p[2] = (v >> 8) & 0xFF
    p[3] = v & 0xFF


cdef uint16_t le16(const uint8_t *p) noexcept nogil:
    return <uint16_t> (p[0] | p[1] << 8)


cdef uint32_t le32(const uint8_t *p) noexcept nogil:
    return p[0] | (<uint32_t> p[1] << 8) | (<uint32_t> p[2] << 16) | (<uint32_t> p[3] << 24)


cdef bint command_has_data_set(const uint8_t *p, size_t n) noexcept nogil:
    """Command Data Set Type (0000,0800) other than 0101H (PS3.7 E.1). A command that cannot be read has none."""
    cdef size_t i = 0
    cdef uint32_t length
    while n - i >= 8:
        length = le32(p + i + 4)
        if length > n - i - 8:
            return False
        if le16(p + i) == 0 and le16(p + i + 2) == 0x0800 and length >= 2:
            return le16(p + i + 8) != 0x0101
        i += 8 + length
    return False


cdef class Connection:
    """One association's byte stream. One thread receives; any one thread at a time sends."""

    cdef int fd, wake_fd
    cdef bint tcp, at_start
    cdef uint32_t max_pdu, max_command, max_body
    cdef size_t chunk_size
    cdef uint8_t *buffer
    cdef size_t r, w
    # PDU being read: bytes left; of P-DATA the fragment being read
    cdef bint in_pdu
    cdef uint32_t pdu_left, pdv_left
    cdef uint8_t context, flags
    cdef bint in_pdv
    # Message being assembled
    cdef uint8_t *command
    cdef uint32_t command_length, command_capacity
    cdef uint8_t message_context
    cdef bint in_command, expect_data
    # Chunk being filled, of capacity `chunk_capacity`
    cdef PyObject *chunk
    cdef uint8_t *chunk_bytes
    cdef size_t chunk_length, chunk_capacity
    # PDU other than P-DATA
    cdef uint8_t body_type
    cdef object body
    cdef uint8_t *body_bytes
    cdef uint32_t body_length
    cdef int invalid_reason
    cdef const char *invalid_detail
    cdef int64_t pdu_started, left_at
    cdef readonly uint64_t bytes_received

    def __cinit__(self, int fd, *, uint32_t max_pdu=131072, size_t chunk_size=1048560, uint32_t max_command=65536,
                  uint32_t max_body=1048576, int wake_fd=-1, bint tcp=True):
        cdef int one = 1
        if chunk_size == 0 or chunk_size > 1048560:
            raise ValueError("chunk_size: 1 to 1,048,560")
        self.fd = fd
        self.wake_fd = wake_fd
        self.tcp = tcp
        self.max_pdu = max_pdu
        self.max_command = max_command
        self.max_body = max_body
        self.chunk_size = chunk_size
        self.buffer = <uint8_t *> malloc(IN_SIZE)
        self.command_capacity = 4096
        self.command = <uint8_t *> malloc(self.command_capacity)
        if self.buffer == NULL or self.command == NULL:
            raise MemoryError
        if tcp:
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))

    def __dealloc__(self):
        Py_CLEAR(self.chunk)
        free(self.buffer)
        free(self.command)

    cdef int bad(self, int reason, const char *detail) noexcept nogil:
        self.invalid_reason = reason
        self.invalid_detail = detail
        return E_INVALID

    cdef ssize_t read(self, uint8_t *into, size_t n, int64_t deadline) noexcept nogil:
        """Receive up to n bytes to `into` (n may be 0), and what comes behind them to the end of the buffer.

        With n the buffer must be empty. Returns the bytes put to `into`; -1 at the end of the stream, -2 on an error of
        the connection, -3 at the deadline, -4 woken. With n == 0, 0 means that the buffer got more.
        """
        cdef iovec parts[2]
        cdef msghdr message
        cdef pollfd fds[2]
        cdef ssize_t got
        cdef int64_t left
        cdef int one = 1
        cdef int count = 0
        cdef int ready
        memset(&message, 0, sizeof(message))
        if n:
            self.r = 0
            self.w = 0
            parts[0].iov_base = into
            parts[0].iov_len = n
            count = 1
        parts[count].iov_base = self.buffer + self.w
        # Behind a long fragment only the next header is wanted here: more would be copied once more.
        parts[count].iov_len = AHEAD if n else IN_SIZE - self.w
        message.msg_iov = parts
        message.msg_iovlen = count + 1
        while True:
            got = recvmsg(self.fd, &message, MSG_DONTWAIT)
            if got > 0:
                self.bytes_received += got
                if <size_t> got <= n:
                    return got
                self.w += got - n
                return n
            if got == 0:
                return -1
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                return -2
            left = deadline - now_ms()
            if left <= 0:
                return -3
            # Half of the world's senders write a PDU in two pieces with Nagle on: a late acknowledgement stalls them.
            # Whoever has written more waits for none, so it is sent where this side is about to wait.
            if self.tcp:
                setsockopt(self.fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof(one))
            fds[0].fd = self.fd
            fds[0].events = POLLIN
            fds[0].revents = 0
            fds[1].fd = self.wake_fd
            fds[1].events = POLLIN
            fds[1].revents = 0
            # Woken only between PDUs: one that has begun is finished, within its time.
            ready = poll(fds, 2 if self.wake_fd >= 0 and not self.in_pdu else 1, wait_ms(left))
            if ready > 0 and fds[1].revents and not fds[0].revents:
                return -4

    cdef int need(self, size_t n, int64_t deadline) noexcept nogil:
        """Have n bytes (a header) in the buffer; returns E_MORE or why not. What has come stays for the next call."""
        cdef ssize_t got
        while self.w - self.r < n:
            memmove(self.buffer, self.buffer + self.r, self.w - self.r)
            self.w -= self.r
            self.r = 0
            got = self.read(NULL, 0, deadline)
            if got < 0:
                return E_CLOSED if got >= -2 else E_TIMEOUT if got == -3 else E_WOKEN
        return E_MORE

    cdef int advance(self, int64_t idle_ms, int64_t pdu_ms) noexcept nogil:
        """Go on until there is something to hand out, or something to allocate."""
        cdef int state
        cdef uint32_t length
        cdef size_t have, n
        cdef ssize_t got
        cdef int64_t deadline
        cdef uint8_t *p
        if self.invalid_detail != NULL:
            # Nobody knows where the next PDU begins.
            return E_INVALID
        while True:
            if not self.in_pdu:
                # One byte begins a PDU, and from then on its own time runs.
                if self.w == self.r:
                    state = self.need(1, now_ms() + idle_ms)
                    if state != E_MORE:
                        return state
                self.pdu_started = now_ms()
                self.in_pdu = True
                self.pdu_left = 0
                self.body_type = 0
                self.at_start = True
            deadline = self.pdu_started + pdu_ms
            if self.at_start:
                state = self.need(6, deadline)
                if state != E_MORE:
                    return state
                p = self.buffer + self.r
                length = be32(p + 2)
                if p[0] == 0 or p[0] > 7:
                    return self.bad(UNRECOGNIZED_PDU, b"unrecognized PDU type")
                if p[0] != 4:
                    if length > self.max_body:
                        return self.bad(INVALID_PARAMETER, b"PDU too long")
                    self.body_type = p[0]
                    self.body_length = length
                    self.r += 6
                    self.pdu_left = length
                    self.at_start = False
                    return E_NEED_BODY
                if self.max_pdu and length > self.max_pdu:
                    return self.bad(INVALID_PARAMETER, b"P-DATA-TF longer than negotiated")
                if length < 6:
                    return self.bad(INVALID_PARAMETER, b"P-DATA-TF without a PDV")
                self.r += 6
                self.pdu_left = length
                self.in_pdv = False
                self.at_start = False
            if self.body_type:
                while self.pdu_left:
                    have = self.w - self.r
                    if have == 0:
                        got = self.read(self.body_bytes + (self.body_length - self.pdu_left), self.pdu_left, deadline)
                        if got < 0:
                            return E_CLOSED if got >= -2 else E_TIMEOUT
                        self.pdu_left -= got
                        continue
                    n = have if have < self.pdu_left else self.pdu_left
                    memcpy(self.body_bytes + (self.body_length - self.pdu_left), self.buffer + self.r, n)
                    self.r += n
                    self.pdu_left -= n
                self.in_pdu = False
                return E_PDU
            # P-DATA-TF: presentation data values
            while True:
                if not self.in_pdv:
                    if self.pdu_left == 0:
                        self.in_pdu = False
                        break
                    if self.pdu_left < 6:
                        return self.bad(INVALID_PARAMETER, b"PDV header cut by the end of its PDU")
                    state = self.need(6, deadline)
                    if state != E_MORE:
                        return state
                    p = self.buffer + self.r
                    length = be32(p)
                    if length < 2 or length > self.pdu_left - 4:
                        return self.bad(INVALID_PARAMETER, b"PDV longer than its PDU")
                    self.context = p[4]
                    self.flags = p[5]
                    if not self.context & 1:
                        return self.bad(INVALID_PARAMETER, b"presentation context id is even")
                    self.r += 6
                    self.pdu_left -= 6
                    self.pdv_left = length - 2
                    self.in_pdv = True
                    if self.flags & 1:
                        if self.expect_data:
                            return self.bad(UNEXPECTED_PDU, b"command within a data set")
                        if self.in_command and self.context != self.message_context:
                            return self.bad(UNEXPECTED_PDU, b"fragments of two contexts")
                        if not self.in_command:
                            self.in_command = True
                            self.message_context = self.context
                            self.command_length = 0
                    else:
                        if not self.expect_data:
                            return self.bad(UNEXPECTED_PDU, b"data set without a command")
                        if self.context != self.message_context:
                            return self.bad(UNEXPECTED_PDU, b"fragments of two contexts")
                if self.flags & 1:
                    state = self.take_command(deadline)
                else:
                    state = self.take_data(deadline)
                if state != E_MORE:
                    return state

    cdef int take_command(self, int64_t deadline) noexcept nogil:
        cdef size_t n
        cdef ssize_t got
        cdef uint8_t *bigger
        # Their sum may be beyond 32 bits.
        if self.pdv_left > self.max_command - self.command_length:
            return self.bad(INVALID_PARAMETER, b"command set too long")
        if self.command_length + self.pdv_left > self.command_capacity:
            bigger = <uint8_t *> malloc(self.max_command)
            if bigger == NULL:
                return self.bad(INVALID_PARAMETER, b"out of memory")
            memcpy(bigger, self.command, self.command_length)
            free(self.command)
            self.command = bigger
            self.command_capacity = self.max_command
        while self.pdv_left:
            n = self.w - self.r
            if n == 0:
                got = self.read(self.command + self.command_length, self.pdv_left, deadline)
                if got < 0:
                    return E_CLOSED if got >= -2 else E_TIMEOUT
                n = got
            else:
                if n > self.pdv_left:
                    n = self.pdv_left
                memcpy(self.command + self.command_length, self.buffer + self.r, n)
                self.r += n
            self.command_length += n
            self.pdv_left -= n
            self.pdu_left -= n
        self.in_pdv = False
        if self.flags & 2:
            self.in_command = False
            self.expect_data = command_has_data_set(self.command, self.command_length)
            if self.pdu_left == 0:
                self.in_pdu = False
            return E_COMMAND
        return E_MORE

    cdef int take_data(self, int64_t deadline) noexcept nogil:
        cdef size_t n, room
        cdef ssize_t got
        while self.pdv_left:
            if self.chunk_bytes == NULL:
                return E_NEED_CHUNK
            room = self.chunk_capacity - self.chunk_length
            if room == 0:
                return E_DATA
            n = self.w - self.r
            if room > self.pdv_left:
                room = self.pdv_left
            if n == 0:
                got = self.read(self.chunk_bytes + self.chunk_length, room, deadline)
                if got < 0:
                    return E_CLOSED if got >= -2 else E_TIMEOUT
                n = got
            else:
                if n > room:
                    n = room
                memcpy(self.chunk_bytes + self.chunk_length, self.buffer + self.r, n)
                self.r += n
            self.chunk_length += n
            self.pdv_left -= n
            self.pdu_left -= n
        self.in_pdv = False
        if self.flags & 2:
            self.expect_data = False
            if self.pdu_left == 0:
                self.in_pdu = False
            return E_DATA
        return E_MORE

    cdef object take_chunk(self):
        """Hand out the chunk, cut to what is in it."""
        cdef object chunk
        if self.chunk == NULL:
            return b""
        self.chunk_bytes = NULL
        if self.chunk_length != self.chunk_capacity:
            # In place where the allocator can: nobody else has the object yet.
            _PyBytes_Resize(&self.chunk, self.chunk_length)
        chunk = <object> self.chunk
        Py_CLEAR(self.chunk)
        self.chunk_length = 0
        return chunk

    def receive(self, int64_t idle_ms, int64_t pdu_ms):
        if self.in_pdu:
            # The time of a PDU is the peer's: it stood still while the caller was busy.
            self.pdu_started += now_ms() - self.left_at
        try:
            return self.next_event(idle_ms, pdu_ms)
        finally:
            if self.in_pdu:
                self.left_at = now_ms()

    cdef object next_event(self, int64_t idle_ms, int64_t pdu_ms):
        cdef int event
        cdef size_t capacity
        while True:
            with nogil:
                event = self.advance(idle_ms, pdu_ms)
            if event == E_NEED_CHUNK:
                # A fragment that is the last tells the size; before the last one, a whole chunk is likely.
                capacity = self.pdv_left if self.flags & 2 else self.chunk_size
                if capacity > self.chunk_size:
                    capacity = self.chunk_size
                self.chunk = new_bytes(NULL, capacity)
                if self.chunk == NULL:
                    raise MemoryError
                self.chunk_bytes = <uint8_t *> PyBytes_AS_STRING(<object> self.chunk)
                self.chunk_length = 0
                self.chunk_capacity = capacity
            elif event == E_NEED_BODY:
                self.body = PyBytes_FromStringAndSize(NULL, self.body_length)
                self.body_bytes = <uint8_t *> PyBytes_AS_STRING(self.body)
            elif event == E_DATA:
                # With pdv_left the chunk is full and the fragment goes on.
                return (E_DATA, self.message_context, self.take_chunk(), self.pdv_left == 0 and not self.expect_data)
            elif event == E_COMMAND:
                return (
                    E_COMMAND, self.message_context,
                    PyBytes_FromStringAndSize(<char *> self.command, self.command_length), self.expect_data,
                )
            elif event == E_PDU:
                body = self.body
                self.body = None
                return (E_PDU, self.body_type, body)
            elif event == E_INVALID:
                return (E_INVALID, self.invalid_reason, self.invalid_detail.decode())
            elif event == E_CLOSED:
                return (E_CLOSED, not self.in_pdu and not self.in_command and not self.expect_data)
            elif event == E_TIMEOUT:
                return (E_TIMEOUT, self.in_pdu)
            else:
                return (E_WOKEN,)

    def send(self, buffers, int64_t timeout_ms):
        """Send all buffers as one message."""
        cdef list items = list(buffers)
        cdef Py_ssize_t count = len(items)
        cdef Py_buffer *views = <Py_buffer *> malloc(sizeof(Py_buffer) * (count + 1))
        cdef iovec *parts = <iovec *> malloc(sizeof(iovec) * (count + 1))
        cdef Py_ssize_t held = 0
        cdef int outcome
        try:
            if views == NULL or parts == NULL:
                raise MemoryError
            while held < count:
                PyObject_GetBuffer(items[held], &views[held], PyBUF_SIMPLE)
                parts[held].iov_base = views[held].buf
                parts[held].iov_len = views[held].len
                held += 1
            with nogil:
                outcome = send_all(self.fd, parts, count, now_ms() + timeout_ms)
        finally:
            while held:
                held -= 1
                PyBuffer_Release(&views[held])
            free(views)
            free(parts)
        _raise(outcome)

    def send_message(
        self, uint8_t context, bytes command, data, uint32_t peer_max_pdu, int64_t timeout_ms, *, bint last=True
    ):
        """Send a command set (or None) and data set bytes (or None) as P-DATA-TF PDUs no longer than the peer takes."""
        cdef Py_buffer view
        cdef const uint8_t *head = NULL
        cdef const uint8_t *body = NULL
        cdef size_t head_length = 0
        cdef size_t body_length = 0
        cdef bint with_body
        cdef int outcome
        if peer_max_pdu == 0 or peer_max_pdu > MOST_SENT:
            peer_max_pdu = MOST_SENT
        if peer_max_pdu < 32:
            raise ValueError("peer_max_pdu: 0 or 32 and more")
        if command is not None:
            head = <const uint8_t *> PyBytes_AS_STRING(command)
            head_length = PyBytes_GET_SIZE(command)
        if data is not None:
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
            body = <const uint8_t *> view.buf
            body_length = view.len
        # A fragment without bytes says nothing unless it is the last.
        with_body = data is not None and (last or body_length > 0)
        try:
            with nogil:
                outcome = send_framed(
                    self.fd, context, head, head_length, body, body_length, with_body, last,
                    fragment_size(peer_max_pdu), now_ms() + timeout_ms,
                )
        finally:
            if data is not None:
                PyBuffer_Release(&view)
        _raise(outcome)

    def send_rows(self, uint8_t context, bytes command not None, rows, uint32_t peer_max_pdu, int64_t timeout_ms):
        """Send a message for each row, all with one command set; what is small goes out with one send."""
        cdef list items = list(rows)
        cdef const uint8_t *head = <const uint8_t *> PyBytes_AS_STRING(command)
        cdef size_t head_length = PyBytes_GET_SIZE(command)
        cdef size_t most, total, n, length
        cdef Py_buffer view
        cdef iovec part
        cdef uint8_t *out
        cdef uint8_t *p
        cdef int64_t deadline
        cdef int outcome
        if peer_max_pdu == 0 or peer_max_pdu > MOST_SENT:
            peer_max_pdu = MOST_SENT
        if peer_max_pdu < 32:
            raise ValueError("peer_max_pdu: 0 or 32 and more")
        most = fragment_size(peer_max_pdu)
        total = len(items) * framed_size(head_length, most)
        for item in items:
            n = len(item)
            if n > MOST_ROW:
                raise ValueError("a row has more than 16 MiB")
            total += framed_size(n, most)
        if total > MOST_ROWS:
            raise ValueError("rows: at most 64 MiB at once")
        out = <uint8_t *> malloc(total + 1)
        if out == NULL:
            raise MemoryError
        try:
            p = out
            for item in items:
                p = frame(p, context, 1, head, head_length, most)
                PyObject_GetBuffer(item, &view, PyBUF_SIMPLE)
                try:
                    # A view of other items than bytes has another length than was asked for.
                    length = view.len
                    if p + framed_size(length, most) > out + total:
                        raise ValueError("rows are bytes")
                    p = frame(p, context, 0, <const uint8_t *> view.buf, length, most)
                finally:
                    PyBuffer_Release(&view)
            part.iov_base = out
            part.iov_len = p - out
            deadline = now_ms() + timeout_ms
            with nogil:
                outcome = send_all(self.fd, &part, 1, deadline)
        finally:
            free(out)
        _raise(outcome)


cdef size_t fragment_size(uint32_t peer_max_pdu) noexcept nogil:
    """Bytes of a fragment: an even number (PS3.8 annex E), which some peers insist on."""
    return (peer_max_pdu - 6) & ~<size_t> 1


cdef size_t framed_size(size_t length, size_t most) noexcept nogil:
    """Bytes of a command set or data set with its PDU and PDV headers."""
    cdef size_t pdus = (length + most - 1) // most
    return length + 12 * (pdus if pdus else 1)


cdef uint8_t *frame(
    uint8_t *p, uint8_t context, uint8_t kind, const uint8_t *data, size_t length, size_t most
) noexcept nogil:
    """Copy data as whole P-DATA-TF PDUs; `kind` is 1 of a command set."""
    cdef size_t at = 0
    cdef size_t n
    while True:
        n = length - at if length - at < most else most
        put_header(p, context, kind | (2 if at + n == length else 0), n)
        memcpy(p + 12, data + at, n)
        p += 12 + n
        at += n
        if at == length:
            return p


cdef void put_header(uint8_t *p, uint8_t context, uint8_t flags, size_t n) noexcept nogil:
    """Write the header of a P-DATA-TF of one fragment of n bytes."""
    p[0] = 4
    p[1] = 0
    put32(p + 2, <uint32_t> n + 6)
    put32(p + 6, <uint32_t> n + 2)
    p[10] = context
    p[11] = flags


cdef int send_framed(
    int fd, uint8_t context, const uint8_t *command, size_t command_length, const uint8_t *data, size_t data_length,
    bint with_data, bint last, size_t most, int64_t deadline,
) noexcept nogil:
    """Frame a message into PDUs of at most `most` bytes a fragment; a batch of them is one sendmsg. As send_all."""
    cdef uint8_t headers[12 * PDU_BATCH]
    cdef iovec parts[2 * PDU_BATCH]
    cdef const uint8_t *source
    cdef uint8_t *p
    cdef size_t length, n
    cdef size_t at
    cdef int k = 0
    cdef int s, outcome
    for s in range(2):
        if (command == NULL) if s == 0 else (not with_data):
            continue
        source = command if s == 0 else data
        length = command_length if s == 0 else data_length
        at = 0
        while True:
            n = length - at if length - at < most else most
            p = headers + 12 * k
            put_header(p, context, (1 if s == 0 else 0) | (2 if at + n == length and (last or s == 0) else 0), n)
            parts[2 * k].iov_base = p
            parts[2 * k].iov_len = 12
            parts[2 * k + 1].iov_base = <void *> (source + at)
            parts[2 * k + 1].iov_len = n
            k += 1
            at += n
            if k == PDU_BATCH:
                outcome = send_all(fd, parts, 2 * k, deadline)
                if outcome:
                    return outcome
                k = 0
            if at == length:
                break
    return send_all(fd, parts, 2 * k, deadline)


cdef int send_all(int fd, iovec *parts, size_t count, int64_t deadline) noexcept nogil:
    """0 sent, 1 the deadline passed, 2 the connection is broken."""
    cdef msghdr message
    cdef pollfd fds[1]
    cdef ssize_t sent
    cdef int64_t left
    cdef size_t at = 0
    memset(&message, 0, sizeof(message))
    while at < count:
        if parts[at].iov_len == 0:
            at += 1
            continue
        message.msg_iov = parts + at
        message.msg_iovlen = count - at if count - at < IOV_BATCH else IOV_BATCH
        sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                return 2
            left = deadline - now_ms()
            if left <= 0:
                return 1
            fds[0].fd = fd
            fds[0].events = POLLOUT
            fds[0].revents = 0
            poll(fds, 1, wait_ms(left))
            continue
        while at < count and <size_t> sent >= parts[at].iov_len:
            sent -= parts[at].iov_len
            at += 1
        if sent:
            parts[at].iov_base = <uint8_t *> parts[at].iov_base + sent
            parts[at].iov_len -= sent
    return 0


cdef _raise(int outcome):
    if outcome == 1:
        raise TimeoutError("the peer does not read")
    if outcome == 2:
        raise ConnectionError("the peer closed the connection")


def parse_command(bytes command not None):
    """Command set (Implicit VR Little Endian, group 0000) to {element: value}."""
    cdef const uint8_t *p = <const uint8_t *> PyBytes_AS_STRING(command)
    cdef size_t n = PyBytes_GET_SIZE(command)
    cdef size_t i = 0
    cdef uint32_t length
    cdef dict out = {}
    while i < n:
        if n - i < 8:
            raise ValueError("the command set ends inside an element")
        length = le32(p + i + 4)
        if le16(p + i) != 0:
            raise ValueError("the command set has an element outside group 0000")
        if length > n - i - 8:
            raise ValueError("the command set ends inside an element")
        out[le16(p + i + 2)] = command[i + 8:i + 8 + length]
        i += 8 + length
    return out


cdef uint8_t padding(uint16_t element) noexcept nogil:
    """What makes a value even (PS3.5 6.2): a space for AE (Move Destination and Originator) and LO (Error Comment)."""
    return b" " if element == 0x0600 or element == 0x1030 or element == 0x0902 else 0


def encode_command(dict elements not None):
    """{element: value} to a command set, with its group length (0000,0000); odd values are padded."""
    cdef list order = sorted(elements)
    cdef size_t total = 12
    cdef size_t n
    cdef uint16_t element
    cdef bytes value, out
    cdef uint8_t *p
    for key in order:
        value = elements[key]
        total += 8 + ((PyBytes_GET_SIZE(value) + 1) & ~1) if key else 0
    if total > MOST_COMMAND:
        raise ValueError("the command set is too long")
    out = PyBytes_FromStringAndSize(NULL, total)
    p = <uint8_t *> PyBytes_AS_STRING(out)
    p = put_element(p, 0, 4)
    put_le32(p, <uint32_t> total - 12)
    p += 4
    for key in order:
        element = key
        if element:
            value = elements[key]
            n = PyBytes_GET_SIZE(value)
            p = put_element(p, element, n + (n & 1))
            memcpy(p, PyBytes_AS_STRING(value), n)
            p += n
            if n & 1:
                p[0] = padding(element)
                p += 1
    return out


cdef void put_le32(uint8_t *p, uint32_t v) noexcept nogil:
    p[0] = v & 0xFF
    p[1] = (v >> 8) & 0xFF
    p[2] = (v >> 16) & 0xFF
    p[3] = v >> 24


cdef uint8_t *put_element(uint8_t *p, uint16_t element, uint32_t length) noexcept nogil:
    """Write the header of an element of group 0000; return where its value begins."""
    put_le32(p, <uint32_t> element << 16)
    put_le32(p + 4, length)
    return p + 8
