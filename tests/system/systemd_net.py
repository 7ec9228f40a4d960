#!/usr/bin/env python3
# timeout: 600
# guests: cloud systemd
"""Debian with systemd on the network: an address by DHCP, ssh in through a forward, a web server reached from the host, apt-get install."""
import os, socket, subprocess, tempfile, urllib.request

from debian import Debian, copy_root, fsck
from linux import Checks, verdict

c = Checks()
SSH = ['ssh', '-F', 'none', '-o', 'StrictHostKeyChecking=no', '-o', 'UserKnownHostsFile=/dev/null', '-o', 'LogLevel=ERROR', '-o', 'BatchMode=yes']


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def ssh(key, port, line):
    done = subprocess.run(SSH + ['-i', key, '-p', str(port), 'root@127.0.0.1', line], capture_output=True, text=True, timeout=120)
    return (done.stdout + done.stderr).strip()


def reached_by_ssh(m):
    key = os.path.join(folder, 'key')
    subprocess.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', key], check=True)
    with open(key + '.pub') as f:
        m.must('mkdir -p -m 700 /root/.ssh && echo "%s" >/root/.ssh/authorized_keys' % f.read().strip())
    said = ssh(key, ports[0], 'hostname; exit 3')
    return None if said == 'doppel' else 'ssh says %r' % said


def reached_by_web(m):
    m.must('mkdir -p /srv/www && head -c 3000000 /dev/urandom >/srv/www/data && busybox httpd -p 80 -h /srv/www')
    with urllib.request.urlopen('http://127.0.0.1:%d/data' % ports[1], timeout=60) as answer:
        data = answer.read()
    with open(os.path.join(folder, 'data'), 'wb') as f:
        f.write(data)
    host = subprocess.run(['sha256sum', f.name], capture_output=True, text=True, check=True).stdout.split()[0]
    return None if m.must('sha256sum </srv/www/data').split()[0] == host else '%d bytes came, and other ones' % len(data)


def mirror_answers(m):
    """Whether there is something to install from, as the host sees it."""
    address = m.must("sed -n 's/^deb \\([^ ]*\\) .*/\\1/p' /etc/apt/sources.list")
    try:
        urllib.request.urlopen(address + '/dists/bookworm/InRelease', timeout=20).close()
        return True
    except OSError:
        return False


def installs(m):
    m.must('apt-get -q -o Acquire::Languages=none update >/tmp/apt.log 2>&1 || { tail -3 /tmp/apt.log; false; }')
    m.must('apt-get -q -y --no-install-recommends install hello >/tmp/apt.log 2>&1 || { tail -3 /tmp/apt.log; false; }')
    said = m.must('hello')
    return None if said == 'Hello, world!' else 'hello says %r' % said


def net(m):
    m.login()
    m.must('/lib/systemd/systemd-networkd-wait-online --timeout=60')
    if '10.0.2.15/' not in m.must('ip -4 addr show scope global'):
        return 'no address by DHCP'
    c.check('systemd_ssh', reached_by_ssh(m))
    c.check('systemd_web', reached_by_web(m))
    if mirror_answers(m):
        c.check('systemd_apt', installs(m))
    else:
        c.skip('systemd_apt', "the guest's Debian mirror cannot be reached from here")
    m.send('systemctl poweroff')
    status = m.finish()
    return 'status %d' % status if status else None


with tempfile.TemporaryDirectory() as folder:
    disk, ports = copy_root(folder), [free_port(), free_port()]
    forwards = ''.join(',hostfwd=tcp:127.0.0.1:%d-:%d' % pair for pair in zip(ports, (22, 80)))
    c.check('systemd_net', verdict(net, Debian('systemd_net', disk, cpus=2, timeout=500, options=('--net', 'user' + forwards))))
    c.check('systemd_net_fsck', fsck(disk))
c.done()
