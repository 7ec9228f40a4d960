/* doppel run: a VM from the command line. */
#include "cli/cli.h"
#include "cli/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct run_options {
	const char *sandbox_word;
	bool sandbox;

	const char *kernel, *initrd, *append, *engine, *console, *virtio_console, *balloon, *name, *debug, *symbols,
		*stats, *on_panic, *cpu_limit;
	const char *vsock;
	uint64_t memory, code_cache;
	unsigned cpus;
	struct string_list disks, nets, shares;
	bool no_reboot, debug_exit, quiet, help, version;
	const char *pv;
};

#define FIELD(name) offsetof(struct run_options, name)

static const struct option options[] = {
	{"kernel", OPT_FILE, FIELD(kernel), "FILE",
	 "kernel to boot: a bzImage (vmlinuz), or an ELF file for PVH or multiboot"},
	{"initrd", OPT_FILE, FIELD(initrd), "FILE", "initial RAM disk"},
	{"append", OPT_STRING, FIELD(append), "TEXT",
	 "the kernel's command line; unless it says console=,\n"
	 "console=ttyS0 is put in front"},
	{"memory", OPT_SIZE, FIELD(memory), "SIZE", "guest memory (default: 1G); sizes take K, M or G"},
	{"cpus", OPT_NUMBER, FIELD(cpus), "N", "virtual CPUs, 1 to 64 (default: 1)"},
	{"cpu-limit", OPT_STRING, FIELD(cpu_limit), "PERCENT", "of one host CPU's time, for all virtual CPUs together"},
	{"disk", OPT_LIST, FIELD(disks), "FILE[,WORD]...",
	 "disk image (raw or qcow2) or NBD server (nbd://HOST[:PORT]/EXPORT,\n"
	 "nbd+unix:///EXPORT?socket=PATH), as /dev/vda, the next as /dev/vdb,\n"
	 "and so on; a comma in FILE is written twice. WORDs: readonly,\n"
	 "snapshot=on (writes are forgotten at the end), direct=on (past the\n"
	 "host's cache), blocksize=512|4096, format=raw|qcow2, iops=N and\n"
	 "bps=N (caps on requests and bytes a second)"},
	{"net", OPT_LIST, FIELD(nets), "KIND[,OPTION]...",
	 "a network device: user (default; the host's network by this\n"
	 "process's own sockets), tap=INTERFACE of the host, or none;\n"
	 "user takes hostfwd=tcp|udp:[ADDRESS]:PORT-[ADDRESS]:PORT, often,\n"
	 "mtu=BYTES and restrict=on; both take mac=ADDRESS and\n"
	 "bps=SIZE, the most bytes a second each way"},
	{"share", OPT_LIST, FIELD(shares), "FOLDER[:TAG][,readonly]",
	 "shares a folder: 'mount -t virtiofs TAG /mnt' in the guest; TAG is\n"
	 "share, share2, ... if not given; a comma in FOLDER is written twice"},
	{"balloon", OPT_STRING, FIELD(balloon), "on|off|SIZE",
	 "a balloon: memory that the guest has free goes back to the host\n"
	 "(default: on); SIZE is taken from the guest altogether"},
	{"vsock", OPT_STRING, FIELD(vsock), "unix=SOCKET[,cid=N]",
	 "sockets between guest and host: who connects to SOCKET and says\n"
	 "'CONNECT PORT' gets the guest's; the guest gets SOCKET_PORT"},
	{"console", OPT_STRING, FIELD(console), "WHERE",
	 "where the first serial port leads: stdio (default; Ctrl-A H lists\n"
	 "the keys), file=FILE, pty, unix=SOCKET or none"},
	{"virtio-console", OPT_STRING, FIELD(virtio_console), "WHERE",
	 "adds a virtio console (hvc0 in Linux) that leads there; only one\n"
	 "of the two consoles can be on stdio (default: none is added)"},
	{"engine", OPT_STRING, FIELD(engine), "NAME", "what runs the guest's code: auto (default) or translate"},
	{"pv", OPT_STRING, FIELD(pv), "LIST",
	 "what the guest is offered of KVM's paravirtual interface: all\n"
	 "(default), none, or some of clock, delay, steal, eoi, ipi, tlb\n"
	 "and lock with commas between them"},
	{"code-cache", OPT_SIZE, FIELD(code_cache), "SIZE",
	 "memory for translated code, 1M to 1G (default: a quarter of the\n"
	 "guest's, 64M to 256M)"},
	{"no-reboot", OPT_FLAG, FIELD(no_reboot), NULL, "end when the guest reboots"},
	{"on-panic", OPT_STRING, FIELD(on_panic), "WHAT",
	 "when the guest's kernel panics, which is told: go-on (default), or\n"
	 "stop, with status 4"},
	{"debug-exit", OPT_FLAG, FIELD(debug_exit), NULL,
	 "a write of V to port 0xf4 ends doppel with status (V << 1) | 1"},
	{"sandbox", OPT_STRING, FIELD(sandbox_word), "on|off",
	 "whether the process gives up what it does not need before the guest\n"
	 "runs (default: on)"},
	{"name", OPT_STRING, FIELD(name), "NAME", "the machine's name in messages (default: doppel)"},
	{"stats", OPT_MAYBE, FIELD(stats), "[=json]",
	 "at the end, say where the time went; json also for each CPU, and\n"
	 "what guest code was hot"},
	{"quiet", OPT_FLAG, FIELD(quiet), NULL, "say nothing but errors"},
	{"debug", OPT_STRING, FIELD(debug), "LIST",
	 "switches of the engine, to debug and profile it (docs/translator.md)"},
	{"symbols", OPT_FILE, FIELD(symbols), "FILE",
	 "names of the guest's code for --debug perf-map and hot: System.map,\n"
	 "a copy of /proc/kallsyms, or vmlinux"},
	{"help", OPT_FLAG, FIELD(help), NULL, "this text"},
	{"version", OPT_FLAG, FIELD(version), NULL, "the version of doppel"},
	{NULL, OPT_FLAG, 0, NULL, NULL},
};

