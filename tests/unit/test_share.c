/* The file server of a shared folder: ordinary requests, hostile ones, and attempts to get out of the folder. */
#include "share_client.h"
#include "unit.h"

#include "host/thread.h"

#include <sys/xattr.h>

#define ROOT FUSE_ROOT

static struct client c; /* too large for the stack */

extern const size_t wire_sizes[];
extern const unsigned wire_ops[];

TEST(the_protocol_is_the_hosts)
{
	const size_t sizes[] = {sizeof(struct fuse_in),
				sizeof(struct fuse_out),
				sizeof(struct fuse_attr),
				sizeof(struct fuse_entry_out),
				sizeof(struct fuse_attr_out),
				sizeof(struct fuse_init_out),
				sizeof(struct fuse_setattr_in),
				sizeof(struct fuse_create_in),
				sizeof(struct fuse_open_out),
				sizeof(struct fuse_rw_in),
				sizeof(struct fuse_rw_in),
				sizeof(struct fuse_release_in),
				sizeof(struct fuse_statfs_out),
				sizeof(struct fuse_mknod_in),
				sizeof(struct fuse_rename2_in),
				sizeof(struct fuse_fallocate_in),
				sizeof(struct fuse_lseek_in),
				sizeof(struct fuse_copy_in),
				sizeof(struct fuse_dirent),
				offsetof(struct fuse_setattr_in, mode),
				offsetof(struct fuse_attr, mode),
				offsetof(struct fuse_init_out, max_pages),
				offsetof(struct fuse_entry_out, attr)};
	const unsigned ops[] = {FUSE_LOOKUP,          FUSE_FORGET,      FUSE_GETATTR,     FUSE_SETATTR,   FUSE_READLINK,
				FUSE_SYMLINK,         FUSE_MKNOD,       FUSE_MKDIR,       FUSE_UNLINK,    FUSE_RMDIR,
				FUSE_RENAME,          FUSE_LINK,        FUSE_OPEN,        FUSE_READ,      FUSE_WRITE,
				FUSE_STATFS,          FUSE_RELEASE,     FUSE_FSYNC,       FUSE_SETXATTR,  FUSE_GETXATTR,
				FUSE_LISTXATTR,       FUSE_REMOVEXATTR, FUSE_INIT,        FUSE_OPENDIR,   FUSE_READDIR,
				FUSE_RELEASEDIR,      FUSE_FSYNCDIR,    FUSE_CREATE,      FUSE_INTERRUPT, FUSE_DESTROY,
				FUSE_BATCH_FORGET,    FUSE_FALLOCATE,   FUSE_READDIRPLUS, FUSE_RENAME2,   FUSE_LSEEK,
				FUSE_COPY_FILE_RANGE, FUSE_SYNCFS};

	for (unsigned i = 0; i < ARRAY_LEN(sizes); i++)
		CHECK_EQ(sizes[i], wire_sizes[i]);
	for (unsigned i = 0; i < ARRAY_LEN(ops); i++)
		CHECK_EQ(ops[i], wire_ops[i]);
}

/* ---- What a guest does all day ---- */

static int set_attr(uint64_t node, const struct fuse_setattr_in *in)
{
	client_begin(&c, FUSE_SETATTR, node);
	client_arg(&c, in, sizeof(*in));
	return client_send(&c);
}

static int rename2_to(uint64_t dir, const char *name, uint64_t dir2, const char *name2, uint32_t flags)
{
	struct fuse_rename2_in in = {dir2, flags, 0};

	client_begin(&c, FUSE_RENAME2, dir);
	client_arg(&c, &in, sizeof(in));
	client_text(&c, name);
	client_text(&c, name2);
	return client_send(&c);
}

static uint64_t make_folder(uint64_t dir, const char *name)
{
	struct fuse_mkdir_in in = {0755, 0};

	if (client_name(&c, FUSE_MKDIR, dir, &in, sizeof(in), name))
		return 0;
	return ((struct fuse_entry_out *)client_body(&c))->nodeid;
}

static void begin(void)
{
	client_folders(&c);
	client_serve(&c, false, 1);
}

TEST(files)
{
	uint64_t fh = 0, again = 0;
	struct fuse_attr attr = {0};
	struct fuse_init_out *init = client_body(&c);
	int error;

	begin();
	CHECK_EQ(client_body_len(&c), sizeof(*init));
	CHECK_EQ(init->max_write, SHARE_TRANSFER);
	uint64_t node = client_create(&c, ROOT, "file", O_RDWR | O_EXCL, 0100644, &fh, &error);
	REQUIRE(node);
	CHECK_EQ(client_write(&c, fh, 0, "hello world", 11), 11);
	CHECK_EQ(client_write(&c, fh, 100000, "end", 3), 3);
	CHECK_EQ(client_read(&c, fh, 6, 5), 0);
	CHECK_EQ(client_body_len(&c), 5);
	CHECK_MEM(client_body(&c), "world", 5);
	CHECK_EQ(client_read(&c, fh, 99998, 4096), 0);
	CHECK_EQ(client_body_len(&c), 5);
	CHECK_MEM(client_body(&c), "\0\0end", 5);
	CHECK_EQ(client_read(&c, fh, 100003, 4096), 0);
	CHECK_EQ(client_body_len(&c), 0);
	CHECK_EQ(client_read(&c, fh, UINT64_MAX - 5, 4096), -EFBIG);
	CHECK(client_write(&c, fh, INT64_MAX, "x", 1) < 0);
	CHECK_EQ(client_getattr(&c, node, &attr), 0);
	CHECK_EQ(attr.size, 100003);
	CHECK_EQ(attr.mode, 0100644);
	CHECK_EQ(client_create(&c, ROOT, "file", O_RDWR | O_EXCL, 0100644, &again, &error), 0);
	CHECK_EQ(error, -EEXIST);
	CHECK_EQ(client_create(&c, ROOT, "file", O_RDWR | O_TRUNC, 0100644, &again, &error), node);
	CHECK_EQ(client_getattr(&c, node, &attr), 0);
	CHECK_EQ(attr.size, 0);
	/* Open files live on without a name. */
	CHECK_EQ(client_write(&c, fh, 0, "still", 5), 5);
	CHECK_EQ(client_name(&c, FUSE_UNLINK, ROOT, "", 0, "file"), 0);
	CHECK_EQ(client_lookup(&c, ROOT, "file", &error), 0);
	CHECK_EQ(error, 0); /* an entry that says so */
	CHECK_EQ(client_read(&c, again, 0, 10), 0);
	CHECK_MEM(client_body(&c), "still", 5);
	CHECK_EQ(client_getattr(&c, node, &attr), 0);
	CHECK_EQ(attr.nlink, 0);
	CHECK_EQ(client_release(&c, FUSE_RELEASE, fh), 0);
	CHECK_EQ(client_read(&c, fh, 0, 10), -EBADF);
	CHECK_EQ(client_release(&c, FUSE_RELEASE, again), 0);
	client_forget(&c, node, 2);
	CHECK_EQ(client_getattr(&c, node, &attr), -ESTALE);
	client_end(&c);
}

