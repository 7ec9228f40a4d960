#!/usr/bin/env python3
# timeout: 300
# guests: cloud
"""The virtio console under Debian's driver: data both ways over a Unix socket, and as the kernel's own console."""
import hashlib, os, select, socket, tempfile, time

from linux import PROMPT, READY, Checks, Machine, complaints, ended_well, verdict

c = Checks()
folder = tempfile.TemporaryDirectory()
path = os.path.join(folder.name, 'hvc')
OPTIONS = ('--virtio-console', 'unix=' + path)


def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(path)
    return s


def read_until(s, word, seconds=60):
    got, end = b'', time.monotonic() + seconds
    while word not in got and time.monotonic() < end:
        if select.select([s], [], [], 0.2)[0]:
            data = s.recv(65536)
            if not data:
                break
            got += data
    return got


def exchange(m):
    """Lines, then much more than any buffer on the way holds."""
    m.wait_for(READY)
    m.wait_for(PROMPT)
    with connect() as s:
        m.command('exec 3<>/dev/hvc0')  # first: who opens it anew finds its modes reset
        m.command('stty -F /dev/hvc0 raw -echo')
        m.command('echo from the guest >&3')
        got = read_until(s, b'guest\n')
        if got != b'from the guest\n':
            return 'the host reads %r' % got
        s.sendall(b'from the host\n')
        got = m.command('head -n 1 <&3').strip()
        if got != 'from the host':
            return 'the guest reads %r' % got
        m.send('head -c 300000 <&3 | sha256sum')
        s.sendall(bulk)
        m.wait_for(b'\n')
        got = m.wait_for(PROMPT).split()
        if got[:1] != [hashlib.sha256(bulk).hexdigest()]:
            return 'the guest got other bytes than were sent: %r' % got
        m.send('head -c 300000 /dev/zero | tr "\\0" d >&3; echo . >&3')
        got = read_until(s, b'.')
        if got != b'd' * 300000 + b'.\n':
            return 'the host got other bytes than were sent: %d of them' % len(got)
        m.wait_for(PROMPT)
    m.send('poweroff -f')
    return ended_well(m)


def kernel_console(m):
    """console=hvc0: the kernel's messages go there once the driver is loaded, and so does a shell."""
    m.wait_for(READY)
    with connect() as s:
        m.wait_for(PROMPT)
        if 'hvc0' not in m.command('cat /proc/consoles'):
            return 'hvc0 is no console of the kernel'
        m.command('echo doppel says so >/dev/kmsg')
        got = read_until(s, b'doppel says so')
        if b'doppel says so' not in got:
            return 'no message of the kernel: %r' % got[-200:]
        m.command("setsid sh -c 'exec sh </dev/hvc0 >/dev/hvc0 2>&1' &")
        s.sendall(b'echo $((6 * 7))\n')
        got = read_until(s, b'42')
        if b'42' not in got:
            return 'no shell: %r' % got[-200:]
        s.sendall(b'poweroff -f\n')
        got = read_until(s, b'Power down')
        status = m.finish()
    bad = complaints(m.text() + got.decode(errors='replace').replace('\r', ''))
    return 'status %d' % status if status else 'no end: %r' % got[-200:] if b'Power down' not in got else ' | '.join(bad[:5]) or None


bulk = b''.join(hashlib.sha256(b'%d' % i).digest() for i in range(300000 // 32 + 1))[:300000]
c.check('exchange', verdict(exchange, Machine('hvc', options=OPTIONS)))
c.check('kernel_console', verdict(kernel_console, Machine('hvc_console', append='console=hvc0 console=ttyS0', options=OPTIONS)))
c.done()
