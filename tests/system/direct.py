#!/usr/bin/env python3
# timeout: 300
# guests: cloud
"""User code that computes runs directly, says --stats; and the processes in which it does end with doppel, however that ends."""
import json, os, signal, time

from linux import PROMPT, READY, Checks, Machine, ended_well, verdict

c = Checks()
COUNT = "awk 'BEGIN { for (i = 0; i < 6000000; i++) s += i % 7; print s }'"
SUM = '17999997'
# Memory that comes and goes: page faults in bursts.
GROW = ("awk 'BEGIN { for (r = 0; r < 60; r++) { s = \"x\"; for (i = 0; i < 20; i++) s = s s; n += length(s); "
        "for (i = 0; i < 100000; i++) t += i % 7 } print n, t }'")
GROWN = '62914560 17999700'


def of(pid):
    """The processes that doppel with number `pid` has started, or traces."""
    found = []
    for name in os.listdir('/proc'):
        try:
            with open('/proc/%d/status' % int(name)) as f:
                status = dict(line.split(':', 1) for line in f if ':' in line)
        except (ValueError, OSError):
            continue
        if str(pid) in (status['PPid'].strip(), status['TracerPid'].strip()) or int(status['TracerPid']) in threads(pid):
            found.append(int(name))
    return found


def threads(pid):
    try:
        return [int(t) for t in os.listdir('/proc/%d/task' % pid)]
    except OSError:
        return []


def alive(pids):
    return [p for p in pids if os.path.exists('/proc/%d' % p)]


def gone(pids):
    end = time.monotonic() + 10
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.05)
    left = alive(pids)
    return 'processes are left: %s' % left if left else None


def computes(m):
    """Sets m.children; says why not."""
    m.wait_for(READY)
    m.wait_for(PROMPT)
    answer = m.command(COUNT).strip()
    m.children = of(m.process.pid)
    return None if answer == SUM else 'awk says %r' % answer


def grows(m):
    why = computes(m)
    answer = m.command(GROW).strip().split('\n')[-1]  # behind the end of what was typed
    m.send('poweroff -f')
    return why or (None if answer == GROWN else 'awk says %r' % answer) or ended_well(m)


def stats(m):
    return json.loads(m.said[m.said.index('{'):])['total']


def to_its_end(m):
    why = computes(m)
    m.send('poweroff -f')
    return why or ended_well(m)


def killed(m):
    why = computes(m)
    m.process.send_signal(signal.SIGKILL)
    m.process.wait()
    return why


m = Machine('direct', options=('--stats=json',))
c.check('direct_result', verdict(to_its_end, m))
if len(m.children) < 2:
    c.skip('direct', 'this host lets nobody trace, or has no Landlock: user code is translated')
else:
    total = stats(m)
    c.check('direct', None if total['time']['direct'] > 100e6 and total['direct']['stops'] else 'it was translated: %s' % total)
    c.check('direct_processes_end', gone(m.children))
    m = Machine('direct_bursts', options=('--stats=json',))
    c.check('direct_bursts', verdict(grows, m) or (None if stats(m)['direct']['bursts'] else 'there were none: %s' % stats(m)))
    m = Machine('direct_killed')
    c.check('direct_killed', verdict(killed, m))
    c.check('direct_processes_are_killed', gone(m.children))
m = Machine('direct_off', options=('--stats=json', '--debug', 'no-direct'))
c.check('direct_off', verdict(to_its_end, m) or ('there are processes: %s' % m.children if m.children else None))
c.done()