TEST(access_modes)
{
	uint64_t fh, node;
	int error;

	begin();
	client_put_file(c.in, "file", "text");
	node = client_lookup(&c, ROOT, "file", NULL);
	fh = client_open(&c, node, O_RDONLY, &error);
	CHECK_EQ(client_write(&c, fh, 0, "x", 1), -EBADF);
	fh = client_open(&c, node, O_WRONLY, &error);
	CHECK_EQ(client_read(&c, fh, 0, 1), -EBADF);
	/* Appending is the guest's own affair: it says where. */
	fh = client_open(&c, node, O_WRONLY | O_APPEND, &error);
	CHECK_EQ(client_write(&c, fh, 0, "b", 1), 1);
	fh = client_open(&c, node, O_RDONLY | O_DIRECT, &error);
	CHECK_EQ(client_read(&c, fh, 0, 100), 0);
	CHECK_EQ(client_body_len(&c), 4);
	CHECK_MEM(client_body(&c), "bext", 4);
	/* A folder's handle is no file's. */
	uint64_t dir = client_open(&c, ROOT, O_DIRECTORY, &error);
	CHECK_EQ(client_read(&c, dir, 0, 100), -EBADF);
	CHECK_EQ(client_open(&c, node, O_DIRECTORY, &error), 0);
	CHECK_EQ(error, -ENOTDIR);
	client_end(&c);
}

TEST(attributes)
{
	struct fuse_attr attr = {0};
	uint64_t node;

	begin();
	client_put_file(c.in, "file", "text");
	node = client_lookup(&c, ROOT, "file", NULL);
	CHECK_EQ(set_attr(node, &(struct fuse_setattr_in){.valid = FATTR_MODE, .mode = 0600}), 0);
	CHECK_EQ(set_attr(node, &(struct fuse_setattr_in){.valid = FATTR_SIZE, .size = 9}), 0);
	CHECK_EQ(set_attr(node, &(struct fuse_setattr_in){.valid = FATTR_SIZE, .size = UINT64_MAX}), -EFBIG);
	CHECK_EQ(set_attr(node, &(struct fuse_setattr_in){.valid = FATTR_ATIME | FATTR_MTIME,
							  .atime = 1,
							  .mtime = 1000000000,
							  .mtimensec = UINT32_MAX}),
		 0);
	CHECK_EQ(set_attr(node, &(struct fuse_setattr_in){.valid = FATTR_UID, .uid = getuid()}), 0);
	CHECK_EQ(client_getattr(&c, node, &attr), 0);
	CHECK_EQ(attr.mode, 0100600);
	CHECK_EQ(attr.size, 9);
	CHECK_EQ(attr.atime, 1);
	CHECK_EQ(attr.mtime, 1000000000);
	CHECK_EQ(attr.mtimensec, 999999999);
	/* No program of the guest's making runs as its owner on the host. */
	CHECK_EQ(set_attr(node, &(struct fuse_setattr_in){.valid = FATTR_MODE, .mode = 06755}), 0);
	CHECK_EQ(client_getattr(&c, node, &attr), 0);
	CHECK_EQ(attr.mode, 0100755);
	CHECK_EQ(set_attr(ROOT, &(struct fuse_setattr_in){.valid = FATTR_MODE, .mode = 01777}), 0);
	CHECK_EQ(client_getattr(&c, ROOT, &attr), 0);
	CHECK_EQ(attr.mode, 041777);
	client_end(&c);
}

