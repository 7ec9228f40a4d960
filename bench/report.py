"""What the measurements say: medians, a table, a plot."""
import math, statistics

# By workload: what it is, and how many times the native time doppel may take.
WORK = {
    'lua': ('Lua', 2.2), 'perl': ('Perl', 2.2), 'python': ('Python', 2.2), 'gzip': ('gzip', 2.2), 'xz': ('xz', 2.2),
    'sha256': ('SHA-256', 2.2), 'float': ('floating point', 1.4), 'matrix-sse': ('matrix, SSE', 1.4),
    'matrix-avx': ('matrix, AVX2', 1.4), 'sort': ('sort', 2.2), 'gcc': ('gcc -O2', 4), 'fork-exec': ('fork, exec', 8),
    'bytes': ('one-byte read, write', 2), 'getpid': ('getpid', 2), 'pipe': ('pipe ping-pong', 5), 'futex': ('futex ping-pong', 5),
    'mmap': ('page faults, mmap', 5), 'find': ('find', 6), 'tar': ('tar', 6), 'disk-seq-read': ('disk, sequential reads', 2),
    'disk-seq-write': ('disk, sequential writes', 2), 'disk-rand-read': ('disk, random reads', 2),
    'disk-rand-write': ('disk, random writes', 2), 'net-send': ('TCP stream out', None), 'net-receive': ('TCP stream in', None),
    'net-ask': ('TCP requests out', None), 'net-answer': ('TCP requests in', None),
}
# What is no time over native: what it is and its unit, the aim (at most, or with '>' at least), digits behind the point.
EXTRA = {
    'boot': ('boot to init, s', '<', 0.7, 2), 'first': ('first guest instruction, ms', '<', 20, 1),
    'memory': ('memory beside the guest\'s, MiB', '<', 48, 0), 'idle': ('idle guest, % of a CPU', '<', 1, 2),
    'loops': ('two CPUs over one: loops', '>', 1.8, 2), 'make-j2': ('two CPUs over one: make -j2', '>', 1.8, 2),
}
# Those of them that are times.
TIMES = ('boot', 'first')
# Those that are run with one CPU and with two.
PAIRS = ('loops', 'make-j2')
MEAN_AIM = 3.0
QEMU_AIM = 4.5
BOOT_AIM = 3.0  # times as fast as QEMU: 0.7 s where it takes 2.1, whatever the machine
# More than so many CPUs at work for others: the timing is disturbed.
FOREIGN = 0.5
COLORS = ('#1f6fb4', '#d9822b', '#5b9a4a', '#8a5fb0', '#b04a5f', '#4a9a98')


def quiet(run, name):
    """The seconds of a workload while nobody else worked, if there are any; else all. With them, how many were taken otherwise."""
    seconds, foreign = run['rows'].get(name, []), run.get('foreign', {}).get(name, [])
    good = [s for s, f in zip(seconds, foreign) if f <= FOREIGN] if len(foreign) == len(seconds) else seconds
    return seconds, good


def middles(runs, middle):
    """{engine: {workload: seconds}}: of the timings that were not disturbed, where at least three are there."""
    every, calm = {}, {}
    for run in runs:
        for name in run['rows']:
            seconds, good = quiet(run, name)
            every.setdefault(run['engine'], {}).setdefault(name, []).extend(seconds)
            calm.setdefault(run['engine'], {}).setdefault(name, []).extend(good)
    return {e: {n: middle(calm[e][n] if len(calm[e][n]) >= 3 else v) for n, v in rows.items()} for e, rows in every.items()}


def disturbed(runs):
    """How many timings were taken while others worked, and how many there are."""
    pairs = [quiet(run, name) for run in runs for name in run['rows']]
    return sum(len(a) - len(b) for a, b in pairs), sum(len(a) for a, b in pairs)


def ratios(middle, base):
    """{engine: {workload: times over the base}}, for the engines that are not the base."""
    return {e: {n: s / middle[base][n] for n, s in rows.items() if n in middle[base]} for e, rows in middle.items() if e != base}


def mean(values):
    values = list(values)
    return statistics.geometric_mean(values) if values else None


