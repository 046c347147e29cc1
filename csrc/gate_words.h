/* gate_words.h - private: what waits for the words of a filter's page. */
#ifndef PSC_GATE_WORDS_H
#define PSC_GATE_WORDS_H

#include "internal.h"
#include "psc.h"

/* A counter that changes with every word that is stored; who stores rings it. */
uint32_t psc_page_stamp(const struct psc_page *page);
const void *psc_page_bell(const struct psc_page *page);

#endif