TEST(names)
{
	struct fuse_link_in link;
	struct fuse_attr attr = {0};
	char path[256];
	int error;

	begin();
	uint64_t dir = make_folder(ROOT, "dir"), other = make_folder(ROOT, "other");
	REQUIRE(dir && other);
	client_put_file(c.in, "dir/file", "text");
	uint64_t file = client_lookup(&c, dir, "file", NULL);
	REQUIRE(file);
	CHECK_EQ(client_name(&c, FUSE_RMDIR, ROOT, "", 0, "dir"), -ENOTEMPTY);
	CHECK_EQ(client_name(&c, FUSE_UNLINK, ROOT, "", 0, "dir"), -EISDIR);
	link.oldnodeid = file;
	CHECK_EQ(client_name(&c, FUSE_LINK, other, &link, sizeof(link), "second"), 0);
	CHECK_EQ(((struct fuse_entry_out *)client_body(&c))->nodeid, file);
	CHECK_EQ(((struct fuse_entry_out *)client_body(&c))->attr.nlink, 2);
	CHECK_EQ(rename2_to(dir, "file", other, "third", 0), 0);
	CHECK_EQ(rename2_to(other, "third", other, "second", 1), -EEXIST);
	CHECK_EQ(rename2_to(ROOT, "dir", ROOT, "other", 2), 0);
	CHECK_EQ(rename2_to(ROOT, "dir", ROOT, "other", 4), -EINVAL);
	CHECK_EQ(client_lookup(&c, ROOT, "dir", NULL), other);
	CHECK_EQ(rename2_to(ROOT, "other", dir, "itself", 0), -EINVAL);
	client_begin(&c, FUSE_SYMLINK, ROOT);
	client_text(&c, "link");
	client_text(&c, "../out/secret");
	CHECK_EQ(client_send(&c), 0);
	uint64_t node = ((struct fuse_entry_out *)client_body(&c))->nodeid;
	client_begin(&c, FUSE_READLINK, node);
	CHECK_EQ(client_send(&c), 0);
	CHECK_EQ(client_body_len(&c), 13);
	CHECK_MEM(client_body(&c), "../out/secret", 13);
	client_begin(&c, FUSE_READLINK, file);
	CHECK(client_send(&c) < 0);
	snprintf(path, sizeof(path), "%s/dir/second", c.in);
	CHECK_EQ(access(path, F_OK), 0);
	CHECK_EQ(client_lookup(&c, ROOT, "", &error), 0);
	CHECK_EQ(error, -EINVAL);
	char name[300];
	memset(name, 'x', sizeof(name));
	name[299] = 0;
	client_lookup(&c, ROOT, name, &error);
	CHECK_EQ(error, -ENAMETOOLONG);
	struct fuse_mknod_in fifo = {0010644, 0, 0, 0};
	CHECK_EQ(client_name(&c, FUSE_MKNOD, ROOT, &fifo, sizeof(fifo), "fifo"), 0);
	CHECK_EQ(client_getattr(&c, ((struct fuse_entry_out *)client_body(&c))->nodeid, &attr), 0);
	CHECK_EQ(attr.mode & 0170000, 0010000);
	client_end(&c);
}

TEST(large_folders)
{
	char name[32];
	static bool seen[1000];
	unsigned count = 0, calls = 0;

	begin();
	for (unsigned i = 0; i < 1000; i++) {
		snprintf(name, sizeof(name), "entry-%u", i);
		client_put_file(c.in, name, "");
	}
	for (unsigned plus = 0; plus < 2; plus++) {
		uint64_t fh = client_open(&c, ROOT, O_DIRECTORY, NULL), off = 0;
		memset(seen, 0, sizeof(seen));
		count = 0;
		for (;;) {
			struct fuse_rw_in in = {.fh = fh, .offset = off, .size = 3000};
			client_begin(&c, plus ? FUSE_READDIRPLUS : FUSE_READDIR, ROOT);
			client_arg(&c, &in, sizeof(in));
			REQUIRE(client_send(&c) == 0);
			size_t len = client_body_len(&c);
			CHECK(len <= 3000);
			if (!len)
				break;
			calls++;
			for (size_t at = 0; at < len;) {
				uint8_t *p = (uint8_t *)client_body(&c) + at;
				struct fuse_entry_out *known = plus ? (void *)p : NULL;
				struct fuse_dirent *d = (void *)(p + (plus ? sizeof(*known) : 0));
				char text[32] = "";
				unsigned n;
				memcpy(text, d + 1, MIN(d->namelen, 31u));
				if (sscanf(text, "entry-%u", &n) == 1 && n < 1000) {
					CHECK(!seen[n]);
					seen[n] = true;
					count++;
					if (known)
						CHECK_EQ(known->attr.ino, d->ino);
				} else if (known) {
					CHECK_EQ(known->nodeid, 0);
				}
				off = d->off;
				at += (plus ? sizeof(*known) : 0) + align_up(sizeof(*d) + d->namelen, 8);
			}
		}
		CHECK_EQ(count, 1000);
		CHECK_EQ(client_release(&c, FUSE_RELEASEDIR, fh), 0);
	}
	CHECK(calls > 20);
	client_end(&c);
}

TEST(extended_attributes)
{
	struct fuse_setxattr_in set = {5, 0};
	struct fuse_getxattr_in get = {100, 0}, ask = {0, 0}, little = {2, 0};
	char path[256];

	begin();
	client_put_file(c.in, "file", "");
	uint64_t node = client_lookup(&c, ROOT, "file", NULL);
	client_begin(&c, FUSE_SETXATTR, node);
	client_arg(&c, &set, sizeof(set));
	client_text(&c, "user.color");
	client_arg(&c, "green", 5);
	int error = client_send(&c);
	if (error == -EOPNOTSUPP) {
		client_end(&c);
		return; /* the temporary folder's file system has none */
	}
	CHECK_EQ(error, 0);
	snprintf(path, sizeof(path), "%s/file", c.in);
	char value[16];
	CHECK_EQ(getxattr(path, "user.color", value, sizeof(value)), 5);
	CHECK_EQ(client_name(&c, FUSE_GETXATTR, node, &get, sizeof(get), "user.color"), 0);
	CHECK_EQ(client_body_len(&c), 5);
	CHECK_MEM(client_body(&c), "green", 5);
	CHECK_EQ(client_name(&c, FUSE_GETXATTR, node, &ask, sizeof(ask), "user.color"), 0);
	CHECK_EQ(*(uint32_t *)client_body(&c), 5);
	CHECK_EQ(client_name(&c, FUSE_GETXATTR, node, &little, sizeof(little), "user.color"), -ERANGE);
	CHECK_EQ(client_name(&c, FUSE_GETXATTR, node, &get, sizeof(get), "user.none"), -ENODATA);
	client_begin(&c, FUSE_LISTXATTR, node);
	client_arg(&c, &get, sizeof(get));
	CHECK_EQ(client_send(&c), 0);
	CHECK_EQ(client_body_len(&c), 11);
	CHECK_EQ(client_name(&c, FUSE_REMOVEXATTR, node, "", 0, "user.color"), 0);
	/* What means something to the host is not for the guest. */
	const char *const host[] = {"security.capability", "trusted.x", "system.posix_acl_access", "user"};
	for (unsigned i = 0; i < ARRAY_LEN(host); i++) {
		CHECK_EQ(client_name(&c, FUSE_GETXATTR, node, &get, sizeof(get), host[i]), -EOPNOTSUPP);
		CHECK_EQ(client_name(&c, FUSE_REMOVEXATTR, node, "", 0, host[i]), -EOPNOTSUPP);
	}
	client_end(&c);
}

