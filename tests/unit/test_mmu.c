/* The page walk, and memory access through it. */
#include "x86_test.h"

/* --- permissions: every combination, against SDM Vol. 3A 4.6 written as a table --- */

enum { USER_READ, USER_WRITE, USER_EXEC, SUP_READ, SUP_WRITE, SUP_EXEC, IMPL_READ, IMPL_WRITE, ACCESSES };

static const unsigned access_bits[ACCESSES] = {
	ACC_USER, ACC_USER | ACC_WRITE, ACC_USER | ACC_EXEC,      0, ACC_WRITE,
	ACC_EXEC, ACC_IMPLICIT,         ACC_IMPLICIT | ACC_WRITE,
};

/*
 * What each access may do with each page: '+' always, '-' never, 'w' unless CR0.WP, 'e' unless CR4.SMEP, 's' unless
 * CR4.SMAP without AC, 'i' unless CR4.SMAP, 'W' 's' and 'w' together, 'I' 'i' and 'w' together. NX forbids execution on
 * top.
 */
static const char *const rights[4] = {
	/* user:   r w x   supervisor: r w x   implicit: r w */
	[0] /* supervisor, read-only */ = "---+w++w",
	[1] /* supervisor, writable */ = "---+++++",
	[2] /* user, read-only */ = "+-+sWeiI",
	[3] /* user, writable */ = "+++sseii",
};

struct config {
	bool user, write, nx, nxe, wp, smep, smap, ac;
};

static bool expected(const struct config *c, unsigned access)
{
	bool smap_ac = c->smap && !c->ac;

	if (c->nx && c->nxe && (access == USER_EXEC || access == SUP_EXEC))
		return false;
	switch (rights[c->user * 2 + c->write][access]) {
	case '+':
		return true;
	case 'w':
		return !c->wp;
	case 'e':
		return !c->smep;
	case 's':
		return !smap_ac;
	case 'i':
		return !c->smap;
	case 'W':
		return !smap_ac && !c->wp;
	case 'I':
		return !c->smap && !c->wp;
	default:
		return false;
	}
}

static unsigned expected_error(const struct config *c, unsigned access)
{
	static const unsigned error[ACCESSES] = {PF_P | PF_U, PF_P | PF_U | PF_W, PF_P | PF_U, PF_P, PF_P | PF_W, PF_P,
						 PF_P,        PF_P | PF_W};
	bool exec = access == USER_EXEC || access == SUP_EXEC;

	return error[access] | (exec && (c->nxe || c->smep) ? PF_I : 0);
}

#define PROBE 0x30000ull
#define PTE(t, va) (PT + ((va) >> 12) * 8)

static void check_one(struct x86_test *t, const struct config *c, unsigned access)
{
	struct x86_mapping m;
	uint64_t pte = PROBE | 1 | c->write << 1 | c->user << 2 | (uint64_t)(c->nx && c->nxe) << 63;
	bool write = access_bits[access] & ACC_WRITE, ok;
	enum verdict v;

	poke(t, PTE(t, PROBE), pte);
	v = mmu_translate(&t->cpu, PROBE + 5, access_bits[access], &m);
	ok = v == V_DONE;
	if (ok != expected(c, access))
		UNIT_FAIL("user %d write %d nx %d nxe %d wp %d smep %d smap %d ac %d access %u: %d", c->user, c->write,
			  c->nx, c->nxe, c->wp, c->smep, c->smap, c->ac, access, ok);
	if (ok) {
		CHECK_EQ(m.gpa, PROBE + 5);
		CHECK_EQ(m.user, c->user);
		CHECK_EQ(m.nx, c->nx && c->nxe);
		CHECK_EQ(peek(t, PTE(t, PROBE)), pte | 0x20 | (write ? 0x40 : 0));
		CHECK_EQ(m.writable, write); /* a read leaves the dirty bit clear, so a write has still work to do */
	} else {
		CHECK_EQ(t->cpu.exc.vector, X86_PF);
		CHECK_EQ(t->cpu.exc.error, expected_error(c, access));
		CHECK_EQ(t->cpu.exc.cr2, PROBE + 5);
		CHECK_EQ(peek(t, PTE(t, PROBE)), pte);
	}
}

