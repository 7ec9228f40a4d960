"""For tests of the program itself: kernels of a few bytes (multiboot ELF32, entered in 32-bit mode), and results in the runner's form."""
import os, struct, subprocess, sys, tempfile

DOPPEL = os.environ.get('DOPPEL', os.path.join(os.path.dirname(__file__), '../../build/doppel'))
BASE = 0x100000

# Pieces of 32-bit code.
CLI_HLT = bytes.fromhex('fa f4 eb fd'.replace(' ', ''))                       # cli; 1: hlt; jmp 1b
SPIN = bytes.fromhex('ebfe')                                                  # jmp .
POWER_OFF = bytes.fromhex('66ba0406 66b80034 66ef'.replace(' ', '')) + CLI_HLT  # outw 0x3400 (S5, enable) to 0x604
RESET = bytes.fromhex('66baf90c b006 ee'.replace(' ', '')) + CLI_HLT          # outb 6 to 0xcf9
TRIPLE_FAULT = bytes.fromhex('6a00 6a00 0f011c24 0f0b'.replace(' ', ''))      # push 0; push 0; lidt [esp]; ud2

# Finds the PCI function 1b36:0011 and writes 1 to its BAR 0.
PANIC = bytes.fromhex('bb00000080 89d8 66baf80c ef 66bafc0c ed 3d361b1100 7408 81c300080000 ebe5'
                      '8d4310 66baf80c ef 66bafc0c ed 24f0 c60001'.replace(' ', ''))


def stack():
    return b'\xbc' + struct.pack('<I', BASE + 0x8000)  # mov esp, ...


def debug_exit(value):
    return b'\xb0' + bytes([value]) + b'\xe6\xf4' + CLI_HLT  # mov al, value; out 0xf4, al


def say(text):
    """Writes to the first serial port."""
    code = bytes.fromhex('66baf803')  # mov dx, 0x3f8
    for byte in text.encode():
        code += b'\xb0' + bytes([byte]) + b'\xee'
    return code


# out 0x3fc, 3 (DTR, RTS); 1: in al, 0x3fd; test al, 1; jz 1b; in al, 0x3f8; cmp al, 'q'; je 2f; out 0x3f8, al; jmp 1b; 2:
ECHO = bytes.fromhex('66bafc03 b003 ee 66bafd03 ec a801 74f7 66baf803 ec 3c71 7403 ee ebeb'.replace(' ', ''))


def kernel(folder, name, code):
    """A multiboot kernel that runs `code`; returns its path."""
    header = struct.pack('<III', 0x1badb002, 0, (-0x1badb002) & 0xffffffff)
    body = header + bytes(4) + stack() + code
    elf = struct.pack('<16sHHIIIIIHHHHHH', b'\x7fELF\x01\x01\x01', 2, 3, 1, BASE + 16, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    elf += struct.pack('<IIIIIIII', 1, 4096, BASE, BASE, len(body), 0x10000, 7, 4096)
    path = os.path.join(folder, name)
    with open(path, 'wb') as f:
        f.write(elf.ljust(4096, b'\0') + body)
    return path


class Checks:
    """Prints 'ok NAME' and 'FAIL NAME: why'; end() gives the status."""

    def __init__(self):
        self.bad = 0
        self.folder = tempfile.TemporaryDirectory(prefix='doppel-test.')
        self.dir = self.folder.name

    def check(self, name, why):
        """`why` is None, or what was wrong."""
        if why:
            self.bad += 1
            print('FAIL %s: %s' % (name, ' '.join(str(why).split())), flush=True)
        else:
            print('ok %s' % name, flush=True)

    def run(self, *args, timeout=30, input=b'', verb='run', stdout=subprocess.PIPE, preexec=None):
        argv = [DOPPEL] + ([verb] if verb else []) + list(args)
        return subprocess.run(argv, input=input, stdout=stdout, stderr=subprocess.PIPE, timeout=timeout, preexec_fn=preexec)

    def end(self):
        self.folder.cleanup()
        return 1 if self.bad else 0
