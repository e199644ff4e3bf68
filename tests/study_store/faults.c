/* Makes file operations fail on demand: LD_PRELOAD=faults.so, then fault_arm(...) through ctypes.
 *
 * An armed fault hits calls of one kind on files whose path has `part` in it: `skip` of them pass, then `times` fail
 * with `error`. A write may also write half of what it was given before it fails, as a disk does that becomes full.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { DATA = 1, META, SYNC, NAME, OPEN };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int armed, fault_kind, fault_error, skip, times, hits;
static char part[PATH_MAX];

void fault_arm(int kind, const char *path_part, int error, int skip_calls, int fail_calls) {
    pthread_mutex_lock(&lock);
    fault_kind = kind, fault_error = error, skip = skip_calls, times = fail_calls, hits = 0;
    snprintf(part, sizeof part, "%s", path_part);
    armed = 1;
    pthread_mutex_unlock(&lock);
}

/* Ends it; returns how many calls it hit. */
int fault_disarm(void) {
    pthread_mutex_lock(&lock);
    armed = 0;
    int result = hits;
    pthread_mutex_unlock(&lock);
    return result;
}

static int struck(int kind, const char *path) {
    int result = 0;
    pthread_mutex_lock(&lock);
    if (armed && kind == fault_kind && strstr(path, part)) {
        if (skip) skip--;
        else if (times) times--, hits++, result = 1;
    }
    pthread_mutex_unlock(&lock);
    if (result) errno = fault_error;
    return result;
}

static int struck_fd(int kind, int fd) {
    if (!armed) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return struck(kind, path);
}

/* LMDB writes its two meta pages through a descriptor of their own, opened with O_DSYNC. */
static int write_kind(int fd) { return armed && (fcntl(fd, F_GETFL) & O_DSYNC) == O_DSYNC ? META : DATA; }

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    if (struck_fd(write_kind(fd), fd)) return -1;
    return syscall(SYS_pwrite64, fd, data, length, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t length, off_t offset) { return pwrite(fd, data, length, offset); }

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    if (struck_fd(write_kind(fd), fd)) {
        syscall(SYS_pwritev, fd, parts, count / 2, offset, 0);
        errno = fault_error;
        return -1;
    }
    return syscall(SYS_pwritev, fd, parts, count, offset, 0);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t offset) {
    return pwritev(fd, parts, count, offset);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (struck_fd(write_kind(fd), fd)) return -1;
    return syscall(SYS_writev, fd, parts, count);
}
int fdatasync(int fd) { return struck_fd(SYNC, fd) ? -1 : (int)syscall(SYS_fdatasync, fd); }
int fsync(int fd) { return struck_fd(SYNC, fd) ? -1 : (int)syscall(SYS_fsync, fd); }
int rename(const char *from, const char *to) {
    if (struck(NAME, to)) return -1;
    return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}
int posix_fallocate(int fd, off_t offset, off_t length) {
    if (struck_fd(OPEN, fd)) return fault_error;
    return ftruncate(fd, offset + length);
}
int posix_fallocate64(int fd, off_t offset, off_t length) { return posix_fallocate(fd, offset, length); }
