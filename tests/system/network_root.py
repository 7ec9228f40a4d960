#!/usr/bin/env python3
# timeout: 900
# guests: cloud root
"""A Debian root on the user-mode network: apt-get installs a server from Debian's archive; ssh and a web browser get in by forwards."""
import os, shutil, socket, subprocess, tempfile, urllib.request

from linux import PROMPT, READY, Checks, Machine, ended_well, guest, verdict

c = Checks()
folder = tempfile.TemporaryDirectory()
KEY = os.path.join(folder.name, 'key')


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def in_root(m, command):
    """What a command prints in the Debian root; its status at the end."""
    return m.command("chroot /mnt sh -c '%s'; echo status=$?" % command)


def wants(name, text, *words):
    missing = [w for w in words if w not in text]
    c.check(name, 'no %r: %r' % (missing, text[-500:]) if missing else None)
    return not missing


def prepare(m):
    m.wait_for(READY)
    m.wait_for(PROMPT)
    m.command('dmesg -n 1; cd /; ip link set lo up; ip link set eth0 up; mount --bind /proc /mnt/proc; mount --bind /dev /mnt/dev; '
              'mount -t devpts devpts /mnt/dev/pts; mount -t tmpfs tmpfs /mnt/run; mkdir -p /mnt/run/sshd')
    m.command("printf '%s\\n' '#!/bin/sh' '[ $1 = bound ] || exit 0' 'ip addr add $ip/$mask dev eth0; ip route add default via $router' "
              "'echo nameserver $dns >/mnt/etc/resolv.conf' >/lease; chmod +x /lease")
    return wants('dhcp', m.command('udhcpc -n -q -i eth0 -s /lease'), 'lease of')


def ssh(command):
    done = subprocess.run(['ssh', '-F', 'none', '-i', KEY, '-p', str(ssh_port), '-o', 'StrictHostKeyChecking=no', '-o', 'UserKnownHostsFile=/dev/null',
                           '-o', 'BatchMode=yes', '-o', 'LogLevel=ERROR', 'root@127.0.0.1', command], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def body(m):
    if not prepare(m):
        return 'no address'
    if not wants('apt_update', in_root(m, 'apt-get -q update 2>&1'), 'status=0', 'Reading package lists'):
        return 'no package lists'
    # Man pages and locales take a while to be unpacked, and nobody looks at them.
    text = in_root(m, 'DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--path-exclude=/usr/share/man/* '
                      'install -y --no-install-recommends openssh-server 2>&1')
    if not wants('apt_install', text, 'status=0', 'Setting up openssh-server'):
        return 'no server'
    with open(KEY + '.pub') as f:
        m.command("mkdir -p -m 700 /mnt/root/.ssh; echo '%s' >/mnt/root/.ssh/authorized_keys" % f.read().strip())
    wants('sshd', in_root(m, '/usr/sbin/sshd'), 'status=0')
    wants('ssh', ssh('echo hello from $(cat /etc/debian_version)'), 'hello from 12')
    m.command("echo 'a page' >/mnt/root/page; chroot /mnt sh -c 'cd /root && exec python3 -m http.server 80' >/dev/null 2>&1 &")
    ssh('for i in 1 2 3 4 5 6 7 8 9 10; do python3 -c "import socket; socket.create_connection((\\"127.0.0.1\\", 80))" 2>/dev/null && break; sleep 1; done')
    with urllib.request.urlopen('http://127.0.0.1:%d/page' % web_port, timeout=60) as page:
        wants('web', page.read().decode(), 'a page')
    m.send('sync; poweroff -f')
    return ended_well(m)


if shutil.which('ssh-keygen'):
    subprocess.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', KEY], check=True)
ssh_port, web_port = free_port(), free_port()
c.check('root', verdict(body, Machine('network_root', append='doppel.chroot=/dev/vda', memory='1G', cpus=2, timeout=850,
                                      disks=(guest('root.ext4') + ',snapshot=on',),
                                      options=('--net', 'user,hostfwd=tcp:127.0.0.1:%d-:22,hostfwd=tcp::%d-:80' % (ssh_port, web_port)))))
c.done()