TEST(holes_and_copies)
{
	uint64_t a = 0, b = 0;
	int error;

	begin();
	REQUIRE(client_create(&c, ROOT, "a", O_RDWR, 0644, &a, &error));
	REQUIRE(client_create(&c, ROOT, "b", O_RDWR, 0644, &b, &error));
	CHECK_EQ(client_write(&c, a, MiB(1), "data", 4), 4);
	struct fuse_lseek_in seek = {a, 0, SEEK_DATA, 0};
	client_begin(&c, FUSE_LSEEK, 2);
	client_arg(&c, &seek, sizeof(seek));
	CHECK_EQ(client_send(&c), 0);
	uint64_t at = *(uint64_t *)client_body(&c);
	CHECK(at == 0 || at == MiB(1)); /* 0: a file system that knows no holes */
	seek.whence = SEEK_SET;
	client_begin(&c, FUSE_LSEEK, 2);
	client_arg(&c, &seek, sizeof(seek));
	CHECK_EQ(client_send(&c), -EINVAL);
	struct fuse_copy_in copy = {a, MiB(1), 2, b, 3, 4, 0};
	client_begin(&c, FUSE_COPY_FILE_RANGE, 2);
	client_arg(&c, &copy, sizeof(copy));
	error = client_send(&c);
	CHECK(!error || error == -EOPNOTSUPP || error == -EXDEV || error == -EINVAL);
	if (!error) {
		CHECK_EQ(client_read(&c, b, 3, 10), 0);
		CHECK_MEM(client_body(&c), "data", 4);
	}
	struct fuse_fallocate_in room = {b, 0, 4096, 0, 0};
	client_begin(&c, FUSE_FALLOCATE, 2);
	client_arg(&c, &room, sizeof(room));
	error = client_send(&c);
	CHECK(!error || error == -EOPNOTSUPP);
	room.length = UINT64_MAX;
	client_begin(&c, FUSE_FALLOCATE, 2);
	client_arg(&c, &room, sizeof(room));
	CHECK(client_send(&c) < 0);
	struct fuse_fsync_in sync = {a, 1, 0};
	client_begin(&c, FUSE_FSYNC, 2);
	client_arg(&c, &sync, sizeof(sync));
	CHECK_EQ(client_send(&c), 0);
	client_begin(&c, FUSE_STATFS, ROOT);
	CHECK_EQ(client_send(&c), 0);
	CHECK(((struct fuse_statfs_out *)client_body(&c))->blocks > 0);
	client_end(&c);
}

/* ---- Only to read ---- */

TEST(readonly_means_it)
{
	struct fuse_attr attr = {0};
	uint64_t fh, other;
	int error;

	client_folders(&c);
	client_put_file(c.in, "file", "text");
	client_serve(&c, true, 1);
	uint64_t node = client_lookup(&c, ROOT, "file", NULL);
	fh = client_open(&c, node, O_RDONLY, &error);
	CHECK_EQ(client_read(&c, fh, 0, 10), 0);
	CHECK_MEM(client_body(&c), "text", 4);
	const uint32_t flags[] = {O_RDWR, O_WRONLY, O_RDONLY | O_TRUNC, 3};
	for (unsigned i = 0; i < ARRAY_LEN(flags); i++) {
		client_open(&c, node, flags[i], &error);
		CHECK_EQ(error, -EROFS);
	}
	client_create(&c, ROOT, "new", O_RDWR, 0644, &other, &error);
	CHECK_EQ(error, -EROFS);
	CHECK_EQ(client_write(&c, fh, 0, "x", 1), -EROFS);
	/* Every other that changes something, whatever it says. */
	const uint32_t ops[] = {FUSE_SETATTR, FUSE_SYMLINK,         FUSE_MKNOD,    FUSE_MKDIR,       FUSE_UNLINK,
				FUSE_RMDIR,   FUSE_RENAME,          FUSE_SETXATTR, FUSE_REMOVEXATTR, FUSE_FALLOCATE,
				FUSE_RENAME2, FUSE_COPY_FILE_RANGE, FUSE_LINK};
	for (unsigned i = 0; i < ARRAY_LEN(ops); i++) {
		client_begin(&c, ops[i], ROOT);
		client_arg(&c, (char[100]){0}, 100);
		CHECK_EQ(client_send(&c), -EROFS);
	}
	CHECK_EQ(client_getattr(&c, node, &attr), 0);
	CHECK_EQ(attr.size, 4);
	/* Not even a mode, which to open a file takes away where it is to be written to. */
	char path[256];
	snprintf(path, sizeof(path), "%s/file", c.in);
	REQUIRE(!chmod(path, 04755));
	const struct fuse_open_in in = {O_RDONLY, FUSE_OPEN_KILL_SUIDGID};
	client_begin(&c, FUSE_OPEN, node);
	client_arg(&c, &in, sizeof(in));
	CHECK_EQ(client_send(&c), 0);
	CHECK_EQ(client_getattr(&c, node, &attr), 0);
	CHECK_EQ(attr.mode & 07777, 04755);
	client_end(&c);
}

/* ---- Getting out ---- */

