#!/usr/bin/env python3
# timeout: 400
# guests: cloud
"""What a greedy guest gets: no more of the processor, the disk and the network than its limits, and no more memory than doppel(1) says;
another machine works on."""
import contextlib, os, re, runpy, socket, tempfile, time

from linux import HERE, PROMPT, READY, Checks, Machine, verdict

payloads = runpy.run_path(os.path.join(HERE, '..', 'guest', 'run'))

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


# Tests of the payload 'flood': options, and how many a second the cap leaves it. {} is a folder.
IOPS, BPS = 100, 200 << 10
FLOODS = {
    'disk': (['--disk', '{}/disk,iops=%d' % IOPS], IOPS),
    'net': (['--net', 'user,restrict=on,bps=%d' % BPS], BPS),
    'hvc': (['--virtio-console', 'file=/dev/null'], None),
    'vsock': (['--vsock', 'unix={}/vsock'], None),
    'serial': ([], None),
    'memory': ([], None),
    'translations': ([], None),
    'code': ([], None),
}
FLOOD_MEMORY, FLOOD_CACHE, FLOOD_LIMIT = 64, 8, 15
FLOOD_BOUND = FLOOD_MEMORY + 16 + 16 + 3 * FLOOD_CACHE


def flood(name, kernel, folder):
    options = [o.format(folder) for o in FLOODS[name][0]]
    return Machine('caps_flood_' + name, vmlinux=kernel, bare=True, append='only=%s report ms=300000 ram=%d' % (name, FLOOD_MEMORY),
                   memory='%dM' % FLOOD_MEMORY, timeout=300,
                   options=('--code-cache', '%dM' % FLOOD_CACHE, '--cpu-limit', str(FLOOD_LIMIT), '--debug-exit', *options))


def flooded(name, m, passed, ran):
    """Why a flood got more than its share, or None. It has run for `passed` seconds, `ran` on a processor."""
    takes = resident(m)
    m.send('')
    if m.finish() != 1:
        return 'status %s: %s' % (m.status, m.tail())
    did = re.search(r'did \w+ (\d+) in (\d+) us', m.text())
    if not did:
        return 'no report: ' + m.tail()
    amount, seconds = int(did.group(1)), int(did.group(2)) / 1e6
    rate = amount / seconds
    print('# %s: %.0f a second, %.1f s of processor time in %.1f s, %.0f MiB' % (name, rate, ran, passed, takes), flush=True)
    if takes > FLOOD_BOUND:
        return 'it takes %.0f MiB, and may take %d' % (takes, FLOOD_BOUND)
    cap = FLOODS[name][1]
    if cap and not cap / 10 * seconds < amount < cap * 1.3 * (seconds + 0.5):  # what was saved up passes at once
        return '%.0f a second, and the cap is %d' % (rate, cap)
    if not FLOODS[name][0] and name != 'serial' and ran > passed * FLOOD_LIMIT / 100 * 1.3 + 1:
        return '%.1f s of processor time in %.1f s, and the limit is %d%%' % (ran, passed, FLOOD_LIMIT)


def floods():
    """All of them at once, and a machine that is to answer."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        kernel = payloads['build']('flood', folder)
        with open(os.path.join(folder, 'disk'), 'wb') as f:
            f.truncate(1 << 20)
        deaf = stack.enter_context(socket.socket(socket.AF_UNIX))  # takes connections, and reads nothing
        deaf.bind(os.path.join(folder, 'vsock_1024'))
        deaf.listen(64)
        begun = time.monotonic()
        machines = {name: stack.enter_context(flood(name, kernel, folder)) for name in FLOODS}
        c.check('caps_beside', verdict(answers, Machine('caps_beside', timeout=200)))
        for name, m in machines.items():
            if m.process.poll() is None:
                c.check('caps_flood_' + name, verdict(lambda m: flooded(name, m, time.monotonic() - begun, processor_time(m)), m))
            else:
                c.check('caps_flood_' + name, 'it ended with status %d' % m.process.returncode)


floods()
c.check('caps_memory', verdict(memory, Machine('caps_memory', memory='%dM' % MEMORY, cpus=CPUS, options=('--code-cache', '%dM' % CODE_CACHE), timeout=300)))
c.check('caps_cpu', verdict(limit, Machine('caps_cpu', cpus=4, options=('--cpu-limit', str(LIMIT)), timeout=300)))
c.done()