static void configure(struct x86_test *t, const struct config *c)
{
	struct x86_cpu *cpu = &t->cpu;

	cpu->cr0 = (cpu->cr0 & ~CR0_WP) | (c->wp ? CR0_WP : 0);
	cpu->cr4 = (cpu->cr4 & ~(CR4_SMEP | CR4_SMAP)) | (c->smep ? CR4_SMEP : 0) | (c->smap ? CR4_SMAP : 0);
	cpu->efer = (cpu->efer & ~EFER_NXE) | (c->nxe ? EFER_NXE : 0);
	cpu->rflags = FL_FIXED1 | (c->ac ? FL_AC : 0);
}

TEST(permission_matrix)
{
	struct x86_test *t = t_long();

	for (unsigned n = 0; n < 256; n++) {
		struct config c = {n & 1, n & 2, n & 4, n & 8, n & 16, n & 32, n & 64, n & 128};

		configure(t, &c);
		for (unsigned access = 0; access < ACCESSES; access++)
			check_one(t, &c, access);
	}
	t_free(t);
}

/* U/S, R/W and XD count at every level. */
TEST(upper_levels_restrict)
{
	struct x86_test *t = t_long();
	static const uint64_t entry[] = {PML4, PDPT, PD, PT + (UDATA >> 12) * 8};
	struct x86_mapping m;

	for (unsigned i = 0; i < ARRAY_LEN(entry); i++) {
		uint64_t old = peek(t, entry[i]);

		CHECK_EQ(mmu_translate(&t->cpu, UDATA, ACC_USER | ACC_WRITE, &m), V_DONE);
		poke(t, entry[i], old & ~4ull);
		CHECK_FAULT(t, mmu_translate(&t->cpu, UDATA, ACC_USER, &m), X86_PF, PF_P | PF_U);
		CHECK_EQ(mmu_translate(&t->cpu, UDATA, 0, &m), V_DONE);
		CHECK(!m.user);
		poke(t, entry[i], old & ~2ull);
		CHECK_FAULT(t, mmu_translate(&t->cpu, UDATA, ACC_WRITE, &m), X86_PF, PF_P | PF_W);
		poke(t, entry[i], old | BIT(63));
		CHECK_FAULT(t, mmu_translate(&t->cpu, UDATA, ACC_EXEC, &m), X86_PF, PF_P | PF_I);
		CHECK_EQ(mmu_translate(&t->cpu, UDATA, 0, &m), V_DONE);
		CHECK(m.nx);
		poke(t, entry[i], old & ~1ull);
		CHECK_FAULT(t, mmu_translate(&t->cpu, UDATA, ACC_USER | ACC_WRITE, &m), X86_PF, PF_U | PF_W);
		poke(t, entry[i], old);
	}
	t_free(t);
}

/* --- reserved bits: each bit of each level (SDM Vol. 3A tables 4-15 to 4-20) --- */

static uint64_t reserved_bits(const struct x86_test *t, unsigned level, bool large, bool nxe)
{
	uint64_t r = nxe ? 0 : BIT(63);

	for (unsigned i = t->model.phys_bits; i < 52; i++)
		r |= BIT(i);
	if (level == 4)
		r |= BIT(7);
	if (t->model.amd && level == 4)
		r |= BIT(8);
	if (level == 3 && large)
		r |= 0x3fffe000;
	if (level == 2 && large)
		r |= 0x001fe000;
	return r;
}

