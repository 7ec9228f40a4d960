"""For tests with real systems: runs doppel with a guest of tools/fetch-guests, talks to its console, and reads the kernel's log."""
import os, re, select, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
DOPPEL = os.environ.get('DOPPEL', os.path.join(ROOT, 'build', 'doppel'))
GUESTS = os.environ.get('DOPPEL_GUESTS', os.path.join(ROOT, 'guests'))
LOGS = os.path.join(os.environ.get('DOPPEL_BUILD', tempfile.gettempdir()), 'test-logs')
READY = b'doppel: busybox shell ready'
PROMPT = b'/ # '
RAW_LINE = re.compile(r'<(\d+)>\[ *\d+\.\d{6}\] ')
KERNEL_LINE = re.compile(r'\[ *\d+\.\d{6}\] .*\n')

# What a kernel's log must not have, unless a real PC's log has it too.
COMPLAINT = re.compile(r'error|warn|call trace|\bbug\b|unstable|firmware|stall|fail|\boops|taint|panic|lockup|hung|unable|'
                       r'could not|couldn.t|spurious|inconsistent|mismatch|\binvalid\b|unexpected|exception|segfault|general protection|'
                       r'timed out|timeout|corrupt|conflict|no irq|nobody cared|skew|backwards|out of range|broken|wrong', re.I)
HARMLESS = [re.compile(p) for p in (
    r'PCI: Using host bridge windows from ACPI; if necessary, use "pci=nocrs" and report a bug',
    r'RAS: Correctable Errors collector initialized',
    r'(Command line|Kernel command line|Unknown kernel command line parameters)',
    r'x86/fpu: ',
    r'Loaded X\.509 cert', r'Loading compiled-in X\.509', r'blacklist: ',
    r'EXT4-fs \(vd.\): .*errors=',
    r'(KTAP|kunit)', r'pstore: ', r'Error Record',
    r'Spectre V2 : .*(firmware|Firmware)', r'random: crng init',
    r'clocksource: .*max_idle_ns',
    r'This is not a bug', r'Unable to map lapic to logical cpu number',
    r'audit: ', r'hugetlb', r'watchdog: NMI not fully supported',
    # What the same processor's PC prints when its firmware leaves CPPC off.
    r'amd_pstate: (The CPPC feature is supported but currently disabled by the BIOS|the _CPC object is not present)', r'Please enable it if your BIOS has the CPPC option',
    # A processor without performance counters, where no hypervisor explains it.
    r'Performance Events: Broken PMU hardware detected', r'Failed to access perfctr msr',
    r'ACPI: button: ', r'platform regulatory|regulatory\.0',
)]


def complaints(log):
    """The lines of a kernel's log that a real PC would not print, by their words or, in `dmesg -r`, by their level: warning or worse."""
    found = []
    for line in log.splitlines():
        level = RAW_LINE.match(line)
        if level and int(level.group(1)) & 7 <= 4 or KERNEL_LINE.match(line + '\n') and COMPLAINT.search(line):
            found.append(line)
    return [line for line in found if not any(h.search(line) for h in HARMLESS)]


def guest(*path):
    return os.path.join(GUESTS, *path)


class Checks:
    """Prints 'ok NAME' or 'FAIL NAME: why' for each check; `done` is the exit status."""

    def __init__(self):
        self.failed = False

    def check(self, name, why=None):
        print('FAIL %s: %s' % (name, why) if why else 'ok %s' % name, flush=True)
        self.failed |= bool(why)

    def skip(self, name, why):
        print('skip %s: %s' % (name, why), flush=True)

    def done(self):
        sys.exit(1 if self.failed else 0)


class Ended(Exception):
    pass


class Machine:
    """A running VM. Its console is in `self.log`; every wait is bounded."""

    def __init__(self, name, kernel='cloud', initrd=None, append='', memory='1G', cpus=1, disks=(), options=(), timeout=120, vmlinux=None, bare=False):
        self.end = time.monotonic() + timeout
        self.log, self.seen, self.status = b'', 0, None
        os.makedirs(LOGS, exist_ok=True)
        self.path = os.path.join(LOGS, 'console-%s.log' % name)
        command = [DOPPEL, 'run', '--quiet', '--kernel', vmlinux or guest(kernel, 'vmlinuz'), '--memory', memory, '--cpus', str(cpus),
                   '--append', append if bare else ('console=ttyS0 ' + append).strip(), *options]
        if not bare:  # `bare`: no Linux, which wants no initrd
            command += ['--initrd', initrd or guest(kernel, 'initrd.gz')]
        for disk in disks:
            command += ['--disk', disk]
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)

    def _read(self):
        """More of the console, or Ended."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise Ended('out of time; the console ends in: ' + self.tail())
        if select.select([self.process.stdout], [], [], min(left, 1))[0]:
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                raise Ended('the machine ended; the console ends in: ' + self.tail())
            self.log += data

    def tail(self):
        return repr(self.log[-200:].decode(errors='replace'))

    def wait_for(self, word):
        """What the console shows up to `word`, from where the last wait ended."""
        while True:
            at = self.log.find(word, self.seen)
            if at >= 0:
                text, self.seen = self.log[self.seen:at], at + len(word)
                return text.decode(errors='replace').replace('\r', '')
            self._read()

    def send(self, line):
        self.process.stdin.write(line.encode() + b'\n')
        self.process.stdin.flush()

    def command(self, line):
        """Types a command at busybox's prompt and returns what it prints, without the kernel's lines; reads the next prompt too."""
        self.send(line)
        while not KERNEL_LINE.sub('', self.wait_for(b'\n') + '\n'):  # up to the echo
            pass
        return KERNEL_LINE.sub('', self.wait_for(PROMPT))

    def finish(self):
        """Waits for the end; returns doppel's exit status."""
        try:
            while True:
                self._read()
        except Ended as e:
            if self.process.poll() is None and 'out of time' in str(e):
                raise
        self.status = self.process.wait(max(1, self.end - time.monotonic()))
        return self.status

    def text(self):
        return self.log.decode(errors='replace').replace('\r', '')

    def close(self):
        if self.errors.closed:
            return
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.errors.seek(0)
        self.said = self.errors.read().decode(errors='replace')
        self.errors.close()
        with open(self.path, 'wb') as f:
            f.write(self.log + b'\n--- standard error, status ' + str(self.status).encode() + b'\n' + self.said.encode())

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def verdict(body, machine):
    """Runs body(machine), which returns why it failed or None, and closes the machine; the reason or None."""
    try:
        with machine:
            why = body(machine)
    except (Ended, BrokenPipeError, subprocess.TimeoutExpired) as e:
        why = str(e) or type(e).__name__
    if why and machine.said:
        why += '; doppel says: ' + machine.said.strip()[:300]
    return why


def ended_well(machine):
    """The reason why a machine that powered off did not do it well, or None."""
    status = machine.finish()
    if status:
        return 'status %d' % status
    if 'reboot: Power down' not in machine.text():
        return 'no "reboot: Power down" on the console: ' + machine.tail()
    bad = complaints(machine.text())
    return 'the kernel complains: ' + ' | '.join(bad[:5]) if bad else None


def make_initrd(kernel, path, add):
    """The kernel's initramfs with more files: {path in the guest: file}."""
    command = [os.path.join(ROOT, 'tools', 'make-initrd'), '--modules', guest(kernel, 'modules')]
    for inside, outside in add.items():
        command += ['--add', '%s:%s' % (outside, inside)]
    subprocess.run(command + [path], check=True)
