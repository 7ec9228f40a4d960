#!/usr/bin/env python3
# timeout: 400
# guests: cloud
"""Networks under Debian's driver: DHCP, ping, DNS, TCP and UDP both ways with a user-mode network, and a tap.

All of it is in a network of the test's own (a namespace), so that nothing outside is spoken to, no port of the host's is taken, and
there are a DNS server and a tap to be had. Where the host allows no namespace, what needs one is skipped."""
import contextlib, fcntl, hashlib, http.client, http.server, os, re, shutil, socket, struct, subprocess, sys, tempfile, threading, time

from linux import PROMPT, READY, Checks, Machine, ended_well, make_initrd, verdict

INSIDE = 'DOPPEL_NETWORK_TEST'
HERE = os.path.dirname(os.path.abspath(__file__))


def enter():
    """Runs this program again, in namespaces of its own."""
    if INSIDE in os.environ or not shutil.which('unshare'):
        return
    unshare = ['unshare', '--net', '--mount'] + ([] if os.getuid() == 0 else ['--map-root-user'])
    if subprocess.run(unshare + ['true'], stderr=subprocess.DEVNULL).returncode == 0:
        os.execvpe('unshare', unshare + [sys.executable, *sys.argv], dict(os.environ, **{INSIDE: '1'}))