static void no_way(uint64_t dir, const char *name)
{
	struct fuse_mkdir_in mkdir_in = {0755, 0};
	struct fuse_mknod_in mknod_in = {0100644, 0, 0, 0};
	uint64_t fh;
	int error;

	CHECK_EQ(client_lookup(&c, dir, name, &error), 0);
	CHECK(error < 0);
	CHECK(client_name(&c, FUSE_MKDIR, dir, &mkdir_in, sizeof(mkdir_in), name) < 0);
	CHECK(client_name(&c, FUSE_MKNOD, dir, &mknod_in, sizeof(mknod_in), name) < 0);
	CHECK(client_name(&c, FUSE_UNLINK, dir, "", 0, name) < 0);
	CHECK(client_name(&c, FUSE_RMDIR, dir, "", 0, name) < 0);
	CHECK_EQ(client_create(&c, dir, name, O_RDWR, 0644, &fh, &error), 0);
	CHECK(rename2_to(dir, name, ROOT, "x", 0) < 0);
	CHECK(rename2_to(ROOT, "file", dir, name, 0) < 0);
}

TEST(names_do_not_lead_out)
{
	char path[256];

	begin();
	client_put_file(c.in, "file", "text");
	const char *const bad[] = {"..", ".", "/", "../out", "../out/secret", "/etc/passwd", "a/b", "file/.", ""};
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++)
		no_way(ROOT, bad[i]);
	snprintf(path, sizeof(path), "%s/secret", c.out);
	CHECK_EQ(access(path, F_OK), 0);
	CHECK(client_lookup(&c, ROOT, "file", NULL));
	client_end(&c);
}

TEST(links_are_never_followed)
{
	char path[256], target[256];
	struct fuse_attr attr = {0};
	uint64_t fh;
	int error;

	begin();
	snprintf(path, sizeof(path), "%s/link", c.in);
	REQUIRE(!symlink("../out", path));
	snprintf(path, sizeof(path), "%s/absolute", c.in);
	snprintf(target, sizeof(target), "%s/secret", c.out);
	REQUIRE(!symlink(target, path));
	uint64_t link = client_lookup(&c, ROOT, "link", NULL), absolute = client_lookup(&c, ROOT, "absolute", NULL);
	REQUIRE(link && absolute);
	no_way(link, "secret");
	no_way(link, "new");
	client_open(&c, absolute, O_RDONLY, &error);
	CHECK(error < 0);
	client_open(&c, link, O_DIRECTORY, &error);
	CHECK(error < 0);
	CHECK_EQ(client_create(&c, ROOT, "absolute", O_RDWR, 0644, &fh, &error), 0);
	CHECK(error < 0);
	CHECK(set_attr(absolute, &(struct fuse_setattr_in){.valid = FATTR_SIZE, .size = 0}) < 0);
	CHECK(set_attr(absolute, &(struct fuse_setattr_in){.valid = FATTR_MODE, .mode = 0}) < 0);
	CHECK_EQ(set_attr(absolute, &(struct fuse_setattr_in){.valid = FATTR_MTIME, .mtime = 77}), 0);
	CHECK_EQ(client_getattr(&c, absolute, &attr), 0);
	CHECK_EQ(attr.mtime, 77); /* the link's own */
	struct stat st;
	REQUIRE(!stat(target, &st));
	CHECK_EQ(st.st_size, 6);
	CHECK(st.st_mtime != 77 && st.st_mode & 0400);
	/* A hard link to a link is one to the link. */
	struct fuse_link_in in = {absolute};
	CHECK_EQ(client_name(&c, FUSE_LINK, ROOT, &in, sizeof(in), "second"), 0);
	CHECK_EQ(((struct fuse_entry_out *)client_body(&c))->attr.mode & 0170000, 0120000);
	client_end(&c);
}

TEST(nothing_but_files_and_folders_is_opened)
{
	char path[256];
	int error;

	begin();
	snprintf(path, sizeof(path), "%s/fifo", c.in);
	REQUIRE(!mkfifo(path, 0666));
	uint64_t node = client_lookup(&c, ROOT, "fifo", NULL), fh;
	const uint32_t flags[] = {O_RDONLY, O_WRONLY, O_RDWR, O_RDWR | O_TRUNC};
	for (unsigned i = 0; i < ARRAY_LEN(flags); i++) {
		client_open(&c, node, flags[i], &error); /* would hang if it were */
		CHECK_EQ(error, -ENXIO);
		client_create(&c, ROOT, "fifo", flags[i], 0644, &fh, &error);
		CHECK_EQ(error, -ENXIO);
	}
	struct fuse_link_in link = {node};
	CHECK_EQ(client_name(&c, FUSE_LINK, ROOT, &link, sizeof(link), "second"), -EPERM);
	CHECK(set_attr(node, &(struct fuse_setattr_in){.valid = FATTR_SIZE}) < 0);
	struct fuse_mknod_in device = {0020666, 0x103, 0, 0};
	CHECK_EQ(client_name(&c, FUSE_MKNOD, ROOT, &device, sizeof(device), "null"), -EPERM);
	device.mode = 0060666;
	CHECK_EQ(client_name(&c, FUSE_MKNOD, ROOT, &device, sizeof(device), "disk"), -EPERM);
	client_end(&c);
}