static void reserved_level(struct x86_test *t, unsigned level, bool large, bool nxe)
{
	static const uint64_t entry[] = {0, PT + (DATA >> 12) * 8, PD, PDPT, PML4};
	uint64_t old = peek(t, entry[level]), base = large ? 0x83 : old, want = reserved_bits(t, level, large, nxe);
	struct x86_mapping m;

	for (unsigned bit = 0; bit < 64; bit++) {
		bool reserved = want >> bit & 1, seen;

		/* Bits that matter otherwise: present, page size, and the address where it would lead elsewhere. */
		if (bit == 0 || (bit == 7 && level != 4 && level != 1) || (!reserved && bit >= 12 && bit < 52))
			continue;
		poke(t, entry[level], base ^ BIT(bit));
		seen = mmu_translate(&t->cpu, DATA, 0, &m) == V_INJECT && t->cpu.exc.error & PF_RSVD;
		if (seen != reserved)
			UNIT_FAIL("level %u large %d nxe %d bit %u: %d", level, large, nxe, bit, seen);
		if (seen)
			CHECK_EQ(t->cpu.exc.error, PF_P | PF_RSVD);
	}
	poke(t, entry[level], old);
}

TEST(reserved_bits)
{
	struct x86_test *t = t_long();

	for (unsigned nxe = 0; nxe < 2; nxe++) {
		t->cpu.efer = (t->cpu.efer & ~EFER_NXE) | (nxe ? EFER_NXE : 0);
		reserved_level(t, 1, false, nxe);
		reserved_level(t, 2, false, nxe);
		reserved_level(t, 2, true, nxe);
		reserved_level(t, 3, false, nxe);
		reserved_level(t, 3, true, nxe);
		reserved_level(t, 4, false, nxe);
	}
	t->model.features &= ~BIT(FEAT_PAGE1G);
	poke(t, PDPT, 0x83);
	struct x86_mapping m;
	CHECK_FAULT(t, mmu_translate(&t->cpu, DATA, 0, &m), X86_PF, PF_P | PF_RSVD);
	t_free(t);
}

TEST(accessed_and_dirty)
{
	struct x86_test *t = t_long();
	struct x86_mapping m;
	uint64_t pte = PT + (DATA >> 12) * 8;

	CHECK_EQ(mmu_translate(&t->cpu, DATA, 0, &m), V_DONE);
	CHECK_EQ(peek(t, PML4) & 0x60, 0x20);
	CHECK_EQ(peek(t, PDPT) & 0x60, 0x20);
	CHECK_EQ(peek(t, PD) & 0x60, 0x20);
	CHECK_EQ(peek(t, pte) & 0x60, 0x20);
	CHECK(!m.writable);
	CHECK_EQ(mmu_translate(&t->cpu, DATA, ACC_WRITE, &m), V_DONE);
	CHECK_EQ(peek(t, PD) & 0x60, 0x20);
	CHECK_EQ(peek(t, pte) & 0x60, 0x60);
	CHECK(m.writable);
	CHECK_EQ(mmu_translate(&t->cpu, DATA, 0, &m), V_DONE);
	CHECK(m.writable);
	t_free(t);
}

TEST(large_pages)
{
	struct x86_test *t = t_long();
	struct x86_mapping m;

	poke(t, PD + 8 * 3, 0x00200183);
	CHECK_EQ(mmu_translate(&t->cpu, 0x6abcde, ACC_WRITE, &m), V_DONE);
	CHECK_EQ(m.gpa, 0x2abcde);
	CHECK_EQ(m.page_shift, 21);
	CHECK(m.global);
	CHECK_EQ(peek(t, PD + 8 * 3), 0x002001e3);
	poke(t, PDPT + 8 * 5, GiB(2) | 0x1083); /* with PAT: bit 12 is not part of the address */
	CHECK_EQ(mmu_translate(&t->cpu, GiB(5) + 0x12345678, 0, &m), V_DONE);
	CHECK_EQ(m.gpa, GiB(2) + 0x12345678);
	CHECK_EQ(m.page_shift, 30);
	CHECK(!m.global);
	t->cpu.cr4 &= ~CR4_PGE;
	CHECK_EQ(mmu_translate(&t->cpu, 0x6abcde, 0, &m), V_DONE);
	CHECK(!m.global);
	/* the upper half */
	poke(t, PML4 + 8 * 511, PDPT | 3);
	poke(t, PDPT + 8 * 511, PD | 3);
	CHECK_EQ(mmu_translate(&t->cpu, 0xffffffffc0030123, 0, &m), V_DONE);
	CHECK_EQ(m.gpa, 0x30123);
	t_free(t);
}

