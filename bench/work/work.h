#ifndef BENCH_WORK_H
#define BENCH_WORK_H

/* The workloads written in C: each does `n` units of its work, and exits with a message when it cannot (die). */
typedef void work_fn(unsigned long n);

work_fn work_float, work_matrix_sse, work_matrix_avx;
work_fn work_fork_exec, work_bytes, work_getpid, work_pipe, work_futex, work_mmap;
work_fn work_loops;
work_fn work_net_send, work_net_receive, work_net_ask, work_net_answer;
work_fn work_seq_read, work_seq_write, work_rand_read, work_rand_write;

/* Prints "bench: WHAT: errno's text" and ends the process with status 1. */
void die(const char *what) __attribute__((noreturn));

#endif
