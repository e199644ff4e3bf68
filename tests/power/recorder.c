/* Records what a process does to the files under one folder, in order, for replay with a power cut (power_cuts.py).
 *
 *   cc -O2 -shared -fPIC -o recorder.so recorder.c -ldl -lpthread
 *   LD_PRELOAD=recorder.so RECORD_ROOT=/folder RECORD_LOG=/trace RECORD_ACKS=/acks program
 *
 * A call and its record are one step under one lock, so that the trace has the order in which calls had returned:
 * what was acknowledged (written to RECORD_ACKS) stands behind the syncs that it relies on. Writes through mmap are
 * not seen: LMDB's lock file and SQLite's -shm, which both are made anew after a crash.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, CLOSE, WRITE, TRUNCATE, EXTEND, SYNC, RENAME, UNLINK, MKDIR, RMDIR, LINK, ACK, START };
enum { FDS = 65536, UNTRACKED = 0, TRACKED, ACKS };

struct record {
    uint8_t operation;
    uint8_t pad[3];
    int32_t fd;
    uint64_t a, b;
    uint32_t first, second; /* lengths of what follows */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX], acks[PATH_MAX];
static size_t root_length;
static int log_fd = -1;
static uint8_t kind[FDS];

#define REAL(type, name, ...)                                   \
    static type (*real)(__VA_ARGS__);                           \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static void put(const void *data, size_t length) {
    const char *at = data;
    while (length) {
        long n = syscall(SYS_write, log_fd, at, length);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) abort(); /* a trace with a hole proves nothing */
        at += n, length -= (size_t)n;
    }
}

static void record(int operation, int fd, uint64_t a, uint64_t b, const void *first, size_t n1, const void *second,
                   size_t n2) {
    struct record r;
    int saved = errno;
    memset(&r, 0, sizeof r);
    r.operation = (uint8_t)operation, r.fd = fd, r.a = a, r.b = b, r.first = (uint32_t)n1, r.second = (uint32_t)n2;
    put(&r, sizeof r), put(first, n1), put(second, n2);
    errno = saved;
}

__attribute__((constructor)) static void begin(void) {
    const char *where = getenv("RECORD_ROOT"), *log = getenv("RECORD_LOG"), *ack = getenv("RECORD_ACKS");
    if (!where || !log || !ack) return;
    root_length = strlen(where);
    if (root_length >= sizeof root || strlen(ack) >= sizeof acks) abort();
    strcpy(root, where), strcpy(acks, ack);
    log_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0) abort();
    record(START, -1, 0, 0, 0, 0, 0, 0); /* of a process: another may have been killed before it */
}

static int inside(const char *path) {
    return log_fd >= 0 && path && !strncmp(path, root, root_length) &&
           (path[root_length] == '/' || !path[root_length]);
}

static int is(int fd, int what) { return log_fd >= 0 && fd >= 0 && fd < FDS && kind[fd] == what; }

/* -- open and close */

static int opened(int fd, const char *path, int flags) {
    if (fd < 0 || log_fd < 0) return fd;
    if (fd >= FDS) abort();
    if (!strcmp(path, acks)) kind[fd] = ACKS;
    else if (inside(path)) kind[fd] = TRACKED, record(OPEN, fd, (uint64_t)flags, 0, path, strlen(path), 0, 0);
    else kind[fd] = UNTRACKED;
    return fd;
}

static int open_any(int at, const char *path, int flags, mode_t mode) {
    pthread_mutex_lock(&lock);
    int fd = opened((int)syscall(SYS_openat, at, path, flags, mode), path, flags);
    pthread_mutex_unlock(&lock);
    return fd;
}

#define MODE(flags, last)                                       \
    mode_t mode = 0;                                            \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {                    \
        va_list list;                                           \
        va_start(list, last), mode = va_arg(list, mode_t), va_end(list); \
    }

int open(const char *path, int flags, ...) { MODE(flags, flags) return open_any(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags, flags) return open_any(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags, flags) return open_any(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags, flags) return open_any(at, path, flags, mode); }

int close(int fd) {
    pthread_mutex_lock(&lock);
    if (is(fd, TRACKED)) record(CLOSE, fd, 0, 0, 0, 0, 0, 0);
    if (fd >= 0 && fd < FDS) kind[fd] = UNTRACKED;
    int result = (int)syscall(SYS_close, fd);
    pthread_mutex_unlock(&lock);
    return result;
}

/* -- data */

static ssize_t wrote(int fd, const struct iovec *parts, int count, off_t offset, ssize_t written) {
    if (written <= 0 || log_fd < 0 || fd < 0 || fd >= FDS || kind[fd] == UNTRACKED) return written;
    size_t left = (size_t)written;
    for (int i = 0; i < count && left; i++) {
        size_t n = parts[i].iov_len < left ? parts[i].iov_len : left;
        if (kind[fd] == ACKS) record(ACK, fd, 0, 0, parts[i].iov_base, n, 0, 0);
        else record(WRITE, fd, (uint64_t)offset, 0, parts[i].iov_base, n, 0, 0);
        offset += (off_t)n, left -= n;
    }
    return written;
}