static struct x86_test *paging_without_long_mode(uint64_t cr4)
{
	struct x86_test *t = t_protected();

	t->cpu.cr4 = cr4;
	t->cpu.cr0 |= CR0_PG | CR0_WP;
	return t;
}

TEST(pae)
{
	struct x86_test *t = paging_without_long_mode(CR4_PAE);
	struct x86_mapping m;

	t->cpu.cr3 = PDPT + 0x20;
	poke(t, PDPT + 0x20 + 8 * 1, PD | 1);
	poke(t, PD + 8 * 2, 0x200083);
	CHECK_EQ(mmu_translate(&t->cpu, 0x40412345, ACC_WRITE, &m), V_DONE);
	CHECK_EQ(m.gpa, 0x212345);
	CHECK_EQ(m.page_shift, 21);
	CHECK_EQ(peek(t, PDPT + 0x28), PD | 1); /* no accessed bit here */
	CHECK_EQ(peek(t, PD + 16), 0x2000e3);
	CHECK_EQ(mmu_translate(&t->cpu, 0xffff000040412345, ACC_WRITE, &m), V_DONE); /* 32 bits count */
	CHECK_EQ(mmu_translate(&t->cpu, 0x40012345, 0, &m), V_DONE);                 /* 4 KiB page */
	CHECK_EQ(m.gpa, 0x12345);
	CHECK_FAULT(t, mmu_translate(&t->cpu, 0x80000000, 0, &m), X86_PF, 0);
	poke(t, PDPT + 0x28, PD | 3);
	CHECK_FAULT(t, mmu_translate(&t->cpu, 0x40412345, 0, &m), X86_PF, PF_P | PF_RSVD);
	poke(t, PDPT + 0x28, PD | 1);
	poke(t, PD + 16, 0x200083 | BIT(62));
	CHECK_FAULT(t, mmu_translate(&t->cpu, 0x40412345, 0, &m), X86_PF, PF_P | PF_RSVD);
	poke(t, PD + 16, 0x200083 | BIT(63));
	CHECK_FAULT(t, mmu_translate(&t->cpu, 0x40412345, 0, &m), X86_PF, PF_P | PF_RSVD);
	t->cpu.efer = EFER_NXE;
	CHECK_EQ(mmu_translate(&t->cpu, 0x40412345, 0, &m), V_DONE);
	CHECK_FAULT(t, mmu_translate(&t->cpu, 0x40412345, ACC_EXEC, &m), X86_PF, PF_P | PF_I);
	t_free(t);
}

TEST(paging_32_bit)
{
	struct x86_test *t = paging_without_long_mode(CR4_PSE);
	struct x86_mapping m;

	t->cpu.cr3 = PD;
	poke32(t, PD + 4 * 1, PT | 7);
	poke32(t, PT + 4 * 0x35, 0x00123007);
	poke32(t, PT + 4 * 0x36, 0x00124001);
	CHECK_EQ(mmu_translate(&t->cpu, 0x00435678, ACC_USER | ACC_WRITE, &m), V_DONE);
	CHECK_EQ(m.gpa, 0x123678);
	CHECK_EQ(m.page_shift, 12);
	CHECK_EQ(peek32(t, PD + 4), PT | 0x27);
	CHECK_EQ(peek32(t, PT + 4 * 0x35), 0x00123067);
	CHECK_EQ(peek32(t, PT + 4 * 0x36), 0x00124001);
	CHECK_FAULT(t, mmu_translate(&t->cpu, 0x00436000, ACC_WRITE, &m), X86_PF, PF_P | PF_W);
	CHECK_FAULT(t, mmu_translate(&t->cpu, 0x00437000, 0, &m), X86_PF, 0);
	/* 4 MiB pages, with PSE-36's upper address bits */
	poke32(t, PD + 4 * 2, 0x00c00083 | 0x5 << 13);
	CHECK_EQ(mmu_translate(&t->cpu, 0x00876543, ACC_WRITE, &m), V_DONE);
	CHECK_EQ(m.gpa, 0x500c76543);
	CHECK_EQ(m.page_shift, 22);
	poke32(t, PD + 4 * 2, 0x00e00083); /* bit 21 */
	CHECK_FAULT(t, mmu_translate(&t->cpu, 0x00876543, 0, &m), X86_PF, PF_P | PF_RSVD);
	t->cpu.cr4 = 0; /* the page size bit means nothing without CR4.PSE */
	poke32(t, PD + 4 * 1, PT | 0x83);
	CHECK_EQ(mmu_translate(&t->cpu, 0x00435678, 0, &m), V_DONE);
	CHECK_EQ(m.gpa, 0x123678);
	t_free(t);
}

