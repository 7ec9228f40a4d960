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
    'disk-rand-write': ('disk, random writes', 2),
}
BOOT_AIM = 0.7
MEAN_AIM = 3.0
COLORS = ('#1f6fb4', '#d9822b', '#5b9a4a', '#8a5fb0', '#b04a5f', '#4a9a98')


def middles(runs, middle):
    """{engine: {workload: seconds}}"""
    times = {}
    for run in runs:
        for name, seconds in run['rows'].items():
            times.setdefault(run['engine'], {}).setdefault(name, []).extend(seconds)
    return {e: {n: middle(v) for n, v in rows.items()} for e, rows in times.items()}


def ratios(middle, base):
    """{engine: {workload: times over the base}}, for the engines that are not the base."""
    return {e: {n: s / middle[base][n] for n, s in rows.items() if n in middle[base]} for e, rows in middle.items() if e != base}


def mean(values):
    values = list(values)
    return statistics.geometric_mean(values) if values else None


def common(ratio):
    """The workloads that every engine has: means over these can be compared."""
    sets = [set(rows) for rows in ratio.values()]
    return [n for n in WORK if sets and all(n in s for s in sets)]


def number(value, form='%.2f'):
    return form % value if value is not None else '–'


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
        lines.append('| ' + ' | '.join(row + ['≤ %g' % aim]) + ' |')
    shared = common(ratio)
    means = [mean(ratio[e][n] for n in shared) for e in engines]
    row = ['**geometric mean of %d**' % len(shared), ''] + ['**%s**' % number(m) for m in means]
    if both:
        first, second = (means[engines.index(e)] for e in pair)
        row.append('**%s**' % number(second / first if first and second else None, '%.1f'))
    lines.append('| ' + ' | '.join(row + ['≤ %g' % MEAN_AIM]) + ' |')
    middle_of = min if results['statistic'] == 'minimum' else statistics.median
    boots = {e: middle_of(b) for e, b in results['boots'].items() if b}
    if boots:
        row = ['boot to init, s', ''] + [number(boots.get(e)) for e in engines]
        if both:
            row.append(number(boots[pair[1]] / boots[pair[0]], '%.1f') if all(e in boots for e in pair) else '–')
        lines.append('| ' + ' | '.join(row + ['≤ %g s' % BOOT_AIM]) + ' |')
    return '\n'.join(lines) + '\n'


def text(x, y, what, **attributes):
    extra = ''.join(' %s="%s"' % (k.replace('_', '-'), v) for k, v in attributes.items())
    return '<text x="%.1f" y="%.1f"%s>%s</text>' % (x, y, extra, what.replace('&', '&amp;').replace('<', '&lt;'))


def plot(results):
    """SVG: bars of the times over native, on a logarithmic axis that begins at 0.5."""
    ratio = ratios(results['medians'], results['base'])
    engines = list(ratio)
    names = [n for n in WORK if any(n in ratio[e] for e in engines)]
    shared = common(ratio)
    rows = [(WORK[n][0], [ratio[e].get(n) for e in engines]) for n in names]
    rows.append(('geometric mean', [mean(ratio[e][n] for n in shared) for e in engines]))
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
