#!/usr/bin/env python3
# timeout: 1500
# guests: cloud generic trixie
"""Debian's kernels, unmodified, to a busybox shell and a clean power-off, with 1, 2 and 4 processors; and their logs."""
import lzma, os, re, struct, tempfile

from linux import PROMPT, READY, Checks, Machine, ended_well, guest, verdict

c = Checks()


def shell(cpus):
    def body(m):
        m.wait_for(READY)
        m.wait_for(PROMPT)
        seen = m.command('nproc').strip()
        if seen != str(cpus):
            return 'nproc says %r' % seen
        answer = m.command('echo $((6 * 7)) $(cat /proc/self/comm)').strip()
        if answer != '42 cat':
            return 'the shell says %r' % answer
        m.command('dmesg -n 1')
        m.command('dmesg -r')  # for its levels
        m.send('poweroff -f')
        return ended_well(m) or says(m, *PV, *(PV_SMP if cpus > 1 else ()))
    return body


# What the kernel says of the paravirtual interface that it uses.
PV = 'Hypervisor detected: KVM', 'kvm-clock: Using msrs', 'Booting paravirtualized kernel on KVM'
PV_SMP = 'setup PV IPIs', 'setup pv remote TLB flush', 'PV spinlocks enabled'


def says(m, *lines):
    missing = [line for line in lines if line not in m.text()]
    return 'the kernel does not say: ' + ', '.join(missing) if missing else None


def without_pv(m):
    m.wait_for(READY)
    why = ended_well(m) or says(m, 'on bare hardware', 'tsc: Detected')
    return why or ('the kernel finds KVM' if 'KVM' in m.text() else None)


def clock_only(m):
    m.wait_for(READY)
    return ended_well(m) or says(m, *PV) or ('PV IPIs were not offered' if 'PV IPIs' in m.text() else None)


def until_power_off(m):
    m.wait_for(READY)
    return ended_well(m)


def vmlinux(kernel, path):
    """Unpacks the ELF file in a bzImage that was made by xz."""
    data = open(kernel, 'rb').read()
    start = (data[0x1f1] + 1) * 512 + struct.unpack_from('<I', data, 0x248)[0]
    length = struct.unpack_from('<I', data, 0x24c)[0]
    if data[start:start + 6] != b'\xfd7zXZ\0':
        return False
    with open(path, 'wb') as f:
        f.write(lzma.LZMADecompressor().decompress(data[start:start + length]))
    return True


for kernel in 'cloud', 'generic', 'trixie':
    for cpus in 1, 2, 4:
        name = 'boot_%s_%dcpu' % (kernel, cpus)
        c.check(name, verdict(shell(cpus), Machine(name, kernel, cpus=cpus)))

for name, body, cpus, pv in (
        ('boot_pv_none_1cpu', without_pv, 1, 'none'),
        ('boot_pv_none_4cpu', without_pv, 4, 'none'),
        ('boot_pv_clock', clock_only, 2, 'clock')):
    c.check(name, verdict(body, Machine(name, cpus=cpus, append='doppel.test=poweroff', options=['--pv', pv])))

for name, options in (
        ('boot_256m', dict(memory='256M')),
        ('boot_5g', dict(memory='5G')),  # RAM above the hole at 3 GiB
        ('boot_8cpu', dict(cpus=8)),
        ('boot_nokaslr', dict(append='nokaslr')),
        ('boot_nosmp', dict(append='nosmp', cpus=2)),
        ('boot_xapic', dict(append='nox2apic', cpus=2)),
        ('boot_noapic', dict(append='noapic', cpus=1)),
        ('boot_earlycon', dict(append='earlycon=uart8250,io,0x3f8'))):
    options['append'] = (options.get('append', '') + ' doppel.test=poweroff').strip()
    c.check(name, verdict(until_power_off, Machine(name, **options)))

with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'vmlinux')
    if vmlinux(guest('generic', 'vmlinuz'), path):
        c.check('boot_pvh', verdict(until_power_off, Machine('boot_pvh', 'generic', vmlinux=path, append='doppel.test=poweroff', cpus=2)))
    else:
        c.skip('boot_pvh', "the kernel is not packed by xz")

c.done()
