#!/usr/bin/env python3
# timeout: 400
# guests: cloud systemd
"""Debian with systemd: to multi-user, nothing failed, nothing strange in the journal, a clean power-off, an intact file system."""
import re, tempfile

from debian import Debian, copy_root, fsck
from linux import Checks, complaints, verdict

# What the same Debian prints on a PC too; the second where two of udev's workers load at once what finds no hardware
# (https://github.com/systemd/systemd/issues/20605).
USUAL = re.compile(r"device-mapper: core: CONFIG_IMA_DISABLE_HTABLE is disabled|"
                   r"could not read from '/sys/module/pcc_cpufreq/initstate': No such device")
c = Checks()


def journal(m):
    """Its lines of level warning or worse."""
    text = m.must('journalctl -b -q -p warning -o short-monotonic --no-pager')
    return [line for line in text.splitlines() if not USUAL.search(line)]


def up(m):
    m.login()
    state = m.run('systemctl is-system-running --wait')[0]
    failed = m.must('systemctl --failed --no-legend --plain')
    if state != 'running' or failed:
        return 'the system is %s; failed: %s' % (state, failed)
    if m.must('systemctl is-active multi-user.target') != 'active':
        return 'multi-user.target is not active'
    bad = journal(m)
    if bad:
        return 'the journal has: ' + ' | '.join(bad[:5])
    processors = m.must('nproc')
    if processors != '2':
        return '%s processors' % processors
    m.must('dd if=/dev/urandom of=/var/tmp/data bs=64k count=100 2>/dev/null && sync && sha256sum /var/tmp/data >/var/tmp/sum')
    m.must('echo 3 >/proc/sys/vm/drop_caches && sha256sum -c --quiet /var/tmp/sum')
    return off(m)


def off(m):
    m.send('systemctl poweroff')
    status = m.finish()
    if status or 'reboot: Power down' not in m.text():
        return 'status %d; the console ends in %s' % (status, m.tail())
    bad = complaints(m.text())
    return 'the kernel complains: ' + ' | '.join(bad[:5]) if bad else None


def restart(m):
    """Restarts by systemd, and what was written is there."""
    m.login()
    m.must('sha256sum -c --quiet /var/tmp/sum && touch /var/tmp/before')
    m.send('systemctl reboot')
    m.login()
    m.must('test -e /var/tmp/before')
    if m.must('journalctl --list-boots -q --no-pager | wc -l') != '3':
        return 'the journal does not know of three boots'
    return off(m)


with tempfile.TemporaryDirectory() as folder:
    disk = copy_root(folder)
    c.check('systemd', verdict(up, Debian('systemd', disk, cpus=2)))
    c.check('systemd_fsck', fsck(disk))
    c.check('systemd_restart', verdict(restart, Debian('systemd_restart', disk, cpus=1)))
    c.check('systemd_restart_fsck', fsck(disk))
c.done()
