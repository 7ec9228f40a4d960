/* Runs cases on the real processor, for fuzz_translate: see native.h. */
#include "native.h"

#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The stack pointer is the case's when a signal comes. */
static bool own_signal_stack(void)
{
	static uint8_t stack[KiB(256)];

	return !sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof(stack)}, NULL);
}

int main(void)
{
	struct native_shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, NATIVE_FD, 0);
	char byte;

	if (shared == MAP_FAILED || !own_signal_stack() || !backend_native.start(NULL))
		return 1;
	while (read(STDIN_FILENO, &byte, 1) == 1) {
		backend_native.run(&shared->c, &shared->r);
		memcpy(shared->memory, shared->r.memory, WINDOW_SIZE);
		if (write(STDOUT_FILENO, &byte, 1) != 1)
			return 1;
	}
	return 0;
}
