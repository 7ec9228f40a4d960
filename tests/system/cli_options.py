#!/usr/bin/env python3
# timeout: 240
"""What the user can get wrong: each mistake is met at once with one line that names the thing and the fix, and status 2, and leaves
every file as it was."""
import os, resource, socket, struct, subprocess, sys

from tiny import CLI_HLT, POWER_OFF, Checks, kernel

c = Checks()
good = kernel(c.dir, 'good', CLI_HLT)


def file(name, content):
    path = os.path.join(c.dir, name)
    with open(path, 'wb') as f:
        f.write(content)
    return path


def sparse(name, size, head=b''):
    path = file(name, head)
    os.truncate(path, size)
    return path


def files():
    """What there is in the tests' folder: names, sizes, times and modes."""
    return {e.path: (e.stat().st_size, e.stat().st_mtime_ns, e.stat().st_mode) for e in os.scandir(c.dir)}


def told(r, words, lines):
    err = r.stderr.decode()
    if r.returncode != 2:
        return 'status %d instead of 2: %s' % (r.returncode, err)
    if r.stdout:
        return 'output on standard output: %r' % r.stdout
    if not err.startswith('doppel: ') or (err.count('\n') != 1 if lines == 1 else err.count('\n') > lines):
        return 'not %d line(s): %r' % (lines, err)
    missing = [w for w in words if w not in err]
    return 'no %r in %r' % (missing, err) if missing else None


def mistake(name, args, *words, verb='run', lines=1, **how):
    before = files()
    try:
        # No measure of speed: what reads a file or waits without bound does not end in this time either.
        why = told(c.run(*args, verb=verb, timeout=20, **how), words, lines)
    except subprocess.TimeoutExpired:
        why = 'not done in 20 s'
    c.check(name, why or (None if files() == before else 'a file was made, changed or removed'))


def fine(name, args, *words, verb='run'):
    r = c.run(*args, verb=verb)
    out = r.stdout.decode()
    why = 'status %d' % r.returncode if r.returncode else 'standard error: %r' % r.stderr if r.stderr else None
    c.check(name, why or next(('no %r' % w for w in words if w not in out), None))


fine('help', [], 'Usage', 'run', verb='help')
fine('help-option', ['--help'], 'Usage', verb=None)
fine('help-run', ['run'], '--kernel', '--disk', verb='help')
fine('run-help', ['--help'], '--kernel', '--memory', '--virtio-console', 'snapshot=on', 'Exit status')
fine('run-help-short', ['-h'], '--kernel')
fine('version', [], 'doppel ', verb='version')
fine('version-option', ['--version'], 'doppel ', verb=None)
fine('run-version', ['--version'], 'doppel ')

with open('/dev/full', 'w') as full:
    for verb, args in (('help', []), ('help', ['run']), ('run', ['--help']), ('version', [])):
        mistake('%s%s-full' % (verb, ''.join(args)), args, 'standard output', 'No space left', verb=verb, stdout=full)
mistake('no-command', [], 'doppel run --kernel FILE', 'doppel help', 'doppel version', verb=None, lines=6)
mistake('unknown-command', [], "'rnu'", "'run'", verb='rnu')
mistake('unknown-command-far', [], "'frobnicate'", 'help', verb='frobnicate')
mistake('option-before-command', ['x'], "'--kernel'", 'doppel run --kernel FILE', verb='--kernel')
mistake('one-dash', ['-kernel', good], "'-kernel'", '--kernel')
mistake('one-dash-value', ['-memory=1G'], "'-memory=1G'", '--memory=1G')
mistake('one-dash-far', ['-m', '1G'], "'-m'", '--')
mistake('unknown-option', ['--kernle', 'x'], '--kernle', '--kernel')
mistake('unknown-option-beginning', ['--mem', '1G'], '--mem', '--memory')
mistake('unknown-option-far', ['--zzzzzzzz'], '--zzzzzzzz', '--help')
mistake('unknown-option-value', ['--cpu=4'], '--cpu', '--cpus')
mistake('no-value', ['--kernel'], '--kernel', 'value')
mistake('stats-form', ['--kernel', good, '--stats=xml'], '--stats=xml', '--stats=json')
mistake('symbols-missing', ['--kernel', good, '--stats=json', '--symbols', '/nonexistent/map'], '/nonexistent/map', 'No such file')
mistake('symbols-stripped', ['--kernel', good, '--stats=json', '--symbols', good], good, 'names no code', 'System.map')
mistake('symbols-none', ['--kernel', good, '--stats=json', '--symbols', '/dev/null'], '/dev/null', 'System.map')
mistake('flag-value', ['--quiet=yes'], '--quiet', 'no value')
mistake('stray-word', ['vmlinuz'], "'vmlinuz'")
mistake('no-kernel', ['--cpus', '2'], '--kernel')
mistake('no-options', [], '--kernel FILE', 'doppel help run', lines=6)

