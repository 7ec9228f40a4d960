/* Networks as people write them: KIND[,NAME=VALUE]... */
#include "host/host.h"
#include "vm/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MTU_DEFAULT 65520u
#define MTU_MIN 576u /* what every IPv4 host takes */
#define MTU_MAX 65520u

/* Locally administered; of each machine's own, as the networks are. A tap's are on a network with others': random. */
static const uint8_t mac_base[6] = {0x02, 0x64, 0x70, 0x6c, 0x00, 0x01};

struct vm_nets {
	char text[PC_NETS][4096];
	struct host_forward forward[PC_NETS][HOST_FORWARDS];
};

struct parse {
	struct pc_net *net;
	struct host_forward *forwards; /* room for HOST_FORWARDS */
	const char *spec;
	struct error *err;
};

static bool parse_mac(struct parse *p, const char *value)
{
	unsigned byte[6];
	int end = 0;

	if (sscanf(value, "%2x:%2x:%2x:%2x:%2x:%2x%n", &byte[0], &byte[1], &byte[2], &byte[3], &byte[4], &byte[5],
		   &end) != 6 ||
	    end != 17 || value[17])
		return error_set(p->err, "--net mac=%s: not an address: give one as 52:54:00:12:34:56", value);
	for (unsigned i = 0; i < 6; i++)
		p->net->mac[i] = (uint8_t)byte[i];
	if (!(byte[0] | byte[1] | byte[2] | byte[3] | byte[4] | byte[5]))
		return error_set(p->err, "--net mac=%s: no device has that address: give one as 52:54:00:12:34:56",
				 value);
	if (byte[0] & 1)
		return error_set(p->err, "--net mac=%s: that is a group's address: make the first number even", value);
	return true;
}

/* A whole number, with K, M or G. */
static bool parse_number(const char *value, uint64_t *number)
{
	static const char units[] = "KMG";
	char *end;
	unsigned long long n = strtoull(value, &end, 10);
	const char *unit = *end ? strchr(units, *end & ~0x20) : NULL;
	unsigned shift = unit ? (unsigned)(unit - units + 1) * 10 : 0;

	*number = (uint64_t)n << shift;
	return value[0] >= '0' && value[0] <= '9' && !end[unit ? 1 : 0] && n <= UINT64_MAX >> shift && n < UINT64_MAX;
}

static bool parse_bps(struct parse *p, const char *value)
{
	return (parse_number(value, &p->net->bps) && p->net->bps) ||
	       error_set(p->err, "--net bps=%s: not a number of bytes a second: give one as bps=10M", value);
}

static bool parse_mtu(struct parse *p, const char *value)
{
	uint64_t mtu;

	if (!parse_number(value, &mtu) || mtu < MTU_MIN || mtu > MTU_MAX)
		return error_set(p->err, "--net mtu=%s: not possible: give %u to %u", value, MTU_MIN, MTU_MAX);
	p->net->user.mtu = (unsigned)mtu;
	return true;
}

static bool parse_restrict(struct parse *p, const char *value)
{
	p->net->user.restricted = !strcmp(value, "on");
	return p->net->user.restricted || !strcmp(value, "off") ||
	       error_set(p->err, "--net restrict=%s: there are restrict=on and restrict=off", value);
}

static bool parse_forward(struct parse *p, const char *value)
{
	struct host_net_user *user = &p->net->user;

	if (user->forwards == HOST_FORWARDS)
		return error_set(p->err, "--net hostfwd: too many: at most %u", HOST_FORWARDS);
	return host_forward_parse(&p->forwards[user->forwards++], value, p->err);
}

static const struct {
	const char *name;
	bool (*parse)(struct parse *p, const char *value);
	bool tap; /* of both kinds */
} words[] = {
	{"hostfwd=", parse_forward, false},
	{"mac=", parse_mac, true},
	{"bps=", parse_bps, true},
	{"mtu=", parse_mtu, false},
	{"restrict=", parse_restrict, false},
};