TEST(paging_off)
{
	struct x86_test *t = t_protected();
	struct x86_mapping m;

	CHECK_EQ(mmu_translate(&t->cpu, 0x1fee01234, ACC_USER | ACC_WRITE, &m), V_DONE);
	CHECK_EQ(m.gpa, 0xfee01234);
	CHECK(m.writable && m.user && !m.nx);
	CHECK_EQ(m.page_shift, 12);
	t_free(t);
}

/* Tables that lie where no memory is, at every level: a fault of some kind, or a strange address, never a crash. */
TEST(tables_nowhere)
{
	struct x86_test *t = t_long();
	static const uint64_t entry[] = {PML4, PDPT, PD};
	struct x86_mapping m;

	for (unsigned i = 0; i < ARRAY_LEN(entry); i++) {
		uint64_t old = peek(t, entry[i]);

		poke(t, entry[i], 0x3000000000ull | 7);
		CHECK_EQ(mmu_translate(&t->cpu, DATA, ACC_WRITE, &m) == V_INJECT, t->model.phys_bits < 52 || i < 2);
		poke(t, entry[i], old);
	}
	t->cpu.cr3 = 0x3000000000ull;
	CHECK_FAULT(t, mmu_translate(&t->cpu, DATA, 0, &m), X86_PF, PF_P | PF_RSVD);
	t_free(t);
	t = paging_without_long_mode(CR4_PSE);
	t->cpu.cr3 = 0x80000000;
	CHECK_FAULT(t, mmu_translate(&t->cpu, DATA, 0, &m), X86_PF, PF_P | PF_RSVD);
	t->cpu.cr4 = 0;
	mmu_translate(&t->cpu, DATA, ACC_WRITE, &m);
	t->cpu.cr4 = CR4_PAE;
	CHECK_FAULT(t, mmu_translate(&t->cpu, DATA, 0, &m), X86_PF, PF_P | PF_RSVD);
	t_free(t);
}

/* --- access --- */

TEST(access_crosses_pages)
{
	struct x86_test *t = t_long();
	uint8_t buf[64], back[64];

	for (unsigned i = 0; i < 64; i++)
		buf[i] = (uint8_t)(i * 7 + 1);
	for (unsigned len = 1; len <= 64; len++) {
		for (unsigned off = 1; off <= len; off += 3) {
			CHECK_EQ(mem_write(&t->cpu, DATA + 0x1000 - off, buf, len, 0), V_DONE);
			CHECK_EQ(mem_read(&t->cpu, DATA + 0x1000 - off, back, len, 0), V_DONE);
			CHECK_MEM(back, buf, len);
		}
	}
	/* A fault on the second page leaves the first as it was. */
	poke(t, DATA + 0xff8, 0x1122334455667788);
	poke(t, PT + ((DATA >> 12) + 1) * 8, 0);
	CHECK_FAULT(t, mem_write(&t->cpu, DATA + 0xffc, buf, 8, 0), X86_PF, PF_W);
	CHECK_EQ(t->cpu.exc.cr2, DATA + 0x1000);
	CHECK_EQ(peek(t, DATA + 0xff8), 0x1122334455667788);
	CHECK_FAULT(t, mem_probe(&t->cpu, DATA + 0xffc, 8, ACC_WRITE), X86_PF, PF_W);
	CHECK_EQ(mem_probe(&t->cpu, DATA + 0xff8, 8, ACC_WRITE), V_DONE);
	t_free(t);
}

