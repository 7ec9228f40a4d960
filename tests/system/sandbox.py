#!/usr/bin/env python3
# timeout: 180
"""The sandbox of a running doppel, as /proc shows it from outside: mappings, descriptors, privileges; as root and as nobody."""
import os, re, select, shutil, signal, subprocess, sys, time

from tiny import DOPPEL, POWER_OFF, SPIN, Checks, kernel, say

c = Checks()
NOBODY = 65534
BUILT_WITHOUT = 'sandbox off in this build'


def start(name, *args, **popen):
    """doppel, once its guest has said that it runs."""
    p = subprocess.Popen([popen.pop('program', DOPPEL), 'run', '--kernel', kernel(c.dir, name, say('up') + SPIN), '--memory', '32M', '--cpus', '2',
                          *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **popen)
    end, got = time.monotonic() + 20, b''
    while got != b'up' and time.monotonic() < end and select.select([p.stdout], [], [], 1)[0]:
        data = os.read(p.stdout.fileno(), 2 - len(got))
        if not data:
            break
        got += data
    return p


def stop(p):
    p.send_signal(signal.SIGTERM)
    try:
        _, err = p.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        p.kill()
        _, err = p.communicate()
    return err.decode()


def read(p, *name):
    with open(os.path.join('/proc', str(p.pid), *name)) as f:
        return f.read()


def code(p):
    """Shared memory that has an executable mapping: its inode, and how it is mapped."""
    found = {}
    for line in read(p, 'maps').splitlines():
        _, rights, _, _, inode = line.split()[:5]
        if rights[3] == 's':
            found.setdefault(inode, set()).add(rights)
    return {inode: ' '.join(sorted(rights)) for inode, rights in found.items() if 'r-xs' in rights}


def mappings(p):
    """No mapping is writable and executable, and generated code is seen through two."""
    lines = read(p, 'maps').splitlines()
    both = [m for m in lines if re.match(r'\S+ .wx', m)]
    shared = code(p)
    return ('writable and executable: %s' % both if both else
            'generated code is mapped as %s' % shared if sorted(set(shared.values())) != ['r-xs rw-s'] else None)


def dumped(p):
    """Guest memory and generated code are left out of core dumps."""
    wrong, found, shared = [], 0, code(p)
    for part in re.split(r'^(?=[0-9a-f]+-[0-9a-f]+ )', read(p, 'smaps'), flags=re.M)[1:]:
        size = int(re.search(r'^Size: +(\d+)', part, re.M).group(1))
        flags = re.search(r'^VmFlags: (.*)', part, re.M).group(1).split()
        if part.split()[4] in shared or size == 32 << 10:
            found += 1
            if 'dd' not in flags:
                wrong.append(part.splitlines()[0])
    shared_too = int(read(p, 'coredump_filter'), 16) & 0xa
    return ('in a core dump: %s' % wrong if wrong else 'shared memory is in core dumps' if shared_too else
            None if found >= 3 else '%d mappings found' % found)


def privileges(p):
    for task in os.listdir('/proc/%d/task' % p.pid):
        status = dict(line.split(':', 1) for line in read(p, 'task', task, 'status').splitlines())
        got = {k: status[k].strip() for k in ('CapEff', 'CapPrm', 'CapBnd', 'NoNewPrivs', 'Seccomp')}
        if int(got['CapEff'], 16) or int(got['CapPrm'], 16) or got['NoNewPrivs'] != '1' or got['Seccomp'] != '2':
            return 'thread %s has %s' % (status['Name'].strip(), got)
        if os.geteuid() == 0 and int(got['CapBnd'], 16) and int(status['Uid'].split()[0]) == 0:
            return 'thread %s could have capabilities: %s' % (status['Name'].strip(), got)


def descriptors(p, number):
    try:
        where = os.readlink('/proc/%d/fd/%d' % (p.pid, number))
    except FileNotFoundError:
        return None
    return 'descriptor %d leads to %s' % (number, where) if where == '/dev/zero' else None


probe = start('probe')
if BUILT_WITHOUT in stop(probe):
    c.check('built-without', None)
    sys.exit(c.end())

fd = os.open('/dev/zero', os.O_RDONLY)
os.dup2(fd, 77, inheritable=True)
p = start('on', close_fds=False)
c.check('mappings', mappings(p))
c.check('core-dump', dumped(p))
c.check('privileges', privileges(p))
c.check('descriptors', descriptors(p, 77))
err = stop(p)
c.check('says-on', None if ', sandbox on' in err else repr(err))
c.check('ends', None if p.returncode == 128 + signal.SIGTERM else 'status %d: %s' % (p.returncode, err))

p = start('off', '--sandbox', 'off')
c.check('off-mappings', mappings(p))
seccomp = re.search(r'^Seccomp:\t(\d)', read(p, 'status'), re.M).group(1)
ours = re.search(r'^Seccomp:\t(\d)', open('/proc/self/status').read(), re.M).group(1)
c.check('off', None if seccomp == ours else 'there is a filter')
err = stop(p)
c.check('says-off', None if ', sandbox off' in err else repr(err))

# A descriptor that the command names is read before it is closed.
pipe, writer = os.pipe()
with open(kernel(c.dir, 'piped', say('up') + POWER_OFF), 'rb') as f:
    os.write(writer, f.read())
os.close(writer)
r = subprocess.run([DOPPEL, 'run', '--quiet', '--memory', '16M', '--kernel', '/dev/fd/%d' % pipe], stdin=subprocess.DEVNULL, capture_output=True,
                   pass_fds=[pipe], timeout=30)
c.check('kernel-from-descriptor', None if (r.returncode, r.stdout) == (0, b'up') else '%d %r %r' % (r.returncode, r.stdout, r.stderr))

# With standard input closed, no file of ours is taken for it.
disk = os.path.join(c.dir, 'disk')
with open(disk, 'wb') as f:
    f.write(b'q' * 4096)
r = subprocess.run(['sh', '-c', '"$0" "$@" <&-', DOPPEL, 'run', '--quiet', '--memory', '16M', '--disk', disk,
                    '--kernel', kernel(c.dir, 'closed', say('up') + POWER_OFF)], capture_output=True, timeout=30)
c.check('stdin-closed', None if (r.returncode, r.stdout) == (0, b'up') else '%d %r %r' % (r.returncode, r.stdout, r.stderr))

if os.geteuid():
    c.check('nobody', None)  # what came before ran without root
else:
    os.chmod(c.dir, 0o755)
    program = shutil.copy(DOPPEL, os.path.join(c.dir, 'doppel'))
    p = start('nobody', program=program, user=NOBODY, group=NOBODY, extra_groups=[])
    why = None if os.stat('/proc/%d/task' % p.pid).st_uid == NOBODY else 'it runs as another'
    c.check('nobody', why or mappings(p) or privileges(p))
    err = stop(p)
    c.check('nobody-says-on', None if ', sandbox on' in err else repr(err))
sys.exit(c.end())
