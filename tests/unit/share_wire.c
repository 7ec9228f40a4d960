/* Sizes and numbers of the FUSE protocol as the host's own headers have them, for test_share.c to compare with. */
#include <linux/fuse.h>
#include <stddef.h>

const size_t wire_sizes[] = {
	sizeof(struct fuse_in_header),
	sizeof(struct fuse_out_header),
	sizeof(struct fuse_attr),
	sizeof(struct fuse_entry_out),
	sizeof(struct fuse_attr_out),
	sizeof(struct fuse_init_out),
	sizeof(struct fuse_setattr_in),
	sizeof(struct fuse_create_in),
	sizeof(struct fuse_open_out),
	sizeof(struct fuse_read_in),
	sizeof(struct fuse_write_in),
	sizeof(struct fuse_release_in),
	sizeof(struct fuse_kstatfs),
	sizeof(struct fuse_mknod_in),
	sizeof(struct fuse_rename2_in),
	sizeof(struct fuse_fallocate_in),
	sizeof(struct fuse_lseek_in),
	sizeof(struct fuse_copy_file_range_in),
	FUSE_NAME_OFFSET,
	offsetof(struct fuse_setattr_in, mode),
	offsetof(struct fuse_attr, mode),
	offsetof(struct fuse_init_out, max_pages),
	offsetof(struct fuse_entry_out, attr),
};

const unsigned wire_ops[] = {
	FUSE_LOOKUP,       FUSE_FORGET,     FUSE_GETATTR,     FUSE_SETATTR,     FUSE_READLINK,  FUSE_SYMLINK,
	FUSE_MKNOD,        FUSE_MKDIR,      FUSE_UNLINK,      FUSE_RMDIR,       FUSE_RENAME,    FUSE_LINK,
	FUSE_OPEN,         FUSE_READ,       FUSE_WRITE,       FUSE_STATFS,      FUSE_RELEASE,   FUSE_FSYNC,
	FUSE_SETXATTR,     FUSE_GETXATTR,   FUSE_LISTXATTR,   FUSE_REMOVEXATTR, FUSE_INIT,      FUSE_OPENDIR,
	FUSE_READDIR,      FUSE_RELEASEDIR, FUSE_FSYNCDIR,    FUSE_CREATE,      FUSE_INTERRUPT, FUSE_DESTROY,
	FUSE_BATCH_FORGET, FUSE_FALLOCATE,  FUSE_READDIRPLUS, FUSE_RENAME2,     FUSE_LSEEK,     FUSE_COPY_FILE_RANGE,
	FUSE_SYNCFS,
};
