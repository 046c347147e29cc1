/* Patterns of shells, over bytes.
 *
 * Only the last star is ever tried again: an earlier one that took the fewest bytes it
 * could left the most for what follows, so to lengthen it gains nothing. That bounds
 * the work by the lengths multiplied, whoever wrote the text. */
#include "internal.h"
#include "psc.h"

#include <string.h>

/* The bracket that closes a list, or NULL. A first one, also after !, is a member. */
static const unsigned char *closing(const unsigned char *list, const unsigned char *end)
{
	const unsigned char *p = list;

	if (p < end && *p == '!')
		p++;
	if (p < end && *p == ']')
		p++;
	return p < end ? memchr(p, ']', (size_t)(end - p)) : NULL;
}

static bool listed(const unsigned char *p, const unsigned char *close, unsigned char byte)
{
	bool negated = *p == '!', found = false;

	for (p += negated; p < close; p++) {
		if (close - p > 2 && p[1] == '-') {
			found |= p[0] <= byte && byte <= p[2];
			p += 2;
		} else {
			found |= *p == byte;
		}
	}
	return found != negated;
}

/* Match one byte by the element at p, which ends at *ret_next. */
static bool takes(const unsigned char *p, const unsigned char *end, unsigned char byte, const unsigned char **ret_next)
{
	const unsigned char *close = *p == '[' ? closing(p + 1, end) : NULL;

	*ret_next = (close ? close : p) + 1;
	if (close)
		return listed(p + 1, close, byte);
	return *p == '?' || *p == byte;
}

bool psc_glob_match(const char *pattern, size_t pattern_length, const char *text, size_t length)
{
	const unsigned char *p = (const unsigned char *)pattern, *end = p + pattern_length;
	const unsigned char *t = (const unsigned char *)text, *text_end = t + length;
	const unsigned char *after_star = NULL, *taken = NULL, *next;

	while (t < text_end) {
		if (p < end && *p == '*') {
			after_star = ++p;
			taken = t;
			if (p == end)
				return true;
		} else if (p < end && takes(p, end, *t, &next)) {
			p = next;
			t++;
		} else if (after_star) {
			p = after_star;
			t = ++taken;
		} else {
			return false;
		}
	}
	while (p < end && *p == '*')
		p++;
	return p == end;
}