def means(ratio):
    """By engine: the geometric mean over the workloads that it and the first two engines have, and how many those are."""
    first = list(ratio)[:2]
    found = {}
    for e in ratio:
        names = [n for n in WORK if n in ratio[e] and all(n in ratio[other] for other in first)]
        found[e] = (mean(ratio[e][n] for n in names), len(names))
    return found


def number(value, form='%.2f'):
    return form % value if value is not None else '–'


def faster(values, ours, theirs):
    """How many times as fast as theirs; None where one was not measured."""
    return values[theirs] / values[ours] if values.get(ours) and values.get(theirs) else None


def table(results):
    """Markdown: times over native by workload, their geometric means, and the boot."""
    middle, base = results['medians'], results['base']
    ratio = ratios(middle, base)
    engines = list(ratio)
    title = results['titles']
    pair = [next((e for e in engines if e.startswith(k)), None) for k in ('doppel', 'qemu')]
    both = all(pair)
    head = ['workload', title[base] + ', s'] + [title[e] for e in engines] + (['QEMU over doppel'] if both else []) + ['aim']
    lines = ['| ' + ' | '.join(head) + ' |', '| --- |' + ' ---: |' * (len(head) - 1)]
    for n, (text, aim) in WORK.items():
        if not any(n in rows for rows in middle.values()):
            continue
        row = [text, number(middle[base].get(n), '%.3f')] + [number(ratio[e].get(n)) for e in engines]
        if both:
            row.append(number(ratio[pair[1]][n] / ratio[pair[0]][n], '%.1f') if all(n in ratio[e] for e in pair) else '–')
        lines.append('| ' + ' | '.join(row + ['≤ %g' % aim if aim else '']) + ' |')
    over = means(ratio)
    if over:
        row = ['**geometric mean of %d**' % max(n for _, n in over.values()), '']
        row += ['**%s**%s' % (number(m), '' if n == over[engines[0]][1] else ' of %d' % n) for m, n in over.values()]
        if both:
            first, second = (over[e][0] for e in pair)
            row.append('**%s**' % number(second / first if first and second else None, '%.1f'))
        lines.append('| ' + ' | '.join(row + ['≤ %g' % MEAN_AIM]) + ' |')
    for n, (text, direction, aim, digits) in EXTRA.items():
        values = extras(results, n)
        if not values:
            continue
        form = '%%.%df' % digits
        row = [text, number(values.get(base), form)] + [number(values.get(e), form) for e in engines]
        if both:
            row.append(number(faster(values, *pair), '%.1f') if n in TIMES else '')
        lines.append('| ' + ' | '.join(row + ['%s %g' % ('≤' if direction == '<' else '≥', aim)]) + ' |')
    return '\n'.join(lines) + '\n'


def extras(results, name):
    """{engine: value} of one of EXTRA."""
    middle = min if results['statistic'] == 'minimum' else statistics.median
    if name not in PAIRS:
        return {e: middle(v[name]) for e, v in results['extra'].items() if v.get(name)}
    found = {}
    for e, v in results['extra'].items():
        one, two = v.get(name + '/1'), v.get(name + '/2')
        if one and two:
            found[e] = middle(one) / middle(two)
    return found


def remarks(results):
    """What a reader must know about the circumstances, as lines."""
    bad, all_of_them = disturbed(results['runs'])
    lines = []
    if bad:
        lines.append('%d of %d timings were taken while other programs kept more than %g CPU busy%s.' % (
            bad, all_of_them, FOREIGN, '; medians are of the rest where at least three are left'))
    short = [WORK[n][0] for n, s in results['medians'].get(results['base'], {}).items() if n in WORK and s < 0.1 and not results['quick']]
    if short:
        lines.append('Native times under 0.1 s say little: %s.' % ', '.join(short))
    if results['statistic'] == 'minimum':
        lines.append('The least of the timings, not the median.')
    return lines


