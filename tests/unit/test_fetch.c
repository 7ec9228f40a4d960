/*
 * At the end of a page, with none behind it: where the decoder wants more bytes than there are, the processor fetches
 * from the next page, before anything else is wrong with the instruction; where the decoder has all that it wants of
 * what is no instruction, the processor raises #UD. Each opcode there is.
 */
#include "arch/x86/cpuid.h"
#include "arch/x86/insn.h"

#include "unit.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <Zydis/Mnemonic.h>

#define PAGE 4096

static uint8_t *page;
static sigjmp_buf back;
static volatile sig_atomic_t came;
static void *volatile at;

static void on_signal(int sig, siginfo_t *info, void *context)
{
	came = sig;
	at = info->si_addr;
	siglongjmp(back, 1);
}

static void catch_signals(void)
{
	static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
	static uint8_t stack[65536];
	stack_t s = {.ss_sp = stack, .ss_size = sizeof(stack)};
	struct sigaction sa = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};

	REQUIRE(!sigaltstack(&s, NULL));
	for (unsigned i = 0; i < ARRAY_LEN(signals); i++)
		REQUIRE(!sigaction(signals[i], &sa, NULL));
}

static void make_page(void)
{
	page = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	REQUIRE(page != MAP_FAILED);
	REQUIRE(!mprotect(page + PAGE, PAGE, PROT_NONE));
}

static void run(const uint8_t *code)
{
	came = 0;
	at = NULL;
	if (!sigsetjmp(back, 1)) {
		__asm__ volatile("jmp *%0" : : "r"(code) : "memory");
		__builtin_unreachable();
	}
}

static char *hex(const uint8_t *bytes, unsigned len)
{
	static char text[64];

	for (unsigned i = 0; i < len; i++)
		snprintf(text + 3 * i, 4, "%02x ", bytes[i]);
	return text;
}

/* No guest is offered SSE4A, but this processor may have it. */
static bool is_sse4a(const struct x86_insn *insn)
{
	return insn->mnemonic == ZYDIS_MNEMONIC_EXTRQ || insn->mnemonic == ZYDIS_MNEMONIC_INSERTQ;
}

/* Runs nothing that would be an instruction. */
static unsigned try(const uint8_t *bytes, unsigned len)
{
	struct x86_insn insn;

	x86_decode(&insn, bytes, len, MODE_64, NULL);
	if (insn.cls != CLS_PARTIAL && (insn.cls != CLS_INVALID || insn.len != len || is_sse4a(&insn)))
		return 0;
	memcpy(page + PAGE - len, bytes, len);
	run(page + PAGE - len);
	if (insn.cls == CLS_PARTIAL ? came != SIGSEGV || at != page + PAGE : came != SIGILL)
		UNIT_FAIL("%s: class %u, signal %d, %zd bytes behind the page's begin", hex(bytes, len), insn.cls, came,
			  (ssize_t)((uint8_t *)at - page));
	return 1;
}

static unsigned try_with_modrm(uint8_t *bytes, unsigned len)
{
	static const uint8_t modrm[] = {0x05, 0x44, 0x84, 0xc0, 0xf8};
	unsigned tried = try(bytes, len);

	for (unsigned i = 0; i < ARRAY_LEN(modrm); i++) {
		bytes[len] = modrm[i];
		tried += try(bytes, len + 1);
	}
	return tried;
}

static unsigned put(uint8_t *bytes, unsigned len, const char *more)
{
	memcpy(bytes + len, more, strlen(more));
	return len + (unsigned)strlen(more);
}

static unsigned try_legacy(void)
{
	static const char *const prefixes[] = {"", "\x66", "\xf2", "\xf3\x48"};
	static const char *const maps[] = {"", "\x0f", "\x0f\x38", "\x0f\x3a"};
	unsigned tried = 0;

	for (unsigned p = 0; p < ARRAY_LEN(prefixes); p++)
		for (unsigned m = 0; m < ARRAY_LEN(maps); m++)
			for (unsigned opcode = 0; opcode < 256; opcode++) {
				uint8_t bytes[15];
				unsigned len = put(bytes, put(bytes, 0, prefixes[p]), maps[m]);
				bytes[len++] = (uint8_t)opcode;
				tried += try_with_modrm(bytes, len);
			}
	return tried;
}

/* VEX (C4), and XOP, which has maps from 8 up. */
static unsigned try_wide(uint8_t first, unsigned map, unsigned maps)
{
	static const uint8_t third[] = {0x78, 0x79, 0x7c, 0xf8}; /* W, vvvv, L, pp */
	unsigned tried = 0;

	for (; map < maps; map++)
		for (unsigned i = 0; i < ARRAY_LEN(third); i++)
			for (unsigned opcode = 0; opcode < 256; opcode++) {
				uint8_t bytes[15] = {first, (uint8_t)(0xe0 | map), third[i], (uint8_t)opcode};
				tried += try_with_modrm(bytes, 4);
			}
	return tried;
}

/* Intel's have not been seen to take the same bytes of what is no instruction. */
TEST(of_the_next_page)
{
	if (!x86_host_is_amd())
		return;
	make_page();
	catch_signals();
	CHECK(try_legacy() > 3000);
	CHECK(try_wide(0xc4, 0, 4) > 1000);
	CHECK(try_wide(0x8f, 8, 12) > 1000);
	munmap(page, 2 * PAGE);
}

UNIT_MAIN()
