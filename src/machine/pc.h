/*
 * The board: a PC. It owns every device, wires their interrupts, writes the firmware's tables into guest memory and
 * starts the kernel as a boot loader would. Above it the VM owns guest memory, the bus, the clock and the processors.
 */
#ifndef DOPPEL_MACHINE_PC_H
#define DOPPEL_MACHINE_PC_H

#include "arch/x86/cpuid.h"
#include "arch/x86/state.h"
#include "bus/bus.h"
#include "bus/clock.h"
#include "bus/memory.h"
#include "host/net.h"

struct pc;
struct apic_bus;
struct balloon_info;

#define PC_DISKS 16
#define PC_NETS 4
#define PC_SHARES 8
#define PC_CPUS 255

/* The memory map; RAM is laid out by guest_memory_init: 0 to 3 GiB, the rest from 4 GiB. */
#define PC_PCI_WINDOW 0xc0000000ull /* 32-bit BARs */
#define PC_PCI_WINDOW_END 0xe0000000ull
#define PC_ECAM 0xe0000000ull /* 16 buses of 1 MiB */
#define PC_ECAM_BUSES 16
#define PC_IOAPIC 0xfec00000ull
#define PC_LAPIC 0xfee00000ull
#define PC_PCI_WINDOW64 BIT(39)
#define PC_PCI_WINDOW64_SIZE BIT(38)

/* Ports. */
#define PC_PCI_IO 0xc000
#define PC_PCI_IO_END 0x10000
#define PC_PM_BASE 0x600 /* PM1a event block; control at +4, timer at +8 */
#define PC_RESET_PORT 0xcf9
#define PC_RESET_VALUE 0x06
#define PC_SCI_IRQ 9
#define PC_RTC_IRQ 8
#define PC_KEYBOARD_IRQ 1
#define PC_TIMER_GSI 2 /* ISA IRQ 0 on the I/O APIC */
#define PC_PCI_GSI 16  /* four, up to 19 */
#define PC_IOAPIC_ID 0
#define PC_PCI_ISA_IRQS       \
	{                     \
		10, 11, 5, 12 \
	} /* the same four on the 8259s */
#define PC_COM1 0x3f8
#define PC_COM1_IRQ 4
#define PC_DEBUG_EXIT 0xf4

struct pc_disk {
	const char *path;   /* or a URI; borrowed until pc_create returns */
	const char *format; /* "raw", "qcow2", or NULL: by what it is */
	bool readonly;
	bool snapshot;       /* writes are kept aside and lost at the end */
	bool direct;         /* past the host's cache */
	unsigned block_size; /* 512 or 4096; 0: as small as the image allows */
	uint64_t iops, bps;  /* caps on requests and bytes a second; 0: none */
};

struct pc_net {
	const char *tap;           /* the host's interface, or NULL: a user-mode network as follows */
	struct host_net_user user; /* what it points to is borrowed until pc_create returns */
	uint8_t mac[6];
	uint64_t bps; /* most bytes a second, each way; 0: no cap */
};

struct pc_share {
	const char *path, *tag; /* borrowed until pc_create returns */
	bool readonly;
};

/* Where a console's output goes. Called from any thread, one call at a time; must not block for long. */
struct pc_console {
	void (*write)(void *opaque, const uint8_t *data, size_t len);
	/* pc_*_input may take more now; may come for no reason. NULL: not wanted. */
	void (*input_ready)(void *opaque);
	void *opaque;
};

struct pc_config {
	/* Borrowed for the machine's life. */
	struct vm_clock *clock;
	struct bus *bus;
	struct guest_memory *mem;
	const struct x86_cpuid_model *model;
	unsigned cpus;
	struct x86_cpu *const *cpu; /* `cpus` of them, cpu[i]->id == i; the array is borrowed too */

	const char *kernel;  /* path; NULL: pc_load fails with a line for the user */
	const char *initrd;  /* path or NULL */
	const char *cmdline; /* NULL is "" */

	struct pc_disk disk[PC_DISKS];
	unsigned disks;
	struct pc_net net[PC_NETS];
	unsigned nets;
	struct pc_share share[PC_SHARES];
	unsigned shares;

	const char *vsock; /* path of the socket device's Unix socket; NULL: none on this machine */
	uint32_t vsock_cid;
	bool no_balloon;
	uint64_t balloon; /* bytes to take from the guest at first */

	struct pc_console serial; /* COM1 */
	struct pc_console virtio; /* virtio console (hvc0); write NULL: none on this machine */
	bool debug_exit;          /* isa-debug-exit at port 0xf4 */

	/* What the guest asks of the VM: called on the thread of the virtual CPU that did it; they only take note. */
	void (*power_off)(void *opaque);
	void (*reset)(void *opaque);
	void (*debug_exited)(void *opaque, uint32_t value);
	void (*panicked)(void *opaque, bool handled); /* see dev/pvpanic.h; NULL: no such device */
	/* CPU `cpu` has something to look at (interrupt, NMI, INIT, SIPI) in its local APIC. Any thread. */
	void (*kick)(void *opaque, unsigned cpu);
	/* As in struct pit8254_config. May be NULL. */
	void (*polled_timer)(void *opaque, unsigned cpu, bool set);
	void *opaque;
};

/*
 * Makes all devices, with power just on, registered on the bus. *config is copied (strings too). NULL: err says why.
 * Nothing runs yet: pc_load comes next.
 */
struct pc *pc_create(const struct pc_config *config, struct error *err);
/* Stops and frees every device. No processor runs any more. */
void pc_destroy(struct pc *pc);

/*
 * Reads kernel and initrd, writes them and the firmware tables into guest memory and sets the boot processor's
 * registers; the others wait for SIPI. To be called once after pc_create and after each pc_reset, while no processor
 * runs; the files are read the first time only.
 */
bool pc_load(struct pc *pc, struct error *err);

/* Power-on state of every device and processor. No processor runs meanwhile. RAM keeps its contents. */
void pc_reset(struct pc *pc);

/*
 * Devices with threads of their own stop working, then go on. In between they leave guest memory and interrupts alone;
 * pause waits for what is under way. No processor runs meanwhile.
 */
void pc_pause(struct pc *pc);
void pc_resume(struct pc *pc);

/* Saves or loads every device, one after another, by name. No processor runs meanwhile, and devices are paused. */
void pc_state(struct pc *pc, struct state_stream *s);

/* The devices' names in the order of their creation; NULL behind the last. */
const char *pc_device_name(const struct pc *pc, unsigned index);

/* The local APICs: what the run loop asks for pending interrupts and tells of MSR and CR8 exits. */
struct apic_bus *pc_apic(struct pc *pc);

/* A processor has taken an interrupt, on whose thread this is called. */
void pc_interrupt_taken(struct pc *pc);

/* Hands over typed bytes; returns how many were taken (0: full, input_ready will be called). Any thread. */
size_t pc_serial_input(struct pc *pc, const uint8_t *data, size_t len);
size_t pc_virtio_input(struct pc *pc, const uint8_t *data, size_t len);

/* What the balloon takes from the guest, and how it goes. False: there is no balloon, or that is more than there is. */
bool pc_balloon_set(struct pc *pc, uint64_t bytes);
bool pc_balloon_info(struct pc *pc, struct balloon_info *info);

#endif