static int help(void)
{
	puts("Usage: doppel run --kernel FILE [OPTIONS]\n"
	     "\n"
	     "Runs a virtual machine until its guest powers off.\n"
	     "\n"
	     "Options:");
	options_help(options);
	puts("\n"
	     "Exit status: 0 the guest powered off, or Ctrl-A X; 2 a mistake in the command; 3 the guest crashed;\n"
	     "4 its kernel panicked (--on-panic stop); 128 + N ended by signal N; with --debug-exit, what the guest "
	     "says.");
	return STATUS_OK;
}

static bool share_flag(const char *word, const char *path, unsigned *flags)
{
	if (strcmp(word, "readonly") != 0)
		return complain(
			"--share %s: unknown word '%s': there is readonly (a comma in the folder's name is written "
			"twice)",
			path, word);
	*flags |= DOPPEL_SHARE_READONLY;
	return true;
}

/* Takes ":TAG" off the end of a path; NULL: there is none. */
static const char *take_tag(char *path)
{
	char *colon = strrchr(path, ':');

	if (!colon || strchr(colon, '/'))
		return NULL;
	*colon = 0;
	return colon + 1;
}

static bool add_share(doppel_config *config, const char *spec)
{
	size_t size = strlen(spec) + 1;
	char *path = malloc(size), *word = malloc(size);
	unsigned flags = 0;
	bool good = path && word;

	if (good) {
		const char *rest = next_part(spec, path), *tag = take_tag(path);
		good = path[0] || complain("--share '%s' names no folder", spec);
		while (good && rest) {
			rest = next_part(rest, word);
			good = share_flag(word, path, &flags);
		}
		if (good)
			doppel_config_share(config, path, tag, flags);
	}
	free(path);
	free(word);
	return good;
}

