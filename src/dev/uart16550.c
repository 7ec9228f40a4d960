/*
 * 16550A (PC16550D data sheet, 8.0). What is sent leaves at once, so the transmitter is always empty; what is received
 * waits in a backlog until the guest is ready to take it: it has enabled the interrupt, asserts RTS, or does nothing
 * but read LSR. A guest that clears the FIFO while it sets the port up loses nothing that way.
 */
#include "dev/uart16550.h"

#include "host/thread.h"

#include <stdlib.h>
#include <string.h>

#define FIFO 16
#define BACKLOG 4096
#define POLLS 16 /* so many reads of LSR in a row are a wait for input; who waits to send reads it but once */

enum { REG_DATA, REG_IER, REG_IIR_FCR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCRATCH, REGS };
enum { IER_RX = 1, IER_TX = 2, IER_LINE = 4, IER_MODEM = 8 };
enum { IIR_NONE = 1, IIR_MODEM = 0, IIR_TX = 2, IIR_RX = 4, IIR_LINE = 6, IIR_TIMEOUT = 12, IIR_FIFO = 0xc0 };
enum { FCR_ENABLE = 1, FCR_CLEAR_RX = 2, FCR_CLEAR_TX = 4 };
enum { LCR_BREAK = 0x40, LCR_DLAB = 0x80 };
enum { MCR_DTR = 1, MCR_RTS = 2, MCR_OUT1 = 4, MCR_OUT2 = 8, MCR_LOOP = 16 };
enum { LSR_DATA = 1, LSR_OVERRUN = 2, LSR_FRAMING = 8, LSR_BREAK = 16, LSR_TX_EMPTY = 0x60, LSR_FIFO_ERROR = 0x80 };
enum { MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RI = 0x40, MSR_DCD = 0x80 };
#define MSR_CONNECTED (MSR_CTS | MSR_DSR | MSR_DCD)

struct uart16550 {
	struct uart16550_config config;
	struct host_mutex tx_lock; /* keeps what is sent in order; outermost, held during config.write */
	struct host_mutex lock;    /* held while the line is set */
	uint8_t ier, fcr, lcr, mcr, lsr, msr, scratch;
	uint8_t divisor[2];
	bool tx_interrupt;   /* the transmitter became empty and IIR has not said so yet */
	uint16_t fifo[FIFO]; /* character, and its LSR bits in the high byte */
	uint8_t fifo_len;
	uint8_t backlog[BACKLOG];
	uint16_t backlog_at, backlog_len;
	uint8_t polls; /* reads of LSR since anything was written, up to POLLS */
	bool refused;  /* receive() took less than it was given */
	bool line;     /* what the interrupt line was last set to */
};

static unsigned fifo_size(const struct uart16550 *u)
{
	return u->fcr & FCR_ENABLE ? FIFO : 1;
}

static bool wants_input(const struct uart16550 *u)
{
	return (u->ier & IER_RX) || (u->mcr & MCR_RTS) || u->polls == POLLS;
}

/* A character arrives; with the FIFO full it is lost (with the one-character holding register, the older one is). */
static void push(struct uart16550 *u, uint8_t byte, uint8_t errors)
{
	if (u->fifo_len < fifo_size(u)) {
		u->fifo[u->fifo_len++] = byte | errors << 8;
		return;
	}
	u->lsr |= LSR_OVERRUN;
	if (!(u->fcr & FCR_ENABLE))
		u->fifo[0] = byte | errors << 8;
}

static void refill(struct uart16550 *u)
{
	while (u->backlog_len && u->fifo_len < fifo_size(u) && wants_input(u) && !(u->mcr & MCR_LOOP)) {
		push(u, u->backlog[u->backlog_at], 0);
		u->backlog_at = (u->backlog_at + 1) % BACKLOG;
		u->backlog_len--;
	}
}

/* LSR bits of the character at the top of the FIFO show until LSR is read. */
static uint8_t line_errors(const struct uart16550 *u)
{
	return (u->lsr & LSR_OVERRUN) | (u->fifo_len ? u->fifo[0] >> 8 : 0);
}

/* What asks for an interrupt, the most urgent first (table IV). */
static uint8_t interrupt_id(const struct uart16550 *u)
{
	static const uint8_t trigger[] = {1, 4, 8, 14};

	if ((u->ier & IER_LINE) && line_errors(u))
		return IIR_LINE;
	if ((u->ier & IER_RX) &&
	    u->fifo_len) /* below the trigger level, the time-out of four characters is over at once */
		return !(u->fcr & FCR_ENABLE) || u->fifo_len >= trigger[u->fcr >> 6] ? IIR_RX : IIR_TIMEOUT;
	if ((u->ier & IER_TX) && u->tx_interrupt)
		return IIR_TX;
	if ((u->ier & IER_MODEM) && (u->msr & 0xf))
		return IIR_MODEM;
	return IIR_NONE;
}

/* A PC gates the interrupt by OUT2, which is off while looped back. The lock is held. */
static void update(struct uart16550 *u)
{
	bool level;

	refill(u);
	level = interrupt_id(u) != IIR_NONE && (u->mcr & (MCR_OUT2 | MCR_LOOP)) == MCR_OUT2;
	if (level != u->line) /* a wire costs two locks, and most accesses change nothing */
		irq_set(&u->config.irq, level);
	u->line = level;
}

