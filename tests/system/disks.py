#!/usr/bin/env python3
# timeout: 400
# guests: cloud
"""Disks: locks, images of each kind, servers, the host's errors, and what is left after SIGKILL."""
import os, re, resource, shutil, signal, subprocess, tempfile, time

import tiny
from linux import DOPPEL, PROMPT, READY, Checks, Machine, ended_well, verdict

MIB = 1 << 20
c = Checks()
holder = tempfile.TemporaryDirectory(prefix='doppel-disks.')
folder = holder.name
os.environ['PATH'] += ':/usr/sbin:/sbin'


def path(name):
    return os.path.join(folder, name)


def image(name, size, content=b''):
    with open(path(name), 'wb') as f:
        f.write(content)
        f.truncate(size)
    return path(name)


def run(*command, **more):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


# ---- Locks and formats: kernels of a few bytes ----

off = tiny.kernel(folder, 'off', tiny.POWER_OFF)
idle = tiny.kernel(folder, 'idle', tiny.say('up') + tiny.CLI_HLT)


class Idle:
    """A machine that is up and has the disk."""

    def __init__(self, disk):
        self.p = subprocess.Popen([DOPPEL, 'run', '--quiet', '--kernel', idle, '--disk', disk], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.p.stdout.read(2)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.p.kill()
        self.p.wait()
        self.p.stdout.close()


def boots(disk, env=None):
    """None, or why a machine with that disk did not come up and go down."""
    done = run(DOPPEL, 'run', '--quiet', '--kernel', off, '--disk', disk, stdin=subprocess.DEVNULL, timeout=60, env=env)
    return 'status %d: %s' % (done.returncode, done.stdout) if done.returncode or done.stdout else None


def refused(disk, *words, env=None):
    done = run(DOPPEL, 'run', '--quiet', '--kernel', off, '--disk', disk, stdin=subprocess.DEVNULL, timeout=60, env=env)
    if done.returncode != 2 or done.stdout.count('\n') != 1:
        return 'status %d: %s' % (done.returncode, done.stdout)
    return next(('no %r in: %s' % (w, done.stdout) for w in words if w not in done.stdout), None)


def locks():
    disk = image('lock.img', MIB)
    with Idle(disk):
        why = refused(disk, disk, 'in use') or refused(disk + ',readonly', disk, 'in use') or refused(disk + ',snapshot=on', 'in use')
        if not why and shutil.which('qemu-img') and run('qemu-io', '-f', 'raw', '-c', 'read 0 512', disk).returncode == 0:
            why = 'QEMU opens an image that is in use'
        if why:
            return why
    with Idle(disk + ',readonly'), Idle(disk + ',snapshot=on'):
        why = boots(disk + ',readonly') or refused(disk, 'in use')
    return why or boots(disk)


def formats():
    qcow2, disguised = path('a.qcow2'), path('b.img')
    run('qemu-img', 'create', '-q', '-f', 'qcow2', qcow2, '8M', check=True)
    shutil.copy(qcow2, disguised)
    size = os.path.getsize(disguised) + 511 & ~511
    os.truncate(disguised, size)
    raw = image('c.qcow2', MIB)
    bare = dict(os.environ, PATH=folder)
    return (boots(qcow2) or boots(qcow2 + ',readonly') or boots(disguised + ',format=qcow2') or boots(disguised + ',format=raw') or
            boots(raw + ',format=raw') or refused(disguised, disguised, 'format=qcow2', 'format=raw') or refused(raw, raw, 'format=raw') or
            refused(raw + ',format=qcow2', raw) or refused(qcow2, 'qemu-nbd', 'qemu-utils', env=bare) or
            refused(path('none.qcow2'), 'No such file'))


def qcow2_lock():
    qcow2 = path('a.qcow2')
    with Idle(qcow2):
        return refused(qcow2, qcow2, 'in use')


# ---- What is left after SIGKILL and after a clean end: Linux with ext4 ----

WRITER = ('i=0; while :; do i=$((i + 1)); echo line $i >>/mnt/log; dd if=/dev/urandom of=/mnt/data.$((i %% 7)) bs=16k count=3 2>/dev/null; '
          'dd if=/dev/null of=/mnt/log conv=notrunc,fsync 2>/dev/null; echo synced $i; done')


def file_system(disk, name):
    """The raw image's, after its journal was replayed: None, or what is wrong with it."""
    replay = run('e2fsck', '-p', disk)
    if replay.returncode > 1:
        return '%s: e2fsck -p says: %s' % (name, replay.stdout)
    clean = run('e2fsck', '-fn', disk)
    return '%s: e2fsck -fn says: %s' % (name, clean.stdout) if clean.returncode else None


def shell(m):
    """Waits for the shell; long lines are not broken when it shows them."""
    m.wait_for(READY)
    m.wait_for(PROMPT)
    m.command('dmesg -n 1; stty cols 500')


def killed(m, disk):
    shell(m)
    m.command('mount -t ext4 /dev/vda /mnt')
    m.send(WRITER.replace('%%', '%'))
    m.wait_for(b'synced 25\r')
    m.process.kill()
    m.process.wait()
    last = int(re.findall(rb'synced (\d+)\r', m.log)[-1])
    if not disk.endswith('.img'):
        end = time.monotonic() + 20
        while run('qemu-img', 'convert', '-O', 'raw', disk, disk + '.img').returncode:  # its server sees that we are gone
            if time.monotonic() > end:
                return 'qemu-nbd keeps the image'
            time.sleep(0.1)
        check = run('qemu-img', 'check', disk)
        if check.returncode not in (0, 3):  # 3: clusters leaked, as after a power cut
            return check.stdout
        disk += '.img'
    why = file_system(disk, 'after SIGKILL')
    if why:
        return why
    lines = run('debugfs', '-R', 'cat /log', disk).stdout.splitlines()
    lost = [i for i in range(1, last + 1) if 'line %d' % i not in lines]
    return 'lines %s of %d are lost' % (lost[:5], last) if lost else None


def clean(m, disk):
    shell(m)
    m.command('mount -t ext4 /dev/vda /mnt')
    m.command('dd if=/dev/urandom of=/mnt/file bs=1M count=20 2>/dev/null; mkdir /mnt/d; cp -r /lib /mnt/d; rm /mnt/file')
    m.command('umount /mnt')
    m.send('poweroff -f')
    why = ended_well(m)
    if why:
        return why
    check = run('e2fsck', '-fn', disk)
    return check.stdout if check.returncode else None


def ext4(name):
    disk = image(name, 64 * MIB)
    run('mke2fs', '-q', '-t', 'ext4', '-b', '4096', disk, check=True)
    return disk


# ---- The host's errors ----

def errors(m, full, cut, sparse):
    shell(m)
    write = 'dd if=/dev/zero of=/dev/%s bs=4k count=1 seek=%d oflag=direct conv=notrunc >/dev/null 2>&1 && echo good || echo bad'
    read = 'dd if=/dev/%s of=/dev/null bs=4k count=1 skip=%d iflag=direct >/dev/null 2>&1 && echo good || echo bad'

    def says(command, word):
        return None if m.command(command).strip() == word else '%r does not say %r' % (command, word)
    # No room: the host's limit on a file's size stands for a full disk.
    resource.prlimit(m.process.pid, resource.RLIMIT_FSIZE, (600 * MIB, resource.RLIM_INFINITY))
    why = says(write % ('vda', 100), 'good') or says(write % ('vda', 200000), 'bad') or says(write % ('vda', 201000), 'bad') or says(read % ('vda', 100), 'good')
    resource.prlimit(m.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    why = why or says(write % ('vda', 200000), 'good')
    # Cut off underneath.
    os.truncate(cut, MIB)
    why = why or says(read % ('vdb', 10), 'good') or says(read % ('vdb', 1000), 'bad') or says(read % ('vdb', 1001), 'bad')
    # Gone from its folder, which is no matter to who has it open.
    os.unlink(full)
    why = why or says(write % ('vda', 300), 'good')
    # Holes come where the guest discards.
    before = os.stat(sparse).st_blocks
    m.command('blkdiscard -o 0 -l %d /dev/vdc' % (8 * MIB))
    after = os.stat(sparse).st_blocks
    if not why and before - after < 8 * MIB // 512 * 3 // 4:
        why = '%d blocks before a discard, %d after' % (before, after)
    m.send('poweroff -f')
    return why or ended_quietly(m)


def ended_quietly(m):
    status = m.finish()
    return 'status %d' % status if status else None


def said_once(m, names):
    lines = [line for line in m.said.splitlines() if 'disk' in line]
    if len(lines) != len(names) or not all(any(n in line for line in lines) for n in names):
        return 'on standard error: %r' % m.said
    return None


# ---- Servers ----

class Server:
    """nbdkit with a file, on a socket."""

    def __init__(self, disk, *options):
        self.socket, self.command = path('nbd.sock'), ['nbdkit', '--foreground', *options, '-U', path('nbd.sock'), 'file', disk]
        self.uri = 'nbd+unix:///?socket=' + self.socket
        self.p = None

    def start(self):
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        self.p = subprocess.Popen(self.command, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while not os.path.exists(self.socket) and time.monotonic() < end:
            time.sleep(0.02)
        return self

    def stop(self):
        if self.p:
            self.p.kill()
            self.p.wait()
            self.p = None


def remote(m, server, content):
    shell(m)
    digest = 'dd if=/dev/vda bs=64k iflag=direct 2>/dev/null | sha256sum'
    m.command('dd if=/dev/urandom of=/random bs=64k count=64 2>/dev/null; dd if=/random of=/dev/vda bs=64k oflag=direct conv=notrunc,fsync 2>/dev/null')
    m.command('blkdiscard -o %d -l %d /dev/vda' % (5 * MIB, MIB))
    before = m.command(digest)
    if len(before.split()) != 2 or before.startswith('e3b0c442'):
        return 'no digest of the disk: %r' % before
    # A read goes on over a break of the connection, and so does the disk.
    server.stop()
    server.start()
    if m.command(digest) != before:
        return 'after the server came back the disk reads otherwise'
    m.command('dd if=/dev/vda of=/copy bs=64k count=64 2>/dev/null')
    if m.command('cmp /copy /random && echo same').strip() != 'same':
        return 'what was written is not there'
    with open(content, 'rb') as f:
        data = f.read()
    if data[5 * MIB:6 * MIB] != bytes(MIB):
        return 'what was discarded is there'
    server.stop()
    if m.command('dd if=/dev/vda of=/dev/null bs=4k count=1 skip=1000 iflag=direct 2>/dev/null && echo good || echo bad').strip() != 'bad':
        return 'a read without a server is no error'
    m.send('poweroff -f')
    return ended_quietly(m)


def servers():
    disk = image('remote.img', 8 * MIB, os.urandom(8 * MIB))
    server = Server(disk)
    try:
        why = refused(server.uri, server.socket)
        server.start()
        m = Machine('disk_nbd', disks=(server.uri,), timeout=150)
        why = why or verdict(lambda m: remote(m, server, disk), m) or said_once(m, [server.uri])
        server.start()
        why = why or boots(server.uri + ',readonly') or boots(server.uri + ',snapshot=on') or refused(server.uri + ',direct=on', 'direct=on')
        server.stop()
        only = Server(disk, '--readonly').start()
        why = why or refused(only.uri, 'readonly') or boots(only.uri + ',readonly')
        only.stop()
        return why
    finally:
        server.stop()


c.check('locks', locks())
c.check('formats', formats())
c.check('qcow2_lock', qcow2_lock())
c.check('servers', servers())
for name, more in (('kill.img', ''), ('kill_direct.img', ',direct=on,blocksize=4096')):
    disk = ext4(name)
    if more and boots(disk + more):
        c.skip('killed_direct', 'the file system of %s has no direct I/O' % folder)
        continue
    c.check(name.split('.')[0], verdict(lambda m: killed(m, disk), Machine(name, disks=(disk + more,))))
run('qemu-img', 'convert', '-O', 'qcow2', ext4('plain.img'), path('kill.qcow2'), check=True)
c.check('kill_qcow2', verdict(lambda m: killed(m, path('kill.qcow2')), Machine('kill.qcow2', disks=(path('kill.qcow2'),))))
disk = ext4('clean.img')
c.check('clean', verdict(lambda m: clean(m, disk), Machine('disk_clean', disks=(disk,))))
full, cut, sparse = image('full.img', 1024 * MIB), image('cut.img', 16 * MIB, os.urandom(16 * MIB)), image('sparse.img', 16 * MIB, os.urandom(16 * MIB))
m = Machine('disk_errors', disks=(full, cut, sparse))
c.check('errors', verdict(lambda m: errors(m, full, cut, sparse), m) or said_once(m, [full, cut]))
c.done()