static bool vsock_word(const char *word, char *path, unsigned *cid)
{
	uint64_t n;

	if (!strncmp(word, "unix=", 5) && word[5]) {
		memmove(path, word + 5, strlen(word + 5) + 1);
		return true;
	}
	if (!strncmp(word, "cid=", 4) && parse_size(word + 4, &n) && n < UINT32_MAX) {
		*cid = (unsigned)n;
		return true;
	}
	return complain("--vsock: '%s' is neither unix=SOCKET nor cid=N: say for example --vsock unix=/tmp/vsock,cid=3",
			word);
}

static bool set_vsock(doppel_config *config, const char *spec)
{
	size_t size = spec ? strlen(spec) + 1 : 1;
	char *path = calloc(1, size), *word = malloc(size);
	unsigned cid = 3;
	bool good = path && word;

	for (const char *rest = spec; good && rest;) {
		rest = next_part(rest, word);
		good = vsock_word(word, path, &cid);
	}
	if (good && spec && !path[0])
		good = complain("--vsock '%s' names no socket: say for example --vsock unix=/tmp/vsock", spec);
	if (good && spec)
		doppel_config_vsock(config, path, cid);
	free(path);
	free(word);
	return good;
}

static bool set_balloon(doppel_config *config, const char *how)
{
	uint64_t bytes = 0;

	if (how && strcmp(how, "on") != 0 && strcmp(how, "off") != 0 && !parse_size(how, &bytes))
		return complain("--balloon '%s' is not on, off or a size: say how much to take, as --balloon 256M",
				how);
	doppel_config_balloon(config, !how || strcmp(how, "off") != 0, bytes);
	return true;
}

static bool panic_flag(const char *what, unsigned *flags)
{
	if (!what || !strcmp(what, "go-on"))
		return true;
	*flags |= DOPPEL_STOP_ON_PANIC;
	return !strcmp(what, "stop") || complain("--on-panic '%s' is unknown: there are go-on and stop", what);
}

#define CPU_LIMIT_MAX 6400 /* as many host CPUs as there can be virtual ones */

static bool set_cpu_limit(doppel_config *config, const char *text)
{
	char *end;
	unsigned long percent;

	if (!text)
		return true;
	percent = strtoul(text, &end, 10);
	if (text[0] < '0' || text[0] > '9' || strcmp(end, end[0] == '%' ? "%" : "") != 0 || !percent ||
	    percent > CPU_LIMIT_MAX)
		return complain("--cpu-limit '%s' is not possible: give percents of one host CPU, 1 to %u, as "
				"--cpu-limit 50",
				text, CPU_LIMIT_MAX);
	doppel_config_cpu_limit(config, (unsigned)percent);
	return true;
}

static bool fill_config(doppel_config *config, const struct run_options *o)
{
	unsigned flags = DOPPEL_STOP_ON_SIGNALS | (o->no_reboot ? DOPPEL_NO_REBOOT : 0) |
			 (o->debug_exit ? DOPPEL_DEBUG_EXIT : 0);

	doppel_config_name(config, o->name);
	doppel_config_kernel(config, o->kernel);
	doppel_config_initrd(config, o->initrd);
	doppel_config_append(config, o->append);
	doppel_config_memory(config, o->memory);
	doppel_config_cpus(config, o->cpus);
	doppel_config_engine(config, o->engine);
	doppel_config_console(config, o->console);
	doppel_config_virtio_console(config, o->virtio_console);
	doppel_config_pv(config, o->pv);
	doppel_config_code_cache(config, o->code_cache);
	doppel_config_debug(config, o->debug);
	doppel_config_symbols(config, o->symbols);
	doppel_config_profile(config, o->stats && !strcmp(o->stats, "json"));
	for (unsigned i = 0; i < o->nets.count; i++)
		doppel_config_net(config, o->nets.item[i]);
	if (!set_balloon(config, o->balloon) || !set_vsock(config, o->vsock))
		return false;
	if (!set_cpu_limit(config, o->cpu_limit) || !panic_flag(o->on_panic, &flags))
		return false;
	doppel_config_flags(config, flags);
	for (unsigned i = 0; i < o->disks.count; i++)
		if (!config_disk(config, o->disks.item[i]))
			return false;
	for (unsigned i = 0; i < o->shares.count; i++)
		if (!add_share(config, o->shares.item[i]))
			return false;
	return true;
}