static bool parse_word(struct parse *p, const char *word)
{
	for (unsigned i = 0; i < ARRAY_LEN(words); i++) {
		size_t len = strlen(words[i].name);
		if (strncmp(word, words[i].name, len) != 0)
			continue;
		if (p->net->tap && !words[i].tap)
			return error_set(p->err, "--net %s: a tap takes no %.*s: it takes mac and bps", p->spec,
					 (int)len - 1, word);
		return words[i].parse(p, word + len);
	}
	return error_set(p->err,
			 "--net %s: unknown word '%s': there are hostfwd=, mac=, mtu=, restrict= and bps=", p->spec,
			 word);
}

static bool parse_kind(struct parse *p, const char *kind)
{
	if (!strncmp(kind, "tap=", 4)) {
		p->net->tap = kind + 4;
		return host_random(p->net->mac + 3, 3) || error_set(p->err, "no random numbers: %s", host_error_text());
	}
	if (!strcmp(kind, "none"))
		return error_set(p->err, "--net %s: none stands alone: give it once and nothing else of --net",
				 p->spec);
	return !strcmp(kind, "user") ||
	       error_set(p->err, "--net %s: unknown network '%s': there are user, tap=INTERFACE and none", p->spec,
			 kind);
}

/* `text` is a copy of the spec that is cut up. */
static bool parse_net(struct parse *p, char *text)
{
	char *word = strsep(&text, ",");

	if (!parse_kind(p, word))
		return false;
	while ((word = strsep(&text, ",")))
		if (!parse_word(p, word))
			return false;
	return true;
}

static bool parse_one(struct vm_nets *nets, unsigned i, const char *spec, struct pc_net *net, struct error *err)
{
	struct parse p = {net, nets->forward[i], spec, err};

	*net = (struct pc_net){.user = {.mtu = MTU_DEFAULT, .forward = nets->forward[i]}};
	memcpy(net->mac, mac_base, sizeof(net->mac));
	net->mac[5] = (uint8_t)(net->mac[5] + i);
	if (snprintf(nets->text[i], sizeof(nets->text[i]), "%s", spec) >= (int)sizeof(nets->text[i]))
		return error_set(err, "--net %.40s...: too long: at most %zu characters", spec,
				 sizeof(nets->text[i]) - 1);
	return parse_net(&p, nets->text[i]);
}

static bool parse_all(struct vm_nets *nets, const struct vm_config *config, struct pc_config *pc, struct error *err)
{
	static const char *const usual[] = {"user"};
	const char *const *spec = config->nets ? config->net : usual;
	const unsigned count = config->nets ? config->nets : 1;

	pc->nets = 0;
	if (count == 1 && spec[0] && !strcmp(spec[0], "none"))
		return true;
	for (; pc->nets < count; pc->nets++) {
		const char *one = spec[pc->nets] ? spec[pc->nets] : usual[0];
		if (!parse_one(nets, pc->nets, one, &pc->net[pc->nets], err))
			return false;
	}
	return true;
}

void vm_nets_expect(const struct vm_config *config)
{
	bool user = !config->nets;

	for (unsigned i = 0; i < config->nets; i++)
		user |= !config->net[i] || !strncmp(config->net[i], "user", 4);
	if (user)
		host_net_expect_user();
}

void vm_nets_describe(const struct pc_config *pc, char *text, size_t size)
{
	size_t len = (size_t)snprintf(text, size, pc->nets ? "network" : "no network");

	for (unsigned i = 0; i < pc->nets && len < size; i++) {
		const char *tap = pc->net[i].tap;
		len += (size_t)snprintf(text + len, size - len, "%s %s%s", i ? " and" : "", tap ? "tap " : "user",
					tap ? tap : "");
	}
}

struct vm_nets *vm_nets_parse(const struct vm_config *config, struct pc_config *pc, struct error *err)
{
	struct vm_nets *nets = calloc(1, sizeof(*nets));

	if (!nets)
		error_set(err, "out of memory");
	else if (parse_all(nets, config, pc, err))
		return nets;
	free(nets);
	return NULL;
}
