#!/usr/bin/env python3
# timeout: 180
"""How a VM ends: exit statuses, the crash report, signals, the keys of the console, and the terminal afterwards."""
import json, os, pty, re, select, signal, subprocess, sys, termios, time

from tiny import CLI_HLT, DOPPEL, ECHO, PANIC, POWER_OFF, RESET, SPIN, TRIPLE_FAULT, Checks, debug_exit, kernel, say

c = Checks()
# A shell that starts this in the background, or nohup, has them ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def ends(name, code, status, *args, out=b'', err=(), input=b'', **how):
    """Runs a kernel and compares status, standard output, and what standard error must have."""
    try:
        r = c.run('--kernel', kernel(c.dir, name, code), '--memory', '16M', *args, input=input, **how)
    except subprocess.TimeoutExpired as e:
        c.check(name, 'does not end; standard error: %r' % e.stderr)
        return
    text = r.stderr.decode()
    missing = [w for w in err if not re.search(w, text)]
    why = ('status %d instead of %d: %s' % (r.returncode, status, text) if r.returncode != status else
           'output %r instead of %r' % (r.stdout, out) if r.stdout != out else
           'no %r in %r' % (missing, text) if missing else None)
    c.check(name, why)


def start(name, code, *args, **popen):
    return subprocess.Popen([DOPPEL, 'run', '--kernel', kernel(c.dir, name, code), '--memory', '16M', *args], **popen)


def read_until(fd, word, seconds=20):
    """What can be read from `fd` up to `word`, or so far when the time is over."""
    got, end = b'', time.monotonic() + seconds
    while word not in got and time.monotonic() < end:
        if select.select([fd], [], [], 0.1)[0]:
            try:
                data = os.read(fd, 4096)
            except OSError:
                break
            if not data:
                break
            got += data
    return got


