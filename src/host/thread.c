/* Threads and locks over POSIX threads. */
#include "host/thread.h"

#include "host/host.h"
#include "host/internal.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NAME_MAX_LEN 15 /* of a thread, prctl(2) */
#define TIMER_SLACK_NS 1000
#define ALL_PATIENCE_S 10

void host_mutex_init(struct host_mutex *m)
{
	ENSURE(!pthread_mutex_init(&m->m, NULL));
}

void host_mutex_destroy(struct host_mutex *m)
{
	ENSURE(!pthread_mutex_destroy(&m->m));
}

void host_lock(struct host_mutex *m)
{
	ENSURE(!pthread_mutex_lock(&m->m));
}

void host_unlock(struct host_mutex *m)
{
	ENSURE(!pthread_mutex_unlock(&m->m));
}

void host_cond_init(struct host_cond *c)
{
	pthread_condattr_t attr;

	ENSURE(!pthread_condattr_init(&attr));
	ENSURE(!pthread_condattr_setclock(&attr, CLOCK_MONOTONIC));
	ENSURE(!pthread_cond_init(&c->c, &attr));
	pthread_condattr_destroy(&attr);
}

void host_cond_destroy(struct host_cond *c)
{
	ENSURE(!pthread_cond_destroy(&c->c));
}

void host_cond_wait(struct host_cond *c, struct host_mutex *m)
{
	ENSURE(!pthread_cond_wait(&c->c, &m->m));
}

bool host_cond_wait_until(struct host_cond *c, struct host_mutex *m, uint64_t deadline)
{
	struct timespec ts;
	int error;

	if (deadline == UINT64_MAX) {
		host_cond_wait(c, m);
		return true;
	}
	ts.tv_sec = (time_t)(deadline / 1000000000);
	ts.tv_nsec = (long)(deadline % 1000000000);
	error = pthread_cond_timedwait(&c->c, &m->m, &ts);
	ENSURE(!error || error == ETIMEDOUT);
	return !error;
}

void host_cond_signal(struct host_cond *c)
{
	ENSURE(!pthread_cond_signal(&c->c));
}

void host_cond_broadcast(struct host_cond *c)
{
	ENSURE(!pthread_cond_broadcast(&c->c));
}

void host_word_wait(_Atomic unsigned *word, unsigned value)
{
	/* EAGAIN: the word has changed. EINTR: who waits looks again. */
	if (syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0))
		ENSURE(errno == EAGAIN || errno == EINTR);
}

void host_word_wake(_Atomic unsigned *word)
{
	ENSURE(syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0) >= 0);
}

/* A turn of someone else's; a call that finds nobody takes a microsecond. For so many times as long none is given. */
#define YIELD_LONG_NS 20000u
#define REST_FACTOR 50u

void host_linger_begin(struct host_linger *l)
{
	l->from = host_now_ns();
}

bool host_linger(struct host_linger *l)
{
	uint64_t now = host_now_ns(), after;

	if (now - l->from >= l->window || now < l->rest_until)
		return false;
	sched_yield();
	after = host_now_ns();
	if (after - now > YIELD_LONG_NS)
		l->rest_until = after + REST_FACTOR * (after - now);
	return true;
}

uint64_t host_linger_end(struct host_linger *l)
{
	uint64_t took = host_now_ns() - l->from;

	l->window = took <= HOST_LINGER_NS ? HOST_LINGER_NS : 0;
	return took;
}

/* Writers first: a stream of readers (virtual CPUs at their devices) must not starve a region that comes or goes. */
void host_rwlock_init(struct host_rwlock *l)
{
	pthread_rwlockattr_t attr;

	ENSURE(!pthread_rwlockattr_init(&attr));
	ENSURE(!pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP));
	ENSURE(!pthread_rwlock_init(&l->l, &attr));
	pthread_rwlockattr_destroy(&attr);
}

void host_rwlock_destroy(struct host_rwlock *l)
{
	ENSURE(!pthread_rwlock_destroy(&l->l));
}

void host_rdlock(struct host_rwlock *l)
{
	ENSURE(!pthread_rwlock_rdlock(&l->l));
}

void host_wrlock(struct host_rwlock *l)
{
	ENSURE(!pthread_rwlock_wrlock(&l->l));
}

void host_rwunlock(struct host_rwlock *l)
{
	ENSURE(!pthread_rwlock_unlock(&l->l));
}