/* Inputs of the modem: what is connected is always ready; looped back, they are the outputs (8.6.6). */
static void update_modem(struct uart16550 *u)
{
	uint8_t was = u->msr & 0xf0, is = MSR_CONNECTED, changed;

	if (u->mcr & MCR_LOOP)
		is = (u->mcr & MCR_RTS ? MSR_CTS : 0) | (u->mcr & MCR_DTR ? MSR_DSR : 0) |
		     (u->mcr & MCR_OUT1 ? MSR_RI : 0) | (u->mcr & MCR_OUT2 ? MSR_DCD : 0);
	changed = (was ^ is) >> 4;
	if (!(was & ~is & MSR_RI)) /* of the ring indicator only its end counts */
		changed &= ~(MSR_RI >> 4);
	u->msr = is | (u->msr & 0xf) | changed;
}

static uint8_t read_data(struct uart16550 *u)
{
	uint8_t byte = u->fifo[0];

	if (!u->fifo_len)
		return byte;
	if (--u->fifo_len)
		memmove(u->fifo, u->fifo + 1, u->fifo_len * sizeof(u->fifo[0]));
	return byte;
}

static uint8_t read_lsr(struct uart16550 *u)
{
	uint8_t value;

	u->polls = MIN(u->polls + 1, POLLS);
	refill(u);
	value = LSR_TX_EMPTY | (u->fifo_len ? LSR_DATA : 0) | line_errors(u);
	for (unsigned i = 0; (u->fcr & FCR_ENABLE) && i < u->fifo_len; i++)
		value |= u->fifo[i] >> 8 ? LSR_FIFO_ERROR : 0;
	u->lsr &= ~LSR_OVERRUN;
	u->fifo[0] &= u->fifo_len ? 0xff : 0xffff;
	return value;
}

static uint8_t read_iir(struct uart16550 *u)
{
	uint8_t id = interrupt_id(u);

	if (id == IIR_TX)
		u->tx_interrupt = false;
	return id | (u->fcr & FCR_ENABLE ? IIR_FIFO : 0);
}

static uint8_t read_msr(struct uart16550 *u)
{
	uint8_t value = u->msr;

	u->msr &= 0xf0;
	return value;
}

static uint8_t read_reg(struct uart16550 *u, unsigned reg)
{
	bool dlab = u->lcr & LCR_DLAB;

	switch (reg) {
	case REG_DATA:
		return dlab ? u->divisor[0] : read_data(u);
	case REG_IER:
		return dlab ? u->divisor[1] : u->ier;
	case REG_IIR_FCR:
		return read_iir(u);
	case REG_LCR:
		return u->lcr;
	case REG_MCR:
		return u->mcr;
	case REG_LSR:
		return read_lsr(u);
	case REG_MSR:
		return read_msr(u);
	default:
		return u->scratch;
	}
}

/* A change of FIFO mode clears the FIFO (8.6.4). */
static void write_fcr(struct uart16550 *u, uint8_t value)
{
	if ((value & FCR_CLEAR_RX) || (value ^ u->fcr) & FCR_ENABLE)
		u->fifo_len = 0;
	u->fcr = value & FCR_ENABLE ? value & 0xc9 : 0;
}

static void write_ier(struct uart16550 *u, uint8_t value)
{
	/* The transmitter is empty: to enable its interrupt is to get it. */
	if ((value & IER_TX) && !(u->ier & IER_TX))
		u->tx_interrupt = true;
	u->ier = value & 0xf;
}

static void write_lcr(struct uart16550 *u, uint8_t value)
{
	bool begins = (value & ~u->lcr) & LCR_BREAK;

	u->lcr = value;
	if (begins && (u->mcr & MCR_LOOP))
		push(u, 0, LSR_BREAK | LSR_FRAMING);
}

static void write_reg(struct uart16550 *u, unsigned reg, uint8_t value)
{
	switch (reg) {
	case REG_IER:
		if (u->lcr & LCR_DLAB)
			u->divisor[1] = value;
		else
			write_ier(u, value);
		break;
	case REG_IIR_FCR:
		write_fcr(u, value);
		break;
	case REG_LCR:
		write_lcr(u, value);
		break;
	case REG_MCR:
		u->mcr = value & 0x1f;
		update_modem(u);
		break;
	case REG_SCRATCH:
		u->scratch = value;
		break;
	default: /* LSR and MSR: factory test only */
		break;
	}
}

/*
 * True: the byte goes out on the wire. It is sent before anyone can ask, so the holding register is empty again: the
 * interrupt request falls with the write and rises when the byte is gone, an edge for each.
 */
static bool transmit(struct uart16550 *u, uint8_t byte)
{
	u->tx_interrupt = false;
	update(u);
	u->tx_interrupt = true;
	if (!(u->mcr & MCR_LOOP))
		return true;
	push(u, byte, 0);
	return false;
}

