#!/usr/bin/env python3
# timeout: 120
"""What the user can get wrong: each mistake is met with one line that names the thing and the fix, and status 2."""
import os, sys

from tiny import CLI_HLT, Checks, kernel

c = Checks()
good = kernel(c.dir, 'good', CLI_HLT)


def file(name, content):
    path = os.path.join(c.dir, name)
    with open(path, 'wb') as f:
        f.write(content)
    return path


def mistake(name, args, *words, verb='run'):
    try:
        r = c.run(*args, verb=verb)
    except Exception as e:
        c.check(name, e)
        return
    err = r.stderr.decode()
    why = None
    if r.returncode != 2:
        why = 'status %d instead of 2: %s' % (r.returncode, err)
    elif r.stdout:
        why = 'output on standard output: %r' % r.stdout
    elif err.count('\n') != 1 or not err.startswith('doppel: '):
        why = 'not one line: %r' % err
    else:
        missing = [w for w in words if w not in err]
        why = 'no %r in %r' % (missing, err) if missing else None
    c.check(name, why)


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

mistake('no-command', [], 'run', 'help', verb=None)
mistake('unknown-command', [], "'rnu'", "'run'", verb='rnu')
mistake('unknown-command-far', [], "'frobnicate'", 'help', verb='frobnicate')
mistake('unknown-option', ['--kernle', 'x'], '--kernle', '--kernel')
mistake('unknown-option-beginning', ['--mem', '1G'], '--mem', '--memory')
mistake('unknown-option-far', ['--zzzzzzzz'], '--zzzzzzzz', '--help')
mistake('unknown-option-value', ['--cpu=4'], '--cpu', '--cpus')
mistake('no-value', ['--kernel'], '--kernel', 'value')
mistake('flag-value', ['--quiet=yes'], '--quiet', 'no value')
mistake('stray-word', ['vmlinuz'], "'vmlinuz'")
mistake('no-kernel', [], '--kernel')

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

missing = os.path.join(c.dir, 'missing')
mistake('kernel-missing', ['--kernel', missing], missing)
mistake('kernel-empty', ['--kernel', file('empty', b'')], 'empty')
mistake('kernel-text', ['--kernel', file('text', b'#!/bin/sh\n' * 1000)], 'text')
mistake('kernel-folder', ['--kernel', c.dir], c.dir)
mistake('kernel-short', ['--kernel', file('short', b'MZ')], 'short')
mistake('initrd-missing', ['--kernel', good, '--initrd', missing], missing)
mistake('disk-missing', ['--kernel', good, '--disk', missing], missing)
mistake('disk-folder', ['--kernel', good, '--disk', c.dir], c.dir)
mistake('disk-empty-name', ['--kernel', good, '--disk', ',readonly'], '--disk')
mistake('disk-word', ['--kernel', good, '--disk', good + ',readnly'], "'readnly'", 'readonly')
mistake('disk-snapshot-word', ['--kernel', good, '--disk', good + ',snapshot=maybe'], 'snapshot=on')
mistake('disk-comma', ['--kernel', good, '--disk', 'a,,b'], 'a,b')
mistake('disk-too-many', ['--kernel', good] + ['--disk', file('disk', bytes(4096))] * 17, 'disk', '16')
mistake('engine', ['--kernel', good, '--engine', 'warp'], "'warp'", 'translate')
mistake('console', ['--kernel', good, '--console', 'tty'], 'tty', 'stdio')
mistake('console-file', ['--kernel', good, '--console', 'file=' + os.path.join(missing, 'x')], missing)
mistake('virtio-console', ['--kernel', good, '--virtio-console', 'tty'], 'virtio', 'tty', 'stdio')
mistake('virtio-console-stdio', ['--kernel', good, '--virtio-console', 'stdio'], 'virtio console', 'stdio', '--console none')
mistake('virtio-console-stdio-twice', ['--kernel', good, '--console', 'stdio', '--virtio-console=stdio'], '--console none')
mistake('virtio-console-file', ['--kernel', good, '--virtio-console', 'file=' + os.path.join(missing, 'x')], missing)
mistake('console-unix', ['--kernel', good, '--console', 'unix=' + os.path.join(missing, 'x')], missing)
sys.exit(c.end())