#define MMIO_VA 0x200000ull
#define MMIO_GPA 0xfed00000ull

static struct x86_test *with_mmio(void)
{
	struct x86_test *t = t_long();

	poke(t, PT + (MMIO_VA >> 12) * 8, MMIO_GPA | 3);
	poke(t, PT + (MMIO_VA >> 12) * 8 + 8, (MMIO_GPA + 0x5000) | 3);
	return t;
}

static void answer(struct x86_test *t, uint64_t addr, unsigned len, uint64_t data)
{
	CHECK_EQ(t->cpu.exit.kind, EXIT_MMIO);
	CHECK(!t->cpu.exit.write);
	CHECK_EQ(t->cpu.exit.addr, addr);
	CHECK_EQ(t->cpu.exit.len, len);
	t->cpu.exit.data = data;
	t->cpu.exit.completed = true;
}

TEST(mmio_read)
{
	struct x86_test *t = with_mmio();
	uint64_t v[2] = {0};

	CHECK_EQ(mem_read(&t->cpu, MMIO_VA + 4, v, 4, 0), V_EXIT);
	answer(t, MMIO_GPA + 4, 4, 0x1234);
	CHECK_EQ(mem_read(&t->cpu, MMIO_VA + 4, v, 4, 0), V_DONE);
	CHECK_EQ(v[0], 0x1234);
	t->cpu.mmio.count = t->cpu.mmio.next = 0;
	/* across two pages, in pieces: 2 + 1 bytes, then 5 as 4 + 1 */
	CHECK_EQ(mem_read(&t->cpu, MMIO_VA + 0xffd, v, 8, 0), V_EXIT);
	answer(t, MMIO_GPA + 0xffd, 2, 0x2211);
	CHECK_EQ(mem_read(&t->cpu, MMIO_VA + 0xffd, v, 8, 0), V_EXIT);
	answer(t, MMIO_GPA + 0xfff, 1, 0x33);
	CHECK_EQ(mem_read(&t->cpu, MMIO_VA + 0xffd, v, 8, 0), V_EXIT);
	answer(t, MMIO_GPA + 0x5000, 4, 0x77665544);
	CHECK_EQ(mem_read(&t->cpu, MMIO_VA + 0xffd, v, 8, 0), V_EXIT);
	answer(t, MMIO_GPA + 0x5004, 1, 0x88);
	CHECK_EQ(mem_read(&t->cpu, MMIO_VA + 0xffd, v, 8, 0), V_DONE);
	CHECK_EQ(v[0], 0x8877665544332211);
	/* another address than last time: the old answers are of no use */
	t->cpu.mmio.next = 0;
	CHECK_EQ(mem_read(&t->cpu, MMIO_VA, v, 8, 0), V_EXIT);
	answer(t, MMIO_GPA, 8, 1);
	t_free(t);
}

/* However many pieces: the guest gets an end. */
TEST(mmio_read_is_bounded)
{
	struct x86_test *t = with_mmio();
	uint8_t buf[64];
	unsigned exits = 0;

	for (;; exits++) {
		enum verdict v = V_DONE;

		for (unsigned i = 0; i < 16 && v == V_DONE; i++)
			v = mem_read(&t->cpu, MMIO_VA, buf, 64, 0);
		if (v == V_DONE || exits > 1000)
			break;
		answer(t, t->cpu.exit.addr, 8, exits);
	}
	CHECK_EQ(exits, X86_MMIO_PENDING);
	t_free(t);
}