static doppel_vm *create(const struct run_options *o)
{
	doppel_error error = {"out of memory"};
	doppel_config *config = doppel_config_new();
	doppel_vm *vm = NULL;

	if (config && fill_config(config, o)) {
		vm = doppel_vm_create(config, &error);
		if (!vm)
			complain("%s", error.text);
	}
	doppel_config_free(config);
	return vm;
}

/* A panic is told even to those who want to hear of errors only. */
static void tell(void *opaque, doppel_event event)
{
	const struct run_options *o = opaque;

	switch (event) {
	case DOPPEL_EVENT_PANIC:
		complain("the guest's kernel panicked");
		break;
	case DOPPEL_EVENT_PANIC_HANDLED:
		complain("the guest's kernel panicked; its crash kernel takes over");
		break;
	case DOPPEL_EVENT_REBOOT:
		if (!o->quiet)
			complain("the guest reboots");
		break;
	}
}

/* After everything has been opened, before anything of the guest's runs. */
static bool confine(const struct run_options *o)
{
	doppel_error error;

	return !o->sandbox || doppel_confine(&error) || complain("%s", error.text);
}

static int run(struct run_options *o)
{
	doppel_vm *vm;

	if (o->sandbox)
		doppel_close_inherited();
	vm = create(o);
	if (!vm)
		return STATUS_USAGE;
	doppel_vm_on_event(vm, tell, o);
	if (!confine(o)) {
		doppel_vm_destroy(vm);
		return STATUS_USAGE;
	}
	if (!o->quiet)
		fprintf(stderr, "doppel: %s, %s\n", doppel_vm_description(vm), doppel_confinement());
	int status = doppel_vm_run(vm, NULL);
	const char *report = doppel_vm_report(vm);
	if (report[0])
		complain("%s", report);
	if (o->stats && o->stats[0])
		fputs(doppel_vm_stats_json(vm), stderr);
	else if (o->stats)
		print_stats(vm);
	doppel_vm_destroy(vm);
	return status;
}

int command_run(int argc, char **argv)
{
	struct run_options o = {.memory = 1ull << 30, .cpus = 1, .sandbox_word = "on"};

	if (!options_parse(options, &o, "run", argc, argv))
		return STATUS_USAGE;
	if (o.help)
		return help();
	if (o.version) {
		printf("doppel %s\n", doppel_version());
		return STATUS_OK;
	}
	o.sandbox = !strcmp(o.sandbox_word, "on");
	if (!o.sandbox && strcmp(o.sandbox_word, "off") != 0) {
		complain("--sandbox '%s' is neither on nor off: give one of them", o.sandbox_word);
		return STATUS_USAGE;
	}
	if (o.quiet)
		doppel_log(DOPPEL_LOG_ERROR);
	if (o.stats && o.stats[0] && strcmp(o.stats, "json") != 0) {
		complain("--stats=%s: there are --stats and --stats=json", o.stats);
		return STATUS_USAGE;
	}
	if (!o.kernel) {
		complain("no kernel: give one with --kernel FILE");
		if (argc == 1)
			fputs("  doppel run --kernel vmlinuz --initrd initrd.gz --memory 1G --cpus 2 --disk root.ext4\n"
			      "  'doppel help run' lists all options\n",
			      stderr);
		return STATUS_USAGE;
	}
	return run(&o);
}