for size in ['lots', '', '1X', '1GG', '-1', '1.5G', '99999999999999999999', '99999999999G', '0x10']:
    mistake('memory-%s' % (size or 'empty'), ['--kernel', good, '--memory', size], '--memory', '512M')
mistake('memory-bytes', ['--kernel', good, '--memory', '512'], '512 bytes', 'M')
mistake('memory-zero', ['--kernel', good, '--memory', '0'], 'memory', '4M')
mistake('memory-odd', ['--kernel', good, '--memory', '5000001'], 'memory', '4K')
mistake('memory-host', ['--kernel', good, '--memory', '1000000G'], 'memory', 'host')
for cpus in ['0', '65', '4294967295']:
    mistake('cpus-%s' % cpus, ['--kernel', good, '--cpus', cpus], 'CPU', '64')
for cpus in ['-1', 'two', '', '4294967296', '1K']:
    mistake('cpus-%s' % (cpus or 'empty'), ['--kernel', good, '--cpus', cpus], '--cpus')
mistake('code-cache', ['--kernel', good, '--code-cache', 'big'], '--code-cache')
for size in '1', '1023K', '1025M', '100G':
    mistake('code-cache-' + size, ['--kernel', good, '--code-cache', size], 'code cache', '--code-cache 1M to 1G')


