/* Shuts a mounted file system down as a loss of power would: nothing that is not on the disk gets there any more, the journal's log is not
   flushed. The ioctl is XFS_IOC_GOINGDOWN, which ext4 has, too. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>

int main(int count, char **words) {
    uint32_t no_log_flush = 2;
    if (count != 2) { fprintf(stderr, "usage: fsdown MOUNTPOINT\n"); return 2; }
    int fd = open(words[1], O_RDONLY | O_DIRECTORY);
    if (fd < 0) { perror(words[1]); return 1; }
    if (ioctl(fd, _IOR('X', 125, uint32_t), &no_log_flush) != 0) { perror("shutdown"); return 1; }
    return 0;
}
