/* What --net's hostfwd says: PROTOCOL:[ADDRESS]:PORT-[ADDRESS]:PORT, an IPv6 address in square brackets. */
#include "host/net.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FORM "PROTOCOL:[ADDRESS]:PORT-[ADDRESS]:PORT, as tcp:127.0.0.1:2222-:22"

static bool parse_port(const char *text, uint16_t *port)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	*port = (uint16_t)n;
	return text[0] >= '0' && text[0] <= '9' && !*end && n >= 1 && n <= 65535;
}

/* "ADDRESS" or "[ADDRESS]" of `len` bytes. */
static bool parse_ip(const char *text, size_t len, struct host_address *a)
{
	char copy[64];

	a->v6 = false;
	if (len >= 2 && text[0] == '[' && text[len - 1] == ']') {
		a->v6 = true;
		text++;
		len -= 2;
	}
	if (len >= sizeof(copy))
		return false;
	memcpy(copy, text, len);
	copy[len] = 0;
	return inet_pton(a->v6 ? AF_INET6 : AF_INET, copy, a->byte) == 1;
}

/* "[ADDRESS]:PORT"; no address leaves what *a has. Returns what is wrong, or NULL. */
static const char *parse_address(const char *text, struct host_address *a)
{
	const char *colon = strrchr(text, ':');

	if (!colon)
		return "no port";
	if (!parse_port(colon + 1, &a->port))
		return "a port is not a number from 1 to 65535";
	if (colon != text && !parse_ip(text, (size_t)(colon - text), a))
		return "an address is not one (IPv6 in square brackets)";
	return NULL;
}

static const char *parse(struct host_forward *f, char *text)
{
	char *dash;
	const char *why;

	if (!strncmp(text, "udp:", 4))
		f->udp = true;
	else if (strncmp(text, "tcp:", 4) != 0)
		return "the protocol is neither tcp nor udp";
	text += 4;
	dash = strchr(text, '-');
	if (!dash)
		return "no '-' between host and guest";
	*dash = 0;
	why = parse_address(text, &f->host);
	if (f->host.v6) {
		f->guest = (struct host_address){.v6 = true};
		inet_pton(AF_INET6, "fec0::15", f->guest.byte);
	}
	why = why ? why : parse_address(dash + 1, &f->guest);
	if (!why && f->host.v6 != f->guest.v6)
		why = "one address is IPv4, the other IPv6";
	return why;
}

bool host_forward_parse(struct host_forward *forward, const char *text, struct error *err)
{
	char copy[sizeof(forward->text)];
	const char *why = "it is too long";

	*forward = (struct host_forward){.host = {.byte = {127, 0, 0, 1}}, .guest = {.byte = {10, 0, 2, 15}}};
	if (strlen(text) < sizeof(copy)) {
		snprintf(forward->text, sizeof(forward->text), "%s", text);
		snprintf(copy, sizeof(copy), "%s", text);
		why = parse(forward, copy);
	}
	return !why || error_set(err, "--net hostfwd=%s: %s: the form is " FORM, text, why);
}
