/* packet.h - private: messages of one size, with file descriptors beside them. */
#ifndef PSC_PACKET_H
#define PSC_PACKET_H

#include "psc.h"

#include <stddef.h>

#define PSC_PACKET_FDS 64

/* One packet with its fds, at most PSC_PACKET_FDS, over a seqpacket socket. receive: exactly
 * size bytes and at most n fds, else they are closed and it is -EBADMSG; -ECONNRESET at the
 * end. Returns how many fds; they are CLOEXEC. */
PSC_MUST_CHECK int psc_packet_send(int socket, const void *data, size_t size, const int *fds, size_t n);
PSC_MUST_CHECK int psc_packet_receive(int socket, void *ret_data, size_t size, int *ret_fds, size_t n);

/* The same, but a packet whose descriptors find no room in the table of this process (or whose
 * descriptors a security module refuses) is not lost: -EMFILE, with the data in *ret_data, and the
 * packet stays the next one in the socket until psc_packet_drop(). */
PSC_MUST_CHECK int psc_packet_receive_kept(int socket, void *ret_data, size_t size, int *ret_fds, size_t n);
void psc_packet_drop(int socket);

#endif