enter()
PRIVATE = INSIDE in os.environ
c = Checks()
folder = tempfile.TemporaryDirectory()
MIB = 1 << 20
BLOB = b''.join(hashlib.sha256(b'%d' % i).digest() for i in range(6 * MIB // 32))
SUM = hashlib.sha256(BLOB).hexdigest()


def path(name):
    return os.path.join(folder.name, name)


# Interfaces, by ioctl (netdevice(7), tun.4): no tool of the host's is needed.
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK, TUNSETIFF, TUNSETPERSIST = 0x8914, 0x8916, 0x891c, 0x400454ca, 0x400454cb


def interface(name, address=None):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        if address:
            fcntl.ioctl(s, SIOCSIFADDR, struct.pack('16sHH4s8x', name.encode(), socket.AF_INET, 0, socket.inet_aton(address)))
            fcntl.ioctl(s, SIOCSIFNETMASK, struct.pack('16sHH4s8x', name.encode(), socket.AF_INET, 0, socket.inet_aton('255.255.255.0')))
        fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack('16sH14x', name.encode(), 0x1 | 0x40))


def make_tap(name, address):
    fd = os.open('/dev/net/tun', os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack('16sH22x', name.encode(), 0x2 | 0x1000 | 0x4000))
    fcntl.ioctl(fd, TUNSETPERSIST, 1)
    os.close(fd)
    interface(name, address)


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


class Handler(http.server.BaseHTTPRequestHandler):
    """GET gives the blob; a PUT's body is hashed and the sum given back."""

    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', str(len(BLOB)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(BLOB)

    def log_message(self, *args):
        pass


def hash_server(listener):
    """Takes a connection's bytes up to its end and answers with their sum."""
    while True:
        connection, _ = listener.accept()
        with connection:
            h = hashlib.sha256()
            while data := connection.recv(65536):
                h.update(data)
            connection.sendall(h.hexdigest().encode() + b'\n')


def echo_server(s):
    while True:
        data, peer = s.recvfrom(65536)
        s.sendto(data, peer)


def dns_server(s):
    """Every name is 192.0.2.7."""
    while True:
        query, peer = s.recvfrom(512)
        end = query.index(b'\0', 12) + 5
        kind = query[end - 4:end - 2]
        answer = b'\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\x07' if kind == b'\0\1' else b''
        s.sendto(query[:2] + b'\x81\x80\0\1' + struct.pack('>H', bool(answer)) + b'\0\0\0\0' + query[12:end] + answer, peer)


def serve(function, kind, port=0, address='127.0.0.1'):
    s = socket.socket(socket.AF_INET, kind)
    s.bind((address, port))
    if kind == socket.SOCK_STREAM:
        s.listen()
    threading.Thread(target=function, args=(s,), daemon=True).start()
    return s.getsockname()[1]


def web_server(address='127.0.0.1'):
    server = http.server.ThreadingHTTPServer((address, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def fetch(port, address='127.0.0.1'):
    """What the guest's web server has for /blob."""
    with contextlib.closing(http.client.HTTPConnection(address, port, timeout=60)) as h:
        h.request('GET', '/blob')
        return h.getresponse().read()


def upload(port, data, address='127.0.0.1'):
    with socket.create_connection((address, port), timeout=60) as s:
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        return b''.join(iter(lambda: s.recv(65536), b''))


def expect(what, got, wanted):
    return None if wanted in got else '%s: %r' % (what, got[-300:])


def up(m, address=None):
    """Waits for the shell and configures eth0, by DHCP if there is no address."""
    m.wait_for(READY)
    m.wait_for(PROMPT)
    m.command('dmesg -n 1')
    if address:
        m.command('ip addr add %s/24 dev eth0; ip link set eth0 up' % address)
        return None
    m.command('ip link set eth0 up')
    m.command("printf '%s\\n' '#!/bin/sh' '[ $1 = bound ] || exit 0' 'ip addr add $ip/$mask dev eth0' 'ip route add default via $router' "
              "'echo nameserver $dns >/etc/resolv.conf' >/lease; chmod +x /lease; mkdir -p /etc /www")
    return expect('DHCP', m.command('udhcpc -n -q -i eth0 -s /lease'), 'lease of 10.0.2.15 obtained')


def get(m, address, port):
    return expect('wget', m.command('wget -q -O - http://%s:%d/blob | sha256sum' % (address, port)), SUM)


def put(m, address, port):
    m.command('wget -q -O /www/blob http://%s:%d/blob' % (address, web))
    return expect('nc', m.command('nc %s %d </www/blob' % (address, port)), SUM)


def serve_in_guest(m, port, forwarded):
    """The guest's web server and a server that hashes what it gets; from the host."""
    m.command('httpd -h /www -p %d' % port)
    (address, fetch_port), (_, upload_port) = forwarded
    if hashlib.sha256(fetch(fetch_port, address)).hexdigest() != SUM:
        return 'what the guest served is not what it had'
    m.send('nc -l -p %d -e sha256sum' % (port + 1))
    m.wait_for(b'\n')
    for _ in range(50):
        try:
            got = upload(upload_port, BLOB, address)
        except OSError:
            got = b''
        if got:
            break
        time.sleep(0.2)
    m.wait_for(PROMPT)
    return expect('upload', got.decode(), SUM)


def user(m):
    return (up(m) or
            expect('ping', m.command('ping -c 2 10.0.2.2'), '2 packets received') or
            expect('a large ping', m.command('ping -c 2 -s 12000 10.0.2.2'), '2 packets received') or  # in fragments, where the MTU is small
            expect('its address', m.command('ip addr show eth0'), '52:54:00:ab:cd:ef') or
            get(m, '10.0.2.2', web) or
            put(m, '10.0.2.2', hasher) or
            serve_in_guest(m, 80, [('127.0.0.1', tcp_ports[0]), ('127.0.0.1', tcp_ports[1])]) or
            expect('UDP to the host', m.command('udp ask 10.0.2.2 %d 1400 20' % echo), 'all came back') or
            expect('large UDP', m.command('udp ask 10.0.2.2 %d 30000 5' % echo), 'all came back') or
            udp_to_guest(m) or
            (PRIVATE and expect('DNS', m.command('nslookup doppel.example 10.0.2.3'), '192.0.2.7')) or
            (has_ipv6() and ipv6(m)) or
            expect('refused', m.command('nc -w 5 10.0.2.2 1 </dev/null || echo refused'), 'refused') or
            power_off(m))


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as s:
            s.bind(('::1', 0))
        return True
    except OSError:
        return False


def ipv6(m):
    m.command('for i in 1 2 3 4 5 6 7 8 9 10; do ip -6 addr show eth0 | grep fec0 | grep -qv tentative && break; sleep 1; done')
    return expect('ping over IPv6', m.command('ping6 -c 2 fec0::2'), '2 packets received')


def udp_to_guest(m):
    m.command('udp serve 7 &')
    done = subprocess.run([path('udp'), 'ask', '127.0.0.1', str(udp_port), '1000', '20'], capture_output=True, text=True, timeout=60)
    return expect('UDP to the guest', done.stdout, 'all came back')


def power_off(m):
    m.send('poweroff -f')
    return ended_well(m)


def restart(m):
    """A reset in the middle of everything, then the same driver anew."""
    why = up(m)
    if why:
        return why
    m.command('wget -q -O - http://10.0.2.2:%d/blob >/dev/null &' % web)
    m.send('reboot -f')
    return up(m) or get(m, '10.0.2.2', web) or power_off(m)


def capped(m):
    """4 MiB at 1 MiB a second, either way, cannot take less than about 3.9 s."""
    why = up(m)
    if why:
        return why
    m.command('wget -q -O - http://10.0.2.2:%d/blob | head -c 2097152 >/www/blob' % web)
    seconds = 'a=$(cut -d. -f1 /proc/uptime); %s; echo seconds=$(($(cut -d. -f1 /proc/uptime) - a))'
    for command in ('wget -q -O - http://10.0.2.2:%d/blob | head -c 4194304 | wc -c' % web, 'cat /www/blob /www/blob | nc 10.0.2.2 %d' % hasher):
        text = m.command(seconds % command)
        took = re.search(r'seconds=(\d+)', text)
        if not took or int(took.group(1)) < 3:
            return '4 MiB at 1 MiB a second: %r' % text
    return power_off(m)


def restricted(m):
    return (up(m) or expect('the host', m.command('nc -w 3 10.0.2.2 %d </dev/null || echo none' % hasher), 'none') or
            serve_nothing(m) or power_off(m))


def serve_nothing(m):
    m.command('echo inside >/www/blob; httpd -h /www -p 80')
    return expect('a forward', fetch(tcp_ports[0]).decode(), 'inside')


def none(m):
    m.wait_for(READY)
    m.wait_for(PROMPT)
    if 'eth0' in m.command('ip link'):
        return 'there is an eth0'
    return power_off(m)


def tap(m):
    return (up(m, '192.0.2.2') or
            expect('ping', m.command('ping -c 2 192.0.2.1'), '2 packets received') or
            get(m, '192.0.2.1', web) or
            put_over_tap(m) or
            expect('UDP', m.command('udp ask 192.0.2.1 %d 1400 20' % tap_echo), 'all came back') or
            power_off(m))


def put_over_tap(m):
    m.command('mkdir -p /www')
    return put(m, '192.0.2.1', hasher) or serve_in_guest(m, 80, [('192.0.2.2', 80), ('192.0.2.2', 81)])


def run(name, body, *nets, **kind):
    options = [word for net in nets for word in ('--net', net)]
    c.check(name, verdict(body, Machine('net_' + name, initrd=path('initrd.gz'), options=options, **kind)))


if PRIVATE:
    interface('lo')
    with open(path('resolv.conf'), 'w') as f:
        f.write('nameserver 127.0.0.1\n')
    subprocess.run(['mount', '--bind', path('resolv.conf'), os.path.realpath('/etc/resolv.conf')], check=True)
    serve(dns_server, socket.SOCK_DGRAM, 53)
else:
    c.skip('dns', 'this host allows no network namespace')
    c.skip('tap', 'this host allows no network namespace')
subprocess.run(['cc', '-O1', '-static', '-o', path('udp'), os.path.join(HERE, 'udp.c')], check=True)
make_initrd('cloud', path('initrd.gz'), {'/bin/udp': path('udp')})
web, hasher, echo = web_server('0.0.0.0' if PRIVATE else '127.0.0.1'), None, serve(echo_server, socket.SOCK_DGRAM)
hasher = serve(hash_server, socket.SOCK_STREAM, address='0.0.0.0' if PRIVATE else '127.0.0.1')
tcp_ports, udp_port = (free_port(), free_port()), free_port(socket.SOCK_DGRAM)
FORWARDS = 'user,hostfwd=tcp::%d-:80,hostfwd=tcp:127.0.0.1:%d-10.0.2.15:81,hostfwd=udp:127.0.0.1:%d-:7' % (*tcp_ports, udp_port)

run('user', user, FORWARDS + ',mac=52:54:00:AB:cd:ef')
run('user_2cpu_small_mtu', user, FORWARDS + ',mtu=1500,mac=52:54:00:ab:cd:ef', cpus=2)
run('usual_and_restart', restart)
run('capped', capped, 'user,bps=1M')
run('restricted', restricted, 'user,restrict=on,hostfwd=tcp::%d-:80' % tcp_ports[0])
run('none', none, 'none')
if PRIVATE and os.access('/dev/net/tun', os.R_OK | os.W_OK):
    make_tap('doppel0', '192.0.2.1')
    tap_echo = serve(echo_server, socket.SOCK_DGRAM, address='192.0.2.1')
    run('tap', tap, 'tap=doppel0', cpus=2)
elif PRIVATE:
    c.skip('tap', 'no /dev/net/tun here')
c.done()
