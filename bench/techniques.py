"""What each of doppel's techniques brings: the same work without it and with it, alternating. docs/translator.md says what the
switches turn off, doppel(1) what --pv names."""
import statistics

import report

PV = ('clock', 'delay', 'steal', 'eoi', 'ipi', 'tlb', 'lock')


def pv_without(*names):
    return 'pv=' + ','.join(n for n in PV if n not in names)


class Part:
    def __init__(self, title, cpus, work, without, off=''):
        self.title, self.cpus, self.work = title, cpus, work
        self.without = without  # {switch: what it turns off}
        self.off = off  # a switch for all sessions

    def engine(self, switch):
        switches = '+'.join(filter(None, (self.off, switch)))
        return 'doppel' + (':' + switches if switches else '')


PARTS = {
    'direct': Part('User code run directly, one CPU', 1, ('lua', 'perl', 'python', 'gzip', 'xz', 'sha256', 'float', 'matrix-sse', 'sort', 'gcc', 'fork-exec'), {
        'no-direct': 'programs that compute run as they are',
        'no-burst': 'bursts of page faults and system calls translated',
        'no-copy+no-break': 'pages with CPUID or its like too, as copies or with breakpoints',
    }),
    'translator': Part('The translator, one CPU, `no-direct` in all sessions', 1, ('lua', 'perl', 'python', 'sha256', 'sort', 'gcc', 'fork-exec', 'pipe', 'find', 'boot'), {
        'no-link': 'jumps that lead from block to block',
        'no-window': 'windows: the host\'s MMU checks accesses',
        'no-kernel-window': 'windows for the kernel',
        'no-share': 'checks shared by several accesses',
        'no-carry': 'R9 to R11 and distances kept in registers between instructions',
        'no-lazy-flags': 'flags saved only where host code would destroy them',
        'no-trace': 'blocks that go on behind conditional jumps',
        'no-return': 'returns by what the call has left',
        'no-loop': 'several turns of a short loop in a row',
        'no-inline': 'system instructions without leaving translated code',
        'no-string': 'string instructions as the host\'s own',
        'no-reuse': 'known code kept over a flush that changed none of it',
        'no-pdep': 'entries of indirect jumps found by PDEP',
        'no-decode-cache': 'decoded instructions kept',
        'no-at-once': 'writes to the local APIC that are no exits',
    }, off='no-direct'),
    'pv': Part('KVM\'s paravirtual interface, two CPUs', 2, ('fork-exec', 'pipe', 'futex', 'make-j2', 'boot'), {
        'pv=none': 'all of it (`--pv none`)',
        pv_without('clock'): '`clock`',
        pv_without('delay'): '`delay`',
        pv_without('eoi'): '`eoi`',
        pv_without('ipi'): '`ipi`',
        pv_without('steal', 'tlb'): '`steal` and `tlb`',
        pv_without('lock'): '`lock`',
    }),
}


def measure(runs, wanted, rows_of, boot_of):
    """{part: {switch: {workload: [(seconds without it, with it)]}}}: `with it` is the mean of a session before and one after, for a
    machine that becomes slower does so for minutes. rows_of(index, name, work, cpus) runs a session, boot_of(name, cpus) a boot."""
    found = {}

    def session(index, part, switch):
        work, name = [w for w in part.work if wanted(w)], part.engine(switch)
        rows = {w: min(s) for w, s in rows_of(index, name, [w for w in work if w != 'boot'], part.cpus).items()}
        if 'boot' in work:
            rows['boot'] = boot_of(name, part.cpus)
        return rows

    for index in range(runs):
        for key, part in PARTS.items():
            if not any(wanted(w) for w in part.work):
                continue
            before = session(index, part, '')
            for switch in part.without:
                without, after = session(index, part, switch), session(index, part, '')
                rows = found.setdefault(key, {}).setdefault(switch, {})
                for w in without:
                    if w in before and w in after:
                        rows.setdefault(w, []).append((without[w], (before[w] + after[w]) / 2))
                before = after
    return found


def title(work):
    return 'boot' if work == 'boot' else report.EXTRA[work][0].split(': ')[1] if work in report.EXTRA else report.WORK[work][0]


def table(found):
    """Markdown: for each technique how many times as long the work takes without it, the median."""
    text = ''
    for key, rows in found.items():
        part = PARTS[key]
        work = [w for w in part.work if all(w in rows[s] for s in rows)]
        text += '\n%s:\n\n| without | switch | %s |\n| --- | --- |%s\n' % (part.title, ' | '.join(title(w) for w in work), ' ---: |' * len(work))
        usual = ['%.2f' % statistics.median(pair[1] for s in rows for pair in rows[s][w]) for w in work]
        text += '| (nothing: seconds) | | %s |\n' % ' | '.join(usual)
        for switch, what in part.without.items():
            cells = ['%.2f' % statistics.median(a / b for a, b in rows[switch][w]) for w in work]
            text += '| %s | %s | %s |\n' % (what, '' if switch.startswith('pv=') else '`%s`' % switch, ' | '.join(cells))
    return text
