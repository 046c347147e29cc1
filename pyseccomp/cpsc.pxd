# Declarations of psc.h, one for one; nothing else declares C of ours.
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "psc.h" nogil:
    cdef struct sock_filter:
        uint16_t code
        uint8_t jt
        uint8_t jf
        uint32_t k

    cdef struct seccomp_data:
        int nr
        uint32_t arch
        uint64_t instruction_pointer
        uint64_t args[6]

    # digest
    enum: PSC_DIGEST_SIZE
    void psc_digest(const void *data, size_t size, uint8_t *ret_digest)

    # validate
    enum: PSC_MAX_INSNS
    cdef struct psc_program_fault:
        size_t index
        const char *reason
    int psc_program_check(const sock_filter *insns, size_t len, psc_program_fault *ret_fault)
    bint psc_program_notifies(const sock_filter *insns, size_t len)

    # interpret
    cdef struct psc_decision:
        uint32_t ret
        uint32_t executed
    int psc_program_run(const sock_filter *insns, size_t len, const seccomp_data *data, psc_decision *ret_decision)
