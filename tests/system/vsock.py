#!/usr/bin/env python3
# timeout: 300
# guests: cloud root
"""Sockets between host and guest under Debian's vsock, by python3 in a Debian root; and what needs a program there of a shared folder."""
import hashlib, os, random, socket, tempfile, threading

from linux import READY, Checks, Machine, ended_well, guest, make_initrd, verdict

c = Checks()
folder = tempfile.TemporaryDirectory()
PATH = os.path.join(folder.name, 'v')
SHARED = os.path.join(folder.name, 'shared')
DATA = random.Random(1).randbytes(1 << 20)

GUEST = r'''
import fcntl, hashlib, mmap, os, socket, threading
HOST = socket.VMADDR_CID_HOST

def whole(s):
    return b''.join(iter(lambda: s.recv(65536), b''))

def serve(s, count):
    for _ in range(count):
        client = s.accept()[0]
        def echo(client=client):
            with client:
                data = whole(client)
                client.sendall(hashlib.sha256(data).hexdigest().encode() + data)
        threading.Thread(target=echo).start()

s = socket.socket(socket.AF_VSOCK)
s.bind((socket.VMADDR_CID_ANY, 5000))
s.listen(16)
threading.Thread(target=serve, args=(s, 9)).start()
print('=== listening', flush=True)

with socket.socket(socket.AF_VSOCK) as s:
    s.connect((HOST, 1234))
    data = os.urandom(1 << 20)
    threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR))).start()
    print('to host', whole(s).decode() == hashlib.sha256(data).hexdigest())
with socket.socket(socket.AF_VSOCK) as s:
    try:
        s.connect((HOST, 4321))
        print('connected to nobody')
    except ConnectionResetError:
        print('refused True')
print('cid', open('/dev/vsock').fileno() > 0 and fcntl.ioctl(open('/dev/vsock'), 0x7b9, b'\0' * 4)[0])

with open('/share/mapped', 'r+b') as f:
    with mmap.mmap(f.fileno(), 0) as m:
        print('mapped', m[4090:4100] == b'a' * 10)
        m[5000:5005] = b'guest'
        m.flush()
a, b = open('/share/mapped'), open('/share/mapped')
fcntl.flock(a, fcntl.LOCK_EX | fcntl.LOCK_NB)
try:
    fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print('locked twice')
except BlockingIOError:
    print('lock True')
os.setxattr('/share/mapped', 'user.who', b'guest')
print('attribute', os.listxattr('/share/mapped'), os.statvfs('/share').f_blocks > 0)
for t in threading.enumerate():
    if t is not threading.current_thread():
        t.join()
print('=== done', flush=True)
'''
TEST = '''dmesg -n 1
mount --bind /dev /mnt/dev
mkdir /mnt/share; mount -t virtiofs share /mnt/share
cp /guest.py /mnt/root/guest.py
chroot /mnt python3 /root/guest.py
umount /mnt/share /mnt/dev
'''


def whole(s):
    return b''.join(iter(lambda: s.recv(65536), b''))


def listen(name):
    s = socket.socket(socket.AF_UNIX)
    s.bind(name)
    s.listen(4)
    return s


def answer_one(s):
    with s.accept()[0] as client:
        client.sendall(hashlib.sha256(whole(client)).hexdigest().encode())


def ask(wrong):
    """A connection to the guest's server, with the same data both ways."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(100)
        s.connect(PATH)
        s.sendall(b'CONNECT 5000\n')
        line = b''
        while not line.endswith(b'\n'):
            line += s.recv(1) or b'\n'
        if not line.startswith(b'OK '):
            wrong.append('the answer is %r' % line)
            return
        threading.Thread(target=lambda: (s.sendall(DATA), s.shutdown(socket.SHUT_WR))).start()
        got = whole(s)
        if got != hashlib.sha256(DATA).hexdigest().encode() + DATA:
            wrong.append('%d bytes came back' % len(got))


def vsock(m):
    m.wait_for(READY)
    m.wait_for(b'=== listening\r\n')
    wrong = []
    ask(wrong)
    threads = [threading.Thread(target=ask, args=(wrong,)) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    c.check('vsock_to_guest', '; '.join(wrong) or None)
    said = m.wait_for(b'=== done')
    want = ['to host True', 'refused True', 'cid 7', 'mapped True', 'lock True', "attribute ['user.who'] True"]
    c.check('vsock_from_guest', None if said.splitlines() == want else repr(said))
    with open(os.path.join(SHARED, 'mapped'), 'rb') as f:
        content = f.read()
    c.check('share_mapped', None if content == b'a' * 5000 + b'guest' + b'a' * 4995 else 'the host does not see what was mapped')
    return ended_well(m)


os.mkdir(SHARED)
with open(os.path.join(SHARED, 'mapped'), 'wb') as f:
    f.write(b'a' * 10000)
test, program, initrd = (os.path.join(folder.name, n) for n in ('test', 'guest.py', 'initrd.gz'))
for path, text in (test, TEST), (program, GUEST):
    with open(path, 'w') as f:
        f.write(text)
make_initrd('cloud', initrd, {'/test': test, '/guest.py': program})
server = listen(PATH + '_1234')
threading.Thread(target=answer_one, args=(server,), daemon=True).start()
c.check('vsock', verdict(vsock, Machine('vsock', initrd=initrd, append='doppel.chroot=/dev/vda', memory='512M', cpus=2, timeout=240,
                                        disks=(guest('root.ext4') + ',snapshot=on',),
                                        options=('--vsock', 'unix=%s,cid=7' % PATH, '--share', SHARED))))
c.check('vsock_gone', 'the socket is still there' if os.path.exists(PATH) else None)
c.done()
