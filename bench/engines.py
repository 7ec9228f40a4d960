"""What the workloads run in. An engine is named KIND[@PROGRAM][:SWITCH+SWITCH...]: `native`, `qemu`, `uml`, `doppel`,
`doppel@/tmp/other/doppel`, `doppel:no-link`."""
import os, re, select, shutil, signal, struct, subprocess, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GUESTS = os.path.realpath(os.environ.get('DOPPEL_GUESTS', os.path.join(ROOT, 'guests')))
BENCH = os.path.join(GUESTS, 'bench')
KERNEL = os.path.join(GUESTS, 'cloud', 'vmlinuz')
INITRD = os.path.join(BENCH, 'initrd.gz')
IMAGE = os.path.join(BENCH, 'root.ext4')
SCRATCH = os.path.join(BENCH, 'scratch.img')
INIT = '/opt/bench/session'

TICK = os.sysconf('SC_CLK_TCK')

# In a mount namespace of its own, so that nothing stays mounted; $1 is the guests' folder.
NATIVE = '''mount --bind "$1/bench/opt" "$1/root/opt"
mount --rbind /dev "$1/root/dev"
mount --rbind /proc "$1/root/proc"
mount --rbind /sys "$1/root/sys"
if [ -f "$2" ]; then touch "$1/root/opt/bench/scratch" && mount --bind "$2" "$1/root/opt/bench/scratch"; fi
shift 2
exec chroot "$GUEST" %s "$@"
''' % INIT

# Seconds that a guest is given to become quiet, and for which it is then watched.
IDLE_SETTLE, IDLE_WATCH = 4, 10


def host_busy():
    """Seconds that all CPUs have worked together, for whomever."""
    user, nice, system, idle, iowait, irq, softirq, steal = [int(n) / TICK for n in open('/proc/stat').readline().split()[1:9]]
    return user + nice + system + irq + softirq + steal


