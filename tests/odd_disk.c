/* Preloaded, it makes the folder ODD_ROOT lie on a disk that refuses ODD_CALL (flock, fsync, write, rename) with the
   error number ODD_ERROR, for files of ODD_KIND (file, folder or any). The lock file itself can always be written. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int is(const char *variable, const char *value) {
    const char *set = getenv(variable);
    return set && !strcmp(set, value);
}

static int below(const char *path) {
    const char *root = getenv("ODD_ROOT");
    return root && !strncmp(path, root, strlen(root));
}

static int refused(const char *call, int file) {
    char link[64], path[4096];
    struct stat found;
    ssize_t size;
    if (!is("ODD_CALL", call)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    if ((size = readlink(link, path, sizeof path - 1)) < 0) return 0;
    path[size] = 0;
    if (!below(path) || fstat(file, &found)) return 0;
    if (is("ODD_KIND", "file") && !S_ISREG(found.st_mode)) return 0;
    if (is("ODD_KIND", "folder") && !S_ISDIR(found.st_mode)) return 0;
    errno = atoi(getenv("ODD_ERROR"));
    return 1;
}

int flock(int file, int how) {
    int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
    return refused("flock", file) ? -1 : real(file, how);
}

int fsync(int file) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    return refused("fsync", file) ? -1 : real(file);
}

ssize_t write(int file, const void *data, size_t size) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    return refused("write", file) ? -1 : real(file, data, size);
}

int rename(const char *from, const char *to) {
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    if (!is("ODD_CALL", "rename") || !below(from)) return real(from, to);
    errno = atoi(getenv("ODD_ERROR"));
    return -1;
}