static void write_data(struct uart16550 *u, uint8_t byte)
{
	bool out = false;

	host_lock(&u->tx_lock);
	host_lock(&u->lock);
	u->polls = 0;
	if (u->lcr & LCR_DLAB) /* the transmitter has no part in it */
		u->divisor[0] = byte;
	else
		out = transmit(u, byte);
	update(u);
	host_unlock(&u->lock);
	if (out && u->config.write)
		u->config.write(u->config.opaque, &byte, 1);
	host_unlock(&u->tx_lock);
}

/* The lock is held. True: there is room again for who was refused. */
static bool has_room_again(struct uart16550 *u)
{
	if (!u->refused || u->backlog_len > BACKLOG / 2)
		return false;
	u->refused = false;
	return true;
}

static uint8_t read_port(struct uart16550 *u, unsigned reg)
{
	uint8_t value;
	bool room;

	host_lock(&u->lock);
	value = read_reg(u, reg);
	update(u);
	room = has_room_again(u);
	host_unlock(&u->lock);
	if (room && u->config.input_ready)
		u->config.input_ready(u->config.opaque);
	return value;
}

static uint64_t port_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < len; i++)
		value |= (uint64_t)read_port(opaque, off + i) << (i * 8);
	return value;
}

static void write_port(struct uart16550 *u, unsigned reg, uint8_t value)
{
	bool room;

	if (reg == REG_DATA) {
		write_data(u, value);
		return;
	}
	host_lock(&u->lock);
	u->polls = 0;
	write_reg(u, reg, value);
	update(u);
	room = has_room_again(u);
	host_unlock(&u->lock);
	if (room && u->config.input_ready)
		u->config.input_ready(u->config.opaque);
}

static void port_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	for (unsigned i = 0; i < len; i++)
		write_port(opaque, off + i, value >> (i * 8));
}

static const struct bus_ops ops = {port_read, port_write};

size_t uart16550_receive(struct uart16550 *u, const uint8_t *data, size_t len)
{
	size_t n;

	host_lock(&u->lock);
	n = MIN(len, (size_t)(BACKLOG - u->backlog_len));
	for (size_t i = 0; i < n; i++)
		u->backlog[(u->backlog_at + u->backlog_len++) % BACKLOG] = data[i];
	u->refused |= n < len;
	update(u);
	host_unlock(&u->lock);
	return n;
}

/* What has been typed ahead stays for the next system. The divisor says 9600 until it is set. */
static void reset(void *opaque)
{
	struct uart16550 *u = opaque;

	host_lock(&u->lock);
	u->ier = u->fcr = u->lcr = u->mcr = u->lsr = u->scratch = u->fifo_len = 0;
	u->fifo[0] = 0;
	u->msr = MSR_CONNECTED;
	u->divisor[0] = 12;
	u->divisor[1] = 0;
	u->tx_interrupt = false;
	u->polls = 0;
	update(u);
	host_unlock(&u->lock);
}

static void check_loaded(struct uart16550 *u)
{
	u->ier &= 0xf;
	u->mcr &= 0x1f;
	if (u->fifo_len > fifo_size(u) || u->backlog_len > BACKLOG || u->backlog_at >= BACKLOG)
		u->fifo_len = u->backlog_len = u->backlog_at = 0;
}

static void state(void *opaque, struct state_stream *s)
{
	struct uart16550 *u = opaque;
	uint8_t *bytes[] = {&u->ier, &u->fcr, &u->lcr, &u->mcr, &u->lsr, &u->msr, &u->scratch, &u->fifo_len};
	uint8_t tx;

	host_lock(&u->lock);
	tx = u->tx_interrupt;
	for (unsigned i = 0; i < ARRAY_LEN(bytes); i++)
		state_field(s, *bytes[i]);
	state_field(s, tx);
	state_field(s, u->divisor);
	state_field(s, u->fifo);
	state_field(s, u->backlog);
	state_field(s, u->backlog_at);
	state_field(s, u->backlog_len);
	u->tx_interrupt = tx;
	check_loaded(u);
	update(u);
	irq_set(&u->config.irq, u->line); /* whatever it was before */
	host_unlock(&u->lock);
}

static void release(struct uart16550 *u)
{
	host_mutex_destroy(&u->tx_lock);
	host_mutex_destroy(&u->lock);
	free(u);
}

static void destroy(void *opaque)
{
	struct uart16550 *u = opaque;

	bus_remove(u->config.bus, BUS_PORT, u->config.port);
	release(u);
}

struct uart16550 *uart16550_create(const struct uart16550_config *config)
{
	struct uart16550 *u = calloc(1, sizeof(*u));

	if (!u)
		return NULL;
	u->config = *config;
	host_mutex_init(&u->tx_lock);
	host_mutex_init(&u->lock);
	if (!bus_add(config->bus, BUS_PORT, (struct bus_region){"16550A", config->port, REGS, &ops, u})) {
		release(u);
		return NULL;
	}
	reset(u);
	return u;
}

struct device uart16550_device(struct uart16550 *u)
{
	return (struct device){.name = "16550A", .opaque = u, .reset = reset, .state = state, .destroy = destroy};
}
