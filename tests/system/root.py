#!/usr/bin/env python3
# timeout: 1200
# guests: cloud root
"""Programs of a debootstrap root on virtio-blk give the results that they give on the host: gcc, perl, python3, lua, openssl, xz."""
import os, shutil, subprocess, tempfile

from linux import HERE, READY, Checks, Machine, ended_well, guest, make_initrd, verdict

BEGIN, END = b'=== begin\r\n', b'=== end\r\n'
# Kernel messages must not come in between.
TEST = '''dmesg -n 1
mount -t tmpfs tmpfs /mnt/tmp
mount --bind /proc /mnt/proc
mount --bind /dev /mnt/dev
cp /workload.sh /mnt/tmp/workload.sh
echo "=== begin"
chroot /mnt /bin/sh /tmp/workload.sh 2>&1
echo "=== end"
umount /mnt/tmp /mnt/proc /mnt/dev
'''
c = Checks()


def on_host(folder):
    """The workload's output on the host, in the same root; None when this host lets nobody chroot."""
    tmp = os.path.join(folder, 'tmp')
    os.mkdir(tmp)
    script = os.path.join(folder, 'host.sh')
    with open(script, 'w') as f:
        f.write('set -e\nmount --bind %s %s\nmount --rbind /dev %s\ncp %s %s/workload.sh\nexec chroot %s /bin/sh /tmp/workload.sh 2>&1\n' % (
            tmp, guest('root', 'tmp'), guest('root', 'dev'), os.path.join(HERE, 'workload.sh'), tmp, guest('root')))
    command = ['unshare', '--mount'] + ([] if os.getuid() == 0 else ['--map-root-user']) + ['sh', script]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    text = done.stdout.decode(errors='replace')
    return text if 'forks: ' in text else None


def in_guest(results):
    def body(m):
        m.wait_for(READY)
        m.wait_for(BEGIN)
        results.append(m.wait_for(END))
        return ended_well(m)
    return body


def difference(host, guest_text):
    for number, (a, b) in enumerate(zip(host.splitlines() + ['(end)'], guest_text.splitlines() + ['(end)']), 1):
        if a != b:
            return 'line %d: host %r, guest %r' % (number, a, b)


def run(name, initrd, host, cpus, options=()):
    results = []
    why = verdict(in_guest(results), Machine(name, initrd=initrd, cpus=cpus, append='doppel.chroot=/dev/vda', memory='1G', timeout=500,
                                             disks=(guest('root.ext4') + ',snapshot=on',), options=options))
    c.check(name, why)
    if results and host:
        c.check(name + '_results', difference(host, results[0]))


with tempfile.TemporaryDirectory() as folder:
    host = on_host(folder) if shutil.which('unshare') else None
    if not host:
        c.skip('root_results', 'this host allows neither chroot nor user namespaces, so there is nothing to compare with')
    test = os.path.join(folder, 'test')
    with open(test, 'w') as f:
        f.write(TEST)
    initrd = os.path.join(folder, 'initrd.gz')
    make_initrd('cloud', initrd, {'/test': test, '/workload.sh': os.path.join(HERE, 'workload.sh')})
    run('root_1cpu', initrd, host, 1)
    run('root_2cpu', initrd, host, 2)
    run('root_direct', initrd, host, 2, ('--debug', 'eager-direct'))  # all of it, not only what it pays for
c.done()