def signalled(name, code, sig, *args):
    p = start(name, say('up\n') + code, '--quiet', *args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    got = read_until(p.stdout.fileno(), b'up')
    p.send_signal(sig)
    try:
        p.wait(10)
    except subprocess.TimeoutExpired:
        p.kill()
        p.wait()
    why = 'no output' if b'up' not in got else 'status %d' % p.returncode if p.returncode != 128 + sig else p.stderr.read().decode()
    p.communicate()
    c.check(name, why)


def early():
    """A signal while the machine is being made, at which it waits for its kernel: the sockets' names go again."""
    names = [os.path.join(c.dir, name) for name in ('early-kernel', 'early-console', 'early-vsock')]
    os.mkfifo(names[0])
    p = subprocess.Popen([DOPPEL, 'run', '--kernel', names[0], '--memory', '16M', '--console', 'unix=' + names[1], '--vsock', 'unix=' + names[2]],
                         stderr=subprocess.PIPE)
    with open(names[0], 'wb', buffering=0) as pipe:
        end = time.monotonic() + 20
        while not os.path.exists(names[2]) and time.monotonic() < end:
            time.sleep(0.01)
        there = os.path.exists(names[1]) and os.path.exists(names[2])
        p.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        with open(kernel(c.dir, 'spin', SPIN), 'rb') as f:
            try:
                pipe.write(f.read())
            except BrokenPipeError:
                pass
    try:
        p.wait(10)
    except subprocess.TimeoutExpired:
        p.kill()
    left = [name for name in names[1:] if os.path.exists(name)]
    text = p.communicate()[1].decode()
    return 'no sockets: %s' % text if not there else 'left: %s' % left if left else 'status %d: %s' % (p.returncode, text) if p.returncode != 143 else None


def terminal(name, code, keys, status, words, args=(), sig=None):
    """On a terminal: sends keys, one group after each word of output, then compares status and the terminal's modes."""
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    p = start(name, code, '--quiet', *args, stdin=slave, stdout=slave, stderr=slave)
    why = None
    for word, key in zip(words, keys):
        got = read_until(master, word)
        if word not in got:
            why = 'no %r in %r' % (word, got)
            break
        if termios.tcgetattr(slave)[3] & termios.ECHO:
            why = 'the terminal is not raw'
        os.write(master, key)
    if sig:
        p.send_signal(sig)
    try:
        p.wait(10)
    except subprocess.TimeoutExpired:
        p.kill()
        why = why or 'does not end'
    if not why and p.wait() != status:
        why = 'status %d' % p.returncode
    if not why and termios.tcgetattr(slave) != before:
        why = 'the terminal is not as it was'
    os.close(master)
    os.close(slave)
    c.check(name, why)


ends('power-off', say('bye') + POWER_OFF, 0, out=b'bye', err=['engine translate', 'CPU .*memory.*CPU'])
ends('power-off-quiet', POWER_OFF, 0, '--quiet', err=['^$'])
ends('no-reboot', RESET, 0, '--no-reboot')
ends('debug-exit', debug_exit(0x21), 0x43, '--debug-exit')
ends('debug-exit-zero', debug_exit(0), 1, '--debug-exit')
ends('debug-exit-absent', b'\xb0\x21\xe6\xf4' + POWER_OFF, 0)
ends('crash', TRIPLE_FAULT, 3, err=['triple fault', r'rip 0+10[0-9a-f]{4}', 'cr0', r'cs +[0-9a-f]{4}', 'code at rip: 0f 0b'])
ends('crash-no-reboot', TRIPLE_FAULT, 3, '--no-reboot', err=['triple fault'])
# The word at 2 MiB lives through a reset: 0x5a there, and it goes on; else puts it there and resets.
AGAIN = bytes.fromhex('813d00002000 5a000000 7415 c70500002000 5a000000'.replace(' ', '')) + RESET
ends('reboot', say('a') + AGAIN + POWER_OFF, 0, out=b'aa', err=['\ndoppel: the guest reboots\n$'])
ends('reboot-quiet', say('a') + AGAIN + POWER_OFF, 0, '--quiet', out=b'aa', err=['^$'])
ends('panic', say('a') + PANIC + say('b') + POWER_OFF, 0, out=b'ab', err=["\ndoppel: the guest's kernel panicked\n$"])
ends('panic-go-on', PANIC + say('b') + POWER_OFF, 0, '--on-panic', 'go-on', '--quiet', out=b'b', err=["^doppel: the guest's kernel panicked\n$"])
ends('panic-stop', say('a') + PANIC + SPIN, 4, '--on-panic', 'stop', '--quiet', out=b'a', err=["^doppel: the guest's kernel panicked\n$"])
ends('panic-stop-not', say('a') + POWER_OFF, 0, '--on-panic', 'stop', '--quiet', out=b'a', err=['^$'])
ends('pipe', ECHO + POWER_OFF, 0, '--quiet', out=b'hello', input=b'helloq')
ends('pipe-ctrl-a', ECHO + POWER_OFF, 0, '--quiet', out=b'\x01x', input=b'\x01xq')
out = os.path.join(c.dir, 'out')
ends('console-file', say('to a file') + POWER_OFF, 0, '--console', 'file=' + out)
c.check('console-file-text', None if open(out, 'rb').read() == b'to a file' else 'wrong content')
FULL = ["^doppel: console .*: cannot write the guest's output: No space left on device; it is lost\n$"]
ends('console-file-full', say('to a full disk') + POWER_OFF, 0, '--console', 'file=/dev/full', '--quiet', err=FULL)
with open('/dev/full', 'w') as full:
    ends('stdout-full', say('to a full disk') + POWER_OFF, 0, '--quiet', err=FULL, out=None, stdout=full)
ends('console-none', say('nowhere') + POWER_OFF, 0, '--console', 'none')
ends('stats', say('x') + POWER_OFF, 0, '--stats', out=b'x', err=['translated code', 'translator', 'TLB misses', 'port I/O'])
# mov ecx, 400000000; dec ecx; jnz: a tenth of a second or more, which a sampler cannot miss.
BUSY = bytes.fromhex('b90084d717 ffc9 75fc'.replace(' ', '')) + POWER_OFF
ends('hot', BUSY, 0, '--debug', 'hot=1', err=['CPU 0: [1-9][0-9]* samples', 'hottest pages', r'[1-9][0-9]*  +[0-9a-f]{12}  [a-z]+'])
ends('hot-address', BUSY, 0, '--debug', 'no-link,hot=0x1', err=['CPU 0: [1-9][0-9]* samples'])


def stats_json():
    r = c.run('--kernel', kernel(c.dir, 'json', BUSY), '--memory', '16M', '--cpus', '2', '--stats=json', '--quiet')
    try:
        s = json.loads(r.stderr)
    except ValueError as e:
        return '%s: %r' % (e, r.stderr)
    block = s['hottest']['blocks'][0]
    return ('%d CPUs' % len(s['cpus']) if len(s['cpus']) != 2 else
            'the loop is not hot: %s' % block if block['share'] < 0.5 or block['mode'] != 'kernel' else
            'no time in the loop: %s' % s['cpus'][0] if s['cpus'][0]['time']['kernel'] < 10000000 else
            'sums are wrong: %s' % s if s['total']['exits']['io'] != sum(cpu['exits']['io'] for cpu in s['cpus']) else None)


def perf_map():
    p = start('perf-map', BUSY, '--quiet', '--debug', 'perf-map', '--symbols', symbols)
    path = '/tmp/perf-%d.map' % p.pid
    status = p.wait(20)
    lines = open(path).read().splitlines()
    os.unlink(path)
    return ('status %d' % status if status else
            'not all of %r are START SIZE NAME' % lines if not all(re.fullmatch('[0-9a-f]+ [0-9a-f]+ .+', x) for x in lines) else
            'the loop has no name: %r' % lines if not any(' loop+0x' in x for x in lines) else None)


symbols = os.path.join(c.dir, 'System.map')
with open(symbols, 'w') as f:
    f.write('0000000000000000 D data\n0000000000100000 T loop\n')
c.check('stats-json', stats_json())
c.check('perf-map', perf_map())
ends('more-cpus', POWER_OFF, 0, '--cpus', '4', err=['4 CPUs'])
signalled('sigterm', SPIN, signal.SIGTERM)
signalled('sigint', SPIN, signal.SIGINT)
c.check('sigterm-early', early())
signalled('sighup', SPIN, signal.SIGHUP)
signalled('sigterm-halted', CLI_HLT, signal.SIGTERM)
signalled('sigterm-4-cpus', SPIN, signal.SIGTERM, '--cpus', '4')
terminal('key-quit', say('up') + SPIN, [b'\x01x'], 0, [b'up'])
terminal('key-quit-halted', say('up') + CLI_HLT, [b'\x01X'], 0, [b'up'])
terminal('key-quit-unread', say('up') + SPIN, [b'a' * 9000 + b'\x01x'], 0, [b'up'])
terminal('key-help', say('up') + SPIN, [b'\x01h', b'\x01x'], 0, [b'up', b'Ctrl-A X'])
terminal('key-pause', say('up') + ECHO + say('end') + POWER_OFF, [b'\x01p', b'lost\x01P', b'kept', b'q'], 0, [b'up', b'is paused', b'goes on', b'kept'])
terminal('key-pause-quit', say('up') + SPIN, [b'\x01p', b'lost\x01x'], 0, [b'up', b'is paused'])
terminal('key-show', say('up') + SPIN, [b'\x01s', b'\x01x'], 0, [b'up', b'CPU 0  runs, protected mode'])
terminal('key-show-paused', say('up') + CLI_HLT, [b'\x01p', b'\x01S', b'\x01x'], 0, [b'up', b'is paused', b', paused'])
terminal('key-ctrl-a', say('up') + ECHO + say('end') + POWER_OFF, [b'\x01\x01q'], 0, [b'up'])
terminal('key-interrupt', say('up') + ECHO + say('end') + POWER_OFF, [b'\x03q'], 0, [b'up'])
terminal('terminal-sigterm', say('up') + SPIN, [b'a'], 143, [b'up'], sig=signal.SIGTERM)
terminal('terminal-crash', say('up') + TRIPLE_FAULT, [], 3, [])
sys.exit(c.end())
