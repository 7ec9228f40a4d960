#include "engine/symbols.h"

#include "host/host.h"

#include <stdlib.h>
#include <string.h>

struct symbol {
	uint64_t addr;
	const char *name; /* in `text` */
};

struct symbols {
	char *text; /* the file, or its string table */
	struct symbol *list;
	size_t count, room;
	uint64_t syscall; /* the kernel's entry for SYSCALL, 0 if not named */
};

#define LONGEST MiB(1) /* code further than that behind a symbol is not that symbol's */
#define ELF_MOST GiB(1)

void symbols_free(struct symbols *s)
{
	if (!s)
		return;
	free(s->text);
	free(s->list);
	free(s);
}

static bool add(struct symbols *s, uint64_t addr, const char *name)
{
	if (s->count == s->room) {
		size_t room = s->room ? s->room * 2 : 4096;
		struct symbol *list = realloc(s->list, room * sizeof(*list));
		if (!list)
			return false;
		s->list = list;
		s->room = room;
	}
	s->list[s->count++] = (struct symbol){addr, name};
	return true;
}

/* "ffffffff81000000 T _text", in kallsyms perhaps with "\t[module]" behind. */
static bool add_line(struct symbols *s, char *line)
{
	char *end;
	uint64_t addr = strtoull(line, &end, 16);

	if (end == line || *end != ' ' || !end[1] || end[2] != ' ' || !strchr("tTwW", end[1]))
		return true; /* data, or no line of such a file */
	end[3 + strcspn(end + 3, " \t\r")] = 0;
	return add(s, addr, end + 3);
}

static bool read_text(struct symbols *s)
{
	char *line = s->text;

	while (*line) {
		size_t len = strcspn(line, "\n");
		bool last = !line[len];
		line[len] = 0;
		if (!add_line(s, line))
			return false;
		if (last)
			break;
		line += len + 1;
	}
	return true;
}

/* ELF-64, System V ABI ch. 4: only what leads to the symbol table. */
struct ehdr {
	uint8_t ident[16];
	uint16_t type, machine;
	uint32_t version;
	uint64_t entry, phoff, shoff;
	uint32_t flags;
	uint16_t ehsize, phentsize, phnum, shentsize, shnum, shstrndx;
};

struct shdr {
	uint32_t name, type;
	uint64_t flags, addr, offset, size;
	uint32_t link, info;
	uint64_t align, entsize;
};

struct sym {
	uint32_t name;
	uint8_t info, other;
	uint16_t shndx;
	uint64_t value, size;
};

enum { SHT_SYMTAB = 2, STT_NOTYPE = 0, STT_FUNC = 2, SHF_EXECINSTR = 4 };

static void *read_part(struct host_file *f, uint64_t off, uint64_t size)
{
	char *p = size < ELF_MOST ? malloc(size + 1) : NULL;

	if (p && host_file_pread(f, p, size, off) == (int64_t)size) {
		p[size] = 0;
		return p;
	}
	free(p);
	return NULL;
}

static bool is_code(const struct sym *sym, const struct shdr *section, unsigned sections)
{
	unsigned type = sym->info & 15;

	return (type == STT_FUNC || type == STT_NOTYPE) && sym->shndx && sym->shndx < sections &&
	       (section[sym->shndx].flags & SHF_EXECINSTR);
}

static void add_table(struct symbols *s, const struct sym *sym, size_t count, uint64_t names,
		      const struct shdr *section, unsigned sections)
{
	for (size_t i = 0; i < count; i++) {
		if (!is_code(&sym[i], section, sections) || sym[i].name >= names)
			continue;
		const char *name = s->text + sym[i].name;
		if (*name && *name != '.' && *name != '$' && !add(s, sym[i].value, name))
			return;
	}
}

/* A file without what is looked for (stripped, cut off, of 32 bits) names nothing, which the caller finds. */
static void read_elf(struct symbols *s, struct host_file *f)
{
	struct ehdr e;

	if (host_file_pread(f, &e, sizeof(e), 0) != sizeof(e) || e.ident[4] != 2 || e.shentsize != sizeof(struct shdr))
		return;
	struct shdr *section = read_part(f, e.shoff, (uint64_t)e.shnum * sizeof(*section));
	for (unsigned i = 0; section && i < e.shnum; i++) {
		const struct shdr *table = &section[i];
		if (table->type != SHT_SYMTAB || table->link >= e.shnum)
			continue;
		struct sym *sym = read_part(f, table->offset, table->size);
		s->text = read_part(f, section[table->link].offset, section[table->link].size);
		if (sym && s->text)
			add_table(s, sym, table->size / sizeof(*sym), section[table->link].size, section, e.shnum);
		free(sym);
		break;
	}
	free(section);
}

static bool read_file(struct symbols *s, const char *path)
{
	char magic[4] = {0};
	size_t len;
	struct host_file *f = host_file_keep(path);
	bool elf = f && host_file_pread(f, magic, sizeof(magic), 0) == sizeof(magic) && !memcmp(magic, "\177ELF", 4);

	if (elf)
		read_elf(s, f);
	host_file_close(f);
	if (elf)
		return true;
	char *text = host_file_slurp(path, &len);
	s->text = text ? realloc(text, len + 1) : NULL;
	if (!s->text) {
		free(text);
		return false;
	}
	s->text[len] = 0;
	return read_text(s);
}

static int by_address(const void *a, const void *b)
{
	const struct symbol *x = a, *y = b;

	return x->addr < y->addr ? -1 : x->addr > y->addr;
}

struct symbols *symbols_load(const char *path, struct error *err)
{
	struct symbols *s = calloc(1, sizeof(*s));

	if (!s || !read_file(s, path)) {
		error_set(err, "cannot read symbols from '%s': %s", path, host_error_text());
		symbols_free(s);
		return NULL;
	}
	if (s->count)
		qsort(s->list, s->count, sizeof(*s->list), by_address);
	for (size_t i = 0; i < s->count; i++)
		if (!strcmp(s->list[i].name, "entry_SYSCALL_64"))
			s->syscall = s->list[i].addr;
	if (s->count && s->list[s->count - 1].addr)
		return s;
	error_set(err,
		  "'%s' names no code: give System.map, an ELF file with its symbols, or a copy of /proc/kallsyms made "
		  "by root",
		  path);
	symbols_free(s);
	return NULL;
}

const char *symbols_find(const struct symbols *s, uint64_t addr, uint64_t *offset)
{
	size_t lo = 0, hi = s ? s->count : 0;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (s->list[mid].addr <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (!lo || addr - s->list[lo - 1].addr > LONGEST)
		return NULL;
	*offset = addr - s->list[lo - 1].addr;
	return s->list[lo - 1].name;
}

bool symbols_shift(const struct symbols *s, uint64_t lstar, uint64_t *shift)
{
	if (!s)
		return false;
	*shift = s->syscall ? lstar - s->syscall : 0;
	return !s->syscall || (lstar && !(*shift % MiB(2)));
}
