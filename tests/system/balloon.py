#!/usr/bin/env python3
# timeout: 200
# guests: cloud
"""The balloon under Debian's driver: memory that the guest frees goes back to the host; a part of it is taken away."""
import tempfile, time

from linux import PROMPT, READY, Checks, Machine, ended_well, make_initrd, verdict

c = Checks()
MIB = 1 << 20


def resident(m):
    with open('/proc/%d/statm' % m.process.pid) as f:
        return int(f.read().split()[1]) * 4096


def wait_until(m, condition):
    """The host may be busy: there is time until the machine's own end."""
    while time.monotonic() < m.end - 20:
        if condition():
            return True
        time.sleep(0.2)
    return False


def free(m):
    m.wait_for(READY)
    m.wait_for(PROMPT)
    m.command('mount -t tmpfs tmpfs /mnt; dd if=/dev/zero of=/mnt/file bs=1M count=200 2>/dev/null')
    full = resident(m)
    m.command('rm /mnt/file')
    if not wait_until(m, lambda: resident(m) < full - 150 * MIB):
        return 'doppel has %d MiB, and had %d before the guest freed 200' % (resident(m) / MIB, full / MIB)
    # And it is memory as before.
    m.command('dd if=/dev/urandom of=/mnt/file bs=1M count=200 2>/dev/null')
    if m.command('sha256sum </mnt/file') != m.command('sha256sum </mnt/file'):
        return 'memory does not keep what is written to it'
    m.send('poweroff -f')
    return ended_well(m)


def taken(m):
    m.wait_for(READY)
    m.wait_for(PROMPT)
    if not wait_until(m, lambda: 'balloon_inflate %d\n' % (100 * MIB / 4096) in m.command('cat /proc/vmstat')):
        return 'the guest has not given 100 MiB: ' + m.command('grep balloon /proc/vmstat')
    m.send('poweroff -f')
    return ended_well(m)


def none(m):
    m.wait_for(READY)
    m.wait_for(PROMPT)
    if '0x0005' in m.command('cat /sys/bus/virtio/devices/*/device'):
        return 'there is a balloon'
    m.send('poweroff -f')
    return ended_well(m)


with tempfile.TemporaryDirectory() as folder:
    initrd = folder + '/initrd.gz'
    make_initrd('cloud', initrd, {})
    c.check('balloon_free', verdict(free, Machine('balloon_free', initrd=initrd, memory='512M', cpus=2)))
    c.check('balloon_taken', verdict(taken, Machine('balloon_taken', initrd=initrd, memory='512M', options=('--balloon', '100M'))))
    c.check('balloon_off', verdict(none, Machine('balloon_off', initrd=initrd, memory='256M', options=('--balloon', 'off'))))
c.done()