/* What the host moves away is gone, though the guest knows it, is in it or has it open. */
TEST(what_was_moved_out_is_out_of_reach)
{
	char from[256], to[256];
	struct fuse_attr attr = {0};
	int error;

	begin();
	uint64_t dir = make_folder(ROOT, "dir"), deep = make_folder(dir, "deep");
	client_put_file(c.in, "dir/deep/file", "text");
	uint64_t file = client_lookup(&c, deep, "file", NULL), fh = client_open(&c, deep, O_DIRECTORY, &error);
	REQUIRE(file && !error);
	snprintf(from, sizeof(from), "%s/dir", c.in);
	snprintf(to, sizeof(to), "%s/in-not", c.base); /* a name that begins as the folder's does */
	REQUIRE(!rename(from, to));
	no_way(dir, "deep");
	no_way(deep, "file");
	no_way(deep, "..");
	CHECK_EQ(client_getattr(&c, deep, &attr), -ESTALE);
	client_open(&c, file, O_RDONLY, &error);
	CHECK_EQ(error, -ESTALE);
	struct fuse_rw_in in = {.fh = fh, .size = 4096};
	client_begin(&c, FUSE_READDIRPLUS, deep);
	client_arg(&c, &in, sizeof(in));
	CHECK_EQ(client_send(&c), -ESTALE);
	REQUIRE(!rename(to, from));
	CHECK_EQ(client_lookup(&c, deep, "file", NULL), file);
	client_end(&c);
}

struct swapper {
	struct host_thread thread;
	atomic_bool stop;
	unsigned swaps;
};

/* in/spot is a folder, then a link to the neighbour, and so on; in/file is a file, then a link to the secret. */
static void *swap(void *arg)
{
	struct swapper *s = arg;
	char spot[256], aside[256], link[256];
	static const char *const names[] = {"spot", "file"};

	while (!s->stop) {
		for (unsigned i = 0; i < 2; i++) {
			snprintf(spot, sizeof(spot), "%s/%s", c.in, names[i]);
			snprintf(aside, sizeof(aside), "%s/%s-aside", c.base, names[i]);
			snprintf(link, sizeof(link), "%s/%s-link", c.base, names[i]);
			rename(spot, aside);
			rename(link, spot);
			rename(spot, link);
			rename(aside, spot);
		}
		s->swaps++;
	}
	return NULL;
}

TEST(races_are_not_won)
{
	struct swapper s = {.stop = false};
	char path[256], target[256];
	unsigned inside = 0;
	int error;

	begin();
	REQUIRE(make_folder(ROOT, "spot"));
	client_put_file(c.in, "spot/secret", "public");
	client_put_file(c.in, "file", "public");
	snprintf(path, sizeof(path), "%s/spot-link", c.base);
	REQUIRE(!symlink("../out", path));
	snprintf(path, sizeof(path), "%s/file-link", c.base);
	snprintf(target, sizeof(target), "%s/secret", c.out);
	REQUIRE(!symlink(target, path));
	REQUIRE(host_thread_start(&s.thread, "swap", swap, &s));
	for (unsigned i = 0; i < 4000; i++) {
		uint64_t dir = client_lookup(&c, ROOT, "spot", NULL), fh = 0, made;
		uint64_t file = i & 1 ? client_lookup(&c, ROOT, "file", NULL) : client_lookup(&c, dir, "secret", NULL);
		if (file)
			fh = client_open(&c, file, i & 2 ? O_RDWR : O_RDONLY, NULL);
		if (fh && !client_read(&c, fh, 0, 10) && client_body_len(&c)) {
			CHECK_MEM(client_body(&c), "public", 6);
			inside++;
		}
		client_release(&c, FUSE_RELEASE, fh);
		uint64_t node = client_create(&c, dir, "new", O_RDWR, 0644, &made, &error);
		if (node)
			client_release(&c, FUSE_RELEASE, made);
		client_name(&c, FUSE_UNLINK, dir, "", 0, "new");
		if (file)
			client_forget(&c, file, 1);
		if (node)
			client_forget(&c, node, 1);
		if (dir)
			client_forget(&c, dir, 1);
	}
	s.stop = true;
	host_thread_join(&s.thread);
	CHECK(inside && s.swaps);
	snprintf(path, sizeof(path), "%s/new", c.out);
	CHECK(access(path, F_OK));
	CHECK_EQ(access(target, F_OK), 0);
	client_end(&c);
}

/* ---- Bounds ---- */

