#!/usr/bin/env python3
# timeout: 400
# guests: cloud
"""Shared folders under Debian's virtiofs: trees copied in and out, much that happens at once, ways out that lead nowhere, readonly."""
import hashlib, os, random, socket, stat, tempfile

from linux import PROMPT, READY, Checks, Machine, ended_well, make_initrd, verdict

c = Checks()
folder = tempfile.TemporaryDirectory()
SHARED, OUTSIDE = os.path.join(folder.name, 'shared'), os.path.join(folder.name, 'outside')
rng = random.Random(3)

# The same doings, by the same numbers, in the share and in memory; then both trees must be the same.
STRESS = '''
seed=$2; n=0
cd "$1" || exit 1
while [ $n -lt 90 ]; do
	n=$((n + 1)); seed=$(((seed * 1103515245 + 12345) % 2147483648))
	a=d$((seed / 65536 % 3))/f$((seed / 256 % 5)); b=d$((seed / 7 % 3))/f$((seed / 1000 % 5))
	case $((seed / 4096 % 10)) in
	0) mkdir -p d0 d1 d2 ;;
	1 | 2) echo "$seed" >"$a" ;;
	3) echo "$seed" >>"$a" ;;
	4) mv "$a" "$b" ;;
	5) ln "$a" "$b" ;;
	6) ln -s "$a" "$b" ;;
	7) rm -f "$a" ;;
	8) [ -f "$a" ] && [ ! -h "$a" ] && truncate -s $((seed / 32768 % 10000)) "$a" ;;
	9) chmod $((seed / 128 % 2 * 11 + 600)) "$a"; mv d0 dx; mv d1 d0; mv dx d1 ;;
	esac 2>/dev/null
done
'''
DOINGS = '''dmesg -n 1
mkdir /s /m /r
mount -t virtiofs share /s && mount -t virtiofs kept /r && mount -t tmpfs tmpfs /m || exit 1
echo "=== tree"
cp -a /s/tree /m/tree && cd /m/tree && find . -type f -print0 | sort -z | xargs -0 sha256sum
echo "=== end"
cp -a /m/tree /s/back && tar cf - -C /s/back . | tar xf - -C /m
echo "=== stress"
cd /
for i in 1 2 3; do
	mkdir /s/stress$i /m/stress$i
	sh /stress /s/stress$i $i & sh /stress /m/stress$i $i
done
wait
for i in 1 2 3; do
	for where in s m; do
		cd /$where/stress$i
		{ find . ! -type d | sort | xargs stat -c '%n %h %F'; find . -type f | sort | xargs sha256sum; } >/m/list-$where-$i 2>&1
	done
	cmp /m/list-s-$i /m/list-m-$i && echo "same $(wc -l </m/list-s-$i)"
done
echo "=== escape"
cat /s/absolute /s/relative /s/relative/secret /s/folder/secret 2>/dev/null && echo OUT
cat /s/../outside/secret /s/tree/../../outside/secret 2>/dev/null && echo OUT
ls /s/folder/ 2>/dev/null | grep secret && echo OUT
mknod /s/null c 1 3 2>/dev/null && echo OUT
mknod /s/disk b 254 0 2>/dev/null && echo OUT
echo x >/s/fifo-of-host &
cat /s/fifo-of-host
grep -c . /s/socket 2>/dev/null && echo OUT
cp /bin/busybox /s/setid && chmod 6755 /s/setid && stat -c %a /s/setid && rm /s/setid
echo "=== open"
exec 5>/s/gone 6</s/gone; rm /s/gone; echo deleted >&5; cat <&6; exec 5>&- 6<&-
echo first >/s/log; tail -n +1 -f /s/log >/m/seen & echo second >>/s/log; sleep 1; kill $!; cat /m/seen; rm /s/log
echo "=== readonly"
cat /r/file
{ echo x >/r/file; echo x >/r/new; rm /r/file; mkdir /r/d; mv /r/file /r/f; chmod 777 /r/file; touch /r/file; } 2>&1 | grep -c Read-only
umount /s /r
mount -t virtiofs nothing /r 2>/dev/null && echo MOUNTED
echo "=== done"
'''


def make_tree(top):
    os.makedirs(top)
    for n in range(150):
        path = os.path.join(top, *(('d%d' % (n % 7), 'deep' * (n % 5) or 'x')[:1 + n % 2]), 'file %d \u00e4' % n)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'wb') as f:
            f.write(rng.randbytes(rng.choice((0, 1, 4095, 4096, 4097, 50000))))
        os.chmod(path, rng.choice((0o644, 0o755, 0o600, 0o444)))
        os.utime(path, ns=(n * 10**9, (n + 7) * 10**9))
    with open(os.path.join(top, 'large'), 'wb') as f:
        f.write(rng.randbytes(10 << 20))
    with open(os.path.join(top, 'sparse'), 'wb') as f:
        f.truncate(5 << 20)
    os.symlink('d1/nowhere', os.path.join(top, 'link'))
    os.link(os.path.join(top, 'large'), os.path.join(top, 'second name'))