def aims(results):
    """[(met, text)] for each aim; met is None where it was not measured."""
    ratio = ratios(results['medians'], results['base'])
    kind = {k: next((e for e in ratio if e.startswith(k)), None) for k in ('doppel', 'qemu', 'uml')}
    ours = ratio.get(kind['doppel'], {})
    over = means(ratio)
    found = []

    def check(text, value, limit, least=False, form='%.2f'):
        met = None if value is None else value >= limit if least else value <= limit
        found.append((met, '%s: %s, aim %s %g' % (text, number(value, form), '≥' if least else '≤', limit)))

    doppel, qemu = (over.get(kind[k], (None, 0))[0] for k in ('doppel', 'qemu'))
    check('geometric mean over native', doppel, MEAN_AIM)
    check('geometric mean faster than QEMU TCG', qemu / doppel if doppel and qemu else None, QEMU_AIM, least=True)
    for n, (text, aim) in WORK.items():
        if aim:
            check(text, ours.get(n), aim)
        for other in ('qemu', 'uml'):
            theirs = ratio.get(kind[other], {}).get(n)
            if theirs and n in ours and ours[n] > theirs:
                found.append((False, '%s: %s, slower than %s with %s' % (text, number(ours[n]), results['titles'][kind[other]], number(theirs))))
    for n, (text, direction, aim, digits) in EXTRA.items():
        check(text, extras(results, n).get(kind['doppel']), aim, direction == '>', '%%.%df' % digits)
    check('boot to init, times as fast as QEMU TCG', faster(extras(results, 'boot'), kind['doppel'], kind['qemu']), BOOT_AIM, least=True)
    return found


def aims_text(results):
    words = {True: 'met', False: 'MISSED', None: 'not measured'}
    found = aims(results)
    lines = ['%-13s %s' % (words[met], text) for met, text in found]
    return '\n'.join(lines + ['%d met, %d missed, %d not measured' % tuple(sum(m is w for m, _ in found) for w in (True, False, None))]) + '\n'


def text(x, y, what, **attributes):
    extra = ''.join(' %s="%s"' % (k.replace('_', '-'), v) for k, v in attributes.items())
    return '<text x="%.1f" y="%.1f"%s>%s</text>' % (x, y, extra, what.replace('&', '&amp;').replace('<', '&lt;'))


def plot(results):
    """SVG: bars of the times over native, on a logarithmic axis that begins at 0.5."""
    ratio = ratios(results['medians'], results['base'])
    engines = list(ratio)
    names = [n for n in WORK if any(n in ratio[e] for e in engines)]
    over = means(ratio)
    rows = [(WORK[n][0], [ratio[e].get(n) for e in engines]) for n in names]
    rows.append(('geometric mean', [over[e][0] for e in engines]))
    thick, gap, left, top, wide = 9, 9, 170, 64, 640
    high = len(engines) * thick + gap
    low, most = 0.5, max([v for _, r in rows for v in r if v] + [2]) * 1.3
    height = top + len(rows) * high + 30

    def at(value):
        return left + wide * math.log(max(value, low) / low) / math.log(most / low)

    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="DejaVu Sans, sans-serif" font-size="11">' % (
        left + wide + 60, height), '<rect width="100%" height="100%" fill="white"/>',
        text(left, 18, 'Times over native (1 = native; shorter is faster)', font_size=14)]
    for i, e in enumerate(engines):
        out.append('<rect x="%d" y="28" width="10" height="10" fill="%s"/>' % (left + i * 160, COLORS[i % len(COLORS)]))
        out.append(text(left + i * 160 + 15, 37, results['titles'][e]))
    for tick in (0.5, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500):
        if tick <= most:
            out.append('<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="%s"/>' % (
                at(tick), top - 4, at(tick), height - 26, '#333' if tick == 1 else '#ccc'))
            out.append(text(at(tick), top - 8, '%g' % tick, text_anchor='middle', fill='#555'))
    for i, (name, values) in enumerate(rows):
        y = top + i * high + gap / 2
        last = i == len(rows) - 1
        out.append(text(left - 8, y + len(engines) * thick / 2 + 4, name, text_anchor='end', font_weight='bold' if last else 'normal'))
        for j, value in enumerate(values):
            if value is None:
                continue
            out.append('<rect x="%d" y="%.1f" width="%.1f" height="%d" fill="%s"/>' % (
                left, y + j * thick, max(at(value) - left, 1), thick - 1, COLORS[j % len(COLORS)]))
            out.append(text(at(value) + 4, y + j * thick + thick - 1, '%.2g' % value if value < 100 else '%.0f' % value, font_size=9))
    return '\n'.join(out + ['</svg>']) + '\n'