def processes(leader):
    """The processes of a session, as [pid, fields of /proc/PID/stat behind the name]."""
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open('/proc/%s/stat' % pid) as f:
                fields = f.read().rpartition(')')[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader:
            yield int(pid), fields


def session_time(leader):
    """Seconds of CPU that a session's processes have taken, with those that have ended."""
    return sum(sum(int(n) for n in fields[11:15]) for _, fields in processes(leader)) / TICK


def memory(leader):
    """Bytes of the host's memory that a session has: (the guest's memory, which is what the largest mapping that can be read shows, in
    whatever pieces it is shown elsewhere too; all else)."""
    total, shown, size, guest = 0, {}, 0, None
    for pid, _ in processes(leader):
        try:
            text = open('/proc/%d/smaps' % pid).read()
        except OSError:
            continue
        for start, rights, file, kib, pss in re.findall(r'^([0-9a-f]+)-[0-9a-f]+ (\S+) \S+ (\S+ \d+) .*\n'
                                                        r'Size: +(\d+) kB$(?:\n[A-Z].*)*?\nPss: +(\d+) kB$', text, re.M):
            what = (pid, start) if file.endswith(' 0') else file
            total += int(pss)
            shown[what] = shown.get(what, 0) + int(pss)
            if rights[0] == 'r' and int(kib) > size:
                size, guest = int(kib), what
    return shown.get(guest, 0) << 10, (total - shown.get(guest, 0)) << 10


def first_kernel(path):
    """A multiboot kernel of 8 MiB, as large as Linux, whose first instructions write a byte to the first serial port."""
    base, size = 0x100000, 8 << 20
    header = struct.pack('<III', 0x1badb002, 0, -0x1badb002 & 0xffffffff)
    code = bytes.fromhex('66baf803 b021 ee 66ba0406 66b80034 66ef fa f4'.replace(' ', ''))  # out 0x3f8, '!'; power off by ACPI; cli; hlt
    elf = struct.pack('<16sHHIIIIIHHHHHH', b'\x7fELF\x01\x01\x01', 2, 3, 1, base + 12, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    elf += struct.pack('<IIIIIIII', 1, 4096, base, base, size, size, 7, 4096)
    with open(path, 'wb') as f:
        f.write(elf.ljust(4096, b'\0') + header + code)
        f.truncate(4096 + size)


class Peer:
    """The other end of the workloads of the network: a program on the host's loopback interface."""

    def __enter__(self):
        self.process = subprocess.Popen([os.path.join(BENCH, 'opt', 'bench', 'peer')], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.port = int(self.process.stdout.readline())
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


NAMES = {'native': 'native', 'doppel': 'doppel', 'qemu': 'QEMU TCG', 'uml': 'User-mode Linux'}


class Result:
    """One session: seconds by workload as the guest's clock tells, and as the host's does for the lines on the console."""

    def __init__(self, engine, log):
        self.log_file = log
        self.engine, self.rows, self.host_rows, self.failed, self.log = engine, {}, {}, {}, []
        self.kernel, self.status, self.wall, self.timeout, self.initialized, self.ended = None, None, None, False, None, False
        self.load, self.begun, self.running = os.getloadavg()[0], time.monotonic(), None
        self.foreign, self.leader, self.before = {}, None, None

    def line(self, text, start):
        now = time.monotonic()
        self.log.append(text)
        if self.log_file:
            print(text, file=self.log_file, flush=True)
        word = text.split()
        if not word:
            return
        if word[0] == 'bench-begin':
            self.begun, self.running = now, word[1]
            self.before = (host_busy(), session_time(self.leader))
        elif word[0] == 'bench' and len(word) == 3 and re.fullmatch(r'\d+\.\d+', word[2]):
            self.rows.setdefault(word[1], []).append(float(word[2]))
            self.host_rows.setdefault(word[1], []).append(round(now - self.begun, 6))
            self.foreign.setdefault(word[1], []).append(self._others(now - self.begun))
        elif word[0] == 'bench-fail' and len(word) == 3:
            self.failed[word[1]] = word[2]
        elif word[0] == 'bench-kernel':
            self.kernel = word[1]
        elif word[0] == 'bench-init' and self.initialized is None:
            self.initialized = now - start
        elif word[0] == 'bench-end':
            self.ended = True

    def _others(self, seconds):
        """How many CPUs other programs than this kept busy meanwhile."""
        busy, own = host_busy() - self.before[0], session_time(self.leader) - self.before[1]
        return round(max(busy - own, 0) / max(seconds, 0.01), 2)

    def doubtful_clock(self):
        """Workloads that the host's clock saw take another time: the guest's clock is wrong, then."""
        return [n for n, times in self.rows.items()
                for guest, host in zip(times, self.host_rows[n]) if abs(guest - host) > 0.05 + 0.1 * host]


class Engine:
    def __init__(self, name, options):
        m = re.fullmatch(r'(native|doppel|qemu|uml)(?:@([^:]+))?(?::(.+))?', name)
        if not m or (m[1] != 'doppel' and m[3]):
            raise ValueError('no engine %r: there are native, doppel[@PROGRAM][:SWITCH+SWITCH], qemu and uml' % name)
        self.name, self.kind, self.options = name, m[1], options
        self.program = m[2] or {'native': 'unshare', 'doppel': options.doppel, 'qemu': 'qemu-system-x86_64', 'uml': 'linux.uml'}[m[1]]
        switches = m[3].split('+') if m[3] else []
        self.pv = [s[3:] for s in switches if s.startswith('pv=')]
        self.debug = ','.join(s for s in switches if not s.startswith('pv=')) or options.debug
        self.cpus = options.cpus
        self.port = None

    def title(self):
        return NAMES[self.kind] + self.name[len(self.kind):]

    def available(self):
        return shutil.which(self.program) is not None

    def version(self):
        if self.kind == 'native':
            return os.uname().release
        text = subprocess.run([self.program, {'doppel': 'version'}.get(self.kind, '--version')], capture_output=True, text=True).stdout
        return text.splitlines()[0].strip() if text else ''

    def can(self, workload):
        """User-mode Linux has neither a network without further programs, nor more than one CPU."""
        return self.kind != 'uml' or not (workload.startswith('net-') or workload in ('loops', 'make-j2'))

    def session(self, orders, log=None, timeout=240, cpus=None):
        """Runs the workloads once, as `orders` (bench.scale=... and so on) say, and gives up one that takes longer than `timeout` seconds,
        with the rest. Everything on the console goes to the file `log` as well."""
        self._preload()
        self.cpus = cpus or self.options.cpus
        with tempfile.TemporaryDirectory(prefix='bench-') as folder, Peer() as peer:
            self.port = peer.port
            if self.kind != 'uml':
                orders = orders + ['bench.peer=%s:%d' % ('127.0.0.1' if self.kind == 'native' else '10.0.2.2', peer.port)]
            return getattr(self, '_' + self.kind)(orders, folder, False, timeout, log)

    def boot(self, timeout=60):
        """Debian's cloud kernel (User-mode Linux: its own) and an initramfs, to the first line of /init; None natively."""
        if self.kind == 'native':
            return None
        with tempfile.TemporaryDirectory(prefix='bench-') as folder:
            return getattr(self, '_' + self.kind)(['rdinit=/mark'], folder, True, timeout)

    def idle(self, settle=IDLE_SETTLE, watch=IDLE_WATCH):
        """A guest that sleeps after its boot: the share of a CPU that it takes, and bytes of memory (the guest's, all else)."""
        found = {}

        def look(leader):
            time.sleep(settle)
            before, start = session_time(leader), time.monotonic()
            time.sleep(watch)
            found['cpu'] = (session_time(leader) - before) / (time.monotonic() - start)
            found['guest'], found['else'] = memory(leader)

        if self.kind == 'native':
            return None
        with tempfile.TemporaryDirectory(prefix='bench-') as folder:
            getattr(self, '_' + self.kind)(['rdinit=/idle'], folder, True, 60, watch=look)
        return found or None

    def first(self, timeout=20):
        """Seconds from the start of the program to the guest's first instructions, which write a byte."""
        if self.kind not in ('doppel', 'qemu'):
            return None
        with tempfile.TemporaryDirectory(prefix='bench-') as folder:
            kernel = os.path.join(folder, 'first')
            first_kernel(kernel)
            if self.kind == 'doppel':
                command = [self.program, 'run', '--quiet', '--kernel', kernel, '--memory', '1G']
            else:
                command = [self.program, '-accel', 'tcg', '-machine', 'q35', '-m', '1G', '-nodefaults', '-no-user-config', '-display', 'none',
                           '-serial', 'stdio', '-kernel', kernel]
            start = time.monotonic()
            p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, close_fds=False)
            ready = select.select([p.stdout], [], [], timeout)[0]
            took = time.monotonic() - start
            seen = ready and os.read(p.stdout.fileno(), 1)
            p.kill()
            p.communicate()
            return took if seen else None

    def _native(self, orders, folder, boot, timeout, log=None):
        loop = None
        try:
            loop = subprocess.run(['losetup', '--find', '--show', SCRATCH], check=True, capture_output=True, text=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            pass
        command = [self.program, '--mount'] + ([] if os.getuid() == 0 else ['--map-root-user'])
        command += ['sh', '-euc', NATIVE, 'sh', GUESTS, loop or SCRATCH, 'bench.disk=' + (loop or '/opt/bench/scratch')] + orders
        allowed = set(sorted(os.sched_getaffinity(0))[-self.cpus:])
        try:
            result = self._run(command, timeout, log, env={'PATH': os.environ['PATH'], 'GUEST': os.path.join(GUESTS, 'root')},
                               cpus=allowed)
        finally:
            if loop:
                subprocess.run(['losetup', '-d', loop])
        result.disk = 'loop device' if loop else 'file'
        return result

    def _preload(self):
        """The disks into the host's page cache, as far as they are not there: no one's first reads shall be slower than the rest."""
        for path in (SCRATCH, IMAGE):
            with open(path, 'rb') as f:
                end = 0
                while True:
                    try:
                        start = os.lseek(f.fileno(), end, os.SEEK_DATA)
                    except OSError:
                        break
                    end = os.lseek(f.fileno(), start, os.SEEK_HOLE)
                    os.lseek(f.fileno(), start, os.SEEK_SET)
                    while start < end:
                        start += len(os.read(f.fileno(), min(1 << 20, end - start)))

    def _append(self, orders, boot):
        if boot:
            return 'console=ttyS0 quiet panic=-1 ' + ' '.join(orders)
        return 'console=ttyS0 quiet panic=-1 root=/dev/vda init=%s bench.disk=/dev/vdb %s' % (INIT, ' '.join(orders))

    def _doppel(self, orders, folder, boot, timeout, log=None, watch=None):
        command = [self.program, 'run', '--kernel', KERNEL, '--initrd', INITRD, '--memory', '1G', '--cpus', str(self.cpus),
                   '--append', self._append(orders, boot), '--no-reboot', '--stats']
        if not boot:
            command += ['--disk', IMAGE + ',snapshot=on', '--disk', SCRATCH, '--net', 'user']
        if self.debug:
            command += ['--debug', self.debug]
        for pv in self.pv:
            command += ['--pv', pv]
        return self._run(command, timeout, log, watch=watch)

    def _qemu(self, orders, folder, boot, timeout, log=None, watch=None):
        command = [self.program, '-accel', 'tcg', '-machine', 'q35', '-cpu', 'max', '-m', '1G', '-smp', str(self.cpus),
                   '-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none', '-serial', 'stdio', '-kernel', KERNEL, '-initrd', INITRD,
                   '-append', self._append(orders, boot)]
        if not boot:
            command += ['-drive', 'file=%s,format=raw,if=virtio,snapshot=on' % IMAGE, '-drive', 'file=%s,format=raw,if=virtio' % SCRATCH,
                        '-nic', 'user,model=virtio-net-pci']
        return self._run(command, timeout, log, watch=watch)

    def _uml(self, orders, folder, boot, timeout, log=None, watch=None):
        command = [self.program, 'mem=1G', 'con=null', 'con0=null,fd:1', 'quiet', 'uml_dir=' + folder + '/']
        if boot:
            command += ['initrd=' + INITRD] + orders
        else:
            command += ['ubd0=%s/cow,%s' % (folder, IMAGE), 'ubd1=' + SCRATCH, 'root=/dev/ubda', 'rw', 'init=' + INIT, 'bench.disk=/dev/ubdb'] + orders
        return self._run(command, timeout, log, env=dict(os.environ, TMPDIR='/dev/shm'), watch=watch)

    def _prepare(self, cpus):
        """In the child, before it begins: the CPUs that it may use, and its priority, which Linux may keep by session as well."""
        if cpus:
            os.sched_setaffinity(0, cpus)
        if self.options.nice:
            os.setpriority(os.PRIO_PROCESS, 0, self.options.nice)
            if os.path.exists('/proc/self/autogroup'):
                with open('/proc/self/autogroup', 'w') as f:
                    f.write('%d' % self.options.nice)

    def _run(self, command, timeout, log, env=None, cpus=None, watch=None):
        """`watch` is called with the session's leader when /init has begun, and the machine is ended after it."""
        result = Result(self, log)
        result.command = command
        start = time.monotonic()
        p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env,
                             preexec_fn=lambda: self._prepare(cpus), start_new_session=True)
        result.leader = p.pid
        try:
            self._read(p, result, start, timeout, watch is not None)
            if watch and result.initialized:
                watch(p.pid)
        finally:
            # Children of its own (User-mode Linux has some) end with it: it is the leader of their session.
            try:
                os.killpg(p.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            result.status = p.wait()
        result.wall = time.monotonic() - start
        return result

    def _read(self, p, result, start, timeout, only_init):
        os.set_blocking(p.stdout.fileno(), False)
        rest = b''
        while True:
            left = result.begun + timeout - time.monotonic()
            if left <= 0:
                result.timeout = True
                p.terminate()
                try:
                    result.line(p.communicate(timeout=5)[0].decode(errors='replace'), start)
                except subprocess.TimeoutExpired:
                    pass
                return
            if not select.select([p.stdout], [], [], left)[0]:
                continue
            piece = p.stdout.read()
            if not piece:
                break
            *lines, rest = (rest + piece).split(b'\n')
            for line in lines:
                result.line(line.decode(errors='replace').strip(), start)
            if only_init and result.initialized:
                return
        p.wait(timeout=10)
