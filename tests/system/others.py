#!/usr/bin/env python3
# timeout: 400
# guests: memtest mach
"""Systems that are not Linux: memtest86+ through its tests of memory, and GNU Mach as far as it comes without a boot script."""
import calendar, gzip, os, re, tempfile, time

from linux import Checks, Machine, guest, verdict

c = Checks()


def memtest(m):
    m.wait_for(b'[Bit fade test')  # the last one, and the only one that takes long: all the others are through
    screen = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', ' ', m.text())
    counts = set(re.findall(r'Errors:\s+(\d+)', screen))
    return None if counts == {'0'} else 'errors are counted: ' + ', '.join(sorted(counts))


def mach(m):
    start = int(time.time())
    m.wait_for(b'GNU Mach 1.8')
    m.wait_for(b'RTC time is ')
    said = m.wait_for(b'\n').strip()
    end = time.time()
    m.wait_for(b'No bootstrap code loaded')
    seen = calendar.timegm(time.strptime(said, '%Y-%m-%d %H:%M:%S'))
    return None if start <= seen <= end else 'the clock shows %s, the host %s' % (seen, start)


c.check('memtest86+', verdict(memtest, Machine('memtest', vmlinux=guest('memtest', 'memtest86+x64.bin'), bare=True,
                                               append='console=ttyS0,115200', memory='8M', timeout=240)))
with tempfile.TemporaryDirectory() as folder:
    kernel = os.path.join(folder, 'gnumach')
    with gzip.open(guest('mach', 'gnumach-1.8-486.gz')) as packed, open(kernel, 'wb') as f:
        f.write(packed.read())
    c.check('gnumach', verdict(mach, Machine('gnumach', vmlinux=kernel, bare=True, append='console=com0', memory='64M')))
c.done()