/* Where a write(2) goes: known before it, but for O_APPEND, where it is what it ended at. */
static off_t position(int fd, ssize_t written) {
    return (off_t)syscall(SYS_lseek, fd, 0, SEEK_CUR) - (written > 0 ? written : 0);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    pthread_mutex_lock(&lock);
    ssize_t n = syscall(SYS_writev, fd, parts, count);
    if (n > 0 && (is(fd, TRACKED) || is(fd, ACKS))) wrote(fd, parts, count, position(fd, n), n);
    pthread_mutex_unlock(&lock);
    return n;
}

ssize_t write(int fd, const void *data, size_t length) {
    if (!is(fd, TRACKED) && !is(fd, ACKS)) return syscall(SYS_write, fd, data, length); /* a pipe may block */
    struct iovec part = {(void *)data, length};
    pthread_mutex_lock(&lock);
    ssize_t n = syscall(SYS_write, fd, data, length);
    if (n > 0) wrote(fd, &part, 1, position(fd, n), n);
    pthread_mutex_unlock(&lock);
    return n;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    struct iovec part = {(void *)data, length};
    pthread_mutex_lock(&lock);
    ssize_t n = wrote(fd, &part, 1, offset, syscall(SYS_pwrite64, fd, data, length, offset));
    pthread_mutex_unlock(&lock);
    return n;
}
ssize_t pwrite64(int fd, const void *data, size_t length, off_t offset) { return pwrite(fd, data, length, offset); }

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    pthread_mutex_lock(&lock);
    ssize_t n = wrote(fd, parts, count, offset, syscall(SYS_pwritev, fd, parts, count, offset, 0));
    pthread_mutex_unlock(&lock);
    return n;
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t offset) {
    return pwritev(fd, parts, count, offset);
}

int ftruncate(int fd, off_t size) {
    pthread_mutex_lock(&lock);
    int result = (int)syscall(SYS_ftruncate, fd, size);
    if (!result && is(fd, TRACKED)) record(TRUNCATE, fd, (uint64_t)size, 0, 0, 0, 0, 0);
    pthread_mutex_unlock(&lock);
    return result;
}
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }

int posix_fallocate(int fd, off_t offset, off_t length) {
    REAL(int, "posix_fallocate", int, off_t, off_t);
    pthread_mutex_lock(&lock);
    int result = real(fd, offset, length);
    if (!result && is(fd, TRACKED)) record(EXTEND, fd, (uint64_t)(offset + length), 0, 0, 0, 0, 0);
    pthread_mutex_unlock(&lock);
    return result;
}
int posix_fallocate64(int fd, off_t offset, off_t length) { return posix_fallocate(fd, offset, length); }

static int synced(int fd, long number) {
    pthread_mutex_lock(&lock);
    int result = (int)syscall(number, fd);
    if (!result && is(fd, TRACKED)) record(SYNC, fd, 0, 0, 0, 0, 0, 0);
    pthread_mutex_unlock(&lock);
    return result;
}
int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

/* -- names */

static int named(int operation, int result, const char *first, const char *second) {
    if (!result && (inside(first) || (second && inside(second))))
        record(operation, -1, 0, 0, first, strlen(first), second, second ? strlen(second) : 0);
    return result;
}

#define NAMES(call, operation, first, second)                   \
    pthread_mutex_lock(&lock);                                  \
    int result = named(operation, (int)(call), first, second);  \
    pthread_mutex_unlock(&lock);                                \
    return result;

int rename(const char *from, const char *to) {
    NAMES(syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0), RENAME, from, to)
}
int renameat(int a, const char *from, int b, const char *to) {
    NAMES(syscall(SYS_renameat2, a, from, b, to, 0), RENAME, from, to)
}
int unlink(const char *path) { NAMES(syscall(SYS_unlinkat, AT_FDCWD, path, 0), UNLINK, path, 0) }
int unlinkat(int at, const char *path, int flags) {
    NAMES(syscall(SYS_unlinkat, at, path, flags), (flags & AT_REMOVEDIR) ? RMDIR : UNLINK, path, 0)
}
int rmdir(const char *path) { NAMES(syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR), RMDIR, path, 0) }
int mkdir(const char *path, mode_t mode) { NAMES(syscall(SYS_mkdirat, AT_FDCWD, path, mode), MKDIR, path, 0) }
int mkdirat(int at, const char *path, mode_t mode) { NAMES(syscall(SYS_mkdirat, at, path, mode), MKDIR, path, 0) }
int link(const char *from, const char *to) {
    NAMES(syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0), LINK, from, to)
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
    NAMES(syscall(SYS_linkat, a, from, b, to, flags), LINK, from, to)
}
