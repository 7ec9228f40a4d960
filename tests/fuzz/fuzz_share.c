/*
 * A guest's requests to a shared folder, one after another: what earlier answers have given can be used by later ones.
 * Answers must be well-formed, and what lies beside the folder must stay as it is.
 */
#include "fuzz.h"

#include "../unit/share_client.h"

#include <ftw.h>

#define IDS 16

static struct client client;
static char secret[128];

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return ftw->level ? remove(path) : 0;
}

static void leave(void)
{
	client_end(&client);
}

/* Each input finds the same folder. */
static void fill(struct client *c)
{
	char path[128];

	nftw(c->in, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
	client_put_file(c->in, "a", "text");
	snprintf(path, sizeof(path), "%s/dir", c->in);
	mkdir(path, 0755);
	snprintf(path, sizeof(path), "%s/link", c->in);
	EXPECT(!symlink("../out/secret", path));
	snprintf(path, sizeof(path), "%s/fifo", c->in);
	EXPECT(!mkfifo(path, 0644));
}

static void start(struct client *c)
{
	log_set_level(-1);
	client_folders(c);
	snprintf(secret, sizeof(secret), "%s/secret", c->out);
	client_serve(c, false, 100000);
	atexit(leave);
}

static void arguments(struct client *c, struct input *in, const uint64_t *id)
{
	static const char *const names[] = {"a", "b", "dir", "..", ".", "x/y", "link", "fifo"};

	for (unsigned n = (unsigned)take(in, 1) & 31; n; n--) {
		unsigned what = (unsigned)take(in, 1);
		uint64_t word = what & 8 ? id[what >> 4] : take(in, 1 + (what & 7));
		if (what == 0xff)
			client_text(c, names[take(in, 1) % ARRAY_LEN(names)]);
		else
			client_arg(c, &word, what & 1 ? 4 : 8);
	}
	if (in->left && *in->p & 1) {
		size_t raw = take(in, 2) >> 4;
		raw = MIN(raw, in->left);
		client_arg(c, in->p, raw);
		in->p += raw;
		in->left -= raw;
	}
}

static void request(struct client *c, struct input *in, uint64_t *id)
{
	struct fuse_in *h = (void *)c->request;
	struct fuse_out *out = (void *)c->answer;
	unsigned op = (unsigned)take(in, 1) % FUSE_OPS, sizes = (unsigned)take(in, 1);

	/* What waits for the host's disk makes inputs slow and finds nothing. */
	if (op == FUSE_SYNCFS || op == FUSE_FSYNC || op == FUSE_FSYNCDIR || op == FUSE_FALLOCATE)
		return;
	client_begin(c, op, id[take(in, 1) % IDS]);
	arguments(c, in, id);
	c->room = sizes & 1 ? take(in, 2) : 8192;
	h->len = (uint32_t)(sizes & 2 ? take(in, 4) : c->len);
	if (sizes & 4 && in->left)
		c->len -= MIN(c->len, (size_t)*in->p);
	client_send_raw(c);
	EXPECT(c->got >= -1 && c->got <= (int64_t)c->room);
	if (c->got <= 0)
		return;
	EXPECT(c->got >= (int64_t)sizeof(*out) && out->len == c->got && out->error <= 0 && out->unique == h->unique);
	EXPECT(!out->error || c->got == sizeof(*out));
	if (c->got >= 24)
		memcpy(&id[take(in, 1) % IDS], client_body(c), 8);
	id[0] = FUSE_ROOT;
}

static void save_and_load(struct client *c, struct input *in)
{
	struct state_stream s = {.saving = true};

	share_state(c->share, &s);
	size_t at = take(in, 2);
	uint8_t change = (uint8_t)take(in, 1);
	if (!s.failed) {
		struct state_stream l = {.data = s.data, .len = change & 2 ? at % s.len : s.len};
		s.data[at % s.len] ^= change & 1 ? change : 0;
		share_state(c->share, &l);
		EXPECT(change & 3 || !l.failed);
	}
	state_end(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	uint64_t id[IDS] = {FUSE_ROOT, FUSE_ROOT, FUSE_ROOT, FUSE_ROOT};
	struct stat st;

	if (!client.share)
		start(&client);
	share_reset(client.share);
	fill(&client);
	EXPECT(!client_init(&client));
	for (unsigned n = 0; in.left && n < 200; n++) {
		if (*in.p == 0xff) {
			take(&in, 1);
			save_and_load(&client, &in);
		} else {
			request(&client, &in, id);
		}
	}
	EXPECT(!stat(secret, &st) && st.st_size == 6 && st.st_nlink == 1 && st.st_mode & 0400);
	return 0;
}