# Kernels. The first part of each is real; the rest does not matter.
def bzimage(name, size=1 << 20, version=0x20f, flags=1, init=32 << 20, says=None):
    head = bytearray(1024)
    head[0x1f1] = 1
    struct.pack_into('<I', head, 0x1f4, ((says or size) - 1024) // 16)
    struct.pack_into('<H4sH', head, 0x1fe, 0xaa55, b'\xeb\x6aHd', 0)
    struct.pack_into('<4sH', head, 0x202, b'HdrS', version)
    head[0x211] = flags
    struct.pack_into('<IIBBHI', head, 0x22c, 0x7fffffff, 0x200000, 1, 21, 3, 2047)
    struct.pack_into('<QI', head, 0x258, 1 << 24, init)
    return sparse(name, size, bytes(head))


def pe(name, machine):
    return file(name, b'MZ'.ljust(60, b'\0') + struct.pack('<I', 64) + b'PE\0\0' + struct.pack('<H', machine) + bytes(4096))


def elf(name, machine, segment=0, size=4096):
    head = struct.pack('<16sHHIQQQIHHHHHH', b'\x7fELF\2\1\1', 2, machine, 1, 1 << 20, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return file(name, (head + struct.pack('<IIQQQQQQ', 1, 7, 64, 1 << 20, 1 << 20, segment, segment, 0)).ljust(size, b'\0'))


missing = os.path.join(c.dir, 'missing')
locked = os.path.join(c.dir, 'good', 'below')  # a file is no folder
mistake('kernel-missing', ['--kernel', missing], missing, 'No such file')
for option in 'kernel', 'initrd', 'symbols':
    mistake(option + '-empty-name', ['--kernel', good, '--%s=' % option], '--%s FILE' % option)
long_name = '/tmp/' + '/'.join(200 * x for x in 'xyz')
mistake('kernel-long-name', ['--kernel', long_name], 'cannot read the kernel /tmp/xxx', 'No such file')
mistake('disk-long-name', ['--kernel', good, '--disk', long_name], 'cannot open disk image', 'No such file')
mistake('kernel-two-lines', ['--kernel', missing + '\n\x1b[2J'], missing + '??[2J', 'No such file')
pipe = os.path.join(c.dir, 'pipe')
os.mkfifo(pipe)
mistake('kernel-pipe', ['--kernel', pipe], pipe, 'nobody writes')
mistake('initrd-pipe', ['--kernel', good, '--initrd', pipe], pipe, 'nobody writes')
mistake('symbols-pipe', ['--kernel', good, '--stats=json', '--symbols', pipe], pipe, 'nobody writes')
mistake('disk-pipe', ['--kernel', good, '--disk', pipe], pipe, 'neither a file nor a block device')
mistake('disk-device', ['--kernel', good, '--disk', '/dev/zero'], '/dev/zero', 'neither a file nor a block device')
mistake('console-pipe', ['--kernel', good, '--console', 'file=' + pipe], pipe, 'nobody reads')
mistake('kernel-not-readable', ['--kernel', locked], locked, 'Not a directory')
mistake('kernel-folder', ['--kernel', c.dir], c.dir, 'directory')
mistake('kernel-endless', ['--kernel', '/dev/zero'], '/dev/zero', 'no kernel')
for name, path, *words in (
        ('empty', file('empty', b''), 'empty', 'give a kernel'),
        ('text', file('text', b'#!/bin/sh\n' * 1000), 'no kernel', 'vmlinuz'),
        ('short', file('short', b'MZ'), 'EFI', 'bzImage'),
        ('truncated', bzimage('truncated', says=8 << 20), 'truncated', 'copy it again'),
        ('truncated-setup', bzimage('truncated-setup', size=1024, says=1 << 20), 'truncated', 'copy it again'),
        ('truncated-early', file('truncated-early', open(pe('pe', 0x8664), 'rb').read()[:66]), 'truncated', 'copy it again'),
        ('truncated-elf', elf('truncated-elf', 62, segment=1 << 30), 'truncated', 'copy it again'),
        ('old', bzimage('old', version=0x204), '2.04', '2.06'),
        ('zimage', bzimage('zimage', flags=0), 'zImage', 'bzImage'),
        ('arm64', file('arm64', b'MZ'.ljust(56, b'\0') + b'ARM\x64' + bytes(4096)), 'arm64', 'x86-64'),
        ('arm64-efi', pe('arm64-efi', 0xaa64), 'arm64', 'x86-64'),
        ('arm64-elf', elf('arm64-elf', 183), 'arm64', 'x86-64'),
        ('arm', file('arm', bytes(36) + b'\x18\x28\x6f\x01' + bytes(4096)), '32-bit ARM', 'x86-64'),
        ('riscv', file('riscv', b'MZ'.ljust(56, b'\0') + b'RSC\x05' + bytes(4096)), 'RISC-V', 'x86-64'),
        ('riscv-efi', pe('riscv-efi', 0x5064), 'RISC-V', 'x86-64'),
        ('riscv-elf', elf('riscv-elf', 243), 'RISC-V', 'x86-64'),
        ('loongarch-efi', pe('loongarch-efi', 0x6264), 'LoongArch', 'x86-64'),
        ('power-elf', elf('power-elf', 21), 'PowerPC', 'x86-64'),
        ('elf', elf('elf', 62), 'PVH note', 'bzImage'),
        ('efi', pe('efi', 0x8664), 'EFI', 'bzImage'),
        ('gzip', file('gzip', b'\x1f\x8b\x08' + bytes(4096)), 'gzip', 'gunzip'),
        ('xz', file('xz', b'\xfd7zXZ\0' + bytes(4096)), 'xz', 'unxz'),
        ('zstd', file('zstd', b'\x28\xb5\x2f\xfd' + bytes(4096)), 'zstd', 'unzstd'),
        ('lz4-legacy', file('lz4-legacy', b'\x02\x21\x4c\x18' + bytes(4096)), 'lz4', 'unlz4'),
        ('lzma', file('lzma', b'\x5d\0\0\x80\0' + 8 * b'\xff' + bytes(4096)), 'lzma', 'unlzma'),
        ('lzop', file('lzop', b'\x89LZO\0\r\n\x1a\n' + bytes(4096)), 'lzop -d'),
        ('zip', file('zip', b'PK\3\4' + bytes(4096)), 'zip', 'unzip'),
        ('tar', file('tar', bytes(257) + b'ustar' + bytes(4096)), 'tar', 'unpack'),
        ('rpm', file('rpm', b'\xed\xab\xee\xdb' + bytes(4096)), 'package', 'rpm2cpio'),
        ('initrd', file('initrd-as-kernel', b'070701' + bytes(4096)), 'cpio', '--initrd'),
        ('package', file('package', b'!<arch>\n' + bytes(4096)), 'package', 'dpkg-deb'),
        ('qcow2', file('qcow2', b'QFI\xfb' + bytes(4096)), 'qcow2', '--kernel'),
        ('file-system', sparse('file-system', 8 << 30, bytes(0x438) + b'\x53\xef'), '1 GiB', 'vmlinuz'),
        ('small-file-system', sparse('small-file-system', 900 << 20, bytes(0x438) + b'\x53\xef'), 'file system', '--disk'),
        ('disk', sparse('disk-as-kernel', 900 << 20, bytes(510) + b'\x55\xaa'), 'disk image', '--kernel')):
    mistake('kernel-' + name, ['--kernel', path], path, *words)
mistake('kernel-memory', ['--kernel', bzimage('big', init=200 << 20), '--memory', '64M'], 'big', '216 MiB', '--memory')
mistake('kernel-memory-least', ['--kernel', bzimage('least'), '--memory', '4M'], 'least', '--memory')
mistake('initrd-missing', ['--kernel', good, '--initrd', missing], missing, 'No such file')
mistake('initrd-empty', ['--kernel', good, '--initrd', os.path.join(c.dir, 'empty')], 'empty', '--initrd')
mistake('initrd-larger', ['--kernel', good, '--memory', '64M', '--initrd', sparse('larger', 100 << 30)], 'larger', '64 MiB', '--memory')
mistake('initrd-endless', ['--kernel', good, '--memory', '64M', '--initrd', '/dev/zero'], '/dev/zero', '64 MiB', '--memory')
mistake('initrd-beside', ['--kernel', good, '--memory', '64M', '--initrd', sparse('beside', 63 << 20)], 'beside', '63 MiB', '--memory')
mistake('append-long', ['--kernel', bzimage('long'), '--append', 'x' * 3000], '3014', '2047', '--append')
mistake('disk-missing', ['--kernel', good, '--disk', missing], missing)
mistake('disk-not-readable', ['--kernel', good, '--disk', locked], locked, 'Not a directory')
mistake('disk-empty', ['--kernel', good, '--disk', os.path.join(c.dir, 'empty')], 'empty')
mistake('disk-folder', ['--kernel', good, '--disk', c.dir], c.dir)
mistake('disk-empty-name', ['--kernel', good, '--disk', ',readonly'], '--disk')
mistake('disk-word', ['--kernel', good, '--disk', good + ',readnly'], "'readnly'", 'readonly')
mistake('disk-snapshot-word', ['--kernel', good, '--disk', good + ',snapshot=maybe'], 'snapshot=on')
for word in ('direct=yes', 'blocksize=1024', 'format=vmdk', 'iops=0', 'iops=many', 'bps=', 'direct'):
    mistake('disk-word-' + word, ['--kernel', good, '--disk', good + ',' + word], "'%s'" % word, 'direct=on|off', 'bps=N')
mistake('disk-odd-size', ['--kernel', good, '--disk', file('odd', bytes(1000))], 'odd', '1000 bytes', 'truncate')
mistake('disk-odd-blocks', ['--kernel', good, '--disk', file('blocks', bytes(1024)) + ',blocksize=4096'], 'blocks', '4096', 'blocksize=512')
for name, head in (('VMDK', b'KDMV'), ('VMDK', b'COWD'), ('VMDK', b'# Disk DescriptorFile\n'), ('VHDX', b'vhdxfile'), ('VHD', b'conectix'),
                   ('VDI', b'<<< Oracle VM VirtualBox Disk Image >>>\n'.ljust(64, b'\0') + b'\x7f\x10\xda\xbe')):
    disk = sparse('foreign', 1 << 20, head)
    mistake('disk-%s-%s' % (name, head[:1].hex()), ['--kernel', good, '--disk', disk], disk, name, 'qemu-img convert', 'format=raw')
mistake('disk-server', ['--kernel', good, '--disk', 'nbd+unix:///x?socket=' + missing], missing, 'server')
mistake('disk-server-direct', ['--kernel', good, '--disk', 'nbd+unix:///x?socket=' + missing + ',direct=on'], 'direct=on')
fine('disk-foreign-raw', ['--kernel', kernel(c.dir, 'off', POWER_OFF), '--memory', '16M', '--quiet', '--disk', disk + ',format=raw'])
mistake('disk-comma', ['--kernel', good, '--disk', 'a,,b'], 'a,b')
mistake('disk-too-many', ['--kernel', good] + ['--disk', file('disk', bytes(4096))] * 17, 'disk', '16')
for size in ['yes', '', '10X']:
    mistake('balloon-%s' % (size or 'empty'), ['--kernel', good, '--balloon', size], '--balloon', 'off', '256M')
mistake('balloon-much', ['--kernel', good, '--memory', '64M', '--balloon', '65M'], 'balloon', '64 MiB')
for spec in ['tmp', '', 'unix=', 'cid=3', 'unix=/tmp/x,cid=x', 'unix=/tmp/x,port=1']:
    mistake('vsock-%s' % (spec or 'empty'), ['--kernel', good, '--vsock', spec], '--vsock', 'unix=')
mistake('vsock-cid', ['--kernel', good, '--vsock', 'unix=%s,cid=2' % os.path.join(c.dir, 'v')], 'cid 2', '3')
mistake('vsock-path', ['--kernel', good, '--vsock', 'unix=' + os.path.join(missing, 'v')], missing)
mistake('vsock-file', ['--kernel', good, '--vsock', 'unix=' + good], good, 'File exists')
mistake('vsock-long', ['--kernel', good, '--vsock', 'unix=/' + 100 * 'x'], 'xxx', '96 bytes')
mistake('share-missing', ['--kernel', good, '--share', missing], missing)
mistake('share-file', ['--kernel', good, '--share', good + ':tag'], good)
mistake('share-empty-name', ['--kernel', good, '--share', ':tag'], '--share')
mistake('share-word', ['--kernel', good, '--share', c.dir + ',readnly'], "'readnly'", 'readonly')
mistake('share-tag', ['--kernel', good, '--share', c.dir + ':' + 37 * 'x'], 'tag', '36')
mistake('share-tag-empty', ['--kernel', good, '--share', c.dir + ':'], 'tag', ':TAG')
mistake('share-tag-twice', ['--kernel', good, '--share', c.dir + ':a', '--share', c.dir + ':a'], 'tag', "'a'")
mistake('share-too-many', ['--kernel', good] + ['--share', c.dir] * 9, 'shares', '8')
for name, net, words in (
        ('kind', 'bridge', ["'bridge'", 'user', 'tap=INTERFACE', 'none']), ('empty', '', ['user']), ('word', 'user,hostfw=x', ["'hostfw=x'", 'hostfwd=']),
        ('forward', 'user,hostfwd=tcp::80', ["'-'", 'tcp:127.0.0.1:2222-:22']), ('protocol', 'user,hostfwd=sctp::80-:80', ['neither tcp nor udp']),
        ('port', 'user,hostfwd=tcp::70000-:80', ['port', '65535']), ('port-guest', 'user,hostfwd=tcp::7000-:0', ['port', '65535']),
        ('address', 'user,hostfwd=tcp:localhost:7000-:80', ['address', 'tcp:127.0.0.1']),
        ('families', 'user,hostfwd=tcp:[::1]:7000-10.0.2.15:80', ['IPv4', 'IPv6']), ('mac', 'user,mac=52:54:00:12:34', ['mac=', '52:54:00:12:34:56']),
        ('mac-none', 'user,mac=00:00:00:00:00:00', ['mac=', '52:54:00:12:34:56']),
        ('mac-group', 'user,mac=53:54:00:12:34:56', ['group', 'even']), ('bps', 'user,bps=fast', ['bps=fast', 'bps=10M']), ('bps-zero', 'user,bps=0', ['bps=0']),
        ('mtu', 'user,mtu=100', ['mtu=100', '576']), ('restrict', 'user,restrict=yes', ['restrict=on']), ('none', 'none,mac=52:54:00:12:34:56', ['none']),
        ('tap-missing', 'tap=doppel-none', ['doppel-none', 'no such interface', 'ip tuntap add']), ('tap-name', 'tap=' + 'x' * 16, ['15']),
        ('tap-word', 'tap=x,mtu=1500', ['mtu', 'mac and bps']), ('tap-loopback', 'tap=lo', ['lo'])):
    mistake('net-' + name, ['--kernel', good, '--net', net], '--net', *words)
mistake('net-none-and-more', ['--kernel', good, '--net', 'none', '--net', 'user'], 'none')
mistake('net-too-many', ['--kernel', good] + ['--net', 'user'] * 5, 'networks', '4')
with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    port = '%d' % taken.getsockname()[1]
    mistake('net-port-in-use', ['--kernel', good, '--net', 'user,hostfwd=tcp::%s-:80' % port], port, 'in use', 'choose another')
mistake('net-port-twice', ['--kernel', good, '--net', 'user,hostfwd=tcp::%s-:80,hostfwd=tcp::%s-:81' % (port, port)], port, 'in use')
mistake('net-host-address', ['--kernel', good, '--net', 'user,hostfwd=tcp:192.0.2.1:%s-:80' % port], '192.0.2.1', 'assign')
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
    taken.bind(('127.0.0.1', 0))
    port = '%d' % taken.getsockname()[1]
    mistake('net-udp-port-in-use', ['--kernel', good, '--net', 'user,hostfwd=udp::%s-:80' % port], port, 'in use')
for limit in ['0', '-5', 'half', '', '50x', '50%%', '6401', '99999999999999999999']:
    mistake('cpu-limit-%s' % (limit or 'empty'), ['--kernel', good, '--cpu-limit', limit], '--cpu-limit', '50')
mistake('on-panic', ['--kernel', good, '--on-panic', 'dance'], '--on-panic', "'dance'", 'go-on', 'stop')
mistake('engine', ['--kernel', good, '--engine', 'warp'], "'warp'", 'translate')
mistake('sandbox', ['--kernel', good, '--sandbox', 'maybe'], "'maybe'", 'on', 'off')
mistake('debug_switch', ['--kernel', good, '--debug', 'step,no-windows'], 'no-windows', 'docs')
mistake('pv', ['--kernel', good, '--pv', 'clock,eio'], "'eio'", 'eoi', 'none')
mistake('console', ['--kernel', good, '--console', 'tty'], 'tty', 'stdio')
mistake('console-file', ['--kernel', good, '--console', 'file=' + os.path.join(missing, 'x')], missing)
mistake('virtio-console', ['--kernel', good, '--virtio-console', 'tty'], 'virtio', 'tty', 'stdio')
mistake('virtio-console-stdio', ['--kernel', good, '--virtio-console', 'stdio'], 'virtio console', 'stdio', '--console none')
mistake('virtio-console-stdio-twice', ['--kernel', good, '--console', 'stdio', '--virtio-console=stdio'], '--console none')
mistake('virtio-console-file', ['--kernel', good, '--virtio-console', 'file=' + os.path.join(missing, 'x')], missing)
kept = file('kept', b'from before')
new = os.path.join(c.dir, 'new')
for name, wrong in (('kernel', ['--kernel', missing]), ('initrd', ['--kernel', good, '--initrd', missing]),
                    ('disk', ['--kernel', good, '--disk', missing]), ('engine', ['--kernel', good, '--engine', 'warp'])):
    for where in 'file=' + kept, 'file=' + new, 'unix=' + new:
        mistake('%s-console-%s' % (name, os.path.basename(where)), wrong + ['--console', where], wrong[-1])
mistake('consoles-file', ['--kernel', good, '--console', 'file=' + kept, '--virtio-console', 'file=' + os.path.join(missing, 'x')], missing)
mistake('console-unix-file', ['--kernel', good, '--console', 'unix=' + good], good, 'File exists')
for name, limit, value, words in (('files', resource.RLIMIT_NOFILE, 4, ['ulimit -n']), ('file-size', resource.RLIMIT_FSIZE, 0, ['memory', 'File too large'])):
    mistake('limit-' + name, ['--kernel', good], *words, preexec=lambda limit=limit, value=value: resource.setrlimit(limit, (value, value)))
mistake('console-unix', ['--kernel', good, '--console', 'unix=' + os.path.join(missing, 'x')], missing)
sys.exit(c.end())