def digest(path):
    with open(path, 'rb') as f:
        return hashlib.sha256(f.read()).hexdigest()


def describe(top):
    """{path: what it is}, to compare trees by."""
    found = {}
    for where, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(where, name)
            st = os.lstat(path)
            kind = stat.S_IFMT(st.st_mode)
            what = [kind, stat.S_IMODE(st.st_mode)]
            if stat.S_ISREG(kind):
                what += [st.st_size, int(st.st_mtime), st.st_nlink, digest(path)]  # busybox keeps whole seconds
            elif stat.S_ISLNK(kind):
                what = [kind, os.readlink(path)]
            found[os.path.relpath(path, top)] = what
    return found


def parts(m):
    """The test's output, by its headings."""
    m.wait_for(READY)
    m.wait_for(b'=== ')
    text = m.wait_for(b'=== done')
    return {part.split('\n', 1)[0]: part.split('\n', 1)[1] for part in text.split('=== ')}


def share(m):
    got = parts(m)
    seen = {line.split('  ./', 1)[1]: line.split()[0] for line in got['tree'].splitlines()}
    there = {p: w[-1] for p, w in describe(os.path.join(SHARED, 'tree')).items() if stat.S_ISREG(w[0])}
    c.check('share_in', None if seen == there else 'the guest read other content: %d files of %d' % (len(seen), len(there)))
    same = [line.split() for line in got['stress'].splitlines()]
    good = len(same) == 3 and all(s[0] == 'same' and int(s[1]) > 5 for s in same)
    c.check('share_stress', None if good else 'the share is not as memory is: %r' % got['stress'])
    c.check('share_escape', None if got['escape'] == 'x\n755\n' else repr(got['escape']))
    c.check('share_open', None if got['open'] == 'deleted\nfirst\nsecond\n' else repr(got['open']))
    c.check('share_readonly', None if got['readonly'] == 'kept\n7\n' else repr(got['readonly']))
    return ended_well(m)


def after_reset(m):
    """A restart of the guest with the share in use; and what the host changes is seen."""
    for turn in range(2):
        m.wait_for(READY)
        m.wait_for(PROMPT)
        m.command('mkdir -p /s; mount -t virtiofs share /s; exec 5>>/s/log; echo %d >&5' % turn)
        with open(os.path.join(SHARED, 'from host'), 'w') as f:
            f.write('turn %d' % turn)
        if m.command('cat "/s/from host"').strip() != 'turn %d' % turn:
            return 'the guest does not see what the host wrote'
        if turn == 0:
            m.send('reboot -f')
    m.send('poweroff -f')
    why = ended_well(m)
    with open(os.path.join(SHARED, 'log')) as f:
        return why or (None if f.read() == '0\n1\n' else 'the log is not what the guest wrote')


make_tree(os.path.join(SHARED, 'tree'))
for name in 'outside', 'kept':
    os.mkdir(os.path.join(folder.name, name))
with open(os.path.join(OUTSIDE, 'secret'), 'w') as f:
    f.write('secret\n')
with open(os.path.join(folder.name, 'kept', 'file'), 'w') as f:
    f.write('kept\n')
os.symlink(os.path.join(OUTSIDE, 'secret'), os.path.join(SHARED, 'absolute'))
os.symlink('../outside/secret', os.path.join(SHARED, 'relative'))
os.symlink('../outside', os.path.join(SHARED, 'folder'))
os.mkfifo(os.path.join(SHARED, 'fifo-of-host'))
s = socket.socket(socket.AF_UNIX)
s.bind(os.path.join(SHARED, 'socket'))

test, stress, initrd = (os.path.join(folder.name, n) for n in ('test', 'stress.sh', 'initrd.gz'))
for path, text in (test, DOINGS), (stress, STRESS):
    with open(path, 'w') as f:
        f.write(text)
make_initrd('cloud', initrd, {'/test': test, '/stress': stress})
options = ('--share', SHARED, '--share', os.path.join(folder.name, 'kept') + ':kept,readonly')
c.check('share', verdict(share, Machine('share', initrd=initrd, cpus=2, options=options, timeout=240)))
want, got = describe(os.path.join(SHARED, 'tree')), describe(os.path.join(SHARED, 'back')) if os.path.exists(os.path.join(SHARED, 'back')) else {}
different = sorted(p for p in want.keys() | got.keys() if want.get(p) != got.get(p))
c.check('share_out', 'what came back differs: %s' % [(p, want.get(p), got.get(p)) for p in different[:3]] if different else None)
c.check('share_neighbour', None if os.listdir(OUTSIDE) == ['secret'] and digest(os.path.join(OUTSIDE, 'secret')) ==
        hashlib.sha256(b'secret\n').hexdigest() else 'what lies beside the folder changed')
make_initrd('cloud', initrd, {})
c.check('share_reset', verdict(after_reset, Machine('share_reset', initrd=initrd, options=options[:2], timeout=120)))
c.done()
