/* Loaded into a process (LD_PRELOAD): adds an offset to CLOCK_REALTIME and to nothing else. CLOCK_MONOTONIC stays, because futexes and
   timers wait for absolute times of it. The offset is in a mapped file, so that it can change while the process runs. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct page { volatile int64_t offset_ns; volatile uint64_t shifted; };
static struct page nothing, *page = &nothing;

__attribute__((constructor)) static void open_page(void) {
    const char *path = getenv("KONTIKI_CHAOS_CLOCK");
    if (!path) return;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *at = mmap(0, sizeof(struct page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED) page = at;
}

static void shift(struct timespec *t) {
    int64_t offset = page->offset_ns;
    if (offset == 0) return;
    int64_t ns = t->tv_nsec + offset % 1000000000;
    t->tv_sec += offset / 1000000000;
    if (ns < 0) { ns += 1000000000; t->tv_sec--; }
    if (ns >= 1000000000) { ns -= 1000000000; t->tv_sec++; }
    t->tv_nsec = ns;
    __atomic_add_fetch(&page->shifted, 1, __ATOMIC_RELAXED);
}

extern int __clock_gettime(clockid_t, struct timespec *) __attribute__((weak));

int clock_gettime(clockid_t clock, struct timespec *t) {
    int got = __clock_gettime ? __clock_gettime(clock, t) : (int)syscall(SYS_clock_gettime, clock, t);
    if (got == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) shift(t);
    return got;
}

int gettimeofday(struct timeval *restrict tv, void *restrict zone) {
    (void)zone;
    struct timespec t;
    int got = clock_gettime(CLOCK_REALTIME, &t);
    if (got == 0) { tv->tv_sec = t.tv_sec; tv->tv_usec = t.tv_nsec / 1000; }
    return got;
}

time_t time(time_t *out) {
    struct timespec t;
    if (clock_gettime(CLOCK_REALTIME, &t) != 0) return (time_t)-1;
    if (out) *out = t.tv_sec;
    return t.tv_sec;
}