static unsigned open_descriptors(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 4096; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* With few descriptors, many things are known, and all can be used. */
TEST(few_descriptors_for_many_things)
{
	static uint64_t node[500], handle[64];
	char name[32];
	struct fuse_attr attr = {0};
	unsigned handles = 0;
	int error;

	client_folders(&c);
	unsigned before = open_descriptors();
	client_serve(&c, false, 100000);
	uint64_t dir = make_folder(ROOT, "dir");
	for (unsigned i = 0; i < ARRAY_LEN(node); i++) {
		snprintf(name, sizeof(name), "dir/%u", i);
		client_put_file(c.in, name, name);
		node[i] = client_lookup(&c, dir, name + 4, NULL);
		REQUIRE(node[i]);
	}
	CHECK(open_descriptors() - before < 64);
	for (unsigned i = 0; i < ARRAY_LEN(node); i++)
		CHECK_EQ(client_getattr(&c, node[i], &attr), 0);
	/* They are found again after a folder above them has another name. */
	CHECK_EQ(rename2_to(ROOT, "dir", ROOT, "another", 0), 0);
	for (unsigned i = 0; i < ARRAY_LEN(node); i++) {
		uint64_t fh = client_open(&c, node[i], O_RDONLY, &error);
		CHECK_EQ(error, 0);
		CHECK_EQ(client_read(&c, fh, 0, 32), 0);
		snprintf(name, sizeof(name), "dir/%u", i);
		CHECK_MEM(client_body(&c), name, strlen(name));
		client_release(&c, FUSE_RELEASE, fh);
	}
	/* Open files are bounded, and keep their nodes. */
	while (handles < ARRAY_LEN(handle)) {
		handle[handles] = client_open(&c, node[handles], O_RDONLY, &error);
		if (error)
			break;
		handles++;
	}
	CHECK_EQ(error, -ENFILE);
	CHECK(handles >= 16 && handles < ARRAY_LEN(handle));
	CHECK(open_descriptors() - before < 80);
	CHECK_EQ(client_name(&c, FUSE_UNLINK, dir, "", 0, "3"), 0);
	for (unsigned i = 100; i < ARRAY_LEN(node); i++)
		CHECK_EQ(client_getattr(&c, node[i], &attr), 0);
	CHECK_EQ(client_getattr(&c, node[3], &attr), 0); /* open, though nowhere */
	CHECK_EQ(attr.nlink, 0);
	for (unsigned i = 0; i < handles; i++)
		client_release(&c, FUSE_RELEASE, handle[i]);
	for (unsigned i = 0; i < 200; i++)
		client_release(&c, FUSE_RELEASE, client_open(&c, node[i % 3], O_RDONLY, NULL));
	/* Replaced on the host: another thing, and the old one is stale once it has no descriptor. */
	for (unsigned i = 200; i < ARRAY_LEN(node); i++)
		client_getattr(&c, node[i], &attr);
	char path[256];
	snprintf(path, sizeof(path), "%s/another/5", c.in);
	CHECK_EQ(unlink(path), 0);
	CHECK_EQ(symlink("../../out/secret", path), 0);
	CHECK_EQ(client_getattr(&c, node[5], &attr), -ESTALE);
	CHECK(client_lookup(&c, dir, "5", NULL) != node[5]);
	client_end(&c);
	CHECK_EQ(open_descriptors(), before);
}

TEST(forgetting)
{
	struct fuse_attr attr = {0};
	struct {
		struct fuse_batch_forget_in head;
		struct fuse_forget_one one[3];
	} batch = {.head = {1000, 0}};

	begin();
	client_put_file(c.in, "a", "");
	client_put_file(c.in, "b", "");
	uint64_t a = client_lookup(&c, ROOT, "a", NULL);
	CHECK_EQ(client_lookup(&c, ROOT, "a", NULL), a);
	client_forget(&c, a, 1);
	CHECK_EQ(client_getattr(&c, a, &attr), 0);
	client_forget(&c, a, UINT64_MAX);
	CHECK_EQ(client_getattr(&c, a, &attr), -ESTALE);
	client_forget(&c, a, 1);
	uint64_t again = client_lookup(&c, ROOT, "a", NULL);
	CHECK(again && again != a);
	client_forget(&c, ROOT, UINT64_MAX);
	CHECK_EQ(client_getattr(&c, ROOT, &attr), 0);
	/* More than there are, and the same twice. */
	batch.one[0] = batch.one[1] = (struct fuse_forget_one){again, 1};
	batch.one[2] = (struct fuse_forget_one){~0ull, 1};
	client_begin(&c, FUSE_BATCH_FORGET, 0);
	client_arg(&c, &batch, sizeof(batch));
	client_send(&c);
	CHECK_EQ(c.got, 0);
	CHECK_EQ(client_getattr(&c, again, &attr), -ESTALE);
	/* Something open whose node is forgotten. */
	uint64_t b = client_lookup(&c, ROOT, "b", NULL), fh = client_open(&c, b, O_RDWR, NULL);
	client_forget(&c, b, 1);
	CHECK_EQ(client_write(&c, fh, 0, "x", 1), 1);
	CHECK_EQ(client_release(&c, FUSE_RELEASE, fh), 0);
	client_end(&c);
}

TEST(cached_content_is_believed_while_the_file_is_the_same)
{
	struct fuse_open_out *out = client_body(&c);
	struct timespec old[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
	char path[256];

	begin();
	client_put_file(c.in, "file", "text");
	snprintf(path, sizeof(path), "%s/file", c.in);
	utimensat(AT_FDCWD, path, old, 0);
	uint64_t node = client_lookup(&c, ROOT, "file", NULL);
	client_open(&c, node, O_RDONLY, NULL);
	CHECK(!(out->open_flags & FOPEN_KEEP_CACHE));
	client_open(&c, node, O_RDONLY, NULL);
	CHECK(out->open_flags & FOPEN_KEEP_CACHE);
	client_put_file(c.in, "file", "next");
	client_open(&c, node, O_RDONLY, NULL);
	CHECK(!(out->open_flags & FOPEN_KEEP_CACHE));
	client_open(&c, node, O_RDONLY, NULL); /* so young that it may change again within the same moment */
	CHECK(!(out->open_flags & FOPEN_KEEP_CACHE));
	client_end(&c);
}

/* ---- Hostile requests ---- */

static uint64_t rng = 88172645463325252ull;

static uint64_t next_random(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng;
}

TEST(every_request_at_every_length)
{
	struct fuse_in *h = (void *)c.request;

	begin();
	make_folder(ROOT, "dir");
	for (uint32_t op = 0; op < 70; op++) {
		for (size_t len = 0; len < 140; len++) {
			client_begin(&c, op, ROOT);
			memset(c.request + c.len, op & 1 ? 0 : 0xff, 200);
			c.len = len;
			h->len = len & 1 ? (uint32_t)len : UINT32_MAX;
			c.room = len % 40;
			if (op == FUSE_DESTROY || op == FUSE_SYNCFS)
				continue;
			client_send_raw(&c);
			CHECK(c.got <= (int64_t)c.room);
			if (len < sizeof(*h) || h->len > len)
				CHECK_EQ(c.got, -1);
		}
	}
	client_begin(&c, 1000, ROOT);
	CHECK_EQ(client_send(&c), -ENOSYS);
	client_begin(&c, FUSE_DESTROY, ROOT);
	CHECK_EQ(client_send(&c), 0);
	CHECK_EQ(client_init(&c), 0);
	struct fuse_init_in init = {8, 0, 0, 0};
	client_begin(&c, FUSE_INIT, 0);
	client_arg(&c, &init, sizeof(init));
	CHECK_EQ(client_send(&c), 0);
	CHECK_EQ(((struct fuse_init_out *)client_body(&c))->major, FUSE_MAJOR);
	init = (struct fuse_init_in){7, 8, 0, 0};
	client_begin(&c, FUSE_INIT, 0);
	client_arg(&c, &init, sizeof(init));
	CHECK_EQ(client_send(&c), -EPROTO);
	client_end(&c);
}

/* Requests that are nearly right, one after another, with what earlier ones have given. */
TEST(random_requests)
{
	static const char *const names[] = {"a", "b", "dir", "..", ".", "x/y", "link", "", "fifo"};
	uint64_t id[16] = {ROOT, ROOT};
	struct fuse_in *h = (void *)c.request;
	unsigned good = 0;

	begin();
	for (unsigned i = 0; i < 60000; i++) {
		uint32_t op = next_random() % 54;
		if (op == FUSE_SYNCFS || op == FUSE_FSYNC || op == FUSE_FSYNCDIR || (op == FUSE_DESTROY && i % 64) ||
		    (op == FUSE_INIT && i % 64))
			continue;
		client_begin(&c, op, id[next_random() % 16]);
		unsigned words = next_random() % 12;
		for (unsigned w = 0; w < words; w++) {
			uint64_t r = next_random();
			uint64_t word = r & 3 ? r >> 8 & 0777 : r & 4 ? id[r >> 8 & 15] : r >> 8 & 64 ? r : 0100644;
			client_arg(&c, &word, 8 - (r >> 4 & 4));
		}
		for (unsigned n = next_random() % 3; n; n--)
			client_text(&c, names[next_random() % ARRAY_LEN(names)]);
		c.room = next_random() & 1 ? ROOM : next_random() % 300;
		h->len = (uint32_t)(next_random() % 16 ? c.len : next_random() % (c.len + 8));
		int error = client_send_raw(&c);
		CHECK(c.got <= (int64_t)c.room);
		if (!error && c.got >= 24) {
			good++;
			memcpy(&id[next_random() % 16], client_body(&c), 8);
			id[0] = ROOT;
		}
	}
	CHECK(good > 500);
	char path[256];
	snprintf(path, sizeof(path), "%s/secret", c.out);
	CHECK_EQ(access(path, F_OK), 0);
	snprintf(path, sizeof(path), "%s/a", c.out);
	CHECK(access(path, F_OK));
	client_end(&c);
}

/* ---- State ---- */

TEST(open_files_go_on_elsewhere)
{
	struct state_stream s = {.saving = true};
	struct fuse_attr attr = {0};
	uint64_t fh = 0;
	int error;

	begin();
	uint64_t dir = make_folder(ROOT, "dir");
	uint64_t node = client_create(&c, dir, "file", O_RDWR, 0644, &fh, &error);
	CHECK_EQ(client_write(&c, fh, 0, "text", 4), 4);
	uint64_t list = client_open(&c, dir, O_DIRECTORY, NULL);
	client_put_file(c.in, "gone", "");
	uint64_t gone = client_lookup(&c, ROOT, "gone", NULL);
	CHECK_EQ(client_name(&c, FUSE_UNLINK, ROOT, "", 0, "gone"), 0);
	share_state(c.share, &s);
	CHECK(!s.failed);
	share_destroy(c.share);
	client_serve(&c, false, 1);
	struct state_stream l = {.data = s.data, .len = s.len};
	share_state(c.share, &l);
	CHECK(!l.failed && l.pos == l.len);
	CHECK_EQ(client_read(&c, fh, 0, 10), 0);
	CHECK_MEM(client_body(&c), "text", 4);
	CHECK_EQ(client_write(&c, fh, 4, " more", 5), 5);
	CHECK_EQ(client_getattr(&c, node, &attr), 0);
	CHECK_EQ(attr.size, 9);
	CHECK_EQ(client_lookup(&c, dir, "file", NULL), node);
	CHECK_EQ(client_getattr(&c, gone, &attr), -ESTALE);
	CHECK_EQ(client_release(&c, FUSE_RELEASEDIR, list), 0);
	uint64_t other = make_folder(ROOT, "other");
	CHECK(other && other != dir && other != node && other != gone);
	/* Spoiled streams harm nobody, and a lost file is told. */
	log_set_level(-1);
	for (unsigned i = 0; i < 3000; i++) {
		uint8_t *copy = malloc(s.len);
		memcpy(copy, s.data, s.len);
		copy[i % s.len] ^= 1 + i % 255;
		l = (struct state_stream){.data = copy, .len = i & 1 ? s.len : i % s.len};
		share_state(c.share, &l);
		free(copy);
	}
	char path[256];
	snprintf(path, sizeof(path), "%s/dir/file", c.in);
	unlink(path);
	l = (struct state_stream){.data = s.data, .len = s.len};
	share_state(c.share, &l);
	CHECK(l.failed);
	log_set_level(LOG_WARN);
	free(s.data);
	client_end(&c);
}

TEST(a_deleted_open_file_cannot_be_saved)
{
	struct state_stream s = {.saving = true};
	uint64_t fh = 0;
	int error;

	begin();
	REQUIRE(client_create(&c, ROOT, "file", O_RDWR, 0644, &fh, &error));
	CHECK_EQ(client_name(&c, FUSE_UNLINK, ROOT, "", 0, "file"), 0);
	client_put_file(c.in, "file", "another of the same name");
	log_set_level(-1);
	share_state(c.share, &s);
	log_set_level(LOG_WARN);
	CHECK(s.failed);
	state_end(&s);
	client_end(&c);
}

TEST(mistakes)
{
	struct error err;
	struct share_config config = {"/nonexistent/folder", "test", false, 1};

	CHECK(!share_create(&config, &err));
	CHECK(strstr(err.text, "/nonexistent/folder"));
	config.path = "/etc/passwd";
	CHECK(!share_create(&config, &err));
	CHECK(strstr(err.text, "/etc/passwd"));
}

UNIT_MAIN()
