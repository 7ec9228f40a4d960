#!/usr/bin/env python3
# timeout: 600
# guests: 686
"""Many machines at once, each of 64 MiB and each answering on its console. As many as the first argument says; 8 without one.

Debian's 64-bit kernels need more: the cloud kernel's bzImage says that it cannot unpack itself below 68 MiB.
"""
import sys, time

from linux import PROMPT, READY, Checks, Ended, Machine

c = Checks()
count = int(sys.argv[1]) if len(sys.argv) > 1 else 8
end = 60 * count + 60


def resident(m, field):
    """From /proc: MiB."""
    with open('/proc/%d/status' % m.process.pid) as f:
        return next(int(line.split()[1]) for line in f if line.startswith(field + ':')) / 1024


def attempt(step, failed):
    for number, m in enumerate(machines):
        if number in failed:
            continue
        try:
            why = step(number, m)
        except (Ended, BrokenPipeError) as e:
            why = str(e) or 'it has ended'
        if why:
            failed[number] = 'machine %d: %s' % (number, why)


def ready(number, m):
    m.wait_for(READY)
    m.wait_for(PROMPT)


def answer(number, m):
    said = m.command('echo $((%d * 7))' % number).strip()
    return None if said == str(number * 7) else 'answers %r' % said


def off(number, m):
    m.send('poweroff -f')
    status = m.finish()
    return 'status %d' % status if status else None


started = time.monotonic()
machines = [Machine('many%d' % i, '686', memory='64M', append='quiet', options=('--net', 'none'), timeout=end) for i in range(count)]
failed, sizes = {}, [0]
for name, step in (('ready', ready), ('answer', answer), ('off', off)):
    if step is off:
        sizes += [resident(m, 'VmHWM') for i, m in enumerate(machines) if i not in failed]
    attempt(step, failed)
    c.check('many_%s_%d' % (name, count), '; '.join(failed.values()))
for m in machines:
    m.close()
print('# %d machines in %.0f s, %.0f to %.0f MiB each' % (count, time.monotonic() - started, min(sizes[1:] or [0]), max(sizes)))
c.done()