TEST(mmio_write)
{
	struct x86_test *t = with_mmio();
	uint64_t v[2] = {0x8877665544332211, 0x99};

	CHECK_EQ(mem_write(&t->cpu, MMIO_VA + 4, v, 4, 0), V_EXIT);
	CHECK(t->cpu.exit.write);
	CHECK_EQ(t->cpu.exit.data, 0x44332211);
	CHECK_EQ(t->cpu.exit.len, 4);
	CHECK_EQ(x86_resume(&t->cpu), V_DONE);
	/* memory first, then device memory in two pieces */
	CHECK_EQ(mem_write(&t->cpu, MMIO_VA - 1, v, 4, 0), V_EXIT);
	CHECK_EQ(*(uint8_t *)ram(t, MMIO_VA - 1), 0x11);
	CHECK_EQ(t->cpu.exit.addr, MMIO_GPA);
	CHECK_EQ(t->cpu.exit.len, 2);
	CHECK_EQ(t->cpu.exit.data, 0x3322);
	CHECK_EQ(x86_resume(&t->cpu), V_EXIT);
	CHECK_EQ(t->cpu.exit.addr, MMIO_GPA + 2);
	CHECK_EQ(t->cpu.exit.len, 1);
	CHECK_EQ(t->cpu.exit.data, 0x44);
	CHECK_EQ(x86_resume(&t->cpu), V_DONE);
	/* system tables in device memory: nothing happens */
	CHECK_EQ(mem_write(&t->cpu, MMIO_VA, v, 8, ACC_IMPLICIT), V_DONE);
	CHECK_EQ(mem_read(&t->cpu, MMIO_VA, v, 8, ACC_IMPLICIT), V_DONE);
	CHECK_EQ(v[0], ~0ull);
	t_free(t);
}

TEST(rom)
{
	struct x86_test *t = t_long();
	static uint8_t bytes[4096] = {0x5a};
	uint64_t v = 0;

	t->mem.range[t->mem.count++] = (struct guest_range){0xfff00000, 4096, bytes, true};
	t->mem.pages++; /* `code` has no room for it, and must not be looked at */
	poke(t, PT + (MMIO_VA >> 12) * 8, 0xfff00003);
	CHECK_EQ(mem_read(&t->cpu, MMIO_VA, &v, 1, 0), V_DONE);
	CHECK_EQ(v, 0x5a);
	v = 0x11;
	CHECK_EQ(mem_write(&t->cpu, MMIO_VA, &v, 1, 0), V_DONE);
	CHECK_EQ(bytes[0], 0x5a);
	t->mem.count--;
	t_free(t);
}

TEST(fetch)
{
	struct x86_test *t = t_user();
	uint8_t buf[15];
	enum verdict v;

	memset(ram(t, UCODE + 0xff0), 0x90, 16);
	CHECK_EQ(mem_fetch(&t->cpu, UCODE + 0xff8, buf, 15, &v), 15);
	CHECK_EQ(v, V_DONE);
	poke(t, PT + ((UCODE >> 12) + 1) * 8, 0);
	CHECK_EQ(mem_fetch(&t->cpu, UCODE + 0xff8, buf, 15, &v), 8);
	CHECK_FAULT(t, v, X86_PF, PF_U | PF_I);
	CHECK_EQ(t->cpu.exc.cr2, UCODE + 0x1000);
	CHECK_EQ(buf[7], 0x90);
	CHECK_EQ(mem_fetch(&t->cpu, CODE, buf, 15, &v), 0);
	CHECK_FAULT(t, v, X86_PF, PF_P | PF_U | PF_I);
	t_free(t);
}

static unsigned code_writes;

static void note_code(void *opaque, uint64_t gpa, uint64_t len)
{
	code_writes++;
	*(uint64_t *)opaque = gpa;
}

TEST(writes_to_code_are_told)
{
	struct x86_test *t = t_long();
	uint64_t where = 0, v = 1;

	t->mem.code_written = note_code;
	t->mem.code_opaque = &where;
	t->mem.code[DATA >> 12] = 1;
	code_writes = 0;
	CHECK_EQ(mem_write(&t->cpu, DATA - 8, &v, 8, 0), V_DONE);
	CHECK_EQ(code_writes, 0);
	CHECK_EQ(mem_write(&t->cpu, DATA + 8, &v, 8, 0), V_DONE);
	CHECK_EQ(code_writes, 1);
	CHECK_EQ(where, DATA + 8);
	t->mem.code[PT >> 12] = 1; /* accessed bits are writes too */
	CHECK_EQ(mem_read(&t->cpu, DATA + 0x5000, &v, 8, 0), V_DONE);
	CHECK_EQ(code_writes, 2);
	t_free(t);
}

