#!/usr/bin/env python3
# timeout: 600
# guests: cloud generic
"""The devices under Debian's drivers: disks of each kind, entropy, the clocks, restart."""
import hashlib, os, tempfile, time

from linux import PROMPT, READY, Checks, Machine, complaints, ended_well, make_initrd, verdict

c = Checks()
folder = tempfile.TemporaryDirectory()
MIB = 1 << 20


def image(name, data):
    path = os.path.join(folder.name, name)
    with open(path, 'wb') as f:
        f.write(data)
    return path


def digest(data):
    return hashlib.sha256(data).hexdigest()


def content(path):
    with open(path, 'rb') as f:
        return f.read()


def guest_digest(m, disk):
    return m.command('sha256sum </dev/%s' % disk).split()[0]


def disks(m):
    m.wait_for(READY)
    m.wait_for(PROMPT)
    for disk in 'vda', 'vdb', 'vdc':
        if guest_digest(m, disk) != digest(original):
            return '%s reads wrong' % disk
    if m.command('cat /sys/block/vdb/ro /sys/block/vda/ro').split() != ['1', '0']:
        return 'vdb is not read-only'
    m.command('yes doppel | dd of=/dev/vda bs=64k seek=7 count=32 iflag=fullblock conv=notrunc 2>/dev/null; sync')
    m.command('yes snapshot | dd of=/dev/vdc bs=4k seek=3 count=900 iflag=fullblock conv=notrunc 2>/dev/null; sync')
    m.command('echo 3 >/proc/sys/vm/drop_caches')
    if guest_digest(m, 'vdc') != digest(overwritten(b'snapshot\n', 3 * 4096, 900 * 4096)):
        return 'vdc does not read what was written'
    m.command('dd if=/dev/zero of=/dev/vdb count=1 conv=fsync 2>/dev/null')  # in vain: the image is looked at afterwards
    m.send('poweroff -f')
    return ended_well(m)


def overwritten(word, start, length):
    data = (word * (length // len(word) + 1))[:length]
    return original[:start] + data + original[start + length:]


def disk_images(paths):
    if content(paths[0]) != overwritten(b'doppel\n', 7 * 65536, 32 * 65536):
        return 'the image has not what the guest wrote'
    if content(paths[1]) != original:
        return 'the read-only image changed'
    if content(paths[2]) != original:
        return 'the image under snapshot=on changed'


def entropy(m):
    m.wait_for(READY)
    m.wait_for(PROMPT)
    name = m.command('cat /sys/class/misc/hw_random/rng_current').strip()
    if not name.startswith('virtio_rng'):
        return 'the generator is %r' % name
    first = m.command('head -c 64 /dev/hwrng | sha256sum')
    if first == m.command('head -c 64 /dev/hwrng | sha256sum'):
        return 'the same bytes twice'
    m.send('poweroff -f')
    return ended_well(m)


def clock(m):
    """The guest's clocks beside the host's: at boot, and over ten seconds."""
    m.wait_for(READY)
    m.wait_for(PROMPT)
    date, host = int(m.command('date +%s')), time.time()
    if abs(date - host) > 2:
        return 'date is %d and the host has %.1f' % (date, host)
    spans = []
    for _ in range(2):
        up = float(m.command('cat /proc/uptime').split()[0])
        spans.append((up, time.monotonic()))
        if len(spans) < 2:
            m.command('sleep 10')
    guest, host = spans[1][0] - spans[0][0], spans[1][1] - spans[0][1]
    if abs(guest - host) > 0.3:
        return '%.2f s passed in the guest, %.2f s on the host' % (guest, host)
    source = m.command('cat /sys/devices/system/clocksource/clocksource0/current_clocksource').strip()
    if source != 'tsc':
        return 'the clock source is %r' % source
    m.send('poweroff -f')
    return ended_well(m)


def restart(m):
    """Restarts once: the disk remembers that it has."""
    m.wait_for(READY)
    m.wait_for(PROMPT)
    m.command('echo again | dd of=/dev/vda conv=notrunc 2>/dev/null; sync')
    m.send('reboot -f')
    m.wait_for(READY)
    m.wait_for(PROMPT)
    if m.command('head -c 5 /dev/vda').strip()[:5] != 'again':
        return 'the disk was not kept'
    m.send('poweroff -f')
    return ended_well(m)


def no_reboot(m):
    m.wait_for(READY)
    status = m.finish()
    bad = complaints(m.text())
    return 'status %d' % status if status else ' | '.join(bad[:5]) if bad else None


def reads_disk(m):
    m.wait_for(READY)
    m.wait_for(PROMPT)
    if guest_digest(m, 'vda') != digest(original):
        return 'vda reads wrong'
    m.send('reboot -f')
    status = m.finish()
    bad = complaints(m.text())
    return 'status %d' % status if status else ' | '.join(bad[:5]) if bad else None


def panic(m):
    """A kernel that panics and restarts by itself ends the machine under --no-reboot."""
    m.wait_for(READY)
    status = m.finish()
    if status or 'Kernel panic' not in m.text():
        return 'status %d' % status


def panic_stop(m):
    """The kernel's driver for pvpanic tells the monitor, which ends the machine if that is wished."""
    m.wait_for(READY)
    status = m.finish()
    if status != 4 or 'Kernel panic' not in m.text():
        return 'status %d' % status


def random_bytes(n):
    return b''.join(hashlib.sha256(b'%d' % i).digest() for i in range(n // 32))


original = random_bytes(8 * MIB)
paths = [image(n, original) for n in ('plain.img', 'readonly.img', 'snapshot.img')]
why = verdict(disks, Machine('disks', disks=(paths[0], paths[1] + ',readonly', paths[2] + ',snapshot=on')))
c.check('disks', why)
c.check('disk_images', disk_images(paths))
c.check('entropy', verdict(entropy, Machine('entropy')))
c.check('clock', verdict(clock, Machine('clock')))
c.check('clock_2cpu', verdict(clock, Machine('clock_2cpu', cpus=2)))
c.check('restart', verdict(restart, Machine('restart', disks=(image('restart.img', bytes(MIB)),), cpus=2, timeout=240)))
c.check('no_reboot', verdict(no_reboot, Machine('no_reboot', append='doppel.test=reboot', options=('--no-reboot',))))
for name, append in (('msix', ''), ('intx', 'pci=nomsi'), ('intx_8259', 'pci=nomsi noapic'), ('no_local_apic', 'nolapic pci=nomsi'),
                     ('no_acpi', 'acpi=off'), ('no_ecam', 'pci=nommconf')):
    c.check(name, verdict(reads_disk, Machine(name, 'generic', append=append, disks=(paths[1] + ',readonly',), options=('--no-reboot',))))
c.check('panic', verdict(panic, Machine('panic', append='doppel.test=panic panic=1', options=('--no-reboot',))))
make_initrd('cloud', os.path.join(folder.name, 'initrd.gz'), {})
told = Machine('panic_stop', initrd=os.path.join(folder.name, 'initrd.gz'), append='doppel.test=panic', options=('--on-panic', 'stop'))
c.check('panic_stop', verdict(panic_stop, told))
c.check('panic_told', None if told.said == "doppel: the guest's kernel panicked\n" else repr(told.said))
c.done()
