#!/usr/bin/env python3
# timeout: 400
# guests: cloud
"""What a greedy guest gets: no more of the processor than its limit, and no more memory than doppel(1) says; another machine works on."""
import os, time

from linux import PROMPT, READY, Checks, Machine, verdict

c = Checks()
MEMORY, CODE_CACHE, CPUS = 256, 16, 2
BOUND = MEMORY + 16 + 16 * CPUS + 3 * CODE_CACHE  # as doppel(1) says
LIMIT = 40  # percent


def resident(m):
    """Its memory in MiB; pages that are mapped twice, as the code cache's are, count once."""
    with open('/proc/%d/smaps_rollup' % m.process.pid) as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith('Pss:'))


def processor_time(m):
    """Seconds that the process has run."""
    with open('/proc/%d/stat' % m.process.pid) as f:
        fields = f.read().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def up(m):
    m.wait_for(READY)
    m.wait_for(PROMPT)


def memory(m):
    """Fills the memory, and runs so many programs that the code cache overflows."""
    up(m)
    m.command('for i in 1 2; do head -c 90000000 /dev/urandom | gzip -1 >/tmp/fill$i; done; ls -l /tmp >/dev/null')
    m.command('for i in $(seq 15); do find /sys /proc 2>/dev/null | sort | awk "{ n += length } END { print n }" | sha256sum; done >/dev/null')
    takes = resident(m)
    print('# %.0f MiB of at most %d' % (takes, BOUND), flush=True)
    if takes > BOUND:
        return 'it takes %.0f MiB, and may take %d' % (takes, BOUND)
    m.send('poweroff -f')
    return 'status %d' % m.status if m.finish() else None


def limit(m):
    """A guest that spins on all processors, beside another that is to answer."""
    up(m)
    m.command('for i in 1 2 3 4; do while :; do :; done & done')
    begun, ran = time.monotonic(), processor_time(m)
    why = verdict(answers, Machine('caps_other', timeout=200))
    passed, ran = time.monotonic() - begun, processor_time(m) - ran
    if why:
        return 'the other machine: ' + why
    print('# %.1f s of processor time in %.1f s' % (ran, passed), flush=True)
    # The rest is for the console, timers and what passes before the limit's own thread gets its turn on a busy host.
    if ran > passed * LIMIT / 100 * 1.2 + 1:
        return '%.1f s of processor time in %.1f s, and the limit is %d%%' % (ran, passed, LIMIT)
    if m.command('echo $((6 * 7))').strip() != '42':
        return 'it does not answer any more'
    m.send('poweroff -f')
    return 'status %d' % m.status if m.finish() else None


def answers(m):
    up(m)
    said = m.command('echo $((6 * 7))').strip()
    m.send('poweroff -f')
    return 'it says %r' % said if said != '42' else 'status %d' % m.status if m.finish() else None


c.check('caps_memory', verdict(memory, Machine('caps_memory', memory='%dM' % MEMORY, cpus=CPUS, options=('--code-cache', '%dM' % CODE_CACHE), timeout=300)))
c.check('caps_cpu', verdict(limit, Machine('caps_cpu', cpus=4, options=('--cpu-limit', str(LIMIT)), timeout=300)))
c.done()