/* A thread that has been started and has not ended, in the process's list: so that host_thread_all finds it. */
struct running {
	pthread_t t;
	struct running *next, **link;
	void *(*fn)(void *arg);
	void *arg;
	char name[NAME_MAX_LEN + 1];
};

static struct {
	struct host_mutex
		lock; /* held while a thread is started: it is in the list, or what it came from had its turn */
	struct running *first;
	void (*fn)(void);
	sem_t done;
} all = {.lock = {PTHREAD_MUTEX_INITIALIZER}};

static void list_add(struct running *r)
{
	r->next = all.first;
	r->link = &all.first;
	if (r->next)
		r->next->link = &r->next;
	all.first = r;
}

static void list_remove(struct running *r)
{
	*r->link = r->next;
	if (r->next)
		r->next->link = r->link;
}

static void *thread_main(void *p)
{
	struct running *r = p;
	void *result;

	prctl(PR_SET_NAME, r->name, 0, 0, 0);
	/* Timers of the guest are as sharp as the waits of our threads; the default slack is 50 us. */
	prctl(PR_SET_TIMERSLACK, (unsigned long)TIMER_SLACK_NS, 0, 0, 0);
	result = r->fn(r->arg);
	host_lock(&all.lock);
	list_remove(r);
	host_unlock(&all.lock);
	free(r);
	return result;
}

/* All signals but those that the thread's own instructions raise: they must reach it. */
static void ordinary_signals(sigset_t *set)
{
	static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};

	sigfillset(set);
	for (unsigned i = 0; i < ARRAY_LEN(own); i++)
		sigdelset(set, own[i]);
}

static int create(struct running *r, pthread_t *t)
{
	sigset_t blocked, before;
	int error;

	/* The new thread inherits the mask: there is no moment in which it could take a signal. */
	ordinary_signals(&blocked);
	pthread_sigmask(SIG_SETMASK, &blocked, &before);
	host_lock(&all.lock);
	error = pthread_create(t, NULL, thread_main, r);
	if (!error) {
		r->t = *t;
		list_add(r);
	}
	host_unlock(&all.lock);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return error;
}

bool host_thread_start(struct host_thread *t, const char *name, void *(*fn)(void *), void *arg)
{
	struct running *r = calloc(1, sizeof(*r));
	int error;

	if (!r)
		return !host_fail();
	r->fn = fn;
	r->arg = arg;
	strncpy(r->name, name, NAME_MAX_LEN);
	error = create(r, &t->t);
	if (error) {
		free(r);
		host_fail_with(error);
	}
	return !error;
}

void host_thread_join(struct host_thread *t)
{
	ENSURE(!pthread_join(t->t, NULL));
}

uint64_t host_thread_time_of(const struct host_thread *t)
{
	struct timespec ts;
	clockid_t clock;

	if (pthread_getcpuclockid(t->t, &clock) || clock_gettime(clock, &ts))
		return 0;
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

bool host_thread_is_current(const struct host_thread *t)
{
	return pthread_equal(pthread_self(), t->t);
}

static void on_all(int sig)
{
	int error = errno;

	all.fn();
	sem_post(&all.done);
	errno = error;
}

/* SIGSYS: it is never blocked on our threads, and nothing raises it before there is a filter of system calls. */
static bool ask_all(void)
{
	struct sigaction sa = {.sa_handler = on_all, .sa_flags = SA_RESTART | SA_ONSTACK}, before;
	unsigned asked = 0, done = 0;
	struct timespec end;

	ENSURE(!sem_init(&all.done, 0, 0));
	sigfillset(&sa.sa_mask);
	sigaction(SIGSYS, &sa, &before);
	for (struct running *r = all.first; r; r = r->next)
		asked += !pthread_kill(r->t, SIGSYS);
	ENSURE(!clock_gettime(CLOCK_MONOTONIC, &end));
	end.tv_sec += ALL_PATIENCE_S;
	while (done < asked && !RETRY_EINTR(sem_clockwait(&all.done, CLOCK_MONOTONIC, &end)))
		done++;
	sigaction(SIGSYS, &before, NULL);
	return done == asked;
}

bool host_thread_all(void (*fn)(void))
{
	bool ok;

	host_lock(&all.lock);
	all.fn = fn;
	fn();
	ok = ask_all();
	host_unlock(&all.lock);
	return ok;
}

bool host_thread_reach_all(void)
{
	bool ok = true;

	host_lock(&all.lock);
	for (struct running *r = all.first; r && ok; r = r->next)
		ok = !pthread_kill(r->t, 0);
	host_unlock(&all.lock);
	return ok;
}
