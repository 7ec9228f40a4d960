"""A whole Debian with systemd (guests/systemd.ext4): a copy of its own for each machine, login on the console, commands with their status."""
import os, subprocess

from linux import Ended, Machine, guest

LOGIN = b'doppel login: '
PROMPT = b'root@doppel:~# '


def copy_root(folder, name='systemd.ext4'):
    """The image, to be written to; sparse, and shared where the file system can."""
    path = os.path.join(folder, name)
    subprocess.run(['cp', '--sparse=always', '--reflink=auto', guest('systemd.ext4'), path], check=True)
    return path


class Debian(Machine):
    def __init__(self, name, disk, append='', **more):
        super().__init__(name, append=('root=/dev/vda ' + append).strip(), disks=(disk,), **more)

    def login(self):
        self.wait_for(LOGIN)
        self.send('root')
        self.wait_for(PROMPT)
        self.run('export TERM=dumb PAGER=cat SYSTEMD_COLORS=0; stty -echo cols 250; PS1=; bind "set enable-bracketed-paste off"')

    def run(self, line):
        """Output and status of a command line."""
        self.send(line + '; printf "e%sd=%d\\n" n $?')
        text = self.wait_for(b'end=')
        return text.strip(), int(self.wait_for(b'\n'))

    def must(self, line):
        """The output of a command line that is to succeed."""
        text, status = self.run(line)
        if status:
            raise Ended('%r gives status %d: %s' % (line, status, text[-300:]))
        return text


def fsck(image):
    """What e2fsck finds wrong with an image, or None."""
    done = subprocess.run(['e2fsck', '-fn', image], capture_output=True, text=True, env=dict(os.environ, PATH=os.environ['PATH'] + ':/usr/sbin:/sbin'))
    return 'e2fsck: ' + done.stdout[-500:] if done.returncode else None