/* --- x86_linear --- */

TEST(linear_64)
{
	struct x86_test *t = t_long();
	uint64_t la;

	t->cpu.seg[SEG_DS].base = 0x1000;
	t->cpu.seg[SEG_FS].base = 0xffff800000000000;
	CHECK_EQ(x86_linear(&t->cpu, SEG_DS, 0x5000, 8, 0, &la), V_DONE);
	CHECK_EQ(la, 0x5000);
	CHECK_EQ(x86_linear(&t->cpu, SEG_FS, 0x5000, 8, 0, &la), V_DONE);
	CHECK_EQ(la, 0xffff800000005000);
	CHECK_EQ(x86_linear(&t->cpu, SEG_DS, 0x7ffffffffff8, 8, 0, &la), V_DONE);
	CHECK_FAULT(t, x86_linear(&t->cpu, SEG_DS, 0x7ffffffffff9, 8, 0, &la), X86_GP, 0);
	CHECK_FAULT(t, x86_linear(&t->cpu, SEG_SS, 0x800000000000, 8, 0, &la), X86_SS, 0);
	CHECK_FAULT(t, x86_linear(&t->cpu, SEG_FS, BIT(63), 8, 0, &la), X86_GP, 0);
	t_free(t);
}

TEST(linear_32)
{
	struct x86_test *t = t_protected();
	struct x86_segment *ds = &t->cpu.seg[SEG_DS], *ss = &t->cpu.seg[SEG_SS];
	uint64_t la;

	*ds = (struct x86_segment){.base = 0xfffff000, .limit = 0xfff, .attr = 0x93};
	CHECK_EQ(x86_linear(&t->cpu, SEG_DS, 0xffc, 4, ACC_WRITE, &la), V_DONE);
	CHECK_EQ(la, 0xfffffffc);
	CHECK_FAULT(t, x86_linear(&t->cpu, SEG_DS, 0xffd, 4, 0, &la), X86_GP, 0);
	CHECK_FAULT(t, x86_linear(&t->cpu, SEG_DS, 0xffffffff, 4, 0, &la), X86_GP, 0);
	ds->attr = 0x91; /* read-only */
	CHECK_EQ(x86_linear(&t->cpu, SEG_DS, 0, 4, 0, &la), V_DONE);
	CHECK_FAULT(t, x86_linear(&t->cpu, SEG_DS, 0, 4, ACC_WRITE, &la), X86_GP, 0);
	ds->attr = 0x99; /* execute-only code */
	CHECK_FAULT(t, x86_linear(&t->cpu, SEG_DS, 0, 4, 0, &la), X86_GP, 0);
	ds->attr = 0x9b;
	CHECK_EQ(x86_linear(&t->cpu, SEG_DS, 0, 4, 0, &la), V_DONE);
	CHECK_FAULT(t, x86_linear(&t->cpu, SEG_DS, 0, 4, ACC_WRITE, &la), X86_GP, 0);
	ds->attr = 0; /* null */
	CHECK_FAULT(t, x86_linear(&t->cpu, SEG_DS, 0, 4, 0, &la), X86_GP, 0);
	*ss = (struct x86_segment){.limit = 0xfff, .attr = 0x97}; /* expand-down, 16 bits */
	CHECK_FAULT(t, x86_linear(&t->cpu, SEG_SS, 0xfff, 2, 0, &la), X86_SS, 0);
	CHECK_EQ(x86_linear(&t->cpu, SEG_SS, 0x1000, 2, 0, &la), V_DONE);
	CHECK_EQ(x86_linear(&t->cpu, SEG_SS, 0xfffe, 2, 0, &la), V_DONE);
	CHECK_FAULT(t, x86_linear(&t->cpu, SEG_SS, 0xffff, 2, 0, &la), X86_SS, 0);
	ss->attr |= SEG_ATTR_DB;
	CHECK_EQ(x86_linear(&t->cpu, SEG_SS, 0xffff, 2, 0, &la), V_DONE);
	t_free(t);
}

UNIT_MAIN()
