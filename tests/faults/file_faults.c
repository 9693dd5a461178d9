/* Preloaded into a run: counts the file operations that write under one directory, and makes the n-th of them fail.

   faults_arm(n, mode, error, directory) starts the count. Modes:
     KILL_BEFORE, KILL_AFTER   the process dies (SIGKILL) before or after operation n
     TORN                      of a write half arrives, and the process dies; of anything else as KILL_BEFORE
     ONCE                      operation n fails with `error`
     FROM                      operation n and all after it that need room or the disk fail with `error`
     SHORT                     a write n takes half of its bytes and says so
     RAISE                     the process gets signal `error` before operation n
   Reads are left alone: a run that is killed reads nothing that a later one needs. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
  KILL_BEFORE,
  KILL_AFTER,
  TORN,
  ONCE,
  FROM,
  SHORT,
  RAISE
};

static long chosen = -1, count = 0;
static int mode = 0, failure = 0, log_fd = -1;
static char root[PATH_MAX];

void faults_arm(long n, int how, int error, const char* directory) {
  snprintf(root, sizeof root, "%s", directory);
  mode = how;
  failure = error;
  count = 0;
  chosen = n;
}
void faults_log(int fd) { log_fd = fd; }
long faults_count(void) { return count; }

#define REAL(name)               \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int under(const char* path) { return chosen >= 0 && path && strncmp(path, root, strlen(root)) == 0; }

static int place(int fd, char* path, size_t size) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, size - 1);
  if (n <= 0) return 0;
  path[n] = 0;
  return 1;
}

static int under_fd(int fd) {
  char path[PATH_MAX];
  return chosen >= 0 && fd != log_fd && place(fd, path, sizeof path) && under(path);
}

static int under_at(int fd, const char* path) {
  if (!path || path[0] == '/' || fd == AT_FDCWD) return under(path);
  return under_fd(fd);
}

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

/* Counts an operation; whether it is to fail, with errno set. */
static int fails(const char* what, const char* path) {
  count++;
  if (log_fd >= 0) dprintf(log_fd, "%ld %s %s\n", count, what, path ? path : "");
  if (mode == FROM && count >= chosen) {
    errno = failure;
    return 1;
  }
  if (count != chosen) return 0;
  if (mode == KILL_BEFORE || mode == TORN) die();
  if (mode == RAISE) raise(failure);
  if (mode == ONCE) {
    errno = failure;
    return 1;
  }
  return 0;
}

static void after(void) {
  if (count == chosen && mode == KILL_AFTER) die();
}

static const char* name_of(int fd) {
  static char path[PATH_MAX];
  return log_fd >= 0 && place(fd, path, sizeof path) ? path : "";
}

static int half(void) { return count + 1 == chosen && (mode == TORN || mode == SHORT); }

ssize_t write(int fd, const void* data, size_t size) {
  REAL(write);
  if (!under_fd(fd)) return real(fd, data, size);
  if (half() && size > 1) {
    count++;
    ssize_t done = real(fd, data, size / 2);
    if (mode == TORN) die();
    return done;
  }
  if (fails("write", name_of(fd))) return -1;
  ssize_t done = real(fd, data, size);
  after();
  return done;
}

ssize_t writev(int fd, const struct iovec* parts, int number) {
  REAL(writev);
  if (!under_fd(fd)) return real(fd, parts, number);
  if (half() && number > 0) {
    count++;
    ssize_t done = write(fd, parts[0].iov_base, parts[0].iov_len);
    if (mode == TORN) die();
    return done;
  }
  if (fails("write", name_of(fd))) return -1;
  ssize_t done = real(fd, parts, number);
  after();
  return done;
}

#define ONE(type, name, arguments, call, inside, what, path) \
  type name arguments {                                      \
    REAL(name);                                              \
    if (!(inside)) return real call;                         \
    if (fails(what, path)) return -1;                        \
    type done = real call;                                   \
    after();                                                 \
    return done;                                             \
  }

ONE(ssize_t, pwrite64, (int fd, const void* data, size_t size, off64_t at), (fd, data, size, at), under_fd(fd), "write",
    name_of(fd))
/* Counted and not done: a killed process needs no disk, and the test is quicker. */
int fsync(int fd) {
  REAL(fsync);
  if (!under_fd(fd)) return real(fd);
  if (fails("fsync", name_of(fd))) return -1;
  after();
  return 0;
}

ONE(int, ftruncate64, (int fd, off64_t size), (fd, size), under_fd(fd), "truncate", name_of(fd))
ONE(int, ftruncate, (int fd, off_t size), (fd, size), under_fd(fd), "truncate", name_of(fd))
ONE(int, rename, (const char* from, const char* to), (from, to), under(to), "rename", to)
ONE(int, renameat, (int a, const char* from, int b, const char* to), (a, from, b, to), under_at(b, to), "rename", to)
ONE(int, unlink, (const char* path), (path), under(path), "unlink", path)
ONE(int, unlinkat, (int fd, const char* path, int flags), (fd, path, flags), under_at(fd, path), "unlink", path)
ONE(int, rmdir, (const char* path), (path), under(path), "rmdir", path)
ONE(int, mkdir, (const char* path, mode_t bits), (path, bits), under(path), "mkdir", path)

static int opened(int (*real)(const char*, int, ...), const char* path, int flags, mode_t bits) {
  int writes = (flags & (O_CREAT | O_TRUNC)) || (flags & O_ACCMODE) != O_RDONLY;
  if (!writes || !under(path)) return real(path, flags, bits);
  if (fails("open", path)) return -1;
  int fd = real(path, flags, bits);
  after();
  return fd;
}

#define OPEN(name)                                                            \
  int name(const char* path, int flags, ...) {                                \
    static int (*real)(const char*, int, ...);                                \
    if (!real) *(void**)&real = dlsym(RTLD_NEXT, #name);                      \
    va_list rest;                                                             \
    va_start(rest, flags);                                                    \
    mode_t bits = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                             \
    return opened(real, path, flags, bits);                                   \
  }

OPEN(open)
OPEN(open64)

FILE* fopen64(const char* path, const char* how) {
  REAL(fopen64);
  if (how[0] == 'r' || !under(path)) return real(path, how);
  if (fails("open", path)) return NULL;
  FILE* file = real(path, how);
  after();
  return file;
}
